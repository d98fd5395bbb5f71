"""What one plan costs: CPU seconds and peak memory, against jobs, groups and pilots. Ratios of one run."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from htcebridge.model import (
    Demand,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Policy,
    ScheddAnswer,
    Shape,
    Situation,
    SlurmJob,
    Startd,
)
from htcebridge.plan.planner import plan
from htcebridge.simulation.random_streams import stream

GROUPS, PILOTS, JOBS = 300, 2000, 100_000
ROUNDS = 5
NOW = 1_800_000_000
HOUR_S = 3600
WHOLE = Shape(112, 489_904, disk_mb=3_000_000)
HALF = Shape(56, 242_904, disk_mb=1_500_000)
GPU = Shape(32, 489_904, gpus=4, disk_mb=1_000_000)


@dataclass(frozen=True)
class Cost:
    """Of one plan: median CPU seconds, and the largest resident memory of a process that does nothing else."""

    groups: int
    pilots: int
    jobs: int
    cpu_s: float
    peak_mb: float
    submitted: int


def run() -> Iterable[str]:
    """Lines of the tables; each measurement is a fresh process."""
    middle = _measured(GROUPS, PILOTS, JOBS)
    yield f"one plan, medians of {ROUNDS}; ratio to {GROUPS} groups, {PILOTS} pilots, {JOBS:,} idle jobs"
    yield f"{'groups':>7} {'pilots':>7} {'idle jobs':>10} {'CPU s':>8} {'ratio':>6} {'peak MB':>8} {'submits':>8}"
    cases = [(GROUPS, PILOTS, jobs) for jobs in (1_000, 10_000, 100_000, 700_000, 1_000_000)]
    cases += [(30, PILOTS, JOBS), (100, PILOTS, JOBS), (1_000, PILOTS, JOBS), (1_000, PILOTS, 700_000)]
    cases += [(GROUPS, pilots, JOBS) for pilots in (0, 200, 5_000)]
    for groups, pilots, jobs in cases:
        cost = middle if (groups, pilots, jobs) == (GROUPS, PILOTS, JOBS) else _measured(groups, pilots, jobs)
        yield (
            f"{groups:>7,} {pilots:>7,} {jobs:>10,} {cost.cpu_s:>8.3f} {cost.cpu_s / middle.cpu_s:>6.2f}"
            f" {cost.peak_mb:>8.0f} {cost.submitted:>8,}"
        )


def situation(groups: int, pilots: int, jobs: int) -> Situation:
    """Groups of mixed shapes over three resources; pilots of which four in five have joined, half full."""
    draw = stream(groups + pilots + jobs, "planner scale")
    limits = {
        name: Limits(name, node, 12 * HOUR_S, 12 * HOUR_S - 540, 10**6, 10**6, 10**6)
        for name, node in (("dcgp", WHOLE), ("dcgp_half", HALF), ("booster", GPU))
    }
    waiting = []
    for number in range(groups):
        gpus = int(draw.random() < 0.1)
        cpus = draw.choice((1, 1, 2, 4, 8, 8, 8, 16))
        shape = Shape(cpus, int(cpus * draw.uniform(1_500, 9_000)), gpus=gpus, disk_mb=cpus * 10_000)
        fits = ("booster",) if gpus else ("dcgp", "dcgp_half")
        walltime_s = draw.choice((2, 4, 6, 8, 11)) * HOUR_S
        idle = jobs // groups + (number < jobs % groups)
        oldest_s = draw.randrange(7200)
        waiting.append(Group(shape, walltime_s, f"pil{number:03d}", "cms", idle, 10, oldest_s, resources=fits))
    there = [_pilot(number, draw.choice(list(limits.values())), number % 10, draw.random()) for number in range(pilots)]
    return Situation(
        now=NOW,
        demand=Demand(tuple(waiting), (ScheddAnswer("ce01", 0.1),)),
        pilots=tuple(there),
        limits=limits,
        policy=Policy(min_fill=0.25, max_wait_s=900, surplus_cycles=3, drain_fill=0.5),
    )


def _pilot(number: int, limit: Limits, kind: int, busy: float) -> Pilot:
    """One in ten pends, one boots, eight have joined."""
    phase = {0: PilotPhase.PENDING, 1: PilotPhase.BOOTING}.get(kind, PilotPhase.JOINED)
    started = None if phase is PilotPhase.PENDING else NOW - number % 30_000
    ends = None if started is None else started + limit.walltime_s
    job = SlurmJob(
        id=f"{number}_1",
        resource=limit.name,
        plan_id="p",
        state="RUNNING" if started is not None else "PENDING",
        reason="None" if started is not None else "Priority",
        partition="p",
        qos="q",
        account="a",
        node=f"lrdn{number:04d}" if started is not None else "",
        submitted=NOW - 40_000,
        started=started,
        ends=ends,
        time_limit_s=limit.walltime_s,
    )
    if phase is not PilotPhase.JOINED or ends is None:
        return Pilot(job, phase)
    jobs = int(busy * limit.node.cpus / 8)
    free = limit.node.less(Shape(8, 16_000, disk_mb=80_000), jobs)
    startd = Startd(job.id, f"slot1@{number}", job.node, limit.node, free, jobs, ends - 240, accepting=True)
    return Pilot(job, phase, startd)


def _measured(groups: int, pilots: int, jobs: int) -> Cost:
    command = [sys.executable, "-m", "benchmarks.planner_scale", str(groups), str(pilots), str(jobs)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=600)
    return Cost(**json.loads(done.stdout))


def _measure(groups: int, pilots: int, jobs: int) -> dict[str, float]:
    seen = situation(groups, pilots, jobs)
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        decided = plan(seen)
        seconds.append(time.process_time() - began)
    return {
        "groups": groups,
        "pilots": pilots,
        "jobs": jobs,
        "cpu_s": median(seconds),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "submitted": sum(each.submit for each in decided.resources.values()),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(*map(int, sys.argv[1:4]))))
