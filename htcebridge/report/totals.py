"""What was used, lost and wasted in a period: the history, summed up for `report`, its page and its JSON.

Frozen values only; `queries` fills them. Units in the names: core-seconds, node-seconds, seconds, times as
seconds since the epoch. docs/reports.md says what each number means and how far it may be off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from htcebridge.history.usage import HELD, Use
from htcebridge.model import Outcome

FAILED = (Outcome.NEVER_JOINED, Outcome.NODE_FAILED)
"""The ends that are held against a node, as in `plan.health`."""
ALIVE = "alive"
"""Stands for an outcome: the pilot was there when the period ended."""


@dataclass(frozen=True)
class Period:
    """Seconds since the epoch; `until` is not in it. Core-hours are known by the hour, so it begins at a full one."""

    since: int
    until: int

    @property
    def seconds(self) -> int:
        return self.until - self.since


@dataclass(frozen=True)
class Spread:
    """A time in seconds: half of `count` took `p50` at most, nine of ten `p90`. None where there was none."""

    count: int = 0
    p50: int | None = None
    p90: int | None = None


@dataclass(frozen=True)
class Cores:
    """Core-seconds by use. LOST is part of BUSY and is booked when its pilot ends, so it may precede its period."""

    by_use: Mapping[Use, int] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return sum(self.by_use.get(use, 0) for use in HELD)

    @property
    def lost(self) -> int:
        return self.by_use.get(Use.LOST, 0)

    @property
    def good(self) -> int:
        return max(0, self.by_use.get(Use.BUSY, 0) - self.lost)

    @property
    def idle(self) -> int:
        """Held, and no job ran: all but busy, and but what a manual glidein does out of sight."""
        return self.held - self.by_use.get(Use.BUSY, 0) - self.by_use.get(Use.ELSEWHERE, 0)

    @property
    def efficiency(self) -> float | None:
        """good/held. None where nothing was held."""
        return self.good / self.held if self.held else None

    def split(self) -> dict[str, int]:
        """What was held, in parts that add up to it: good, lost, and each use but BUSY.

        Use.IDLE is "unmatched" here, as `simulate` has it: "idle" is the sum of all that did nothing.
        """
        busy = self.by_use.get(Use.BUSY, 0)
        lost = min(self.lost, busy)
        rest = {"unmatched" if use is Use.IDLE else str(use): self.by_use.get(use, 0) for use in HELD}
        del rest["busy"]
        return {"good": busy - lost, "lost": lost, **rest}

    @staticmethod
    def total(parts: Iterable[Cores]) -> Cores:
        sums: dict[Use, int] = {}
        for part in parts:
            for use, core_s in part.by_use.items():
                sums[use] = sums.get(use, 0) + core_s
        return Cores(sums)


@dataclass(frozen=True)
class Pilots:
    """Pilots that were in Slurm at some time of the period. `node_s`: from start to end, the part in the period."""

    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Outcome, or ALIVE, -> pilots."""
    started: int = 0
    joined: int = 0
    node_s: int = 0
    jobs: int = 0
    evicted: int = 0

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())

    @property
    def preempted(self) -> int:
        return self.outcomes.get(Outcome.PREEMPTED, 0)

    @property
    def failed(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in FAILED)

    @staticmethod
    def total(parts: Iterable[Pilots]) -> Pilots:
        parts = list(parts)
        outcomes: dict[str, int] = {}
        for part in parts:
            for outcome, count in part.outcomes.items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
        numbers = ("started", "joined", "node_s", "jobs", "evicted")
        return Pilots(outcomes, **{name: sum(getattr(part, name) for part in parts) for name in numbers})


@dataclass(frozen=True)
class ResourceRow:
    """One resource. `queued`: submission to start in Slurm; `booted`: start to joining; `to_join`: both together."""

    resource: str
    pilots: Pilots
    cores: Cores
    queued: Spread = Spread()
    booted: Spread = Spread()
    to_join: Spread = Spread()


@dataclass(frozen=True)
class VoRow:
    """What the jobs of one VO did on one resource. Idle cores belong to no VO."""

    vo: str
    resource: str
    cores: Cores


@dataclass(frozen=True)
class Waited:
    """What waited of one VO: means over the period, and the longest that any job was seen waiting, in seconds."""

    vo: str
    idle_jobs: float
    idle_cpus: float
    oldest_s: int


@dataclass(frozen=True)
class NodeRow:
    """What one node cost. `said`: how the last failure on it put it."""

    node: str
    pilots: int
    failed: int
    preempted: int
    lost_core_s: int
    said: str = ""


Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Series:
    """Means over steps of `step_s` seconds that begin at `times`. None: no cycle looked."""

    step_s: int
    times: tuple[int, ...]
    waiting_cpus: Mapping[str, Values]
    """VO -> cores that its idle jobs ask for."""
    pending: Values
    booting: Values
    joined: Values
    held_cpus: Values
    busy_cpus: Values


@dataclass(frozen=True)
class Bar:
    """One pilot on the timeline. `levels`: (since when, busy cores); empty where that is not known any more."""

    id: str
    resource: str
    node: str
    cpus: int
    started: int
    joined: int | None
    ended: int | None
    outcome: str
    said: str
    jobs: int | None
    evicted: int
    core_s: int
    lost_core_s: int
    levels: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Timeline:
    """The last hours of the period. What `nodes` and `pilots` there were, and whose bars are here: node -> bars."""

    since: int
    until: int
    nodes: int
    pilots: int
    lines: Mapping[str, Sequence[Bar]]


@dataclass(frozen=True)
class Watched:
    """How well the controller saw the period: first and last cycle in it, and those in which it could not look.

    `part` (0 to 1) is that of the period's quarters of an hour in which a cycle looked.
    """

    cycles: int = 0
    held: int = 0
    first: int | None = None
    last: int | None = None
    part: float = 0.0


@dataclass(frozen=True)
class Report:
    """All of it. `period` begins with the history, if that is younger. `name` is the controller's instance.

    `kept` is when the history begins and ends; None: it is empty.
    """

    name: str
    period: Period
    watched: Watched
    kept: tuple[int, int] | None
    resources: tuple[ResourceRow, ...]
    vos: tuple[VoRow, ...]
    waited: tuple[Waited, ...]
    nodes: tuple[NodeRow, ...]
    series: Series
    timeline: Timeline

    @property
    def empty(self) -> bool:
        return not (self.watched.cycles or self.resources)

    @property
    def cores(self) -> Cores:
        return Cores.total(each.cores for each in self.resources)

    @property
    def pilots(self) -> Pilots:
        return Pilots.total(each.pilots for each in self.resources)


def spread(counts: Mapping[int, int]) -> Spread:
    """From value -> how often. Nearest rank: a value that occurred, never one between two."""
    values = sorted(counts)
    reached = list(accumulate(counts[value] for value in values))
    if not reached:
        return Spread()

    def rank(percent: int) -> int:
        wanted = -(-reached[-1] * percent // 100)
        return next(value for value, so_far in zip(values, reached, strict=True) if so_far >= wanted)

    return Spread(reached[-1], rank(50), rank(90))


# From one that shows single cycles to one that shows seasons.
_STEPS_S = (60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 7 * 86400)
_MOST_STEPS = 370


def step_for(period: Period) -> int:
    """The shortest step, in seconds, that leaves a plot legible and a page small."""
    return next((step for step in _STEPS_S if period.seconds <= step * _MOST_STEPS), _STEPS_S[-1])
