from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.controller.endings import classify
from htcebridge.model import EndedPilot, LivePilot, Outcome
from htcebridge.pilot.exit_codes import FAULTS
from htcebridge.pilot.logs import OutcomeLine
from htcebridge.plan.health import BACK_OFF_S, Rules, health
from htcebridge.slurm.text import Ended
from htcebridge.state.memory import Seen

NOW = 1_800_000_000
HOUR = 3600
RULES = Rules(FAULTS, window_s=24 * HOUR, quarantine_s=6 * HOUR)


def ended(minutes_ago: float, outcome: Outcome = Outcome.NEVER_JOINED, node: str = "lrdn0001", **changes) -> EndedPilot:
    at = NOW - int(minutes_ago * 60)
    joined = at - 200 if outcome in (Outcome.RAN, Outcome.PREEMPTED, Outcome.NEVER_MATCHED) else None
    pilot = EndedPilot(
        id=f"{minutes_ago}",
        resource="dcgp",
        plan_id="p",
        outcome=outcome,
        submitted=at - 600,
        started=at - 300,
        ended=at,
        joined=joined,
        node=node,
        exit_code=30 if outcome is Outcome.NEVER_JOINED else 0,
        said="condor_master ended with code 1" if outcome is Outcome.NEVER_JOINED else "",
    )
    return replace(pilot, **changes)


def running(joined_minutes_ago: float, node: str = "lrdn0099", resource: str = "dcgp") -> LivePilot:
    at = NOW - int(joined_minutes_ago * 60)
    return LivePilot("live", resource, node, at - 100, at)


def verdict(past: list[EndedPilot], live: tuple[LivePilot, ...] = ()):
    return health(past, live, NOW, RULES)["dcgp"]


# --------------------------------------------------------------------------- back-off


def test_two_failures_are_bad_luck_three_in_a_row_pause_the_resource() -> None:
    assert verdict([ended(2), ended(1, node="b")]).caps == ()
    (cap,) = verdict([ended(0.9), ended(0.7, node="b"), ended(0.5, node="c")]).caps
    assert cap.room == 0
    assert "3 pilots in a row failed" in cap.why
    assert "condor_master ended with code 1" in cap.why


def test_after_the_pause_one_pilot_at_a_time_is_tried() -> None:
    (cap,) = verdict([ended(9), ended(8, node="b"), ended(7, node="c")]).caps
    assert (cap.room, cap.in_flight) == (1, True)


@given(st.integers(3, 20))
def test_each_further_failure_makes_the_pause_longer_up_to_an_hour(failures: int) -> None:
    pause = BACK_OFF_S[min(failures - 3, len(BACK_OFF_S) - 1)]
    past = [ended((pause - 1) / 60 + number, node=f"n{number}") for number in range(failures)]
    (cap,) = health(past, (), NOW, RULES)["dcgp"].caps
    assert cap.room == 0
    (probe,) = health(past, (), NOW + 2, RULES)["dcgp"].caps
    assert probe.room == 1


def test_a_pilot_that_joins_ends_the_back_off_while_it_still_runs() -> None:
    past = [ended(9), ended(8, node="b"), ended(7, node="c")]
    assert verdict(past, (running(5),)).caps == ()
    assert verdict(past, (running(10),)).caps != ()


@pytest.mark.parametrize(
    "outcome", [Outcome.PREEMPTED, Outcome.CANCELLED_BY_US, Outcome.CANCELLED_BY_OTHERS, Outcome.RAN]
)
def test_preemptions_and_cancellations_are_no_failures(outcome: Outcome) -> None:
    assert verdict([ended(number / 10, outcome) for number in range(1, 9)]).caps == ()


def test_what_lies_before_the_window_is_forgotten() -> None:
    assert verdict([ended(24 * 60 + number) for number in (3, 2, 1)]).caps == ()


# --------------------------------------------------------------------------- quarantine


def test_a_node_on_which_two_pilots_failed_is_excluded_with_its_evidence() -> None:
    found = verdict([ended(30), ended(20)], (running(25),))
    assert found.exclude == ("lrdn0001",)
    assert "2 pilots in a row failed there (condor_master ended with code 1), until" in found.notes[0]


def test_where_nobody_joins_it_is_not_the_nodes() -> None:
    past = [ended(number, node=f"n{number % 3}") for number in range(1, 10)]
    assert verdict(past).exclude == ()
    assert verdict(past).caps


def test_a_bad_node_does_not_hold_its_resource_back() -> None:
    assert verdict([ended(number) for number in range(1, 9)], (running(60),)).caps == ()


def test_quarantine_ends_and_one_more_failure_renews_it() -> None:
    past = [ended(7 * 60), ended(6 * 60 + 1)]
    assert verdict(past, (running(60),)).exclude == ()
    assert verdict([*past, ended(1)], (running(60),)).exclude == ("lrdn0001",)


@pytest.mark.parametrize("code", [11, 13, 17, 19, 23, 24, 25, 27, 29, 31])
def test_one_failure_is_enough_where_the_pilot_blames_the_node(code: int) -> None:
    assert verdict([ended(20, exit_code=code)], (running(25),)).exclude == ("lrdn0001",)


def test_in_an_outage_in_which_nobody_joins_no_node_is_blamed() -> None:
    outage = [ended(20 + number, node=f"n{number}", exit_code=31) for number in range(5)]
    assert verdict(outage, (running(60), running(5))).exclude == ()


@pytest.mark.parametrize(("failures", "hours"), [(2, 6), (3, 12), (4, 24), (5, 48), (9, 48)])
def test_each_further_failure_doubles_the_quarantine_up_to_eight_times(failures: int, hours: int) -> None:
    past = [ended(hours * 60 - 1 + 30 * number) for number in range(failures)]
    there = tuple(running(hours * 60 + minutes) for minutes in range(0, 300, 10))
    assert verdict(past, there).exclude == ("lrdn0001",)
    assert health(past, there, NOW + 120, RULES)["dcgp"].exclude == ()


def test_a_pilot_that_has_not_joined_in_time_has_failed_though_it_still_runs() -> None:
    lost = tuple(LivePilot(f"{number}", "dcgp", "lrdn0001", NOW - 1000 - number, None) for number in range(2))
    booting = tuple(replace(each, started=NOW - 800) for each in lost)
    assert verdict([], (*lost, running(15))).exclude == ("lrdn0001",)
    assert verdict([], (*booting, running(15))).exclude == ()
    mute = ended(1, node="mute", exit_code=0, started=NOW - 1300)
    assert verdict([mute], (running(15),)).exclude == ("mute",)


def test_a_pilot_that_joins_on_the_node_clears_it() -> None:
    assert verdict([ended(30), ended(20)], (running(25), running(10, node="lrdn0001"))).exclude == ()


@pytest.mark.parametrize("code", [12, 14, 15, 16, 18, 28])
def test_what_no_other_node_would_change_is_not_the_nodes_fault(code: int) -> None:
    assert verdict([ended(30, exit_code=code), ended(20, exit_code=code)], (running(25),)).exclude == ()


def test_one_resources_bad_node_is_not_anothers() -> None:
    past = [ended(30), ended(20)]
    found = health(past, (running(25), running(25, resource="booster")), NOW, RULES)
    assert found["booster"].exclude == ()


def test_quarantine_can_be_switched_off() -> None:
    rules = replace(RULES, quarantine_s=0)
    assert health([ended(30), ended(20)], (running(25),), NOW, rules)["dcgp"].exclude == ()


# --------------------------------------------------------------------------- joined, never matched


def test_pilots_that_starve_raise_an_alarm_that_names_the_suspects() -> None:
    found = verdict([ended(number, Outcome.NEVER_MATCHED, starved=True) for number in (3, 2, 0.5)])
    assert found.caps[0].room == 0
    for suspect in ("START", "token", "quota"):
        assert suspect in found.alarms[0]


def test_pilots_that_got_no_job_because_none_waited_are_no_alarm() -> None:
    assert verdict([ended(number, Outcome.NEVER_MATCHED) for number in range(1, 9)]).alarms == ()


# --------------------------------------------------------------------------- the rate of preemption


def test_the_rate_counts_the_hours_of_those_that_still_run() -> None:
    hour_long = ended(0, Outcome.PREEMPTED, started=NOW - HOUR)
    assert verdict([hour_long]).preemptions_per_hour == pytest.approx(1.0)
    still = LivePilot("l", "dcgp", "n", NOW - 3 * HOUR, NOW - 3 * HOUR)
    assert verdict([hour_long], (still,)).preemptions_per_hour == pytest.approx(0.25)


@given(
    st.lists(st.builds(ended, st.floats(0, 2000), st.sampled_from(list(Outcome)), st.sampled_from("abc")), max_size=30)
)
def test_the_verdict_depends_on_nothing_but_history_and_time(past: list[EndedPilot]) -> None:
    first = health(past, (), NOW, RULES)
    assert health(list(reversed(past)), (), NOW, RULES).keys() == first.keys()
    assert health(past, (), NOW, RULES) == first
    assert all(found.preemptions_per_hour >= 0 and len(found.exclude) <= 50 for found in first.values())


# --------------------------------------------------------------------------- what became of it

UID = 1000


def slurm_says(state: str, started: bool = True, **changes) -> Ended:
    base = Ended(
        id="7_1",
        state=state,
        cancelled_by=None,
        exit_code=0,
        signal=0,
        submitted=NOW - 900,
        started=NOW - 600 if started else None,
        ended=NOW,
        node="lrdn0001" if started else "",
        elapsed_s=600 if started else 0,
        nodes=1 if started else 0,
        reason="None",
    )
    return replace(base, **changes)


NOTHING = Seen("dcgp", "p")
JOINED = replace(NOTHING, joined=NOW - 500)
WORKED = replace(JOINED, worked=True)


@pytest.mark.parametrize(
    ("said_by_slurm", "seen", "said", "outcome"),
    [
        (slurm_says("COMPLETED"), WORKED, None, Outcome.RAN),
        (slurm_says("COMPLETED"), JOINED, OutcomeLine(0, True, 3, "idle"), Outcome.RAN),
        (slurm_says("COMPLETED"), NOTHING, OutcomeLine(0, True, 1, "idle"), Outcome.RAN),
        (slurm_says("COMPLETED"), JOINED, OutcomeLine(0, True, 0, "idle"), Outcome.NEVER_MATCHED),
        (slurm_says("FAILED", exit_code=31), NOTHING, OutcomeLine(31, False, 0, "no pool"), Outcome.NEVER_JOINED),
        (slurm_says("COMPLETED"), NOTHING, OutcomeLine(0, False, 0, "drained: stop"), Outcome.CANCELLED_BY_US),
        (slurm_says("COMPLETED"), JOINED, OutcomeLine(0, True, 0, "drained: tail"), Outcome.CANCELLED_BY_US),
        (slurm_says("FAILED", exit_code=11), NOTHING, OutcomeLine(11, False, 0, "no CVMFS"), Outcome.NEVER_JOINED),
        (slurm_says("FAILED", exit_code=11), NOTHING, None, Outcome.NEVER_JOINED),
        (slurm_says("COMPLETED"), NOTHING, None, Outcome.UNKNOWN),
        (slurm_says("OUT_OF_MEMORY"), WORKED, None, Outcome.RAN),
        (slurm_says("PREEMPTED"), WORKED, None, Outcome.PREEMPTED),
        (slurm_says("PREEMPTED"), NOTHING, None, Outcome.PREEMPTED),
        (slurm_says("TIMEOUT"), WORKED, None, Outcome.TIMED_OUT),
        (slurm_says("TIMEOUT"), NOTHING, None, Outcome.NEVER_JOINED),
        (slurm_says("NODE_FAIL"), WORKED, None, Outcome.NODE_FAILED),
        (slurm_says("BOOT_FAIL"), NOTHING, None, Outcome.NODE_FAILED),
        (slurm_says("CANCELLED", False), replace(NOTHING, cancelled=True), None, Outcome.CANCELLED_BY_US),
        (slurm_says("CANCELLED", cancelled_by=UID), replace(WORKED, cancelled=True), None, Outcome.CANCELLED_BY_US),
        (slurm_says("CANCELLED", cancelled_by=UID), WORKED, None, Outcome.CANCELLED_BY_OTHERS),
        (slurm_says("CANCELLED", cancelled_by=0), replace(WORKED, cancelled=True), None, Outcome.CANCELLED_BY_OTHERS),
        (slurm_says("DEADLINE", False), NOTHING, None, Outcome.NEVER_STARTED),
        (slurm_says("WHATEVER"), WORKED, None, Outcome.UNKNOWN),
    ],
)
def test_each_end_has_its_outcome(said_by_slurm: Ended, seen: Seen, said: OutcomeLine | None, outcome: Outcome) -> None:
    assert classify(said_by_slurm, seen, UID, said).outcome is outcome


def test_a_state_that_is_not_known_stays_visible() -> None:
    assert classify(slurm_says("WHATEVER"), WORKED, UID, None).said == "Slurm's state WHATEVER"


def test_a_manual_glidein_is_judged_by_its_exit_code_alone() -> None:
    assert classify(slurm_says("COMPLETED"), replace(NOTHING, executor=True), UID, None).outcome is Outcome.RAN
    assert classify(slurm_says("FAILED"), replace(NOTHING, executor=True), UID, None).outcome is Outcome.NEVER_JOINED


@pytest.mark.parametrize(("cycles", "starved"), [(2, False), (3, True)])
def test_a_pilot_starves_only_if_jobs_waited_for_it_for_some_cycles(cycles: int, starved: bool) -> None:
    seen = replace(JOINED, starved=cycles)
    assert classify(slurm_says("COMPLETED"), seen, UID, None).starved is starved
