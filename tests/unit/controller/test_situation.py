"""What bounds each resource, with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import situation, walltimes
from htcebridge.controller.observation import Marks, Observation, Source
from htcebridge.model import (
    EndedPilot,
    Outcome,
    Pilot,
    Wait,
)
from htcebridge.plan import planner
from htcebridge.slurm.limits import Bound, SlurmLimits, Unit
from htcebridge.slurm.reservations import Maintenance
from htcebridge.slurm.text import OtherJob, Queue
from htcebridge.slurm.tres import Tres
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


def maintenance(begins_in_s: int) -> dict[str, object]:
    return {"maintenances": (Maintenance("maint", NOW + begins_in_s, NOW + begins_in_s + 8 * HOUR, whole=True),)}


def test_a_pilot_that_is_submitted_ends_before_a_maintenance(config: Config) -> None:
    short = with_resource(config, min_walltime=None)
    built, _ = situation.build(short, slurm_allows(**maintenance(4 * HOUR)), (), seen())
    limits = built.limits["dcgp"]
    # Ten minutes until it starts.
    assert (limits.walltime_s, limits.job_life_s) == (4 * HOUR - 600, 4 * HOUR - 600 - 540)
    assert limits.notes[0].startswith("walltime 12h cut to 3h50m by maintenance maint, ")
    decision = planner.plan(built).resources["dcgp"]
    assert (decision.walltime_s, decision.submit > 0) == (4 * HOUR - 600, True)
    lives = walltimes.job_lives(short, slurm_allows(**maintenance(4 * HOUR)).resources.limits, NOW)
    assert lives == {"dcgp": limits.job_life_s}, "the same for demand"


def test_with_a_min_walltime_slurm_itself_shortens_what_starts_later(config: Config) -> None:
    built, _ = situation.build(config, slurm_allows(**maintenance(4 * HOUR)), (), seen())
    assert built.limits["dcgp"].walltime_s == 4 * HOUR


@pytest.mark.parametrize("begins_in_s", [HOUR, 15 * 60, -HOUR])
def test_before_and_in_a_maintenance_that_leaves_no_time_nothing_is_submitted(config: Config, begins_in_s: int) -> None:
    """The example's min_walltime is 2 h."""
    memory = slurm_allows(**maintenance(begins_in_s))
    built, _ = situation.build(config, memory, (), seen())
    assert planner.plan(built).resources["dcgp"].submit == 0
    assert any("too short for a pilot" in why for why in built.limits["dcgp"].notes)
    assert walltimes.job_lives(config, memory.resources.limits, NOW) == {"dcgp": 0}


def test_a_long_pilot_before_a_maintenance_is_told_from_an_outage(config: Config) -> None:
    long = replace(pending(1, reason="ReqNodeNotAvail, Reserved for maintenance"), wait=Wait.OUTAGE)
    for limits, wait in ((maintenance(4 * HOUR), Wait.MAINTENANCE), ({}, Wait.OUTAGE)):
        built, _ = situation.build(config, slurm_allows(**limits), [long], seen())
        assert built.pilots[0].wait is wait
        assert bool(planner.plan(built).resources["dcgp"].submit) is (wait is Wait.MAINTENANCE)


def test_a_limit_that_is_not_known_here_is_said(config: Config) -> None:
    built, _ = situation.build(config, slurm_allows(unread=("GrpTRES 'billing=9' of QOS q",)), (), seen())
    assert built.limits["dcgp"].notes == (
        "a limit of Slurm's that is not known here, and cuts nothing: GrpTRES 'billing=9' of QOS q",
    )


CORES = Bound("MaxTRESPU cpu", "QOS qos_lowprio", Unit.CPUS, 1000, own=True, qos=QOS)


def with_others(held: dict[str, Tres] | None) -> Observation:
    look = seen()
    others = (OtherJob("9", 1000, "inf24_lhc_2", PARTITION, QOS, "RUNNING", 1),)
    near = replace(look.near, queue=Source(NOW, Queue((), others)))
    return replace(look, near=near, holdings=Source(NOW, held, "" if held is not None else "squeue hangs"))


@pytest.mark.parametrize(
    ("held", "left"), [({"9": {"cpu": 400.0, "node": 1.0}}, 600), ({}, 1000), (None, 0)]
)  # fmt: skip
def test_others_count_with_the_cores_that_slurm_says_or_leave_no_room(
    config: Config, held: dict[str, Tres] | None, left: int
) -> None:
    built, _ = situation.build(config, slurm_allows(bounds=(CORES,)), (), with_others(held))
    (cap,) = [cap for cap in built.limits["dcgp"].caps if "1000 cores" in cap.why]
    assert (cap.room, cap.each) == (left, 112)


def test_resources_of_two_sizes_share_one_limit_of_cores(two: Config) -> None:
    """1000 cores: 4 pilots of 112 and those of 16 that fit beside them, not 1000 cores for each."""
    small = two.resources["zweite"].model_copy(update={"cpus": 16})
    config = two.model_copy(update={"resources": {**two.resources, "zweite": small}})
    read = ReadLimits(SlurmLimits(user=1000, bounds=(CORES,)), (ACCOUNT, PARTITION, QOS), NOW)
    memory = Memory(resources=Resources(limits={"dcgp": read, "zweite": read}))
    there = [pending(n, resource="zweite") for n in range(10)]
    built, _ = situation.build(config, memory, there, seen())
    caps = [cap for limits in built.limits.values() for cap in limits.caps if "1000 cores" in cap.why]
    assert [(cap.room, cap.each) for cap in caps] == [(840, 112), (840, 16)]
    assert len({cap.key for cap in caps}) == 1


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
