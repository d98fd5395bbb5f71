"""A simulated pilot as squeue and the collector would show it."""

from __future__ import annotations

from collections import Counter

from htcebridge.model import Pilot, PilotPhase, SlurmJob, Startd
from htcebridge.simulation.pool import RETIRE_BEFORE_DEATH_S, SimPilot


def as_pilot(pilot: SimPilot, now: int, boot_timeout_s: int) -> Pilot:
    """What a controller sees of it. Kept until something changes: most pilots look as a minute ago."""
    lost = pilot.phase is PilotPhase.BOOTING and pilot.started is not None and now >= pilot.started + boot_timeout_s
    if lost:
        pilot.phase, pilot.shown = PilotPhase.LOST, None
    if pilot.shown is None:
        pilot.shown = Pilot(
            job=_slurm_job(pilot),
            phase=pilot.phase,
            startd=_startd(pilot, now) if pilot.joined is not None else None,
            tail_drained=pilot.draining,
        )
    return pilot.shown


def _slurm_job(pilot: SimPilot) -> SlurmJob:
    running = pilot.started is not None
    return SlurmJob(
        id=pilot.id,
        resource=pilot.resource,
        plan_id="simulated",
        state="RUNNING" if running else "PENDING",
        reason="None" if running else pilot.reason,
        partition="",
        qos="",
        account="",
        node=pilot.node_name,
        submitted=pilot.submitted,
        started=pilot.started,
        ends=pilot.ends if running else None,
        time_limit_s=pilot.walltime_s,
        time_min_s=pilot.time_min_s,
    )


def _startd(pilot: SimPilot, now: int) -> Startd:
    busy: Counter[str] = Counter()
    for run in pilot.running.values():
        busy[run.job.vo] += run.job.shape.cpus
    return Startd(
        pilot_id=pilot.id,
        name=f"slot1@pilot_{pilot.id}",
        machine=pilot.node_name,
        total=pilot.size,
        free=pilot.free,
        jobs=len(pilot.running),
        to_die=pilot.to_die,
        accepting=not pilot.draining and now < pilot.to_die - RETIRE_BEFORE_DEATH_S,
        draining=pilot.draining,
        busy_by_vo=dict(busy),
    )
