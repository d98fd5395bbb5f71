"""Slurm's view and the collector's view of each pilot, side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from htcebridge.config.tables import Config
from htcebridge.controller.observation import Observation
from htcebridge.model import Pilot, PilotPhase, SlurmJob, Startd, Wait
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.slurm.waits import wait_of


def pilots_of(config: Config, seen: Observation) -> tuple[Pilot, ...]:
    """The pilots of an observation; without a collector's answer none of them has joined."""
    queue = seen.near.queue.value
    return join(queue.ours if queue else (), seen.startds, seen.now, config)


def join(jobs: Iterable[SlurmJob], startds: Iterable[Startd], now: int, config: Config) -> tuple[Pilot, ...]:
    """Each job with its startd, if it has joined. `now` in seconds since the epoch."""
    by_id = {startd.pilot_id: startd for startd in startds}
    boot_timeout_s = config.pressure.boot_timeout.total_seconds()
    pilots = []
    for job in jobs:
        startd = by_id.get(job.id)
        phase = _phase(job, startd, now, boot_timeout_s)
        resource = config.resources.get(job.resource)
        if resource is not None and resource.executor is not None and stage_of(job.state) is Stage.RUNNING:
            phase = PilotPhase.JOINED  # another pool, which is not asked
        wait = wait_of(job.reason, job.state) if phase is PilotPhase.PENDING else Wait.NORMAL
        pilots.append(Pilot(job, phase, startd if phase is PilotPhase.JOINED else None, wait=wait))
    return tuple(pilots)


def _phase(job: SlurmJob, startd: Startd | None, now: int, boot_timeout_s: float) -> PilotPhase:
    match stage_of(job.state):
        case Stage.ENDED:
            return PilotPhase.ENDED
        case Stage.PENDING | Stage.HELD:
            # It started, and joined, between the two looks.
            return PilotPhase.JOINED if startd else PilotPhase.PENDING
        case Stage.RUNNING if startd:
            return PilotPhase.JOINED
        case Stage.RUNNING:
            started = job.started if job.started is not None else now
            return PilotPhase.BOOTING if now - started <= boot_timeout_s else PilotPhase.LOST
    return PilotPhase.LEAVING
