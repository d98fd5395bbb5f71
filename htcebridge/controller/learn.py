"""From what was known, seen and done to what is known now. Pure: no Slurm, no clock, no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.controller import follow, submissions, unserved
from htcebridge.controller.done import Done
from htcebridge.controller.observation import Collector, Observation, Source
from htcebridge.model import EndedPilot, Pilot, Wait
from htcebridge.pilot import script
from htcebridge.pilot.exit_codes import PilotExit
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.slurm.text import Answer
from htcebridge.state.memory import (
    Clock,
    Disabled,
    Learnt,
    Memory,
    Pause,
    Pilots,
    ReadLimits,
    Resources,
    Schedds,
    Spent,
    fingerprint,
)

# Limits of QOS and associations change by an admin's hand.
_LIMITS_LAST_S = 900
# How long a resource pauses when Slurm refuses it, by how often in a row.
_LIMIT_PAUSE_S = (900, 1800, 3600)
_BACK_OFF_PAUSE_S = (60, 120, 300, 900, 1800)


def learn(config: Config, before: Memory, pilots: Sequence[Pilot], seen: Observation) -> Memory:
    """What an observation adds to what is known; `pilots` are those that it shows (`pilots.pilots_of`)."""
    entries = seen.near.entries
    followed, node_s = follow.follow(config, before.pilots, entries, pilots, seen)
    known = {each.id for each in before.pilots.ended}
    new = [each for each in followed.ended if each.id not in known]
    return replace(
        before,
        pilots=followed,
        resources=_resources(config, _reset(before.resources, seen), pilots, seen, new, node_s),
        schedds=_schedds(config, before.schedds, seen),
        slots=slots(config, before.slots, seen.collector.value),
        negotiations=unserved.learn(before.negotiations, seen, config.pressure.cycle_s),
        ghosts=seen.negotiator.tracks if seen.negotiator is not None else before.ghosts,
        submissions=submissions.learn(before.submissions, entries, pilots, seen.submitted, seen.now),
        upkeep=replace(before.upkeep, looked=seen.now, shared=_shared(seen, before)),
    )


def _shared(seen: Observation, before: Memory) -> tuple[str, ...]:
    """The directories that are in use, and earlier ones while any pilot of before may look there."""
    marks = seen.near.marks.value
    now = marks.shared if marks else ()
    return tuple(dict.fromkeys((*now, *before.upkeep.shared))) if before.pilots.seen or not now else now


def _schedds(config: Config, before: Schedds, seen: Observation) -> Schedds:
    oldest = seen.now - config.tier1.remember_schedds.total_seconds()
    recent = {name: when for name, when in before.known.items() if when >= oldest}
    there = seen.collector.value.schedds if seen.collector.value else ()
    waiting = seen.waiting.value
    known = {**recent, **dict.fromkeys(there, seen.now)}
    if waiting is None:
        return replace(before, known=known)
    return Schedds(known, waiting.qdates, waiting.answers)


def slots(config: Config, before: Mapping[str, Learnt], seen: Collector | None) -> dict[str, Learnt]:
    """Resource -> what its pilots show: the kind that is known, as long as an empty pilot shows it, else the commonest.

    A pilot with jobs shows less than it has (AvailableGPUs), one that fails its checks something else.
    """
    learnt = {name: each for name, each in before.items() if name in config.resources}
    shown: dict[tuple[str, str], Counter[str]] = {}
    for startd in seen.startds if seen else ():
        if startd.made and not startd.jobs and startd.healthy and not startd.draining:
            resource = seen.kinds[startd.kind].get("PilotResource", "").strip('"') if seen else ""
            shown.setdefault((resource, startd.made), Counter())[startd.kind] += 1
    for (name, made), kinds in shown.items():
        if name in config.resources and seen is not None and made == script.slot_fingerprint(config, name):
            known = learnt.get(name)
            if known is None or known.made != made or known.slot not in [seen.kinds[kind] for kind in kinds]:
                learnt[name] = Learnt(seen.kinds[kinds.most_common(1)[0][0]], made)
    return learnt


# --------------------------------------------------------------------------- resources


def limits_due(config: Config, before: Resources, now: int) -> dict[str, tuple[str, str, str]]:
    """Resource -> (account, partition, QOS) whose limits have to be read again."""
    return {
        name: _billing(resource)
        for name, resource in config.resources.items()
        if not _limits_hold(before.limits.get(name), resource) or now - before.limits[name].at >= _LIMITS_LAST_S
    }


def spent_due(config: Config, before: Resources) -> list[str]:
    """Resources whose node-hours have to be counted in full: once, then they are kept up."""
    return [
        name
        for name, resource in config.resources.items()
        if resource.max_node_hours is not None
        and (name not in before.spent or before.spent[name].since != resource.node_hours_since)
    ]


def _reset(before: Resources, seen: Observation) -> Resources:
    """Without what an admin wants forgotten (`pressure reset`)."""
    gone = seen.resets
    return replace(
        before,
        disabled={name: each for name, each in before.disabled.items() if name not in gone},
        paused={name: each for name, each in before.paused.items() if name not in gone},
        resets={**before.resets, **dict.fromkeys(gone, seen.now)},
    )


def _resources(
    config: Config,
    before: Resources,
    pilots: Iterable[Pilot],
    seen: Observation,
    ended: Iterable[EndedPilot],
    node_s: Mapping[str, int],
) -> Resources:
    return replace(
        before,
        disabled=_disabled(config, before, pilots, ended, seen.now),
        spent=_spent(config, before, seen, node_s),
        clocks=_clocks(config, before, seen.now),
        limits=limits_known(config, before, seen.limits),
    )


def _disabled(
    config: Config, before: Resources, pilots: Iterable[Pilot], ended: Iterable[EndedPilot], now: int
) -> dict[str, Disabled]:
    """The resources that only a person can put right; a changed configuration gives one its next chance."""
    disabled = {
        name: each
        for name, each in before.disabled.items()
        if name in config.resources and each.fingerprint == fingerprint(config.resources[name])
    }
    causes = [
        (each.job.resource, f"Slurm will never start its pilots: {each.job.reason}")
        for each in pilots
        if each.wait is Wait.NEVER
    ]
    causes += [
        (each.resource, f"pilot {each.id} ended itself: {each.said}")
        for each in ended
        if each.exit_code == PilotExit.BILLED_OTHERWISE
    ]
    for name, why in causes:
        if name in config.resources and name not in disabled:
            disabled[name] = Disabled(why, now, fingerprint(config.resources[name]))
    return disabled


def _spent(config: Config, before: Resources, seen: Observation, node_s: Mapping[str, int]) -> dict[str, Spent]:
    """Node-hours that ended pilots have used: counted by slurmdbd once, then the newly ended are added."""
    spent: dict[str, Spent] = {}
    for name, resource in config.resources.items():
        counted = seen.spent[name].value if name in seen.spent else None
        if resource.max_node_hours is None:
            continue
        if counted is not None:
            spent[name] = Spent(resource.node_hours_since, counted)
        elif name in before.spent and before.spent[name].since == resource.node_hours_since:
            hours = before.spent[name].node_hours + node_s.get(name, 0) / 3600
            spent[name] = replace(before.spent[name], node_hours=hours)
    return spent


def _clocks(config: Config, before: Resources, now: int) -> dict[str, Clock]:
    clocks = {}
    for name, resource in config.resources.items():
        if resource.max_hours is not None:
            known = before.clocks.get(name)
            same = known is not None and known.max_hours == resource.max_hours
            clocks[name] = known if known is not None and same else Clock(resource.max_hours, now)
    return clocks


def limits_known(config: Config, before: Resources, read: Mapping[str, Source[SlurmLimits]]) -> dict[str, ReadLimits]:
    """Slurm's limits, read now and then. While slurmctld does not answer those of before are in force."""
    limits = {}
    for name, resource in config.resources.items():
        known, now = before.limits.get(name), read.get(name)
        if now is not None and now.value is not None:
            limits[name] = ReadLimits(now.value, _billing(resource), now.at)
        elif known is not None and _limits_hold(known, resource):
            limits[name] = known
    return limits


def _limits_hold(known: ReadLimits | None, resource: Resource) -> bool:
    return known is not None and known.billing == _billing(resource)


def _billing(resource: Resource) -> tuple[str, str, str]:
    return (resource.account, resource.partition, resource.qos)


# --------------------------------------------------------------------------- what was done


def acted(config: Config, before: Memory, done: Done) -> Memory:
    """What follows from what the hand did."""
    return replace(before, pilots=_touched(before.pilots, done), resources=_answered(config, before.resources, done))


def _touched(before: Pilots, done: Done) -> Pilots:
    cancelled = {id_: replace(before.seen[id_], cancelled=True) for id_ in done.cancelled if id_ in before.seen}
    return replace(
        before,
        seen={**before.seen, **cancelled},
        undrained={**before.undrained, **dict.fromkeys(done.undrained, done.at)},
    )


def _answered(config: Config, before: Resources, done: Done) -> Resources:
    """What Slurm's answers mean for the next cycles."""
    disabled = dict(before.disabled)
    paused = {name: each for name, each in before.paused.items() if name not in done.submitted}
    why = dict(done.misbilled)
    for name, refusal in done.refused.items():
        if refusal.answer is Answer.CONFIG:
            why[name] = refusal.why
        else:
            steps = _LIMIT_PAUSE_S if refusal.answer is Answer.LIMIT else _BACK_OFF_PAUSE_S
            times = paused[name].times + 1 if name in paused else 1
            paused[name] = Pause(done.at + steps[min(times, len(steps)) - 1], times, refusal.why)
    for name, each in why.items():
        if name in config.resources:
            disabled[name] = Disabled(each, done.at, fingerprint(config.resources[name]))
    return replace(before, disabled=disabled, paused=paused)
