"""What becomes of every idle job: a place in a pilot, a new node, or a sentence that says why neither. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Policy, Situation, Wait
from htcebridge.plan import opening
from htcebridge.plan.packing import Bin, Placed, by_size, expected, fill, queued, supply
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
class Places:
    """Every idle job is in `there`, in `opened` or in `left`.

    `there` are the nodes that run or pend, with what was put into them, `opened` new ones. `unplaced` are the jobs that
    no running pilot takes. So many of the jobs in `there` as `again` says are in `opened` too: their pending pilots are
    not expected to start, another resource's may.
    """

    there: tuple[Bin, ...]
    opened: tuple[Bin, ...]
    left: tuple[Left, ...]
    unplaced: tuple[Group, ...] = ()
    again: int = 0


def find(situation: Situation, room: Mapping[str, int]) -> Places:
    """Pack the demand. `room` is how many new nodes each resource may have."""
    limits, policy = situation.limits, situation.policy
    groups = by_size(situation.demand.groups, limits)
    near = fill(groups, supply(situation.pilots, limits, situation.now))
    far = fill(near.left, queued(situation.pilots, limits))
    slow = _slow(situation.pilots)
    elsewhere = fill(_elsewhere(far.placed, limits, slow), far.bins)
    can, unable = _able(far.left, limits)
    may, refused = _may_open(can, (*near.placed, *far.placed), situation)
    again = [group for group in elsewhere.left if opening.able(group, limits) and not _tier1s_turn(group, policy)]
    waiting = by_size([*may, *again], limits)
    opened = opening.open_nodes(waiting, limits, room, policy.min_fill, policy.max_wait_s, slow) if waiting else ()
    return Places(
        there=(*near.bins, *elsewhere.bins),
        opened=opened,
        left=(*_nowhere(situation.demand.groups, limits), *unable, *refused),
        unplaced=near.left,
        again=sum(group.idle for group in again),
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
        cpus[each.group.vo.lower()] += each.jobs * each.group.shape.cpus
    may: list[Group] = []
    left: list[Left] = []
    for group in groups:
        why = _tier1s_turn(group, policy)
        if why:
            left.append(Left(group.idle, dict.fromkeys(group.resources, why)))
            continue
        vo = group.vo.lower()
        allowed, cap = group.idle, policy.vo_cpus.get(vo)
        if cap is not None:
            allowed = min(group.idle, max(0, cap - cpus[vo]) // max(1, group.shape.cpus))
        if allowed < group.idle:
            why = f"of {group.vo} open no node: it has {cpus[vo]} of max_total_cpus {cap}"
            left.append(Left(group.idle - allowed, dict.fromkeys(group.resources, why)))
        if allowed:
            may.append(replace(group, idle=allowed))
            cpus[vo] += allowed * group.shape.cpus
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
