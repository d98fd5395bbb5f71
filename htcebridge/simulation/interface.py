"""What a controller sees in the simulation, and what it may order: the same for every controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from htcebridge.model import Demand, EndedPilot, LivePilot, Pilot, Plan


@dataclass(frozen=True)
class Seen:
    """One cycle's view. `now` in seconds since the epoch; `ended` are the pilots that ended within
    outcome_window, and older failures of nodes.

    `waiting_cpus(before, fitting)`: cores that idle jobs ask for, those queued before a time (None: all), and where
    `fitting` only those that some resource takes.
    """

    now: int
    demand: Demand
    pilots: tuple[Pilot, ...]
    ended: tuple[EndedPilot, ...]
    live: tuple[LivePilot, ...]
    waiting_cpus: Callable[[int | None, bool], int]


class Controller(Protocol):
    """Decides one cycle. Of the plan the world reads `submit`, `walltime_s`, `time_min_s`, `exclude`, `cancel`,
    `drain` and `undrain` of each resource. Only pending pilots can be cancelled, as with scancel --state=PENDING.
    """

    def decide(self, seen: Seen) -> Plan: ...
