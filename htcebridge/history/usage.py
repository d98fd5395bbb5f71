"""What the cores of the pilots do while they are held: sampled once a cycle, integrated over the time between. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

from htcebridge.model import Limits, Pilot, PilotPhase, Situation

# Between two cycles that are further apart nobody knows what happened: no more than this is counted.
GAP_S = 900


class Use(StrEnum):
    """What a held core does at a moment. `simulation.metrics.Use` has the same words where it means the same."""

    BUSY = "busy"
    """It runs a job. What was busy and is lost in the end is counted as LOST besides: good = busy - lost."""
    LOST = "lost"
    """It ran a job that had to leave with the pilot. Known when the pilot has ended."""
    BOOT = "boot"
    """The pilot has not joined yet."""
    IDLE = "idle"
    """Joined, without any job."""
    FRAGMENTATION = "fragmentation"
    """Jobs wait, and this core takes none: wrong shape, too little life left, or between two negotiation cycles."""
    TAIL = "tail"
    """Nothing waits; other cores of the pilot are busy."""
    DRAINED = "drained"
    """The pilot takes no new jobs, or is leaving."""
    ELSEWHERE = "elsewhere"
    """A manual glidein: what it does is known in its own pool."""


HELD = tuple(use for use in Use if use is not Use.LOST)
"""The uses that add up to what was held."""

Used = Mapping[tuple[str, str, Use], int]
"""(resource, VO, use) -> core-seconds. The VO is "" for what no job did, and for a job without one."""


def between(situation: Situation, since: int) -> Used:
    """Core-seconds from `since` (seconds since the epoch) until now, as if all had been as it is now."""
    elapsed_s = min(max(0, situation.now - since), GAP_S)
    waits = {name for group in situation.demand.groups if group.idle for name in group.resources}
    found: Counter[tuple[str, str, Use]] = Counter()
    for pilot in situation.pilots:
        resource = pilot.job.resource
        limits = situation.limits.get(resource)
        for vo, use, cores in _cores(pilot, limits, resource in waits):
            if cores > 0 and elapsed_s:
                found[resource, vo, use] += cores * elapsed_s
    return dict(found)


def _cores(pilot: Pilot, limits: Limits | None, jobs_wait: bool) -> Iterable[tuple[str, Use, int]]:
    startd = pilot.startd
    node = limits.node.cpus if limits else 0
    match pilot.phase:
        case PilotPhase.PENDING | PilotPhase.ENDED:
            return
        case PilotPhase.BOOTING | PilotPhase.LOST:
            yield "", Use.BOOT, node
        case PilotPhase.LEAVING:
            yield "", Use.DRAINED, node
        case PilotPhase.JOINED if startd is None:
            yield "", Use.ELSEWHERE, node
        case PilotPhase.JOINED if startd is not None:
            busy, named = startd.total.cpus - startd.free.cpus, sum(startd.busy_by_vo.values())
            yield from ((vo, Use.BUSY, cores) for vo, cores in startd.busy_by_vo.items())
            yield "", Use.BUSY, busy - named
            use = Use.FRAGMENTATION if jobs_wait else Use.TAIL
            if not startd.accepting or startd.draining:
                use = Use.DRAINED
            elif not startd.jobs:
                use = Use.IDLE
            yield "", use, startd.total.cpus - max(busy, named)


def shared_out(core_s: int, busy_by_vo: Mapping[str, int]) -> dict[str, int]:
    """What a pilot lost, in core-seconds, by VO: in proportion to the cores that each held when it was last seen."""
    total = sum(busy_by_vo.values())
    if not core_s or not total:
        return {"": core_s} if core_s else {}
    shares = {vo: core_s * cores // total for vo, cores in busy_by_vo.items()}
    first = max(busy_by_vo, key=lambda vo: busy_by_vo[vo])
    shares[first] += core_s - sum(shares.values())
    return {vo: share for vo, share in shares.items() if share}
