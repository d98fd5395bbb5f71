"""Follows each pilot from the first listing to its end, across cycles: what was seen of it, what became of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge.config.tables import Config
from htcebridge.controller.endings import classify
from htcebridge.controller.observation import Observation
from htcebridge.model import Demand, EndedPilot, LivePilot, Outcome, Pilot, PilotPhase, SlurmJob, Startd
from htcebridge.plan.health import NODE_MEMORY_S
from htcebridge.slurm.text import Ended
from htcebridge.state.ledger import Entry
from htcebridge.state.memory import Pilots, Seen

# slurmdbd may lag: after so many listings without a word from it the outcome stays unknown. Of a pending array task
# that was cancelled alone it never says one (22.05, 24.11, 26.05).
_GIVE_UP_AFTER = 10
_GIVE_UP_A_PENDING_ONE_AFTER = 4
# A pilot that is missing in one listing may be back in the next (a slurmctld that fails over).
_GONE_AFTER = 2
_KEPT_OUTCOMES = 5000
# Cycles in a row without slurmdbd's word after which a person should know.
SILENT_CYCLES = 3
# A pilot looks at its marks every 15 s, and the collector shows it a moment later; shared file systems add to that.
UNDRAIN_SEEN_S = 120


def follow(
    config: Config, before: Pilots, entries: Iterable[Entry], pilots: Sequence[Pilot], seen: Observation
) -> tuple[Pilots, Mapping[str, int]]:
    """What this look adds: each pilot as it is now, and the ends of those that are gone.

    Also resource -> node-seconds of the pilots that have newly ended.
    """
    followed = listed(before, entries, pilots)
    in_pool = {startd.pilot_id for startd in seen.startds}
    for pilot in pilots:
        if pilot.job.id in followed:
            fresh = pilot if pilot.job.id in in_pool else replace(pilot, startd=None)
            followed[pilot.job.id] = _as_it_is(config, followed[pilot.job.id], fresh, seen)
    ended, node_s = _ends(followed, pilots, seen)
    settled = {each.id for each in ended}
    after = Pilots(
        seen={id_: each for id_, each in followed.items() if id_ not in settled},
        ended=_remembered(config, (*before.ended, *ended), seen.now),
        undrained={id_: when for id_, when in before.undrained.items() if seen.now - when < UNDRAIN_SEEN_S},
        silent=_silent(before, seen) if gone(followed, pilots) else before.silent,
    )
    return after, node_s


def _silent(before: Pilots, seen: Observation) -> int:
    return before.silent + 1 if seen.ends.unknown else 0


def listed(before: Pilots, entries: Iterable[Entry], pilots: Sequence[Pilot]) -> dict[str, Seen]:
    """Those that are followed after this listing.

    One that is over when it is first seen counts if the ledger has its submission; else the memory was lost since.
    """
    known = {ended.id for ended in before.ended}
    submitted = {entry.key for entry in entries}
    followed: dict[str, Seen] = {}
    for each in pilots:
        job, over = each.job, each.phase is PilotPhase.ENDED
        lost = over and job.id not in before.seen and f"{job.plan_id}:{job.resource}" not in submitted
        if job.id not in known and not lost:
            so_far = before.seen.get(job.id, Seen(job.resource, job.plan_id, job.submitted))
            followed[job.id] = replace(so_far, absent=so_far.absent + 1 if over else 0)
    for id_, so_far in before.seen.items():
        if id_ not in followed and id_ not in known:
            followed[id_] = replace(so_far, absent=so_far.absent + 1)
    return followed


def gone(followed: Mapping[str, Seen], pilots: Iterable[Pilot]) -> list[str]:
    """Those of which slurmdbd should know the end by now."""
    over = {each.job.id for each in pilots if each.phase is PilotPhase.ENDED}
    return [id_ for id_, each in followed.items() if id_ in over or each.absent >= _GONE_AFTER]


def _as_it_is(config: Config, so_far: Seen, each: Pilot, seen: Observation) -> Seen:
    job, startd, now = each.job, each.startd, seen.now
    resource = config.resources.get(job.resource)
    joined = so_far.joined
    if joined is None and each.phase is PilotPhase.JOINED:
        joined = now
    starved = so_far.starved
    if startd and startd.accepting and not startd.jobs:
        starved = starved + 1 if _would_take(startd, startd.to_die - now, job.resource, seen.demand) else 0
    return replace(
        so_far,
        submitted=job.submitted if job.submitted is not None else so_far.submitted,
        started=job.started if job.started is not None else so_far.started,
        joined=joined,
        node=job.node or so_far.node,
        worked=so_far.worked or (startd is not None and startd.jobs > 0),
        starved=starved,
        busy_by_vo=startd.busy_by_vo if startd else so_far.busy_by_vo,
        executor=resource.executor is not None if resource is not None else so_far.executor,
        startd=startd or so_far.startd,
        missing=_missing(so_far, startd, seen),
    )


def _missing(so_far: Seen, startd: Startd | None, seen: Observation) -> int | None:
    """Since when the collector does not show it. One that was not asked, or did not answer, says nothing."""
    if startd is not None or so_far.startd is None:
        return None
    if seen.collector.value is None or so_far.missing is not None:
        return so_far.missing
    return seen.now


def _would_take(startd: Startd, life_s: int, resource: str, demand: Demand) -> bool:
    """Whether jobs have waited for a while that such a pilot should have taken. A negotiation takes its minutes."""
    return any(
        group.idle
        and group.oldest_s > 600
        and group.walltime_on(resource) <= life_s
        and group.shape_on(startd.kind or resource, startd.moment).times_in(startd.free)
        for group in demand.groups
        if resource in group.resources and startd.kind not in group.refused_by
    )


# --------------------------------------------------------------------------- the end


def _ends(
    followed: Mapping[str, Seen], pilots: Sequence[Pilot], seen: Observation
) -> tuple[list[EndedPilot], Mapping[str, int]]:
    """What became of those that are gone.

    slurmdbd's word counts. Where it has no accounting, or does not answer, squeue's own state and the pilot's last
    line are the evidence: squeue lists an ended job for MinJobAge (300 s) only.
    """
    jobs = {each.job.id: each.job for each in pilots}
    by_slurmdbd = {ended.id: ended for ended in seen.ends.value or ()}
    ended: list[EndedPilot] = []
    node_s = Counter[str]()
    for id_ in gone(followed, pilots):
        each, job = followed[id_], jobs.get(id_)
        end = by_slurmdbd.get(id_)
        if end is None and seen.ends.unknown and job is not None:
            end = _by_squeue(job, seen.now)
        if end is not None:
            said = seen.words[id_].value if id_ in seen.words else None
            ended.append(classify(end, each, seen.near.uid, said))
            node_s[each.resource] += end.node_seconds
        elif each.absent >= (_GIVE_UP_AFTER if each.started is not None else _GIVE_UP_A_PENDING_ONE_AFTER):
            ended.append(_unknown(id_, each, seen.now))
    return ended, node_s


def _by_squeue(job: SlurmJob, now: int) -> Ended:
    """The end as squeue has it, without an exit code and without who cancelled it."""
    at = job.ends if job.ends is not None else now
    return Ended(
        id=job.id,
        state=job.state,
        cancelled_by=None,
        exit_code=0,
        signal=0,
        submitted=job.submitted,
        started=job.started,
        ended=at,
        node=job.node,
        elapsed_s=max(0, at - job.started) if job.started is not None else 0,
        nodes=1 if job.started is not None else 0,
        reason=job.reason,
    )


def _unknown(id_: str, seen: Seen, now: int) -> EndedPilot:
    """What can be said of a pilot of which slurmdbd says nothing."""
    outcome = Outcome.UNKNOWN
    if seen.started is None:
        outcome = Outcome.CANCELLED_BY_US if seen.cancelled else Outcome.NEVER_STARTED
    return EndedPilot(
        id=id_,
        resource=seen.resource,
        plan_id=seen.plan_id,
        outcome=outcome,
        submitted=seen.submitted,
        started=seen.started,
        ended=now,
        joined=seen.joined,
        node=seen.node,
        said="slurmdbd has no end of it",
    )


def _remembered(config: Config, ended: Sequence[EndedPilot], now: int) -> tuple[EndedPilot, ...]:
    """Without the outcomes that no rule looks at any more. Squeue lists an ended job for minutes: longer than that."""
    oldest = now - max(config.pressure.outcome_window.total_seconds(), 3600)
    failures = (Outcome.NEVER_JOINED, Outcome.NODE_FAILED)
    kept = tuple(
        each for each in ended if each.ended > oldest or (each.outcome in failures and each.ended > now - NODE_MEMORY_S)
    )
    return kept[-_KEPT_OUTCOMES:]


# --------------------------------------------------------------------------- as evidence


def live(pilots: Pilots) -> list[LivePilot]:
    """The pilots that run, as evidence for `plan.health`."""
    return [
        LivePilot(id_, seen.resource, seen.node, seen.started, seen.joined)
        for id_, seen in pilots.seen.items()
        if seen.started is not None
    ]


def waits(pilots: Pilots) -> dict[str, list[int]]:
    """Resource -> how long its latest pilots waited in Slurm, seconds."""
    found: dict[str, list[int]] = {}
    everybody: list[EndedPilot | Seen] = [*pilots.ended, *pilots.seen.values()]
    for each in everybody:
        if each.submitted is not None and each.started is not None:
            found.setdefault(each.resource, []).append(max(0, each.started - each.submitted))
    return {name: lengths[-200:] for name, lengths in found.items()}


def dead_in_pool(pilots: Pilots, in_pool: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Resource -> ids of pilots that have ended by Slurm's account and that the collector still shows."""
    dead: dict[str, tuple[str, ...]] = {}
    for each in pilots.ended:
        if each.id in in_pool:
            dead[each.resource] = (*dead.get(each.resource, ()), each.id)
    return dead
