"""What one scrape of the metrics costs, against pilots, groups and resources. Ratios of one run."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from benchmarks.planner_scale import GROUPS, JOBS, NOW, PILOTS, situation
from htcebridge.config.example import example
from htcebridge.config.tables import Config
from htcebridge.history.result import CycleResult
from htcebridge.history.usage import Use
from htcebridge.metrics import export
from htcebridge.model import Cut, Outcome
from htcebridge.plan.planner import plan
from htcebridge.state.memory import Memory, Records, Upkeep

ROUNDS = 21


def run() -> Iterable[str]:
    """Lines of the table."""
    cases = [(GROUPS, pilots, 3) for pilots in (0, 200, PILOTS, 5_000)]
    cases += [(1_000, PILOTS, 3), (GROUPS, PILOTS, 30)]
    costs = {case: _measured(*case) for case in cases}
    middle, _ = costs[GROUPS, PILOTS, 3]
    yield f"one scrape, medians of {ROUNDS}; ratio to {GROUPS} groups, {PILOTS} pilots, 3 resources"
    yield f"{'groups':>7} {'pilots':>7} {'resources':>10} {'CPU ms':>7} {'ratio':>6} {'series':>7}"
    for (groups, pilots, resources), (seconds, series) in costs.items():
        yield f"{groups:>7,} {pilots:>7,} {resources:>10} {seconds * 1000:>7.1f} {seconds / middle:>6.2f} {series:>7,}"


def _measured(groups: int, pilots: int, resources: int) -> tuple[float, int]:
    """CPU seconds of one, and how many series it has."""
    config, result = _config(resources), _result(groups, pilots, resources)
    times = []
    text = b""
    for _ in range(ROUNDS):
        began = time.process_time()
        text = export.render(config, result, {("controller", ""): NOW})
        times.append(time.process_time() - began)
    return median(times), sum(not line.startswith(b"#") for line in text.splitlines())


def _names(resources: int) -> list[str]:
    return ["dcgp", "dcgp_half", "booster", *(f"more{number}" for number in range(resources - 3))]


def _config(resources: int) -> Config:
    """Two VOs, and as many resources as asked."""
    raw = tomllib.loads(example())
    raw["vo"].append({"name": "atlas", "owners": ["atlpil*"]})
    raw["resource"] = dict.fromkeys(_names(resources), raw["resource"]["dcgp"])
    return Config.model_validate(raw)


def _result(groups: int, pilots: int, resources: int) -> CycleResult:
    """A cycle, and a past in which everything has happened everywhere."""
    seen = situation(groups, pilots, JOBS)
    limits = {name: seen.limits.get(name, seen.limits["dcgp"]) for name in _names(resources)}
    seen = replace(seen, limits=limits)
    totals: dict[str, float] = {"cycles|ok": 9, "calls|squeue": 9}
    for name in _names(resources):
        totals |= {f"outcome|{name}|{outcome}": 5 for outcome in Outcome}
        totals |= {f"cut|{name}|{cut}": 5 for cut in Cut}
    core_s = {(name, "cms", use): 5_000_000 for name in _names(resources) for use in Use}
    memory = Memory(upkeep=Upkeep(looked=NOW), records=Records(NOW, totals=totals))
    return CycleResult(plan(seen), "p", situation=seen, core_s=core_s, memory=memory)
