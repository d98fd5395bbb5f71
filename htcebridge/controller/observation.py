"""What one cycle has seen, as frozen values: each source is a value with its time, or unknown because of something.

It can be written down and read again (`snapshots`); nothing here reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from htcebridge.model import Demand, Startd, Track
from htcebridge.pilot.logs import OutcomeLine
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.slurm.text import Ended, OtherJob, Queue
from htcebridge.slurm.tres import Tres
from htcebridge.state.ledger import Entry
from htcebridge.state.memory import LastAnswer
from htcebridge.tier1.pool import Ghost, Negotiation

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """What one source said at a time (seconds since the epoch), or why that is unknown."""

    at: int
    value: T | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Marks:
    """The drain marks on the shared file system. `drained` are resources that an admin drains, `tail` our own marks.

    `shared`: the shared directories that were looked at.
    """

    drained: Mapping[str, str] = field(default_factory=dict)
    tail: frozenset[str] = frozenset()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Near:
    """What lies nearest: kill switch, squeue and our own ledger, all that the safety path needs; and the drain marks.

    `uid` is the user of controller and pilots. The kill switch has no value while it is off.
    """

    now: int
    uid: int
    kill_switch: Source[str]
    marks: Source[Marks]
    queue: Source[Queue]
    ledger: Source[tuple[Entry, ...]]

    @property
    def stop(self) -> str | None:
        """Why nothing may run, while the kill switch is on."""
        return self.kill_switch.value

    @property
    def may_start(self) -> bool:
        """Whether nothing that is known or unknown here forbids new pilots."""
        blind = self.kill_switch.unknown or self.marks.unknown or self.queue.value is None
        return self.stop is None and not blind

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The ledger, as far as it is known."""
        return self.ledger.value or ()

    @property
    def listed(self) -> frozenset[str]:
        """Ids of all jobs of this user that Slurm lists, other instances' too."""
        queue = self.queue.value
        if queue is None:
            return frozenset()
        return frozenset([each.id for each in queue.ours] + [each.id for each in queue.others])


@dataclass(frozen=True)
class Collector:
    """What the Tier-1's collector knows: the startds of our pilots, and the names of the schedds that it has.

    `kinds`: `Startd.kind` -> what these slots advertise. `negotiators`: the last cycle of each.
    """

    startds: tuple[Startd, ...]
    schedds: frozenset[str]
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    negotiators: tuple[Negotiation, ...] = ()


@dataclass(frozen=True)
class Negotiator:
    """What the Tier-1's negotiator says (demand_source = "negotiator"): `ghosts` are the offline slots that are there,
    `ads` what they should be made from (resource -> ClassAd text; none where it is not asked), `tracks` what to
    remember of them, `alarms` where it does not agree with the query, or why it is not asked. `asked`: it may be shown
    ghosts."""

    ghosts: tuple[Ghost, ...]
    ads: Mapping[str, str]
    tracks: Mapping[str, Track]
    alarms: tuple[str, ...] = ()
    asked: bool = False


@dataclass(frozen=True)
class Waiting:
    """What the schedds say. `qdates` is the cache for the next demand query, `answers` what stands in for one that does
    not answer then."""

    demand: Demand
    qdates: Mapping[str, Mapping[str, int]]
    negotiator: Negotiator | None = None
    answers: Mapping[str, LastAnswer] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """All that one cycle has seen. The Tier-1 is not asked while the kill switch is on: then it is unknown."""

    near: Near
    collector: Source[Collector]
    waiting: Source[Waiting]
    ends: Source[tuple[Ended, ...]]
    """slurmdbd's word on the pilots that are gone."""
    words: Mapping[str, Source[OutcomeLine]] = field(default_factory=dict)
    """Pilot id -> its own last line, of those; no value where it left none."""
    limits: Mapping[str, Source[SlurmLimits]] = field(default_factory=dict)
    """Resource -> Slurm's limits, where they were due."""
    holdings: Source[dict[str, Tres]] | None = None
    """Job id -> what it holds, for jobs that are no pilots of a resource; None: no limit asks."""
    spent: Mapping[str, Source[float]] = field(default_factory=dict)
    """Resource -> node-hours of its ended pilots, where they had to be counted."""
    submitted: Mapping[str, Source[str]] = field(default_factory=dict)
    """`Entry.key` -> job id, or "none": slurmdbd's word on submissions that squeue does not show."""
    resets: tuple[str, ...] = ()
    """Resources whose past an admin wants forgotten."""
    refused: str = ""
    """What would make every pilot fail, and only the admin can mend."""

    @property
    def now(self) -> int:
        return self.near.now

    @property
    def startds(self) -> tuple[Startd, ...]:
        return self.collector.value.startds if self.collector.value else ()

    @property
    def others(self) -> tuple[OtherJob, ...]:
        """Live Slurm jobs that are none of this instance's."""
        return self.near.queue.value.others if self.near.queue.value else ()

    @property
    def demand(self) -> Demand:
        return self.waiting.value.demand if self.waiting.value else Demand((), ())

    @property
    def negotiator(self) -> Negotiator | None:
        return self.waiting.value.negotiator if self.waiting.value else None

    @property
    def held(self) -> str | None:
        """Why nothing can be decided. With the kill switch on marks and squeue are enough."""
        needed: list[Source[Any]] = [self.near.kill_switch, self.near.queue]
        if self.near.stop is None:
            needed += [self.near.marks, self.near.ledger, self.collector, self.waiting, *self.spent.values()]
        return next((source.unknown for source in needed if source.unknown), None)
