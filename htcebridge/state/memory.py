"""What one cycle hands to the next, in one small file of `state_dir`.

Pilots themselves are in Slurm and in the collector. What is kept here is what neither knows: since when something
has been so, what was seen of a pilot while it lived, what became of those that ended. A lost file costs only that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.model import EndedPilot, Streaks
from htcebridge.pilot.ghost_view import Track
from htcebridge.slurm.limits import SlurmLimits


@dataclass(frozen=True)
class Seen:
    """A pilot that Slurm still lists or lately did, and what was seen of it. Times in seconds since the epoch.

    `worked`: it had a job in some cycle. `starved`: cycles in which it had none although jobs waited that fit.
    `absent`: listings in a row in which it was missing.
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


@dataclass(frozen=True)
class Disabled:
    """A resource that only a person can put right. It is tried again when its configuration changes, or on reset."""

    why: str
    since: int
    fingerprint: str
    """Of the resource's table in the configuration."""


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
class Memory:
    """Keys are resources, unless the name says otherwise.

    `schedds`: name -> when the collector last knew it, because a schedd that stops takes its ad away and is unknown
    then, not empty. `qdates`: schedd -> job id -> when it was queued. `looked`: when Slurm was last asked.
    """

    streaks: Streaks = field(default_factory=Streaks)
    schedds: Mapping[str, int] = field(default_factory=dict)
    qdates: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pilots: Mapping[str, Seen] = field(default_factory=dict)
    ended: tuple[EndedPilot, ...] = ()
    disabled: Mapping[str, Disabled] = field(default_factory=dict)
    paused: Mapping[str, Pause] = field(default_factory=dict)
    spent: Mapping[str, Spent] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    slurm_limits: Mapping[str, ReadLimits] = field(default_factory=dict)
    ghosts: Mapping[str, Track] = field(default_factory=dict)
    unsettled: Mapping[str, int] = field(default_factory=dict)
    """Plan id and resource ("ID:RESOURCE") -> listings since in which that submission did not show."""
    resets: Mapping[str, int] = field(default_factory=dict)
    """When an admin had a resource's past forgotten."""
    undrained: Mapping[str, int] = field(default_factory=dict)
    """Pilot id -> when its tail mark was lifted: until it has seen that, it still says that it drains."""
    shared: tuple[str, ...] = ()
    """Shared directories that were there: one that is gone may have had the kill switch in it."""
    looked: int = 0
    pruned: int = 0
    """When old logs of pilots were removed last."""
    accounted: int = 0
    """Until when it is known what the held cores did."""
    unrecorded: tuple[tuple[EndedPilot, Mapping[str, int]], ...] = ()
    """Ended pilots, and the cores by VO that were busy at last, that the history does not have yet: it could not be
    written."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """What has been counted since this file was begun: "name|label|label" -> number (`recording`)."""


_ADAPTER = TypeAdapter(Memory)


def recall(config: Config) -> Memory:
    """What the last cycle left. A lost or damaged file makes counts start anew and silent schedds unknown."""
    path = _file(config)
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except ValidationError:
        logs.event("damaged: what it knew is forgotten", logging.WARNING, file=path)
    except OSError:
        pass  # none yet
    return Memory()


def remember(config: Config, memory: Memory) -> None:
    """Keep what the next cycle wants to know. A disk that is full only makes it forget."""
    path = _file(config)
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(_ADAPTER.dump_json(memory))
        temporary.replace(path)
    except OSError as error:
        logs.event(
            "cannot be written: the next cycle starts without it", logging.WARNING, file=path, why=error.strerror
        )


def _file(config: Config) -> Path:
    return config.pressure.state_dir.path / f"{config.pressure.instance}.json"
