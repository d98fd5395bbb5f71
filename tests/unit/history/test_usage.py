"""What held cores do, by phase and by what waits; the sums hold for whatever is there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.history.usage import GAP_S, HELD, Use, between, shared_out
from htcebridge.model import (
    Demand,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Policy,
    Shape,
    Situation,
    SlurmJob,
    Startd,
)

NODE = Shape(112, 494000)
LIMITS = {"dcgp": Limits("dcgp", NODE, 43200, 42000, 10, 5, 20)}
NOW = 1_800_000_000


def pilot(phase: PilotPhase, busy: dict[str, int] | None = None, **changes: object) -> Pilot:
    job = SlurmJob("1_1", "dcgp", "p", "RUNNING", "None", "p", "q", "a", "n", NOW - 900, NOW - 800, None, None)
    if busy is None:
        return Pilot(job, phase)
    used = sum(busy.values())
    startd = Startd("1_1", "slot1@x", "x", NODE, Shape(112 - used, 494000), len(busy), NOW + 40000, True, False, busy)
    for name, value in changes.items():
        object.__setattr__(startd, name, value)
    return Pilot(job, phase, startd)


def situation(*pilots: Pilot, idle: int = 0) -> Situation:
    groups = (Group(Shape(8, 16000), 3600, "o", "cms", idle, 0, 60, ("dcgp",)),) if idle else ()
    return Situation(NOW, Demand(groups, ()), pilots, LIMITS, Policy(0.25, 900, 3))


@pytest.mark.parametrize(
    ("seen", "idle", "expected"),
    [
        (pilot(PilotPhase.BOOTING), 0, {("", Use.BOOT): 112}),
        (pilot(PilotPhase.LOST), 0, {("", Use.BOOT): 112}),
        (pilot(PilotPhase.LEAVING), 0, {("", Use.DRAINED): 112}),
        (pilot(PilotPhase.JOINED), 0, {("", Use.ELSEWHERE): 112}),
        (pilot(PilotPhase.PENDING), 0, {}),
        (pilot(PilotPhase.JOINED, {}), 0, {("", Use.IDLE): 112}),
        (pilot(PilotPhase.JOINED, {"cms": 8}), 0, {("cms", Use.BUSY): 8, ("", Use.TAIL): 104}),
        (pilot(PilotPhase.JOINED, {"cms": 8}), 3, {("cms", Use.BUSY): 8, ("", Use.FRAGMENTATION): 104}),
        (pilot(PilotPhase.JOINED, {"cms": 8}, draining=True), 3, {("cms", Use.BUSY): 8, ("", Use.DRAINED): 104}),
        (pilot(PilotPhase.JOINED, {"cms": 8}, accepting=False), 3, {("cms", Use.BUSY): 8, ("", Use.DRAINED): 104}),
        (
            pilot(PilotPhase.JOINED, {"cms": 8, "atlas": 4}, busy_by_vo={"cms": 8}),
            0,
            {("cms", Use.BUSY): 8, ("", Use.BUSY): 4, ("", Use.TAIL): 100},
        ),
    ],
)
def test_each_core_does_one_thing(seen: Pilot, idle: int, expected: dict[tuple[str, Use], int]) -> None:
    used = between(situation(seen, idle=idle), NOW - 60)
    assert used == {("dcgp", vo, use): cores * 60 for (vo, use), cores in expected.items()}


@given(
    busy=st.dictionaries(st.sampled_from(["cms", "atlas", "lhcb"]), st.integers(1, 37), max_size=3),
    idle=st.integers(0, 5),
    elapsed=st.integers(-10, 5000),
)
def test_what_is_held_adds_up_to_the_node(busy: dict[str, int], idle: int, elapsed: int) -> None:
    used = between(situation(pilot(PilotPhase.JOINED, busy), idle=idle), NOW - elapsed)
    sums: Counter[Use] = Counter()
    for (_, _, use), core_s in used.items():
        sums[use] += core_s
    assert sum(sums[use] for use in HELD) == 112 * min(max(0, elapsed), GAP_S)


@given(st.integers(0, 10**9), st.dictionaries(st.sampled_from(["", "cms", "atlas"]), st.integers(0, 112)))
def test_what_was_lost_is_shared_out_to_the_last_second(core_s: int, busy: dict[str, int]) -> None:
    assert sum(shared_out(core_s, busy).values()) == core_s
