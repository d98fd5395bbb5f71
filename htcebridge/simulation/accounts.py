"""Writes down what every held core did, exactly once."""

from __future__ import annotations

from collections.abc import Iterable

from htcebridge.simulation.metrics import Meter, Use
from htcebridge.simulation.pool import Run, SimPilot


class Accounts:
    """Core-seconds by use. Free cores are settled before anything about their pilot changes, busy ones per run."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waiting = False

    def settle(self, pilot: SimPilot, now: int) -> None:
        """Write down what the pilot's free cores were until now."""
        if pilot.started is None:
            return
        seconds, pilot.accounted = now - pilot.accounted, now
        self._meter.used[self._idle_use(pilot)] += pilot.free.cpus * seconds

    def ran(self, run: Run, use: Use, now: int) -> None:
        """Write down a run that ends now."""
        self._meter.used[use] += run.job.shape.cpus * (now - run.began)

    def jobs_wait(self, waiting: bool, pilots: Iterable[SimPilot], now: int) -> None:
        """Whether jobs wait from now on that some resource takes: it tells fragmentation from the tail."""
        if waiting == self._waiting:
            return
        for pilot in pilots:
            self.settle(pilot, now)
        self._waiting = waiting

    def _idle_use(self, pilot: SimPilot) -> Use:
        if pilot.bad:
            return Use.FAILED
        if pilot.joined is None:
            return Use.BOOT
        if pilot.draining:
            return Use.DRAINED
        if not pilot.jobs_run:
            return Use.UNMATCHED
        return Use.FRAGMENTATION if self._waiting else Use.TAIL
