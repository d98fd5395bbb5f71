"""Situations for the tests of the plan: jobs, pilots and limits, made by hand and by hypothesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from htcebridge.model import (
    Cap,
    Demand,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Plan,
    Policy,
    ResourcePlan,
    ScheddAnswer,
    Shape,
    Situation,
    SlurmJob,
    Startd,
    Streaks,
    Wait,
)
from htcebridge.plan import planner

NOW = 1_800_000_000
HOUR = 3600
NODE = Shape(cpus=112, memory_mb=490_000, gpus=0, disk_mb=3_000_000)
GPU_NODE = Shape(cpus=32, memory_mb=490_000, gpus=4, disk_mb=10_000)
EAGER = Policy(min_fill=0.0, max_wait_s=900, surplus_cycles=3)


def limits(name: str = "dcgp", **changes: object) -> Limits:
    unlimited = Limits(
        name=name,
        node=NODE,
        walltime_s=12 * HOUR,
        job_life_s=12 * HOUR - 540,
        max_running=10**6,
        max_pending=10**6,
        max_new_per_cycle=10**6,
    )
    return replace(unlimited, **changes)


def jobs(idle: int, cpus: int = 8, **changes: object) -> Group:
    shape = Shape(cpus=cpus, memory_mb=cpus * 2000, disk_mb=cpus * 1000)
    group = Group(shape, 4 * HOUR, "cmspil", "cms", idle, running=0, oldest_s=60, resources=("dcgp",))
    return replace(group, **changes)


def waiting(*groups: Group, complete: bool = True) -> Demand:
    error = None if complete else "no answer in 20 s"
    return Demand(groups, (ScheddAnswer("ce01", 0.1), ScheddAnswer("ce02", 0.1, error)))


def pilot(number: int, phase: PilotPhase, resource: str = "dcgp", **startd: object) -> Pilot:
    started = phase is not PilotPhase.PENDING
    job = SlurmJob(
        id=f"{number}_1",
        resource=resource,
        plan_id="p",
        state="RUNNING" if started else "PENDING",
        reason="None",
        partition="dcgp_usr_prod",
        qos="qos_lowprio",
        account="inf24_lhc_2",
        node="lrdn0001" if started else "",
        submitted=NOW - 1000 + number,
        started=NOW - 300 if started else None,
        ends=NOW - 300 + 12 * HOUR if started else None,
        time_limit_s=12 * HOUR,
    )
    if phase is not PilotPhase.JOINED:
        return Pilot(job, phase)
    slot = Startd(job.id, f"slot1@{number}", "lrdn0001", NODE, NODE, jobs=0, to_die=NOW + 11 * HOUR, accepting=True)
    return Pilot(job, phase, replace(slot, **startd))


def pilots_of(phase: PilotPhase, count: int, first: int = 1) -> list[Pilot]:
    return [pilot(number, phase) for number in range(first, first + count)]


def plan(
    demand: Demand,
    there: Sequence[Pilot],
    caps: Mapping[str, Limits],
    policy: Policy,
    now: int,
    surplus: Mapping[str, int] | None = None,
) -> Plan:
    return planner.plan(Situation(now, demand, tuple(there), caps, policy, Streaks(surplus=surplus or {})))


def decide(
    demand: Demand,
    pilots: Sequence[Pilot] = (),
    limit: Limits | None = None,
    policy: Policy = EAGER,
    surplus: Mapping[str, int] | None = None,
) -> ResourcePlan:
    return plan(demand, pilots, {"dcgp": limit or limits()}, policy, NOW, surplus).resources["dcgp"]


shapes = st.builds(
    Shape,
    cpus=st.integers(0, 130),
    memory_mb=st.integers(1, 600_000),
    gpus=st.integers(0, 5),
    disk_mb=st.integers(0, 4_000_000),
)
groups = st.builds(
    Group,
    shape=shapes,
    walltime_s=st.integers(0, 14 * HOUR),
    owner=st.just("cmspil"),
    vo=st.just("cms"),
    idle=st.integers(0, 400),
    running=st.integers(0, 5),
    oldest_s=st.integers(0, 3600),
    resources=st.sampled_from([(), ("dcgp",), ("booster",), ("dcgp", "booster"), ("booster", "dcgp"), ("gone",)]),
    standing=st.sampled_from([(), (), ("dcgp",), ("dcgp", "booster"), ("gone",)]),
    keys=st.sampled_from([("a",), ("b",), ("c", "d")]),
    waited=st.integers(0, 5),
    refused=st.sampled_from([None, None, True]),
)
demands = st.builds(
    Demand,
    groups=st.lists(groups, max_size=6).map(tuple),
    schedds=st.sampled_from([(ScheddAnswer("a", 0.1),), (ScheddAnswer("a", 0.1), ScheddAnswer("b", 20.0, "silent"))]),
)


@st.composite
def some_pilots(draw: st.DrawFn) -> list[Pilot]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        phase = draw(st.sampled_from(list(PilotPhase)))
        resource = draw(st.sampled_from(["dcgp", "dcgp", "booster", "gone"]))
        free = draw(st.sampled_from([NODE, Shape(5, 20_000), Shape(0, 490_000), Shape(-4, -1, -1, -1), GPU_NODE]))
        to_die = NOW + draw(st.integers(-100, 12 * HOUR))
        slot = {"free": free, "to_die": to_die, "kind": draw(st.sampled_from(["", "kind"]))}
        each = pilot(number, phase, resource, accepting=draw(st.booleans()), **slot)
        wait = draw(st.sampled_from(list(Wait))) if phase is PilotPhase.PENDING else Wait.NORMAL
        untouched = draw(st.integers(0, 5)) if phase is PilotPhase.JOINED else 0
        each = replace(each, wait=wait, chance=draw(st.floats(0, 1)), untouched=untouched)
        made.append(replace(each, tail_drained=draw(st.booleans())))
    return made


some_limits = st.fixed_dictionaries(
    {
        name: st.builds(
            Limits,
            name=st.just(name),
            node=st.just(node),
            walltime_s=st.just(12 * HOUR),
            job_life_s=st.just(12 * HOUR - 540),
            max_running=st.integers(0, 30),
            max_pending=st.integers(0, 10),
            max_new_per_cycle=st.integers(1, 20),
            min_walltime_s=st.sampled_from([None, 2 * HOUR]),
            constant=st.booleans(),
            caps=st.lists(
                st.builds(Cap, st.sampled_from(["", "hour"]), st.integers(-3, 20), st.just("a cap")), max_size=2
            ).map(tuple),
            preemptions_per_hour=st.floats(0, 2),
        )
        for name, node in (("dcgp", NODE), ("booster", GPU_NODE))
    }
)
policies = st.builds(
    Policy,
    min_fill=st.floats(0, 1),
    max_wait_s=st.integers(0, 3600),
    surplus_cycles=st.integers(1, 4),
    drain_fill=st.floats(0, 1),
    either_min_age_s=st.integers(0, 3600),
    vo_cpus=st.dictionaries(st.just("cms"), st.integers(0, 2000)),
)
surpluses = st.dictionaries(st.sampled_from([f"{number}_1" for number in range(12)]), st.integers(0, 5))
cycles = st.tuples(demands, some_pilots(), some_limits, policies, st.just(NOW), surpluses)
