"""How long jobs have waited beside free pilots, in cycles of the Tier-1's own negotiator.

That a job fits a slot is our word; the negotiator's is that it starts there. Where both stand still for some of its
cycles it does not give the slot to the job, whatever the reason, and the plan must not count on it.
"""

from __future__ import annotations

from dataclasses import replace

from htcebridge.controller.observation import Observation
from htcebridge.model import Demand, Pilot
from htcebridge.state.memory import FreePart, Negotiations
from htcebridge.tier1.pool import Negotiation


def learn(before: Negotiations, seen: Observation, looks_s: int = 0) -> Negotiations:
    """Since when jobs wait and pilots have the same part free, at every look. Unknown is no look.

    A cycle counts no less than `looks_s`, the time from one of our looks to the next: we would see no shorter change.
    """
    now, tail = seen.now, seen.near.marks.value.tail if seen.near.marks.value else frozenset()
    waiting = {key: before.waiting.get(key, now) for group in seen.demand.groups if group.idle for key in group.keys}
    free: dict[str, FreePart] = {}
    for startd in seen.startds:
        if startd.accepting and startd.free.cpus > 0 and startd.pilot_id not in tail:
            part = FreePart(startd.free, startd.jobs, now)
            known = before.free.get(startd.pilot_id)
            same = known is not None and (known.free, known.jobs) == (part.free, part.jobs)
            free[startd.pilot_id] = known if known is not None and same else part
    cycle = last_cycle(seen.collector.value.negotiators if seen.collector.value else (), now)
    ended, period_s = cycle or (before.ended, before.period_s)
    return Negotiations(waiting, free, ended, max(period_s, looks_s) if ended else 0)


def last_cycle(negotiators: tuple[Negotiation, ...], now: int) -> tuple[int, int] | None:
    """When every negotiator had ended a cycle last (seconds since the epoch, by our clock at the latest), and the
    seconds from one to the next; None where the collector shows none that has ended one."""
    known = [each for each in negotiators if each.ended and each.period_s]
    if not known:
        return None
    return min(now, *(each.ended for each in known)), max(each.period_s for each in known)


def waited(demand: Demand, known: Negotiations) -> Demand:
    """Each group with the negotiation cycles for which it has waited."""
    groups = []
    for group in demand.groups:
        cycles = max((known.cycles_since(known.waiting[key]) for key in group.keys if key in known.waiting), default=0)
        groups.append(replace(group, waited=cycles) if cycles else group)
    return replace(demand, groups=tuple(groups))


def untouched(pilot: Pilot, known: Negotiations) -> Pilot:
    """A pilot with the negotiation cycles for which its free part was left as it is."""
    part = known.free.get(pilot.job.id)
    cycles = known.cycles_since(part.since) if part is not None else 0
    return replace(pilot, untouched=cycles) if cycles else pilot


def suspected(known: Negotiations, few: int) -> bool:
    """Whether anything has waited beside anything free for so many cycles: then the schedds are asked for reasons."""
    return any(known.cycles_since(since) >= few for since in known.waiting.values()) and any(
        known.cycles_since(part.since) >= few for part in known.free.values()
    )
