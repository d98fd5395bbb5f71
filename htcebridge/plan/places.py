"""What becomes of every idle job: a place in a pilot, a new node, or a sentence that says why neither. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Policy, Situation, Wait
from htcebridge.plan import opening
from htcebridge.plan.packing import (
    A_FEW_CYCLES,
    Bin,
    Placed,
    by_size,
    expected,
    fill,
    fits,
    new_node,
    queued,
    supply,
    would_fit,
)
from htcebridge.units import format_duration, plural

# So many sentences about jobs without a place has one resource's plan at most; what they quote of a job is cut.
_MOST_SENTENCES = 5
_LONGEST_QUOTE = 160


@dataclass(frozen=True)
class Left:
    """Jobs that get no place, and why not on each resource."""

    jobs: int
    why: Mapping[str, str]


@dataclass(frozen=True)
class Withheld:
    """Jobs of one group that would fit into joined pilots that the negotiator has not given them for `cycles` cycles.

    `pilots` are all such of one resource, `jobs` as many as these would take.
    """

    group: Group
    resource: str
    pilots: tuple[str, ...]
    jobs: int
    cycles: int


@dataclass(frozen=True)
class Places:
    """Every idle job is in `there`, in `opened` or in `left`.

    `there` are the nodes that run or pend, with what was put into them, `opened` new ones. `unplaced` are the jobs that
    no running pilot takes. So many of the jobs in `there` as `again` says are in `opened` too: their pending pilots are
    not expected to start, another resource's may. `withheld` is what is there and no supply, by the negotiator.
    """

    there: tuple[Bin, ...]
    opened: tuple[Bin, ...]
    left: tuple[Left, ...]
    unplaced: tuple[Group, ...] = ()
    again: int = 0
    withheld: tuple[Withheld, ...] = ()


def find(situation: Situation, room: Mapping[str, int]) -> Places:
    """Pack the demand. `room` is how many new nodes each resource may have."""
    limits, policy = situation.limits, situation.policy
    groups = by_size(situation.demand.groups, limits)
    near = fill(groups, supply(situation.pilots, limits, situation.now))
    far = fill([group for group in near.left if group.resources], queued(situation.pilots, limits))
    slow = _slow(situation.pilots)
    elsewhere = fill(_elsewhere(far.placed, limits, slow), far.bins)
    strangers = [each for each in situation.demand.groups if not any(name in limits for name in each.standing)]
    withheld = _withheld(near.left, near.bins)
    can, unable = _able(far.left, limits)
    certain, doubtful = _probing(can, withheld, situation)
    may, refused = _may_open(certain, (*near.placed, *far.placed), situation)
    sure = [group for group in elsewhere.left if not any(each.group.keys == group.keys for each in withheld)]
    again = [group for group in sure if opening.able(group, limits) and not _tier1s_turn(group, policy)]
    waiting = by_size([*may, *again], limits)
    opened = opening.open_nodes(waiting, limits, room, policy.min_fill, policy.max_wait_s, slow) if waiting else ()
    return Places(
        there=(*near.bins, *elsewhere.bins),
        opened=opened,
        left=(
            *_nowhere([*strangers, *(group for group in near.left if not group.resources)], limits),
            *unable,
            *doubtful,
            *refused,
        ),
        unplaced=near.left,
        again=sum(group.idle for group in again),
        withheld=withheld,
    )


def sentences(left: Iterable[Left], resource: str) -> tuple[str, ...]:
    """Why jobs get no place on a resource, most jobs first."""
    jobs, groups = Counter[str](), Counter[str]()
    for each in left:
        if resource in each.why:
            jobs[each.why[resource]] += each.jobs
            groups[each.why[resource]] += 1
    said = [f"{plural(count, 'job')} {why}" for why, count in jobs.most_common()]
    if len(said) <= _MOST_SENTENCES:
        return tuple(said)
    rest = [why for why, _ in jobs.most_common()[_MOST_SENTENCES - 1 :]]
    more, of = sum(jobs[why] for why in rest), sum(groups[why] for why in rest)
    return (*said[: _MOST_SENTENCES - 1], f"... and {plural(more, 'more job')} in {plural(of, 'group')}")


def _slow(pilots: Sequence[Pilot]) -> set[str]:
    """The resources with pending pilots of which none is expected to start."""
    pending: dict[str, list[Pilot]] = {}
    for pilot in pilots:
        if pilot.phase is PilotPhase.PENDING and pilot.wait is Wait.NORMAL:
            pending.setdefault(pilot.job.resource, []).append(pilot)
    return {name for name, waiting in pending.items() if not expected(waiting)}


def _elsewhere(placed: Iterable[Placed], limits: Mapping[str, Limits], slow: set[str]) -> list[Group]:
    """What waits for pilots in a queue that stands, and fits resources whose queue moves or is empty."""
    found = []
    for each in placed:
        names = tuple(name for name in each.group.resources if name not in slow)
        if each.resource in slow and names:
            found.append(replace(each.group, idle=each.jobs, resources=names))
    return found


# --------------------------------------------------------------------------- no place


def _nowhere(groups: Iterable[Group], limits: Mapping[str, Limits]) -> list[Left]:
    """Jobs that no resource takes: each resource that was asked says why."""
    left = []
    for group in groups:
        if group.idle > 0 and not any(name in limits for name in group.resources):
            asked = [name for name in limits if name in group.why_not] or list(limits)
            whys = {name: group.why_not.get(name, "they do not fit") for name in asked}
            quoted = {name: textwrap.shorten(why, _LONGEST_QUOTE, placeholder=" ...") for name, why in whys.items()}
            left.append(Left(group.idle, {name: f"that no resource takes: {why}" for name, why in quoted.items()}))
    return left


def _able(groups: Iterable[Group], limits: Mapping[str, Limits]) -> tuple[list[Group], list[Left]]:
    """The groups that some new pilot would take; the others with what is too much for each."""
    can, left = [], []
    for group in groups:
        if opening.able(group, limits):
            can.append(group)
        else:
            left.append(Left(group.idle, {name: _too_much(group, limits[name]) for name in group.resources}))
    return can, left


def _too_much(group: Group, limit: Limits) -> str:
    if limit.constant:
        return "wait for a place: constant mode opens no node for them"
    asked = zip(group.shape_on(limit.name).axes, limit.node.axes, ("cpus", "MB memory", "GPUs", "MB disk"), strict=True)
    for ask, have, unit in asked:
        if ask > have:
            return f"of {ask} {unit}: a pilot has {have}"
    walltime_s = group.walltime_on(limit.name)
    return f"of {format_duration(walltime_s)}: a pilot gives a job {format_duration(limit.job_life_s)} at most"


# --------------------------------------------------------------------------- what the negotiator does not give


def _withheld(groups: Iterable[Group], bins: Sequence[Bin]) -> tuple[Withheld, ...]:
    """What these jobs, which got no place in joined pilots, would have there but for the negotiator."""
    waiting = [group for group in groups if group.waited >= A_FEW_CYCLES]
    still = [bin_ for bin_ in bins if bin_.untouched >= A_FEW_CYCLES] if waiting else []
    found = []
    for group in waiting:
        for name in group.resources:
            room = [(bin_, would_fit(group, bin_)) for bin_ in still if bin_.resource == name and not bin_.jobs]
            room = [(bin_, fit) for bin_, fit in room if fit]
            if room:
                ids = tuple(pilot for bin_, _ in room for pilot in bin_.pilots)
                jobs = min(group.idle, sum(fit for _, fit in room))
                cycles = min(group.waited, max(bin_.untouched for bin_, _ in room))
                found.append(Withheld(group, name, ids, jobs, cycles))
    return tuple(found)


def _probing(
    groups: Iterable[Group], withheld: Iterable[Withheld], situation: Situation
) -> tuple[list[Group], list[Left]]:
    """The groups that may open nodes as they are, and of those that the negotiator gives nothing as much as new pilots
    may show whether it is those that are there (`_probes`): the others wait."""
    doubted: dict[tuple[str, ...], list[Withheld]] = {}
    for each in withheld:
        doubted.setdefault(each.group.keys, []).append(each)
    if not doubted:
        return list(groups), []
    limits, certain, left = situation.limits, [], []
    probes = {name: _probes(name, situation.pilots) for name in limits}
    for group in groups:
        about = doubted.get(group.keys)
        if about is None:
            certain.append(group)
            continue
        most, names = 0, opening.able(group, limits)
        why = "it names a limit of its own, which no new pilot would change"
        for name in names if not _for_a_limit(group) else ():
            fit, probe = fits(group, new_node(limits[name])), probes[name]
            jobs = min(group.idle - most, probe.left * fit)
            probe.left -= -(-jobs // fit)
            most, why = most + jobs, probe.why
        if most:
            certain.append(replace(group, idle=most))
        if group.idle > most:
            said = f"that fit into joined pilots: the negotiator has not started them there for {cycles(about)}; {why}"
            left.append(Left(group.idle - most, dict.fromkeys(group.resources, said)))
    return certain, left


def cycles(withheld: Iterable[Withheld]) -> str:
    """For how many of the negotiator's cycles, in words."""
    return plural(max(each.cycles for each in withheld), "negotiation cycle")


def _for_a_limit(group: Group) -> bool:
    """Whether the negotiator said that it is not nodes that they lack."""
    return bool(group.refused) and not group.rejected


@dataclass
class _Probe:
    """How many new pilots of a resource may still be tried, and why no more."""

    left: int
    why: str


def _probes(name: str, pilots: Iterable[Pilot]) -> _Probe:
    """How many new pilots of a resource may show whether jobs start there: one, or as many as take jobs now.

    Those on their way count, and so do empty ones that got no job for a few cycles: another would be no luckier.
    """
    takers, coming, refused = 0, 0, 0
    for pilot in pilots:
        if pilot.job.resource != name or pilot.phase not in (PilotPhase.PENDING, PilotPhase.BOOTING, PilotPhase.JOINED):
            continue
        if pilot.startd and pilot.startd.jobs:
            takers += pilot.untouched < A_FEW_CYCLES
        elif pilot.untouched < A_FEW_CYCLES:
            coming += 1
        else:
            refused += 1
    left = max(0, max(takers, 1) - coming - refused)
    if left:
        return _Probe(left, f"{plural(left, 'new pilot')} will show whether it is those")
    if coming:
        return _Probe(0, f"{plural(coming, 'new pilot')} will show whether it is those")
    return _Probe(0, f"{plural(refused, 'pilot')} without any job got none of them either: no new one is tried")


# --------------------------------------------------------------------------- what may open a node


def _may_open(
    groups: Iterable[Group], placed: Iterable[Placed], situation: Situation
) -> tuple[list[Group], list[Left]]:
    """The jobs that may open nodes, and the others with the reason."""
    policy = situation.policy
    cpus = Counter[str]()
    for pilot in situation.pilots:
        if pilot.startd:
            for vo, busy in pilot.startd.busy_by_vo.items():
                cpus[vo.lower()] += busy
    for each in placed:
        cpus[each.group.vo.lower()] += each.jobs * each.group.shape_on(each.resource).cpus
    may: list[Group] = []
    left: list[Left] = []
    for group in groups:
        why = _tier1s_turn(group, policy)
        if why:
            left.append(Left(group.idle, dict.fromkeys(group.resources, why)))
            continue
        vo, each_cpus = group.vo.lower(), max(group.shape_on(name).cpus for name in group.resources)
        allowed, cap = group.idle, policy.vo_cpus.get(vo)
        if cap is not None:
            allowed = min(group.idle, max(0, cap - cpus[vo]) // max(1, each_cpus))
        if allowed < group.idle:
            why = f"of {group.vo} open no node: it has {cpus[vo]} of max_total_cpus {cap}"
            left.append(Left(group.idle - allowed, dict.fromkeys(group.resources, why)))
        if allowed:
            may.append(replace(group, idle=allowed))
            cpus[vo] += allowed * each_cpus
    return may, left


def _tier1s_turn(group: Group, policy: Policy) -> str:
    """Why jobs that the Tier-1 may run too open no node yet; empty where they do."""
    if group.either and group.oldest_s < policy.either_min_age_s:
        return (
            "that the Tier-1 may take too: the oldest has waited "
            f"{format_duration(group.oldest_s)} of either_min_age {format_duration(policy.either_min_age_s)}"
        )
    if group.either and policy.either_only_rejected and not group.rejected:
        return "that the Tier-1 may take too: the negotiator has not rejected them lately (either_only_rejected)"
    return ""
