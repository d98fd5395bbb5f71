"""What a run came to: core-hours held, what they were used for, and how long the jobs waited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from htcebridge.simulation.workload import HOUR_S, Job


class Use(StrEnum):
    """What a held core does at a moment."""

    GOOD = "good"
    """It runs a job that completes (or is still running when the simulation ends)."""
    LOST = "lost"
    """It runs a job that is killed: the job starts from zero."""
    BOOT = "boot"
    """The pilot has not joined yet."""
    UNMATCHED = "unmatched"
    """Joined, and no job has come yet."""
    FRAGMENTATION = "fragmentation"
    """Jobs wait, and this core takes none: wrong shape, too little life left, or between two negotiation cycles."""
    TAIL = "tail"
    """Nothing waits; other cores of the pilot are busy, or it has not noticed yet that it is idle."""
    DRAINED = "drained"
    """The pilot takes no new jobs."""
    FAILED = "failed"
    """On a node on which pilots fail."""


@dataclass(frozen=True)
class Sample:
    """The state at one moment, for the plot. `second` counts from the beginning, the rest are cores and pilots."""

    second: int
    waiting_cores: int
    held_cores: int
    busy_cores: int
    pending_pilots: int
    running_pilots: int
    paid_nodes: int


@dataclass
class Meter:
    """Counts while the simulation runs. Core-seconds, seconds, pilots."""

    used: dict[Use, float] = field(default_factory=lambda: dict.fromkeys(Use, 0.0))
    waits: list[int] = field(default_factory=list)
    first_starts: dict[int, int] = field(default_factory=dict)
    """Job number -> seconds from its submission to its first start."""
    submitted: int = 0
    started: int = 0
    never_used: int = 0
    failed: int = 0
    preempted: int = 0
    cancelled: int = 0
    kills: int = 0
    peak_pending: int = 0
    cycles: int = 0
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One run. Core-hours unless the name says otherwise.

    `efficiency` is good/held. `unserved` is work that some resource takes and that was not done by the end. A job's
    wait ends with the start of the run that completes, so a preempted job waits on; one that never completes waits
    until the end. `never_used` are pilots that were in the pool for two negotiation cycles or more and ran no job.
    `ramp_min` is how long it took until 80 % of a burst's jobs had started, mean over the bursts; None where there
    was no burst.
    """

    controller: str
    workload: str
    seed: int
    work: float
    good: float
    unserved: float
    held: float
    lost: float
    idle: dict[str, float]
    failed: float
    efficiency: float
    wait_mean_min: float
    wait_p90_min: float
    ramp_min: float | None
    submitted: int
    started: int
    never_used: int
    failed_pilots: int
    preempted: int
    cancelled: int
    killed_runs: int
    peak_pending: int
    cycles: int
    cpu_s: float = 0.0

    @property
    def never_used_share(self) -> float:
        """Of the pilots that got a node."""
        return self.never_used / self.started if self.started else 0.0


def result(
    meter: Meter, controller: str, workload: str, seed: int, jobs: Mapping[int, Job], cpu_s: float = 0.0
) -> Result:
    """The numbers of a finished run. `jobs` are those that some resource takes, by number."""
    work = sum(job.runtime_s * job.shape.cpus for job in jobs.values()) / HOUR_S
    hours = {use: amount / HOUR_S for use, amount in meter.used.items()}
    held = sum(hours.values())
    waits = sorted(meter.waits)
    idle = (Use.BOOT, Use.UNMATCHED, Use.FRAGMENTATION, Use.TAIL, Use.DRAINED)
    return Result(
        controller=controller,
        workload=workload,
        seed=seed,
        work=work,
        good=hours[Use.GOOD],
        unserved=max(0.0, work - hours[Use.GOOD]),
        held=held,
        lost=hours[Use.LOST],
        idle={use.value: hours[use] for use in idle},
        failed=hours[Use.FAILED],
        efficiency=hours[Use.GOOD] / held if held else 0.0,
        wait_mean_min=sum(waits) / len(waits) / 60 if waits else 0.0,
        wait_p90_min=waits[int(0.9 * (len(waits) - 1))] / 60 if waits else 0.0,
        ramp_min=_ramp_min(meter, jobs),
        submitted=meter.submitted,
        started=meter.started,
        never_used=meter.never_used,
        failed_pilots=meter.failed,
        preempted=meter.preempted,
        cancelled=meter.cancelled,
        killed_runs=meter.kills,
        peak_pending=meter.peak_pending,
        cycles=meter.cycles,
        cpu_s=cpu_s,
    )


def _ramp_min(meter: Meter, jobs: Mapping[int, Job]) -> float | None:
    bursts: dict[int, list[float]] = {}
    for number, job in jobs.items():
        if job.burst is not None:
            bursts.setdefault(job.burst, []).append(meter.first_starts.get(number, float("inf")))
    ramps = [sorted(starts)[int(0.8 * (len(starts) - 1))] / 60 for starts in bursts.values()]
    reached = [ramp for ramp in ramps if ramp != float("inf")]
    return sum(reached) / len(reached) if reached else None
