"""What one cycle hands to the next, in one small file of `state_dir`.

Pilots themselves are in Slurm and in the collector. What is kept here is what neither knows: since when something
has been so, what was seen of a pilot while it lived, what became of those that ended. A lost file costs only that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from htcebridge import logs
from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.model import EndedPilot, Shape, Startd, Streaks, Track
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.state import flat
from htcebridge.tier1.pool import JobGroup


@dataclass(frozen=True)
class Seen:
    """A pilot that Slurm still lists or lately did, and what was seen of it. Times in seconds since the epoch.

    `worked`: it had a job in some cycle. `starved`: cycles in which it had none although jobs waited that fit.
    `absent`: listings in a row in which it was missing. `startd`: its ad when the collector last showed it; `missing`:
    since when it has not, though it had.
    """

    resource: str
    plan_id: str
    submitted: int | None = None
    started: int | None = None
    joined: int | None = None
    node: str = ""
    worked: bool = False
    starved: int = 0
    cancelled: bool = False
    absent: int = 0
    busy_by_vo: Mapping[str, int] = field(default_factory=dict)
    """VO -> cores that its jobs held when it was last seen in the pool."""
    executor: bool = False
    """A manual glidein: it looks at no mark."""
    startd: Startd | None = None
    missing: int | None = None


@dataclass(frozen=True)
class Disabled:
    """A resource that only a person can put right. It is tried again when its configuration changes, or on reset."""

    why: str
    since: int
    fingerprint: str
    """Of the resource's table in the configuration."""


def fingerprint(resource: Resource) -> str:
    """Changes when the admin changes anything of a resource."""
    return hashlib.sha256(resource.model_dump_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Pause:
    """A resource that Slurm refused for now. `times` in a row."""

    until: int
    times: int
    why: str


@dataclass(frozen=True)
class Spent:
    """Node-hours of a resource's ended pilots since a date, and whose end is in it last."""

    since: date | None
    node_hours: float


@dataclass(frozen=True)
class Clock:
    """When a resource with max_hours was first served, and which max_hours that was."""

    max_hours: float
    since: int


@dataclass(frozen=True)
class ReadLimits:
    """Slurm's limits for a resource's (account, partition, QOS) and when they were read."""

    limits: SlurmLimits
    billing: tuple[str, str, str]
    at: int


@dataclass(frozen=True)
class Pilots:
    """Owner: `controller.follow`. Keys are pilot ids.

    `seen`: those that Slurm lists, or lately did. `undrained`: when a tail mark was lifted; until the pilot has seen
    that, it still says that it drains. `silent`: cycles in a row in which slurmdbd did not say what became of pilots.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    ended: tuple[EndedPilot, ...] = ()
    undrained: Mapping[str, int] = field(default_factory=dict)
    silent: int = 0


@dataclass(frozen=True)
class Resources:
    """Owner: `controller.learn`. Keys are resources. `resets`: when an admin had a resource's past forgotten."""

    streaks: Streaks = field(default_factory=Streaks)
    disabled: Mapping[str, Disabled] = field(default_factory=dict)
    paused: Mapping[str, Pause] = field(default_factory=dict)
    spent: Mapping[str, Spent] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    limits: Mapping[str, ReadLimits] = field(default_factory=dict)
    resets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LastAnswer:
    """What a schedd said when it last answered (seconds since the epoch)."""

    at: int
    groups: tuple[JobGroup, ...]


@dataclass(frozen=True)
class Schedds:
    """Owner: `controller.learn`. Keys are schedds.

    `known`: when the collector last knew it, because a schedd that stops takes its ad away and is unknown then, not
    empty. `qdates`: job id -> when it was queued. `answers` stand in for one that is too busy to answer
    (`controller.waiting`).
    """

    known: Mapping[str, int] = field(default_factory=dict)
    qdates: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    answers: Mapping[str, LastAnswer] = field(default_factory=dict)


@dataclass(frozen=True)
class Learnt:
    """The slot that an empty pilot of a resource showed, without what belongs to its node or the moment
    (`tier1.slots.lasting`), and the configuration that the pilot was made from (`pilot.script.slot_fingerprint`)."""

    slot: Mapping[str, str]
    made: str


@dataclass(frozen=True)
class FreePart:
    """What a joined pilot has had free, with so many jobs beside it, at every look since then."""

    free: Shape
    jobs: int
    since: int


@dataclass(frozen=True)
class Negotiations:
    """Owner: `controller.unserved`. Times in seconds since the epoch.

    `waiting`: key of a group -> since when jobs of it have waited at every look. `free`: pilot id -> its free part.
    `ended`, `period_s`: the negotiator's last cycle and the time from one to the next; 0: not known.
    """

    waiting: Mapping[str, int] = field(default_factory=dict)
    free: Mapping[str, FreePart] = field(default_factory=dict)
    ended: int = 0
    period_s: int = 0

    def cycles_since(self, when: int) -> int:
        """How many whole negotiation cycles have ended since then."""
        return max(0, self.ended - when) // self.period_s if self.period_s else 0


@dataclass(frozen=True)
class Submissions:
    """Owner: `controller.submissions`. Keys are `Entry.key`: plan id and resource.

    `missing`: listings since in which a submission of which nobody knows did not show. `settled`: what became of one
    (as `Entry.outcome`), until the ledger has it.
    """

    missing: Mapping[str, int] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Upkeep:
    """Owner: `controller.cycle`. When Slurm was last asked, and when old logs and marks were last removed.

    `shared`: shared directories that were there, those of an earlier configuration while its pilots live: one that is
    gone may have had the kill switch in it.
    """

    looked: int = 0
    pruned: int = 0
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Records:
    """Owner: `history.recording`.

    `accounted`: until when it is known what the held cores did. `unrecorded`: ended pilots, and the cores by VO that
    were busy at last, that the history does not have yet: it could not be written. `totals`: what has been counted
    since this file was begun: "name|label|label" -> number.
    """

    accounted: int = 0
    unrecorded: tuple[tuple[EndedPilot, Mapping[str, int]], ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """All of it. Each part is changed by its owner alone. `ghosts`: resource -> what its offline slot was given.
    `slots`: resource -> what its pilots showed (owner: `controller.learn`)."""

    pilots: Pilots = field(default_factory=Pilots)
    resources: Resources = field(default_factory=Resources)
    schedds: Schedds = field(default_factory=Schedds)
    ghosts: Mapping[str, Track] = field(default_factory=dict)
    submissions: Submissions = field(default_factory=Submissions)
    upkeep: Upkeep = field(default_factory=Upkeep)
    records: Records = field(default_factory=Records)
    slots: Mapping[str, Learnt] = field(default_factory=dict)
    negotiations: Negotiations = field(default_factory=Negotiations)


@dataclass(frozen=True)
class _File:
    """What stands in the file. Without `schema` it is of htcebridge 0.1 (`flat`)."""

    schema: Literal[2]
    memory: Memory


_FILE = TypeAdapter(_File)


def recall(config: Config) -> Memory:
    """What the last cycle left. A lost or damaged file makes counts start anew and silent schedds unknown."""
    path = _file(config)
    try:
        text = path.read_bytes()
    except OSError:
        return Memory()  # none yet
    for document in (text, flat.carried_over(text)):
        with suppress(ValidationError):
            if document is not None:
                return _FILE.validate_json(document).memory
    logs.event("damaged: what it knew is forgotten", logging.WARNING, file=path)
    return Memory()


def remember(config: Config, memory: Memory) -> None:
    """Keep what the next cycle wants to know. A disk that is full only makes it forget."""
    path = _file(config)
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(_FILE.dump_json(_File(2, memory)))
        temporary.replace(path)
    except OSError as error:
        logs.event(
            "cannot be written: the next cycle starts without it", logging.WARNING, file=path, why=error.strerror
        )


def _file(config: Config) -> Path:
    return config.pressure.state_dir.path / f"{config.pressure.instance}.json"
