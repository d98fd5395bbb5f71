"""What it costs to write a cycle down, beside what it costs to plan it. Ratios of one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from benchmarks.planner_scale import GROUPS, JOBS, situation
from htcebridge.config.tables import Config
from htcebridge.history import recording
from htcebridge.model import EndedPilot, Outcome, Situation
from htcebridge.plan import planner
from htcebridge.state.memory import Memory, Pilots, Records, Seen, Upkeep

CYCLES = 40
TURNOVER = 20
"""Pilots that begin and that end in each cycle."""


def run() -> Iterable[str]:
    """Lines of the table: cycles a minute apart, wall time of one."""
    yield f"recording one of {CYCLES} cycles, {TURNOVER} pilots begin and end in each; {GROUPS} groups of jobs"
    yield f"{'pilots':>7} {'median ms':>10} {'worst ms':>9} {'of the plan':>12}"
    for pilots in (0, 200, 2000, 5000):
        recorded, planned_ms = _measured(pilots)
        share = median(recorded) / planned_ms
        yield f"{pilots:>7,} {median(recorded):>10.1f} {max(recorded):>9.1f} {share:>12.2f}"


def _measured(pilots: int) -> tuple[list[float], float]:
    """Milliseconds that each cycle's recording took, and those of one plan."""
    seen = situation(GROUPS, pilots, JOBS)
    began = time.perf_counter()
    plan = planner.plan(seen)
    planned_ms = 1000 * (time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as directory:
        config = Config.model_validate({"tier1": {"collector": "c"}, "pressure": {"state_dir": directory}})
        memory = Memory(upkeep=Upkeep(looked=seen.now), records=Records(seen.now))
        recorded = []
        for cycle in range(CYCLES):
            seen = replace(seen, now=seen.now + 60)
            after = _turned_over(memory, seen, cycle)
            began = time.perf_counter()
            kept = recording.keep(config, memory, after, seen, plan, f"{cycle:x}", 1.0, 0)
            recorded.append(1000 * (time.perf_counter() - began))
            memory = kept.memory
            if kept.problems:
                raise RuntimeError(kept.problems[0])
    return recorded, planned_ms


def _turned_over(memory: Memory, seen: Situation, cycle: int) -> Memory:
    now = seen.now
    ended = tuple(
        EndedPilot(f"{cycle}_{number}", "dcgp", "plan", Outcome.RAN, now - 9000, now - 8000, now, now - 7900)
        for number in range(TURNOVER)
    )
    pilots = {
        each.job.id: Seen(each.job.resource, "plan", now - 900, now - 800, now) for each in seen.pilots[TURNOVER:]
    }
    unchanged = {id_: memory.pilots.seen.get(id_, each) for id_, each in pilots.items()}
    begun = {f"new{cycle}_{number}": Seen("dcgp", "plan", now, now) for number in range(TURNOVER)}
    return replace(memory, upkeep=Upkeep(looked=now), pilots=Pilots(unchanged | begun, ended))
