"""A cycle as the controller leaves it, made up, and what Prometheus reads of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from htcebridge.config.example import example
from htcebridge.config.tables import Config
from htcebridge.history.result import CycleResult
from htcebridge.history.usage import Use, Used
from htcebridge.model import (
    Cut,
    Demand,
    Group,
    Limits,
    Outcome,
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
)
from htcebridge.state.memory import Memory, Records, Upkeep

CONFIG = Config.model_validate(tomllib.loads(example()))
NOW = 1_800_000_000
NODE = Shape(112, 494000)
LIMITS = Limits("dcgp", NODE, 43200, 42000, 100, 5, 20, exclude=("n7",))
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def group(vo: str = "cms", cpus: int = 8, idle: int = 4, running: int = 2, **changes: object) -> Group:
    made = Group(Shape(cpus, 16000), 3600, "pil1", vo, idle, running, 600, ("dcgp",))
    return replace(made, **changes)  # type: ignore[arg-type]


def pilot(
    phase: PilotPhase, busy: dict[str, int] | None = None, resource: str = "dcgp", draining: bool = False
) -> Pilot:
    job = SlurmJob("1_1", resource, "p", "RUNNING", "None", "p", "q", "a", "n", NOW - 900, NOW - 800, None, None)
    if busy is None:
        return Pilot(job, phase)
    free = Shape(112 - sum(busy.values()), 400000)
    return Pilot(job, phase, Startd("1_1", "s", "m", NODE, free, len(busy), NOW + 9000, not draining, draining, busy))


def situation(*pilots: Pilot, groups: tuple[Group, ...] = (), **changes: object) -> Situation:
    answers = (ScheddAnswer("ce01", 0.1), ScheddAnswer("ce02", 20.0, "no answer"))
    made = Situation(NOW, Demand(groups, answers), pilots, {"dcgp": LIMITS}, Policy(0.25, 900, 3))
    return replace(made, **changes)  # type: ignore[arg-type]


TOTALS = {
    "cycles|ok": 7,
    "cycles|held": 2,
    "calls|squeue": 9,
    "calls|tier1 pool": 9,
    "submitted|dcgp": 12,
    "cut|dcgp|max_pending": 3,
    f"cut|dcgp|{Cut.STUCK}": 4,
    "outcome|dcgp|preempted": 2,
    f"outcome|dcgp|{Outcome.NEVER_JOINED}": 1,
    "queued|dcgp": 3,
    "queued_s|dcgp": 360,
    "booted|dcgp": 2,
    "booted_s|dcgp": 90,
}


CORE_S: Used = {
    ("dcgp", "cms", Use.BUSY): 1000,
    ("dcgp", "", Use.BUSY): 10,
    ("dcgp", "", Use.BOOT): 200,
    ("dcgp", "cms", Use.LOST): 300,
}


def result(
    seen: Situation | None,
    plan: Plan | None = None,
    totals: Mapping[str, float] = TOTALS,
    looked: int = NOW + 1,
    accounted: int = NOW,
    core_s: Used | None = CORE_S,
) -> CycleResult:
    return CycleResult(
        plan or Plan({"dcgp": ResourcePlan(3, 1, 1, 1, submit=1, cuts={Cut.STUCK: 2})}),
        "p1",
        ("something",),
        seconds=2.5,
        situation=seen,
        core_s=core_s,
        memory=Memory(upkeep=Upkeep(looked=looked), records=Records(accounted, totals=totals)),
    )


def parsed(text: bytes) -> Series:
    """(name, labels without `controller`) -> value. Fails where two series are the same."""
    found: Series = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        assert family.type in ("gauge", "counter", "summary")
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("controller") == "leonardo"
            key = (sample.name, frozenset(labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def names(text: bytes) -> set[str]:
    return {name for name, _ in parsed(text)}
