"""What others do, as controllers of the simulation. Each serves one resource, with the pilot size that it is given.

The old script's rule and glideinWMS's formula are written anew from their sources; COBalD's LinearController and
Standardiser are the real ones, from the package `cobald` (0.14).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from enum import Enum, auto

from cobald.composite.factory import FactoryPool
from cobald.controller.linear import LinearController
from cobald.decorator.standardiser import Standardiser
from cobald.interfaces import Pool, PoolDecorator

from htcebridge.model import Limits, Pilot, PilotPhase, Plan, ResourcePlan
from htcebridge.simulation.interface import Seen


class OldScript:
    """leonardo_opportunistic: min(max_running - running, max_idle - pending), whatever waits in the pool."""

    def __init__(self, limit: Limits, max_idle: int) -> None:
        self._limit = limit
        self._max_idle = max_idle

    def decide(self, seen: Seen) -> Plan:
        pending = len(_pending(seen))
        running = len(seen.pilots) - pending
        submit = min(self._limit.max_running - running, self._max_idle - pending)
        return _plan(self._limit, submit)


class GlideinWMS:
    """The frontend's and the factory's arithmetic for one entry, defaults as shipped with 3.11.

    frontend: `compute_glidein_min_idle` and `compute_glidein_max_running` of glideinFrontendElement.py, from cores
    alone; factory: `add = min_idle - waiting`, clipped by max_run. `matched`: its match_expr filters jobs that no
    pilot takes (as perfectly as the simulated negotiator does); without it every tagged job counts.
    """

    OLD_IDLE_S = 600
    RESERVE_IDLE = 5
    ENTRY_MAX_IDLE = 100
    ENTRY_CURB_IDLE_SLOTS = 5
    ENTRY_MAX_IDLE_SLOTS = 100
    GROUP_CURB_IDLE_SLOTS = 200
    FRACTION_RUNNING = 1.15
    # A slot is idle if it has a cpu and more memory than this (getIdleCondorStatus).
    MIN_MEMORY_MB = 2500
    # choose_remove_excess_type: unsubmitted and waiting glideins go after so many cycles without idle jobs.
    CYCLES_BEFORE_REMOVAL = 5

    def __init__(self, limit: Limits, matched: bool = True) -> None:
        self._limit = limit
        self._matched = matched
        self._cycles_without_idle = 0

    def decide(self, seen: Seen) -> Plan:
        cores = self._limit.node.cpus
        idle = -(-seen.waiting_cpus(None, self._matched) // cores)
        old_idle = -(-seen.waiting_cpus(seen.now - self.OLD_IDLE_S, self._matched) // cores)
        joined = [pilot.startd for pilot in seen.pilots if pilot.startd is not None]
        idle_slots = sum(
            startd.free.cpus > 0 and startd.free.memory_mb > self.MIN_MEMORY_MB and startd.accepting
            for startd in joined
        )
        real_running = sum(startd.jobs > 0 for startd in joined)
        waiting = _pending(seen)
        self._cycles_without_idle = 0 if idle else self._cycles_without_idle + 1
        if self._cycles_without_idle > self.CYCLES_BEFORE_REMOVAL:
            return _plan(self._limit, 0, tuple(pilot.job.id for pilot in waiting))
        min_idle = self._min_idle(idle, old_idle, idle_slots, len(joined))
        max_run = int((max(idle - idle_slots, 0) + real_running) * self.FRACTION_RUNNING + 1) if idle else real_running
        add = min(min_idle - len(waiting), max_run - len(seen.pilots), self._limit.max_running - len(seen.pilots))
        return _plan(self._limit, add)

    def _min_idle(self, idle: int, old_idle: int, idle_slots: int, slots: int) -> int:
        if slots >= self._limit.max_running or idle_slots >= self.ENTRY_MAX_IDLE_SLOTS:
            return 0
        needed = max(idle - idle_slots, 0)
        if not needed:
            return 0
        asked = min(needed, self._limit.max_running - slots) / 3
        asked += min(max(old_idle - idle_slots, 0) / 3, self.RESERVE_IDLE)
        asked = min(asked, self.ENTRY_MAX_IDLE)
        for curb in (self.ENTRY_CURB_IDLE_SLOTS, self.GROUP_CURB_IDLE_SLOTS):
            if idle_slots >= curb:
                asked /= 2
        return max(1, int(asked))


class Guard(Enum):
    """What keeps COBalD from growing while nothing waits; by itself it never looks at the queue."""

    NONE = auto()
    STOPPER = auto()
    """No demand at all while no tagged job waits, as the Stopper of cobald_hep_plugins: it drains every drone."""
    NO_GROWTH = auto()
    """The milder rule: the demand may only shrink while no tagged job waits."""


class Cobald:
    """COBalD's LinearController over a Standardiser and a FactoryPool of drones, driven by the simulation's clock.

    `rate` is in cores per second. A drone whose demand becomes 0 is cancelled while it waits, and drained once it
    is there.
    """

    def __init__(
        self,
        limit: Limits,
        interval_s: int,
        low_utilisation: float,
        high_allocation: float,
        guard: Guard = Guard.NONE,
        rate: float = 1.0,
    ) -> None:
        self._limit = limit
        self._interval_s = interval_s
        self._waiting = False
        self._numbers = itertools.count()
        self._born: list[_Drone] = []
        self._factory = FactoryPool(factory=self._new_drone)
        target = _Guarded(self._factory, lambda: self._waiting, guard)
        cores = limit.node.cpus
        bounded = Standardiser(target, minimum=0, maximum=limit.max_running * cores)
        self._controller = LinearController(bounded, low_utilisation, high_allocation, rate, interval_s)
        self._drones: dict[str, _Drone] = {}

    def decide(self, seen: Seen) -> Plan:
        self._meet(seen)
        self._waiting = seen.waiting_cpus(None, False) > 0
        if not self._waiting:
            # What the Stopper's own loop does between two regulations; without a guard this changes nothing.
            self._controller.target.demand = self._controller.target.demand
        self._controller.regulate(self._interval_s)
        supply, demand = self._factory.supply, self._factory.demand
        if supply > demand:
            self._factory._shrink(demand)
        else:
            self._factory._grow(demand)
        unwanted = [drone.pilot for drone in self._drones.values() if drone.demand <= 0 and drone.pilot is not None]
        return _plan(
            self._limit,
            sum(drone.demand > 0 for drone in self._born),
            tuple(pilot.job.id for pilot in unwanted if pilot.phase is PilotPhase.PENDING),
            tuple(pilot.job.id for pilot in unwanted if pilot.phase is PilotPhase.JOINED),
        )

    def _new_drone(self) -> _Drone:
        drone = _Drone(self._limit.node.cpus, next(self._numbers))
        self._born.append(drone)
        return drone

    def _meet(self, seen: Seen) -> None:
        """Each drone meets its pilot, the new ones in the order in which they were submitted."""
        there = {pilot.job.id: pilot for pilot in seen.pilots}
        for pilot_id, drone in list(self._drones.items()):
            drone.pilot = there.get(pilot_id)
            if drone.pilot is None:
                drone.gone = True
                drone.demand = 0
                self._factory._hatchery.discard(drone)
                del self._drones[pilot_id]
        born = [drone for drone in self._born if drone.demand > 0]
        fresh = [pilot for pilot_id, pilot in there.items() if pilot_id not in self._drones]
        for drone, pilot in zip(born, fresh, strict=False):
            drone.pilot = pilot
            self._drones[pilot.job.id] = drone
        self._born = []


class _Drone(Pool):  # type: ignore[misc]  # cobald has no types
    """A TARDIS drone: it supplies its cores while it is in the pool and not draining."""

    def __init__(self, cores: int, number: int) -> None:
        self._cores = cores
        self._number = number
        self._demand = float(cores)
        self.pilot: Pilot | None = None
        self.gone = False

    def __hash__(self) -> int:
        # FactoryPool keeps drones in a set: their order must be the same in every run.
        return self._number

    @property
    def supply(self) -> float:
        startd = self.pilot.startd if self.pilot is not None else None
        return self._cores if startd is not None and not startd.draining and not self.gone else 0.0

    @property
    def demand(self) -> float:
        return self._demand

    @demand.setter
    def demand(self, value: float) -> None:
        self._demand = value

    @property
    def utilisation(self) -> float:
        return min(self._ratios())

    @property
    def allocation(self) -> float:
        return max(self._ratios())

    def _ratios(self) -> tuple[float, float]:
        """The ratios that TARDIS's documentation configures: cores and memory in use."""
        startd = self.pilot.startd if self.pilot is not None else None
        if startd is None:
            return 0.0, 0.0
        return 1 - startd.free.cpus / startd.total.cpus, 1 - startd.free.memory_mb / startd.total.memory_mb


class _Guarded(PoolDecorator):  # type: ignore[misc]
    """Lets the demand through only as the guard allows."""

    def __init__(self, target: Pool, jobs_wait: Callable[[], bool], guard: Guard) -> None:
        super().__init__(target)
        self._jobs_wait = jobs_wait
        self._guard = guard

    @property
    def demand(self) -> float:
        return float(self.target.demand)

    @demand.setter
    def demand(self, value: float) -> None:
        if self._jobs_wait() or self._guard is Guard.NONE:
            self.target.demand = value
        else:
            self.target.demand = 0.0 if self._guard is Guard.STOPPER else min(value, self.target.demand)


def _pending(seen: Seen) -> list[Pilot]:
    return [pilot for pilot in seen.pilots if pilot.phase is PilotPhase.PENDING]


def _plan(limit: Limits, submit: int, cancel: tuple[str, ...] = (), drain: tuple[str, ...] = ()) -> Plan:
    decision = ResourcePlan(0, 0, 0, 0, submit=max(0, submit), cancel=cancel, drain=drain)
    return Plan({limit.name: decision})
