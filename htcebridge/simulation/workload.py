"""Which jobs come, when: made-up days of a Tier-1. Recorded ones are read by `recorded`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from htcebridge.model import Shape
from htcebridge.simulation.random_streams import stream

HOUR_S = 3600
DAY_S = 24 * HOUR_S


@dataclass(frozen=True)
class Job:
    """One job. `submitted_s` counts from the beginning of the simulation, which is a midnight.

    `walltime_s` is what the job declares, `runtime_s` how long it really runs. Jobs of one `burst` came together.
    """

    submitted_s: int
    shape: Shape
    runtime_s: int
    walltime_s: int
    owner: str
    vo: str
    burst: int | None = None


@dataclass(frozen=True)
class Kind:
    """Jobs of one shape whose lengths are lognormal around a median, cut at what they declare."""

    cpus: int
    memory_mb: int
    median_h: float
    walltime_h: int
    vo: str
    spread: float = 0.5

    def job(self, submitted_s: int, draw: random.Random, burst: int | None = None) -> Job:
        wanted_s = self.median_h * HOUR_S * draw.lognormvariate(0.0, self.spread)
        return Job(
            submitted_s=submitted_s,
            shape=Shape(self.cpus, self.memory_mb, disk_mb=self.cpus * 10_000),
            runtime_s=int(min(max(wanted_s, 600), self.walltime_h * HOUR_S - 600)),
            walltime_s=self.walltime_h * HOUR_S,
            owner=f"{self.vo}pil001",
            vo=self.vo,
            burst=burst,
        )


# 2 GB a core is what the LHC experiments ask; a DCGP node has 4.3.
EIGHT_CORES = Kind(cpus=8, memory_mb=16_000, median_h=2.5, walltime_h=8, vo="cms")
HIGH_MEMORY = Kind(cpus=4, memory_mb=48_000, median_h=3.0, walltime_h=6, vo="atlas")
ONE_CORE = Kind(cpus=1, memory_mb=3_000, median_h=1.0, walltime_h=3, vo="lhcb")
FAT_CORE = Kind(cpus=1, memory_mb=9_000, median_h=2.5, walltime_h=8, vo="atlas")
# No pilot of 12 h has that long left; everything else about them fits.
TOO_LONG = Kind(cpus=8, memory_mb=16_000, median_h=30.0, walltime_h=48, vo="cms")


def bursty(days: int, seed: int) -> list[Job]:
    """Two bursts of 8-core jobs a day, one of high memory, single cores from 8 to 20 h: some 9,000 core-h a day."""
    draw = stream(seed, "bursty")
    return _sorted(
        [
            *_bursts(EIGHT_CORES, days, (8.0, 16.0), (100, 250), draw),
            *_bursts(HIGH_MEMORY, days, (12.0,), (20, 60), draw),
            *_trickle(ONE_CORE, days, 40, draw, (8, 20)),
        ]
    )


def memory_bound(days: int, seed: int) -> list[Job]:
    """Twice a day single cores with 9 GB, of which half as many fit as a node has cores; 8-core jobs at noon."""
    draw = stream(seed, "memory")
    return _sorted(
        [
            *_bursts(FAT_CORE, days, (8.0, 16.0), (500, 1200), draw),
            *_bursts(EIGHT_CORES, days, (12.0,), (50, 120), draw),
            *_trickle(ONE_CORE, days, 40, draw, (8, 20)),
        ]
    )


def steady(days: int, seed: int) -> list[Job]:
    """8-core and single-core jobs at a constant rate, day and night."""
    draw = stream(seed, "steady")
    return _sorted([*_trickle(EIGHT_CORES, days, 40, draw), *_trickle(ONE_CORE, days, 60, draw)])


def unmatchable(jobs: int, days: int, seed: int) -> list[Job]:
    """Tagged jobs that no pilot can take, spread over the first day."""
    draw = stream(seed, "unmatchable")
    return _sorted([TOO_LONG.job(int(draw.uniform(0, min(days, 1) * DAY_S)), draw) for _ in range(jobs)])


WORKLOADS: dict[str, Callable[[int, int], list[Job]]] = {
    "bursty": bursty,
    "memory-bound": memory_bound,
    "steady": steady,
}


def _bursts(
    kind: Kind, days: int, hours: tuple[float, ...], size: tuple[int, int], draw: random.Random
) -> Iterator[Job]:
    for day in range(days):
        for hour in hours:
            begins_s = day * DAY_S + (hour + draw.uniform(-1.0, 1.0)) * HOUR_S
            number = int(begins_s)
            for _ in range(draw.randint(*size)):
                # A production system submits a burst over some minutes.
                yield kind.job(int(begins_s + draw.uniform(0, 600)), draw, burst=number)


def _trickle(
    kind: Kind, days: int, per_hour: float, draw: random.Random, hours: tuple[int, int] = (0, 24)
) -> Iterator[Job]:
    for day in range(days):
        moment = float(day * DAY_S + hours[0] * HOUR_S)
        while (moment := moment + draw.expovariate(per_hour / HOUR_S)) < day * DAY_S + hours[1] * HOUR_S:
            yield kind.job(int(moment), draw)


def _sorted(jobs: list[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: job.submitted_s)
