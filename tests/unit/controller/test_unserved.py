from __future__ import annotations

from collections.abc import Sequence

import pytest

from htcebridge.controller import unserved
from htcebridge.controller.observation import Collector, Marks, Near, Observation, Source, Waiting
from htcebridge.model import Demand, Group, Pilot, PilotPhase, Shape, SlurmJob, Startd
from htcebridge.state.memory import Negotiations
from htcebridge.tier1.pool import Negotiation

NOW = 1_800_000_000
PERIOD_S = 60


def group(*keys: str, idle: int = 5) -> Group:
    return Group(Shape(8, 16000), 3600, "cmspil", "cms", idle, 0, 60, ("dcgp",), keys=keys)


def startd(id_: str = "7_1", free: int = 50, jobs: int = 1, accepting: bool = True) -> Startd:
    whole = Shape(112, 490_000)
    return Startd(id_, f"slot1@{id_}", "x", whole, Shape(free, 100_000), jobs, NOW + 9999, accepting=accepting)


def look(
    at: int, groups: Sequence[Group], startds: Sequence[Startd], ended: int | None = None, tail: Sequence[str] = ()
) -> Observation:
    """What is seen `at` seconds; the negotiator ended a cycle `ended`, which is now if not said."""
    now = NOW + at
    negotiators = (Negotiation(NOW + (at if ended is None else ended), PERIOD_S),)
    near = Near(now, 1000, Source(now), Source(now, Marks(tail=frozenset(tail))), Source(now), Source(now, ()))
    collector = Collector(tuple(startds), frozenset(), negotiators=negotiators)
    return Observation(
        near, Source(now, collector), Source(now, Waiting(Demand(tuple(groups), ()), {})), ends=Source(now, ())
    )


def after(*looks: Observation) -> tuple[int, int]:
    """For how many cycles the first group has waited by the last of these looks, and the first pilot was left alone."""
    known = Negotiations()
    for each in looks:
        known = unserved.learn(known, each)
    demand = unserved.waited(looks[-1].demand, known)
    job = SlurmJob("7_1", "dcgp", "p", "RUNNING", "", "", "", "", "", NOW, NOW, NOW + 9999, 9999)
    pilot = unserved.untouched(Pilot(job, PilotPhase.JOINED), known)
    return demand.groups[0].waited if demand.groups else 0, pilot.untouched


def test_cycles_count_from_the_first_look_on() -> None:
    assert after(look(0, [group("a")], [startd()])) == (0, 0)
    assert after(look(0, [group("a")], [startd()]), look(179, [group("a")], [startd()])) == (2, 2)
    assert after(look(0, [group("a")], [startd()]), look(180, [group("a")], [startd()])) == (3, 3)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ((group("a", idle=0), startd()), (2, 5)),
        ((group("b"), startd()), (2, 5)),
        ((group("a"), startd(free=49)), (5, 2)),
        ((group("a"), startd(jobs=2)), (5, 2)),
        ((group("a"), startd(accepting=False)), (5, 2)),
        ((group("a"), startd("8_1")), (5, 2)),
    ],
)
def test_a_look_at_which_it_was_otherwise_begins_anew(between: tuple[Group, Startd], expected: tuple[int, int]) -> None:
    waiting, there = between
    looks = (look(0, [group("a")], [startd()]), look(170, [waiting], [there]), look(180, [group("a")], [startd()]))
    assert after(*looks, look(300, [group("a")], [startd()])) == expected


def test_a_pilot_that_we_drain_is_offered_to_nobody() -> None:
    looks = [look(at, [group("a")], [startd()], tail=["7_1"]) for at in (0, 600)]
    assert after(*looks) == (10, 0)


def test_what_we_look_at_seldom_counts_as_seldom() -> None:
    known = Negotiations()
    for at in (0, 240):
        known = unserved.learn(known, look(at, [group("a")], [startd()]), looks_s=120)
    assert known.cycles_since(known.waiting["a"]) == 2


def test_a_negotiator_that_is_down_gives_nothing_and_says_nothing() -> None:
    assert after(look(0, [group("a")], [startd()], 0), look(9999, [group("a")], [startd()], 10)) == (0, 0)


def test_a_negotiator_whose_clock_is_ahead_is_not_ahead_of_us() -> None:
    assert after(look(0, [group("a")], [startd()], 5000), look(60, [group("a")], [startd()], 5060)) == (1, 1)


def test_of_several_the_one_that_is_behind_counts() -> None:
    assert unserved.last_cycle((Negotiation(NOW - 5, 60), Negotiation(NOW - 50, 300)), NOW) == (NOW - 50, 300)
    assert unserved.last_cycle((Negotiation(0, 0),), NOW) is None


def test_merged_jobs_have_waited_as_long_as_the_first_of_them() -> None:
    looks = (look(0, [group("a")], []), look(180, [group("b")], []), look(300, [group("b", "c")], []))
    assert after(*looks) == (2, 0)


def test_what_no_collector_says_is_remembered() -> None:
    known = unserved.learn(Negotiations(ended=NOW - 50, period_s=60), look(0, [], [], ended=-NOW))
    assert (known.ended, known.period_s) == (NOW - 50, 60)
