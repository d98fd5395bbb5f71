"""What bounds each resource, with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import situation
from htcebridge.controller.observation import Marks
from htcebridge.model import (
    EndedPilot,
    Outcome,
    Pilot,
)
from htcebridge.plan import planner
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.state.ledger import Entry
from htcebridge.state.memory import (
    Memory,
    Pilots,
    ReadLimits,
    Resources,
    Spent,
)
from tests.unit.controller.made import ACCOUNT, HOUR, NOW, PARTITION, QOS, pending, seen, submission, with_resource


def caps(config: Config, memory: Memory, *pilots: Pilot, entries: Iterable[Entry] = (), marks: Marks = Marks()):  # noqa: B008
    built, _ = situation.build(config, memory, pilots, seen(entries=entries, marks=marks))
    return {cap.why: cap.room for cap in built.limits["dcgp"].caps}


def room(found: dict[str, int], about: str) -> int:
    (why,) = [why for why in found if about in why]
    return found[why]


# --------------------------------------------------------------------------- budget


def spent(config: Config, hours: float) -> Memory:
    return Memory(resources=Resources(spent={"dcgp": Spent(config.resources["dcgp"].node_hours_since, hours)}))


def test_node_hours_of_ended_pilots_are_used_up(config: Config) -> None:
    budget = with_resource(config, max_node_hours=36)
    assert room(caps(budget, spent(config, 10)), "max_node_hours 36 (26.0 left, a pilot may take 12)") == 2


def test_hours_that_live_pilots_may_still_use_are_not_promised_again(config: Config) -> None:
    budget = with_resource(config, max_node_hours=36)
    assert room(caps(budget, spent(config, 0), pending(1), pending(2)), "max_node_hours 36 (12.0 left") == 1


# --------------------------------------------------------------------------- Slurm's own limits


def slurm_allows(**changes: object) -> Memory:
    read = ReadLimits(SlurmLimits(user=1000, **changes), (ACCOUNT, PARTITION, QOS), NOW)
    return Memory(resources=Resources(limits={"dcgp": read}))


def test_a_walltime_above_max_wall_is_cut_with_its_reason(config: Config) -> None:
    memory = slurm_allows(max_wall_s=8 * HOUR, max_wall_of="QOS qos_lowprio (MaxWall)")
    built, _ = situation.build(config, memory, (), seen())
    limits = built.limits["dcgp"]
    assert (limits.walltime_s, limits.job_life_s) == (8 * HOUR, 8 * HOUR - 540)
    assert limits.notes == ("walltime 12h cut to 8h by QOS qos_lowprio (MaxWall)",)


def test_a_max_wall_that_no_pilot_can_live_with_stops_submission(config: Config) -> None:
    memory = slurm_allows(max_wall_s=HOUR, max_wall_of="partition dcgp_usr_prod")
    assert room(caps(config, memory), "too short for a pilot") == 0


# --------------------------------------------------------------------------- caps per hour and day


def test_what_was_submitted_in_the_last_hour_and_day_is_used_up(config: Config) -> None:
    found = caps(config, Memory(), entries=[submission(5, 10), submission(7, 90), submission(9, 25 * 60)])
    assert room(found, "max_new_per_hour 500 (5 submitted)") == 495
    assert room(found, "max_new_per_day 5000 (12 submitted)") == 4988


def test_a_submission_of_which_nobody_knows_stops_the_next(config: Config) -> None:
    found = caps(config, Memory(), entries=[submission(5, 1, outcome="")])
    assert room(found, "nobody knows yet whether Slurm took 5 pilots") == 0


# --------------------------------------------------------------------------- max_hours


def test_max_hours_end_a_resource_and_zero_stops_it_at_once(config: Config) -> None:
    assert room(caps(with_resource(config, max_hours=0.0), Memory()), "max_hours 0") == 0
    assert not any("max_hours" in why for why in caps(with_resource(config, max_hours=2.0), Memory()))


# --------------------------------------------------------------------------- marks


def test_a_drained_resource_gets_no_pilots(config: Config) -> None:
    found = caps(config, Memory(), marks=Marks(drained={"dcgp": "leo: maintenance"}))
    assert room(found, "it is drained: leo: maintenance") == 0


# --------------------------------------------------------------------------- a queue that stands


@pytest.mark.parametrize("nodes", [1, 40])
def test_a_day_in_which_slurm_starts_nothing_submits_once_and_cancels_nothing(config: Config, nodes: int) -> None:
    wide = with_resource(config, max_pending=200, max_running=200, max_node_hours=None)
    waited = [
        EndedPilot(f"9_{n}", "dcgp", "p", Outcome.RAN, NOW - 600 - 60 * n, NOW - 600, NOW - n, NOW - 500)
        for n in range(30)
    ]
    memory, pilots, submitted, reasons = (
        Memory(pilots=Pilots(ended=tuple(waited))),
        list[Pilot](),
        list[int](),
        set[str](),
    )
    for now in range(NOW, NOW + 24 * HOUR, 120):
        look = seen(idle=14 * nodes)
        look = replace(look, near=replace(look.near, now=now))
        decision = planner.plan(situation.build(wide, memory, pilots, look)[0])
        memory = replace(memory, resources=Resources(decision.streaks))
        dcgp = decision.resources["dcgp"]
        assert dcgp.cancel == ()
        reasons.update(dcgp.reasons)
        if dcgp.submit:
            submitted.append(dcgp.submit)
            pilots += [
                pending(now + n, reason="Priority", submitted=now, time_limit_s=12 * HOUR) for n in range(dcgp.submit)
            ]
    assert sum(submitted) == nodes
    assert any("would be no luckier" in reason for reason in reasons)
