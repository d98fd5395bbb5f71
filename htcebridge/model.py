"""What one cycle sees and decides, as plain frozen values. No I/O, no clock, no configuration file.

Units are in the names: MiB of memory and disk, seconds, times as seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Shape:
    """What a job asks of a node, or what a node has to give."""

    cpus: int
    memory_mb: int
    gpus: int = 0
    disk_mb: int = 0

    def times_in(self, free: Shape) -> int:
        """How many of this shape fit into `free`. A shape that asks for nothing fits once."""
        ratios = [have // ask for ask, have in zip(self.axes, free.axes, strict=True) if ask > 0]
        return max(0, min(ratios)) if ratios else 1

    def less(self, other: Shape, times: int = 1) -> Shape:
        """What is left after `times` of `other` were taken out."""
        return Shape(*(have - times * ask for have, ask in zip(self.axes, other.axes, strict=True)))

    def dominant_share(self, whole: Shape) -> float:
        """The largest part of any one of `whole`'s resources that this shape takes (Ghodsi et al., NSDI 2011)."""
        return max((ask / have for ask, have in zip(self.axes, whole.axes, strict=True) if have > 0), default=0.0)

    @property
    def axes(self) -> tuple[int, int, int, int]:
        return (self.cpus, self.memory_mb, self.gpus, self.disk_mb)


@dataclass(frozen=True)
class Group:
    """Tagged jobs of equal shape, owner and Requirements in all schedds together.

    `oldest_s` is how long the longest-waiting idle one has waited. `resources` names the resources that would
    take the jobs; `why_not` gives the reason for each of the others.
    """

    shape: Shape
    walltime_s: int
    owner: str
    vo: str
    idle: int
    running: int
    oldest_s: int
    resources: tuple[str, ...] = ()
    why_not: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheddAnswer:
    """How one schedd answered: `error` is None where it did."""

    name: str
    seconds: float
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Demand:
    """What waits. A lower bound where a schedd did not answer."""

    groups: tuple[Group, ...]
    schedds: tuple[ScheddAnswer, ...]

    @property
    def complete(self) -> bool:
        return all(schedd.ok for schedd in self.schedds)


class PilotPhase(StrEnum):
    """Where a pilot stands, from what Slurm and the collector say together."""

    PENDING = "pending"
    BOOTING = "booting"
    JOINED = "joined"
    LOST = "lost"
    """Running in Slurm for longer than boot_timeout without having joined: counts for the caps, not as supply."""
    LEAVING = "leaving"
    """Completing, or in a state that this version does not know: counts for the caps, not as supply."""
    ENDED = "ended"


@dataclass(frozen=True)
class Startd:
    """A joined pilot as the collector shows it: what its partitionable slot has free, and until when."""

    pilot_id: str
    name: str
    machine: str
    total: Shape
    free: Shape
    jobs: int
    to_die: int
    accepting: bool


@dataclass(frozen=True)
class SlurmJob:
    """One Slurm job or array task of ours, in Slurm's own words."""

    id: str
    resource: str
    plan_id: str
    state: str
    reason: str
    partition: str
    qos: str
    account: str
    node: str
    submitted: int | None
    started: int | None
    ends: int | None
    time_limit_s: int | None


@dataclass(frozen=True)
class Pilot:
    """A Slurm job and, once it has joined, its startd."""

    job: SlurmJob
    phase: PilotPhase
    startd: Startd | None = None


@dataclass(frozen=True)
class Limits:
    """One resource, as far as the planner needs to know it.

    `job_life_s` is the longest walltime that a new pilot can promise a job; `overhead_s` what a pilot's own
    walltime must exceed a job's by.
    """

    name: str
    node: Shape
    walltime_s: int
    job_life_s: int
    max_running: int
    max_pending: int
    max_new_per_cycle: int
    min_walltime_s: int | None = None
    constant: bool = False
    node_hours_left: float | None = None

    @property
    def overhead_s(self) -> int:
        return self.walltime_s - self.job_life_s


@dataclass(frozen=True)
class Policy:
    """What holds for every resource of one controller."""

    min_fill: float
    max_wait_s: int
    surplus_cycles: int


@dataclass(frozen=True)
class ResourcePlan:
    """What one cycle decides for one resource, with its reasons.

    `needed` counts the pilots that the demand needs beyond what has joined: booting, pending and new ones.
    `time_min_s` is the shortest walltime with which a submitted pilot still serves the jobs it is meant for.
    """

    needed: int
    running: int
    booting: int
    pending: int
    submit: int = 0
    cancel: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    time_min_s: int | None = None


@dataclass(frozen=True)
class Plan:
    """What one cycle decides. `held` says why nothing was decided, where that is so."""

    resources: Mapping[str, ResourcePlan]
    surplus: Mapping[str, int]
    """Resource -> cycles for which it has had pending pilots too many; handed to the next cycle."""
    held: str | None = None
