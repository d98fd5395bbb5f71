"""Follows each pilot from the first listing to its end, across cycles: what was seen of it, what became of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller.endings import classify
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.model import Demand, EndedPilot, LivePilot, Outcome, Pilot, PilotPhase, Shape
from htcebridge.pilot.logs import OutcomeLine, read_outcome
from htcebridge.plan.health import NODE_MEMORY_S
from htcebridge.slurm.commands import Billing, Slurm
from htcebridge.state.ledger import Entry
from htcebridge.state.memory import Memory, Seen, Spent

# slurmdbd may lag: after so many listings without a word from it the outcome stays unknown. Of a pending array task
# that was cancelled alone it never says one (22.05, 24.11, 26.05).
_GIVE_UP_AFTER = 10
_GIVE_UP_A_PENDING_ONE_AFTER = 4
# A pilot that is missing in one listing may be back in the next (a slurmctld that fails over).
_GONE_AFTER = 2
_KEPT_OUTCOMES = 5000


def update(memory: Memory, entries: Iterable[Entry], pilots: Sequence[Pilot], demand: Demand, now: int) -> Memory:
    """What this listing adds to what is known of each pilot.

    One that is over when it is first seen counts if the ledger has its submission; else the memory was lost since.
    """
    known = {ended.id for ended in memory.ended}
    submitted = {entry.key for entry in entries}
    followed: dict[str, Seen] = {}
    for each in pilots:
        new = each.job.id not in memory.pilots
        lost = new and each.phase is PilotPhase.ENDED and f"{each.job.plan_id}:{each.job.resource}" not in submitted
        if each.job.id not in known and not lost:
            before = memory.pilots.get(each.job.id, Seen(each.job.resource, each.job.plan_id, each.job.submitted))
            followed[each.job.id] = _seen(before, each, demand, now)
    for id_, seen in memory.pilots.items():
        if id_ not in followed and id_ not in known:
            followed[id_] = replace(seen, absent=seen.absent + 1)
    return replace(memory, pilots=followed)


def _seen(before: Seen, each: Pilot, demand: Demand, now: int) -> Seen:
    job, startd = each.job, each.startd
    joined = before.joined
    if joined is None and each.phase is PilotPhase.JOINED:
        joined = now
    starved = before.starved
    if startd and startd.accepting and not startd.jobs:
        starved = starved + 1 if _would_take(startd.free, startd.to_die - now, job.resource, demand) else 0
    return replace(
        before,
        submitted=job.submitted if job.submitted is not None else before.submitted,
        started=job.started if job.started is not None else before.started,
        joined=joined,
        node=job.node or before.node,
        worked=before.worked or (startd is not None and startd.jobs > 0),
        starved=starved,
        absent=before.absent + 1 if each.phase is PilotPhase.ENDED else 0,
        busy_by_vo=startd.busy_by_vo if startd else before.busy_by_vo,
    )


def _would_take(free: Shape, life_s: int, resource: str, demand: Demand) -> bool:
    """Whether jobs have waited for a while that such a pilot should have taken. A negotiation takes its minutes."""
    return any(
        group.idle and group.oldest_s > 600 and group.walltime_s <= life_s and group.shape.times_in(free)
        for group in demand.groups
        if resource in group.resources
    )


def settle(config: Config, slurm: Slurm, memory: Memory, pilots: Iterable[Pilot], now: int) -> Memory:
    """Ask slurmdbd what became of those that have ended, all at once, if there are any."""
    ended_now = {each.job.id for each in pilots if each.phase is PilotPhase.ENDED}
    gone = [id_ for id_, seen in memory.pilots.items() if id_ in ended_now or seen.absent >= _GONE_AFTER]
    if not gone:
        return _within(memory, config, now)
    try:
        answers = {ended.id: ended for ended in slurm.ended(gone)}
    except UnknownState as error:
        logs.event("outcomes are not known yet", logging.WARNING, why=error)
        return _within(memory, config, now)
    outcomes: list[EndedPilot] = []
    spent = dict(memory.spent)
    for id_ in gone:
        seen, answer = memory.pilots[id_], answers.get(id_)
        if answer is not None:
            resource = config.resources.get(seen.resource)
            executor = resource is not None and resource.executor is not None
            outcomes.append(classify(answer, seen, os.getuid(), _last_words(config, seen.resource, id_), executor))
            if seen.resource in spent:
                so_far = spent[seen.resource]
                spent[seen.resource] = replace(so_far, node_hours=so_far.node_hours + answer.node_seconds / 3600)
        elif seen.absent >= (_GIVE_UP_AFTER if seen.started is not None else _GIVE_UP_A_PENDING_ONE_AFTER):
            outcomes.append(_unknown(id_, seen, now))
    for outcome in outcomes:
        _log(outcome)
    settled = {outcome.id for outcome in outcomes}
    return _within(
        replace(
            memory,
            pilots={id_: seen for id_, seen in memory.pilots.items() if id_ not in settled},
            ended=(*memory.ended, *outcomes),
            spent=spent,
        ),
        config,
        now,
    )


def _within(memory: Memory, config: Config, now: int) -> Memory:
    """Without the outcomes that no rule looks at any more. Squeue lists an ended job for minutes: longer than that."""
    oldest = now - max(config.pressure.outcome_window.total_seconds(), 3600)
    failures = (Outcome.NEVER_JOINED, Outcome.NODE_FAILED)
    kept = tuple(
        ended
        for ended in memory.ended
        if ended.ended > oldest or (ended.outcome in failures and ended.ended > now - NODE_MEMORY_S)
    )
    return replace(memory, ended=kept[-_KEPT_OUTCOMES:])


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


def _last_words(config: Config, resource: str, id_: str) -> OutcomeLine | None:
    """The outcome line at the end of a pilot's log on the shared file system; None if there is none."""
    if resource not in config.resources:
        return None
    try:
        return read_outcome(config.resources[resource].shared_dir.path, id_)
    except BridgeError as error:
        logs.event("a pilot's last words cannot be read", logging.WARNING, pilot=id_, why=error)
        return None


def live(memory: Memory) -> list[LivePilot]:
    """The pilots that run, as evidence for `plan.health`."""
    return [
        LivePilot(id_, seen.resource, seen.node, seen.started, seen.joined)
        for id_, seen in memory.pilots.items()
        if seen.started is not None
    ]


def waits(memory: Memory) -> dict[str, list[int]]:
    """Resource -> how long its latest pilots waited in Slurm, seconds."""
    found: dict[str, list[int]] = {}
    everybody: list[EndedPilot | Seen] = [*memory.ended, *memory.pilots.values()]
    for each in everybody:
        if each.submitted is not None and each.started is not None:
            found.setdefault(each.resource, []).append(max(0, each.started - each.submitted))
    return {name: lengths[-200:] for name, lengths in found.items()}


def budgets(config: Config, slurm: Slurm, memory: Memory) -> Memory:
    """Node-hours that ended pilots have used, read in full once and then kept up. Raises UnknownState."""
    spent: dict[str, Spent] = {}
    for name, resource in config.resources.items():
        if resource.max_node_hours is None:
            continue
        known: Mapping[str, Spent] = memory.spent
        if name in known and known[name].since == resource.node_hours_since:
            spent[name] = known[name]
        else:
            billing = Billing(resource.job_name, resource.account, resource.partition, resource.qos)
            hours = slurm.node_hours(name, billing, resource.node_hours_since)
            spent[name] = Spent(resource.node_hours_since, hours)
    return replace(memory, spent=spent)


def _log(outcome: EndedPilot) -> None:
    logs.event(
        "ended",
        pilot=outcome.id,
        resource=outcome.resource,
        plan=outcome.plan_id,
        outcome=outcome.outcome,
        node=outcome.node or "-",
        code=outcome.exit_code,
        jobs=outcome.jobs,
        evicted=outcome.evicted,
        lost_core_s=outcome.lost_core_s,
        said=outcome.said or "-",
    )
