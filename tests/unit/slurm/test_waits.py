from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.model import Pilot, PilotPhase, SlurmJob, Wait
from htcebridge.slurm.reservations import Maintenance
from htcebridge.slurm.waits import by_maintenance, chance, in_turn, is_known, wait_of

# Every word of Slurm's source, 22.05 to 26.05, with what it means for a pilot, written by hand.
REASONS = [
    line.split() for line in (Path(__file__).parents[2] / "slurm_outputs" / "reasons.txt").read_text().splitlines()
]


def test_no_word_of_slurms_source_is_missing() -> None:
    assert len(REASONS) == len({reason for reason, _ in REASONS}) == 221


@pytest.mark.parametrize(("reason", "means"), REASONS)
def test_each_reason_of_slurms_source_has_its_meaning(reason: str, means: str) -> None:
    assert is_known(reason)
    assert wait_of(reason, "PENDING") is Wait(means)


@pytest.mark.parametrize(
    ("sentence", "means"),
    [
        ("ReqNodeNotAvail, UnavailableNodes:lrdn[0001-0003]", Wait.OUTAGE),
        ("ReqNodeNotAvail, Reserved for maintenance", Wait.OUTAGE),
        ("ReqNodeNotAvail,_Reserved_for_maintenance", Wait.OUTAGE),
        ("ReqNodeNotAvail, May be reserved for other job", Wait.OUTAGE),
        ("Job's account not permitted to use this partition (p allows paying not inf24)", Wait.NEVER),
        ("Job's QOS not permitted to use this partition (p denies low including low)", Wait.NEVER),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            Wait.NORMAL,
        ),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs", Wait.NORMAL),
        ("Reservation gone was deleted", Wait.NEVER),
        ("Reservation gone is invalid", Wait.NEVER),
        ("uid 30001 not in group permitted to use this partition (p). groups allowed: root", Wait.NEVER),
        ("job requeued in held state", Wait.HELD),
        ("launch failed requeued held", Wait.HELD),
        ("launch_failed_requeued_held", Wait.HELD),
        ("RaisedSignal:9(Killed)", Wait.NORMAL),
        (
            "Job is at or exceeds QOS low's group max TRES(cpu) minutes of 10 with 20",
            Wait.BUDGET,
        ),
        ("Job is at or exceeds association (acc=a/user=u/part=p) group wall limit 5 with 6", Wait.BUDGET),
        ("Job is at or exceeds QOS low's max TRES(cpu) minutes of 10 with 20", Wait.NEVER),
        ("burst_buffer/lua: Stage-out in progress", Wait.NORMAL),
        ("burst_buffer/lua: Invalid burst buffer spec (x)", Wait.NEVER),
    ],
)
def test_slurmctlds_sentences_have_their_meaning(sentence: str, means: Wait) -> None:
    assert is_known(sentence)
    assert wait_of(sentence, "PENDING") is means


RESERVED = "ReqNodeNotAvail, Reserved for maintenance"


@pytest.mark.parametrize(
    ("wait", "reason", "begins_in_s", "whole", "means"),
    [
        (Wait.OUTAGE, RESERVED, 3600, True, Wait.MAINTENANCE),
        (Wait.NORMAL, "Resources", 3600, True, Wait.MAINTENANCE),
        (Wait.NORMAL, "Resources", 7201, True, Wait.NORMAL),
        (Wait.OUTAGE, RESERVED, 7201, True, Wait.OUTAGE),
        (Wait.OUTAGE, RESERVED, 3600, False, Wait.NORMAL),
        (Wait.OUTAGE, "ReqNodeNotAvail, UnavailableNodes:lrdn1", 3600, False, Wait.OUTAGE),
        (Wait.OUTAGE, "PartitionDown", 3600, True, Wait.OUTAGE),
        (Wait.LIMIT, "QOSMaxJobsPerUserLimit", 3600, True, Wait.LIMIT),
        (Wait.OUTAGE, RESERVED, -86400, True, Wait.OUTAGE),
    ],
)  # fmt: skip
def test_a_maintenance_explains_why_a_long_pilot_waits(
    wait: Wait, reason: str, begins_in_s: int, whole: bool, means: Wait
) -> None:
    known = [Maintenance("maint", 10**6 + begins_in_s, 10**6 + begins_in_s + 3600, whole)]
    assert by_maintenance(wait, reason, 7200, known, 10**6) is means


@pytest.mark.parametrize("reason", ["SomethingNew", "", "QOSMaxSmellPerUserLimit", "AssocGrpNodeLimitX", "priority"])
def test_a_reason_of_a_later_slurm_is_normal_and_not_known(reason: str) -> None:
    assert not is_known(reason)
    assert wait_of(reason, "PENDING") is Wait.NORMAL


def test_only_a_job_that_has_not_started_waits_for_its_reason() -> None:
    assert wait_of("PartitionTimeLimit", "RUNNING") is Wait.NORMAL
    assert wait_of("TimeLimit", "COMPLETING") is Wait.NORMAL


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
def test_a_job_that_was_requeued_into_hold_is_held(state: str) -> None:
    assert wait_of("None", state) is Wait.HELD


NOW = 1_800_000_000
HOUR = 3600
waits = st.lists(st.integers(0, 7 * 24 * HOUR), max_size=200)
ages = st.integers(0, 8 * 24 * HOUR)
horizons = st.integers(0, 48 * HOUR)
estimates = st.none() | st.integers(-HOUR, 72 * HOUR)


def test_without_history_every_pilot_is_likely() -> None:
    assert chance(5 * HOUR, None, [], HOUR) == 1


def test_slurms_estimate_within_the_horizon_is_taken_at_its_word() -> None:
    assert chance(9 * HOUR, 2 * HOUR, [60] * 50, 2 * HOUR) == 1


def test_slurms_estimate_beyond_the_horizon_leaves_it_to_history() -> None:
    assert chance(0, 3 * HOUR, [600, 600, 600, 9 * HOUR], 2 * HOUR) == 0.75


def test_of_the_waits_that_lasted_longer_the_share_that_ended_in_time_counts() -> None:
    # Older than two of six; of the four left, one ended within the next hour.
    assert chance(HOUR, None, [60, 1800, HOUR + 60, 3 * HOUR, 4 * HOUR, 5 * HOUR], HOUR) == 0.25


def test_older_than_nearly_all_of_twenty_waits_is_hopeless() -> None:
    history = [60 * number for number in range(1, 20)] + [30 * HOUR]
    assert chance(19 * 60, None, history, HOUR) == 0  # one is left, which took 30 hours
    assert chance(20 * 60, None, history, 100 * HOUR) == 0  # beyond the 95th percentile
    assert chance(20 * 60, None, history[1:], 100 * HOUR) == 1  # nineteen waits don't say so


def test_older_than_each_of_a_few_waits_is_not_yet_hopeless() -> None:
    assert chance(2 * HOUR, None, [60, 600], HOUR) == 1


@given(ages, estimates, waits, horizons)
def test_a_chance_is_a_probability(age: int, starts_in: int | None, history: list[int], horizon: int) -> None:
    assert 0 <= chance(age, starts_in, history, horizon) <= 1


@given(ages, estimates, waits, horizons, st.integers(0, 48 * HOUR))
def test_more_time_never_makes_a_start_less_likely(
    age: int, starts_in: int | None, history: list[int], horizon: int, more: int
) -> None:
    assert chance(age, starts_in, history, horizon) <= chance(age, starts_in, history, horizon + more)


@given(ages, waits, horizons, st.randoms())
def test_the_order_of_the_history_does_not_matter(age: int, history: list[int], horizon: int, random: object) -> None:
    shuffled = sorted(history, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert chance(age, None, history, horizon) == chance(age, None, shuffled, horizon)


@given(st.lists(st.integers(0, 100 * HOUR), min_size=20, max_size=200), horizons)
def test_older_than_every_known_wait_is_hopeless(history: list[int], horizon: int) -> None:
    assert chance(max(history) + 1, None, history, horizon) == 0


@given(ages, horizons, st.lists(st.integers(1, 100 * HOUR), min_size=1, max_size=200))
def test_all_that_waited_longer_and_started_in_time_make_it_certain(age: int, horizon: int, more: list[int]) -> None:
    history = [age + 1 + extra % max(1, horizon) for extra in more]
    assert chance(age, None, history, horizon + 1) == 1


def pending(number: int, age_s: int, chance: float, starts: int | None = None, **changes: object) -> Pilot:
    job = SlurmJob(f"{number}_1", "dcgp", "p", "PENDING", "Priority", "p", "q", "a", "", NOW - age_s, None, None, HOUR)
    return Pilot(replace(job, starts=starts, **changes), PilotPhase.PENDING, chance=chance)  # type: ignore[arg-type]


def chances(*pilots: Pilot) -> list[float]:
    return [each.chance for each in in_turn(pilots, NOW, 2 * HOUR)]


def test_a_newer_pilot_is_never_luckier_than_an_older_one_in_the_same_queue() -> None:
    assert chances(pending(3, 0, 1.0), pending(1, 9 * HOUR, 0.5), pending(2, HOUR, 0.7)) == [0.5, 0.5, 0.5]
    assert chances(pending(1, 9 * HOUR, 0.9), pending(2, HOUR, 0.7)) == [0.9, 0.7]


def test_another_queue_a_shorter_walltime_and_slurms_own_word_make_one_luckier() -> None:
    old = pending(1, 9 * HOUR, 0.0)
    assert chances(old, pending(2, 0, 1.0, resource="zweite"))[1] == 1
    assert chances(old, pending(2, 0, 1.0, time_limit_s=600))[1] == 1
    assert chances(old, pending(2, 0, 1.0, starts=NOW + HOUR))[1] == 1
    assert chances(old, pending(2, 0, 1.0, starts=NOW + 3 * HOUR))[1] == 0


def test_one_that_waits_for_a_limit_says_nothing_about_the_others() -> None:
    assert chances(replace(pending(1, HOUR, 0.0), wait=Wait.LIMIT), pending(2, 0, 1.0))[1] == 1
