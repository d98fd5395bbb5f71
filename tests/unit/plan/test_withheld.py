"""What the negotiator does not give is no supply: new pilots are tried, few at a time, and a person is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from htcebridge.model import Group, Pilot, PilotPhase, ResourcePlan, Shape
from htcebridge.plan.packing import A_FEW_CYCLES
from tests.unit.plan.made import EAGER, NOW, decide, jobs, limits, pilot, plan, waiting


def standing(number: int, cycles: int = A_FEW_CYCLES, busy: int = 1) -> Pilot:
    """A joined pilot with half of its node free, or all, and nothing of that taken for so many cycles."""
    free = {"free": Shape(56, 245_000, 0, 1_000_000)} if busy else {}
    return replace(pilot(number, PilotPhase.JOINED, jobs=busy, **free), untouched=cycles)


def ignored(idle: int, cycles: int = A_FEW_CYCLES, **changes: object) -> Group:
    return jobs(idle, waited=cycles, keys=("a",), **changes)


def said(decision: ResourcePlan, words: str) -> bool:
    return any(words in reason for reason in decision.reasons)


@pytest.mark.parametrize(("pilots", "waited"), [(2, 9), (9, 2)])
def test_what_stands_still_for_less_than_a_few_cycles_is_supply(pilots: int, waited: int) -> None:
    decision = decide(waiting(ignored(7, waited)), [standing(1, pilots)])
    assert decision.submit == 0
    assert said(decision, "7 waiting jobs fit into joined pilots")


def test_then_it_is_none_and_one_new_pilot_is_tried() -> None:
    decision = decide(waiting(ignored(100)), [standing(1)])
    assert decision.submit == 1, "though 100 jobs of 8 cores want eight"
    assert said(
        decision, "1 joined pilot (1_1) could take 7 waiting jobs, but the negotiator has not started them there"
    )
    assert said(
        decision, "86 jobs that fit into joined pilots: the negotiator has not started them there for 3 negotiation"
    )
    assert said(decision, "1 new pilot will show whether it is those")


@pytest.mark.parametrize("phase", [PilotPhase.PENDING, PilotPhase.BOOTING, PilotPhase.JOINED])
def test_while_that_one_is_on_its_way_or_fresh_the_others_wait(phase: PilotPhase) -> None:
    assert decide(waiting(ignored(100)), [standing(1), pilot(2, phase)]).submit == 0


def test_when_that_one_gets_none_either_no_other_is_tried_and_none_is_drained() -> None:
    there, policy = [standing(1), standing(2, busy=0)], replace(EAGER, drain_fill=0.9, surplus_cycles=1)
    decision = decide(waiting(ignored(100)), there, policy=policy)
    assert decision.submit == 0
    assert said(decision, "1 pilot without any job got none of them either: no new one is tried")
    assert decision.drain == ()


def test_one_bad_pilot_among_many_does_not_slow_the_others() -> None:
    good = [pilot(number, PilotPhase.JOINED, jobs=14, free=Shape(0, 0)) for number in range(2, 12)]
    assert decide(waiting(ignored(100)), [standing(1), *good]).submit == 8


def test_a_limit_that_the_negotiator_names_is_nothing_for_a_new_pilot_to_change() -> None:
    decision = decide(waiting(ignored(100, refused=True)), [standing(1)])
    assert decision.submit == 0
    assert said(decision, "it names a limit of its own, which no new pilot would change")


def test_others_are_still_given_that_pilot() -> None:
    fresh = jobs(3, keys=("b",), owner="atlas")
    decision = decide(waiting(ignored(3), fresh), [standing(1)])
    assert said(decision, "3 waiting jobs fit into joined pilots")
    assert decision.submit == 1


@pytest.mark.parametrize(
    ("verdict", "suspect"),
    [
        ({"refused": True, "rejected": True}, "START"),
        ({"refused": True, "rejected": False}, "quota"),
        ({}, "has not said why"),
    ],
)
def test_a_person_is_told_after_as_many_cycles_again(verdict: dict[str, bool], suspect: str) -> None:
    def alarms(cycles: int) -> tuple[str, ...]:
        demand = waiting(ignored(5, cycles, **verdict))
        return plan(demand, [standing(1, cycles)], {"dcgp": limits()}, EAGER, NOW).alarms

    assert alarms(2 * A_FEW_CYCLES - 1) == ()
    (alarm,) = alarms(2 * A_FEW_CYCLES)
    assert alarm.startswith(
        "resource dcgp: jobs of cmspil (cms) would fit into joined pilots, and the negotiator has not"
    )
    assert alarms(9 * A_FEW_CYCLES) == (alarm,), "the log says it once"
    assert suspect in alarm
