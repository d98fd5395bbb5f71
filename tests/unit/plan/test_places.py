from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.model import Group, PilotPhase, Shape, Situation, Streaks
from htcebridge.plan import places, planner
from htcebridge.plan.places import Left, sentences
from tests.unit.plan.made import (
    EAGER,
    GPU_NODE,
    HOUR,
    NOW,
    cycles,
    decide,
    jobs,
    limits,
    pilot,
    pilots_of,
    plan,
    waiting,
)

NOTHING = "nothing waits for this resource"


@given(cycles, st.booleans())
def test_every_idle_job_has_a_place_opens_a_node_or_has_a_sentence(cycle: tuple, either: bool) -> None:
    demand, there, caps, policy, now, surplus = cycle
    demand = replace(demand, groups=tuple(replace(group, either=either) for group in demand.groups))
    found = places.find(Situation(now, demand, tuple(there), caps, policy), dict.fromkeys(caps, 5))
    in_nodes = sum(bin_.jobs * bin_.count for bin_ in (*found.there, *found.opened))
    assert in_nodes - found.again + sum(each.jobs for each in found.left) == sum(group.idle for group in demand.groups)
    decided = plan(demand, there, caps, policy, now, surplus)
    for each in found.left:
        assert each.why
        assert each.jobs > 0
        for name in each.why:
            assert set(sentences(found.left, name)) <= set(decided.resources[name].reasons)


@given(cycles)
def test_what_demand_calls_nowhere_is_what_the_plan_says_no_resource_takes(cycle: tuple) -> None:
    demand, there, caps, policy, now, _ = cycle
    found = places.find(Situation(now, demand, tuple(there), caps, policy), dict.fromkeys(caps, 5))
    said = sum(each.jobs for each in found.left if any("that no resource takes" in why for why in each.why.values()))
    nowhere = [group for group in demand.groups if not any(name in caps for name in group.resources)]
    assert said <= sum(group.idle for group in nowhere)
    assert said >= sum(group.idle for group in nowhere if not any(name in caps for name in group.standing))


@pytest.mark.parametrize(
    ("group", "says"),
    [
        (jobs(12, walltime_s=10 * HOUR), "12 jobs of 10h: a pilot gives a job 8h at most"),
        (jobs(1, cpus=200), "1 job of 200 cpus: a pilot has 112"),
        (jobs(2, shape=Shape(1, 600_000)), "2 jobs of 600000 MB memory: a pilot has 490000"),
        (jobs(3, shape=Shape(1, 1, gpus=1)), "3 jobs of 1 GPUs: a pilot has 0"),
        (jobs(4, resources=("gone",)), "4 jobs that no resource takes: they do not fit"),
        (jobs(5, resources=(), why_not={"dcgp": "no CVMFS"}), "5 jobs that no resource takes: no CVMFS"),
    ],
)
def test_jobs_that_no_pilot_takes_are_named_with_their_number(group: Group, says: str) -> None:
    decision = decide(waiting(group), limit=limits(walltime_s=8 * HOUR + 540, job_life_s=8 * HOUR))
    assert decision.reasons == (says,)
    assert decision.submit == 0


def test_a_walltime_that_the_resource_has_of_its_own_counts_for_them() -> None:
    decision = decide(waiting(jobs(1, walltimes={"dcgp": 20 * HOUR})))
    assert decision.reasons == ("1 job of 20h: a pilot gives a job 11h51m at most",)


def test_a_job_that_one_resource_takes_has_no_sentence_on_the_other() -> None:
    caps = {"dcgp": limits(), "booster": limits("booster", node=GPU_NODE)}
    decided = plan(waiting(jobs(1, cpus=64, resources=("dcgp", "booster"))), [], caps, EAGER, NOW).resources
    assert decided["booster"].reasons == (NOTHING,)
    assert decided["dcgp"].submit == 1


def test_jobs_that_only_a_constant_resource_takes_are_named_there() -> None:
    decision = decide(waiting(jobs(3)), limit=limits(constant=True, max_running=0))
    assert "3 jobs wait for a place: constant mode opens no node for them" in decision.reasons


def test_a_constant_resources_free_pilots_are_their_place() -> None:
    found = decide(waiting(jobs(3)), pilots_of(PilotPhase.JOINED, 1), limits(constant=True, max_running=1))
    assert not any("wait for a place" in reason for reason in found.reasons)


def test_sentences_are_few_the_largest_first_and_the_last_has_the_rest() -> None:
    left = [Left(number, {"dcgp": f"of {number}h"}) for number in range(1, 9)] + [Left(100, {"other": "x"})]
    said = sentences([*left, Left(2, {"dcgp": "of 1h"})], "dcgp")
    assert said == ("8 jobs of 8h", "7 jobs of 7h", "6 jobs of 6h", "5 jobs of 5h", "... and 12 more jobs in 5 groups")


def test_what_a_sentence_quotes_of_a_job_is_cut() -> None:
    long = jobs(1, resources=(), why_not={"dcgp": "the job's Requirements: " + "x " * 5000})
    assert len(decide(waiting(long)).reasons[0]) < 250


# --------------------------------------------------------------------------- ads that lag behind the queue


def test_jobs_that_fitted_into_joined_pilots_a_cycle_ago_are_looked_at_once_more() -> None:
    def submitted(promised: int, wanted: int = 0, idle: int = 14) -> int:
        streaks = Streaks(wanted={"dcgp": wanted}, promised=promised)
        full = pilot(1, PilotPhase.JOINED, free=Shape(0, 0), jobs=14)
        situation = Situation(NOW, waiting(jobs(idle)), (full,), {"dcgp": limits()}, EAGER, streaks)
        return planner.plan(situation).resources["dcgp"].submit

    assert submitted(promised=14) == 0
    assert submitted(promised=14, wanted=1) == 1, "no more than once"
    assert submitted(promised=14, idle=28) == 2, "more jobs than fitted"
    assert submitted(promised=0) == 1


def test_a_plan_says_how_many_jobs_fit_into_joined_pilots_to_the_next_one() -> None:
    there = [*pilots_of(PilotPhase.JOINED, 1), *pilots_of(PilotPhase.BOOTING, 1, first=7)]
    assert plan(waiting(jobs(20)), there, {"dcgp": limits()}, EAGER, NOW).streaks.promised == 14
