"""Slurm's view and the collector's view of each pilot, side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from htcebridge.config.tables import Config
from htcebridge.controller.observation import Observation
from htcebridge.model import Pilot, PilotPhase, SlurmJob, Startd, Wait
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.slurm.waits import wait_of
from htcebridge.state.memory import Pilots, Seen


def pilots_of(config: Config, seen: Observation, known: Pilots) -> tuple[Pilot, ...]:
    """The pilots of an observation. `known` is what was known before."""
    queue = seen.near.queue.value
    return join(queue.ours if queue else (), seen.startds, seen.now, config, known.seen)


def join(
    jobs: Iterable[SlurmJob], startds: Iterable[Startd], now: int, config: Config, known: Mapping[str, Seen]
) -> tuple[Pilot, ...]:
    """Each job with its startd, if it has joined. `now` in seconds since the epoch.

    A collector that was restarted knows its ads again after minutes: for boot_timeout a pilot that it does not show is
    what it was when it last did.
    """
    by_id = {startd.pilot_id: startd for startd in startds}
    boot_timeout_s = config.pressure.boot_timeout.total_seconds()
    pilots = []
    for job in jobs:
        startd = by_id.get(job.id)
        if startd is None and stage_of(job.state) is Stage.RUNNING:
            startd = _last(known.get(job.id), now, boot_timeout_s)
        phase = _phase(job, startd, now, boot_timeout_s)
        resource = config.resources.get(job.resource)
        if resource is not None and resource.executor is not None and stage_of(job.state) is Stage.RUNNING:
            phase = PilotPhase.JOINED  # another pool, which is not asked
        wait = wait_of(job.reason, job.state) if phase is PilotPhase.PENDING else Wait.NORMAL
        pilots.append(Pilot(job, phase, startd if phase is PilotPhase.JOINED else None, wait=wait))
    return tuple(pilots)


def _last(seen: Seen | None, now: int, patience_s: float) -> Startd | None:
    """The startd of a pilot that the collector does not show now, and did lately."""
    if seen is None or (seen.missing is not None and now - seen.missing > patience_s):
        return None
    return seen.startd


def _phase(job: SlurmJob, startd: Startd | None, now: int, boot_timeout_s: float) -> PilotPhase:
    match stage_of(job.state):
        case Stage.ENDED:
            return PilotPhase.ENDED
        case Stage.PENDING | Stage.HELD:
            # It started, and joined, between the two looks.
            return PilotPhase.JOINED if startd else PilotPhase.PENDING
        case Stage.RUNNING | Stage.BOOTING if startd:
            return PilotPhase.JOINED
        case Stage.BOOTING:
            return PilotPhase.BOOTING  # its script has not begun
        case Stage.RUNNING:
            started = job.started if job.started is not None else now
            return PilotPhase.BOOTING if now - started <= boot_timeout_s else PilotPhase.LOST
    return PilotPhase.LEAVING
