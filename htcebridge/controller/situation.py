"""Puts together what the planner may see: each resource's limits with every reason that bounds it now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.controller import follow, submissions, unserved, walltimes
from htcebridge.controller.observation import Marks, Observation
from htcebridge.model import Cap, Cut, Limits, Pilot, PilotPhase, Policy, Situation, Wait
from htcebridge.pilot import script
from htcebridge.pilot.exit_codes import FAULTS
from htcebridge.plan.health import Health, Rules, health
from htcebridge.slurm.limits import Live, room
from htcebridge.slurm.text import OtherJob
from htcebridge.slurm.tres import Tres
from htcebridge.slurm.waits import by_maintenance, chance, in_turn, is_known
from htcebridge.state import ledger
from htcebridge.state.ledger import Entry
from htcebridge.state.memory import Disabled, Memory, Pause, Resources, fingerprint
from htcebridge.units import plural


def build(
    config: Config, memory: Memory, pilots: Sequence[Pilot], seen: Observation
) -> tuple[Situation, tuple[str, ...]]:
    """What the planner sees, and the alarms for a person. `memory` has learnt from `seen`."""
    rules = Rules(
        faults=FAULTS,
        window_s=int(config.pressure.outcome_window.total_seconds()),
        quarantine_s=int(config.pressure.quarantine.total_seconds()),
        boot_timeout_s=int(config.pressure.boot_timeout.total_seconds()),
    )
    counts = [each for each in memory.pilots.ended if each.ended > memory.resources.resets.get(each.resource, 0)]
    judged = health(counts, follow.live(memory.pilots), seen.now, rules)
    verdicts = {name: verdict for name, verdict in judged.items() if name in config.resources}
    entries = submissions.with_outcomes(seen.near.entries, memory.submissions)
    marks = seen.near.marks.value or Marks()
    held = seen.holdings.value if seen.holdings is not None else None
    view = _View(seen.now, memory, entries, marks, pilots, seen.others, held)
    situation = Situation(
        now=seen.now,
        demand=unserved.waited(seen.demand, memory.negotiations),
        pilots=_with_chances(config, view),
        limits={name: _limits(config, name, view, verdicts.get(name, Health())) for name in config.resources},
        policy=policy(config),
        streaks=memory.resources.streaks,
        stop=seen.near.stop,
    )
    return situation, tuple(_alarms(memory, verdicts, seen))


def _alarms(memory: Memory, verdicts: Mapping[str, Health], seen: Observation) -> Iterator[str]:
    for name, verdict in verdicts.items():
        yield from (f"resource {name}: {alarm}" for alarm in verdict.alarms)
    for name, each in memory.resources.disabled.items():
        yield f"resource {name}: disabled: {each.why}"
    for name, read in memory.resources.limits.items():
        yield from (f"resource {name}: Slurm would take no pilot: {why}" for why in read.limits.refusals)
    if memory.pilots.silent >= follow.SILENT_CYCLES and seen.ends.unknown:
        yield (
            f"slurmdbd has not said for {plural(memory.pilots.silent, 'cycle')} what became of pilots, so squeue's "
            f"state and their last lines are taken for it: {seen.ends.unknown}"
        )


@dataclass(frozen=True)
class _View:
    """What the limits of each resource are made from. `others`: live Slurm jobs that are none of this instance's;
    `held`: what they hold, None where that is not known."""

    now: int
    memory: Memory
    entries: Sequence[Entry]
    marks: Marks
    pilots: Sequence[Pilot]
    others: Sequence[OtherJob]
    held: Mapping[str, Tres] | None


def policy(config: Config) -> Policy:
    """What holds for every resource."""
    pressure = config.pressure
    return Policy(
        min_fill=pressure.min_fill,
        max_wait_s=int(pressure.max_wait.total_seconds()),
        surplus_cycles=pressure.surplus_cycles,
        demand_cycles=pressure.demand_cycles,
        either_min_age_s=int(pressure.either_min_age.total_seconds()),
        either_only_rejected=pressure.either_only_rejected,
        drain_fill=pressure.drain_fill,
        vo_cpus={vo.name.lower(): vo.max_total_cpus for vo in config.vos if vo.max_total_cpus is not None},
    )


def _with_chances(config: Config, view: _View) -> tuple[Pilot, ...]:
    """The pilots with what only this controller knows: their --time-min, their chance to start, its own marks."""
    shortest = {entry.key: entry.time_min_s for entry in view.entries}
    waits = follow.waits(view.memory.pilots)
    tail = view.marks.tail | set(view.memory.pilots.undrained)
    horizon_s = config.pressure.start_horizon.total_seconds()
    known = []
    for pilot in view.pilots:
        each = unserved.untouched(pilot, view.memory.negotiations)
        job = replace(each.job, time_min_s=shortest.get(f"{each.job.plan_id}:{each.job.resource}"))
        likely = each.chance
        if each.phase is PilotPhase.PENDING:
            age_s = view.now - job.submitted if job.submitted is not None else 0
            starts_in_s = job.starts - view.now if job.starts is not None else None
            likely = chance(age_s, starts_in_s, waits.get(job.resource, []), horizon_s)
        wait = _wait(replace(each, job=job), view)
        known.append(replace(each, job=job, wait=wait, chance=likely, tail_drained=each.job.id in tail))
    return in_turn(known, view.now, horizon_s)


def _wait(each: Pilot, view: _View) -> Wait:
    job, read = each.job, view.memory.resources.limits.get(each.job.resource)
    shortest_s = job.time_min_s if job.time_min_s is not None else job.time_limit_s
    if read is None or each.phase is not PilotPhase.PENDING or shortest_s is None:
        return each.wait
    return by_maintenance(each.wait, job.reason, shortest_s, read.limits.maintenances, view.now)


def _limits(config: Config, name: str, view: _View, verdict: Health) -> Limits:
    resource, memory, now = config.resources[name], view.memory.resources, view.now
    read = memory.limits.get(name)
    new = walltimes.new_pilot(name, resource, read.limits if read is not None else None, now)
    notes = [*verdict.notes, *_unknown_reasons(name, view.pilots), *_missing(name, view)]
    caps = [
        *_rate_caps(config, view.entries, now),
        *_memory_caps(name, resource, memory, now),
        *_unsettled(name, view.entries),
        *(_budget(resource, new.limits, view.pilots, memory.spent[name].node_hours) if name in memory.spent else ()),
        *_clock(resource, memory, name, now),
        *verdict.caps,
    ]
    if name in view.marks.drained:
        caps.append(Cap("", 0, f"it is drained: {view.marks.drained[name]}", kind=Cut.DRAINED))
    if read is not None:
        known = [each.limits for each in memory.limits.values()]
        caps += room(read.limits, _live(config, view), script.asks(resource), known)
        notes += [f"a limit of Slurm's that is not known here, and cuts nothing: {each}" for each in read.limits.unread]
    if new.cut:
        notes.append(new.cut)
    if new.too_short:
        caps.append(Cap("", 0, new.cut, kind=Cut.SLURM_LIMIT))
    return replace(
        new.limits,
        max_new_per_cycle=config.pressure.max_new_per_cycle,
        caps=tuple(caps),
        notes=tuple(notes),
        exclude=verdict.exclude,
        preemptions_per_hour=verdict.preemptions_per_hour,
    )


def _live(config: Config, view: _View) -> list[Live]:
    """The live jobs with what each holds: a pilot what its resource asks for, others what Slurm says."""
    held = view.held
    found = [
        Live(other.user, other.account, other.qos, other.partition, _held(other, held), known=held is not None)
        for other in view.others
    ]
    for each in view.pilots:
        job, resource = each.job, config.resources.get(each.job.resource)
        if each.phase is not PilotPhase.ENDED:
            tres = script.asks(resource) if resource is not None else {"node": 1, **(held or {}).get(job.id, {})}
            known = resource is not None or held is not None
            found.append(Live(0, job.account, job.qos, job.partition, tres, known=known, ours=True))
    return found


def _held(other: OtherJob, held: Mapping[str, Tres] | None) -> Tres:
    return {"node": other.nodes or 1, **(held or {}).get(other.id, {})}


def _missing(name: str, view: _View) -> list[str]:
    lately = view.memory.pilots.seen
    count = sum(
        each.job.resource == name
        and each.phase is PilotPhase.JOINED
        and each.job.id in lately
        and lately[each.job.id].missing is not None
        for each in view.pilots
    )
    return (
        [f"{plural(count, 'joined pilot')} not in the collector now: taken for what they lately were"] if count else []
    )


def _unknown_reasons(name: str, pilots: Iterable[Pilot]) -> list[str]:
    reasons = Counter(
        each.job.reason
        for each in pilots
        if each.job.resource == name and each.phase is PilotPhase.PENDING and not is_known(each.job.reason)
    )
    return [
        f"{plural(count, 'pending pilot')} wait for {reason!r}, which this version does not know: taken for normal"
        for reason, count in reasons.items()
    ]


def _rate_caps(config: Config, entries: Sequence[Entry], now: int) -> list[Cap]:
    caps = []
    for key, most, span in (
        ("max_new_per_hour", config.pressure.max_new_per_hour, ledger.HOUR_S),
        ("max_new_per_day", config.pressure.max_new_per_day, ledger.DAY_S),
    ):
        used = ledger.submitted_since(entries, now - span)
        caps.append(Cap(key, most - used, f"{key} {most} ({used} submitted)", kind=Cut.RATE))
    return caps


def _memory_caps(name: str, resource: Resource, memory: Resources, now: int) -> list[Cap]:
    caps = []
    disabled: Disabled | None = memory.disabled.get(name)
    if disabled is not None and disabled.fingerprint == fingerprint(resource):
        why = f"it is disabled since {_clock_time(disabled.since)}: {disabled.why}"
        caps.append(Cap("", 0, why, kind=Cut.DISABLED))
    pause: Pause | None = memory.paused.get(name)
    if pause is not None and now < pause.until:
        why = f"Slurm refused: {pause.why}; next try at {_clock_time(pause.until)}"
        caps.append(Cap("", 0, why, kind=Cut.SLURM_REFUSED))
    return caps


def _unsettled(name: str, entries: Sequence[Entry]) -> list[Cap]:
    return [
        Cap(
            "",
            0,
            f"nobody knows yet whether Slurm took {plural(entry.count, 'pilot')} at {_clock_time(entry.when)} "
            f"(plan {entry.plan_id})",
            kind=Cut.UNSETTLED,
        )
        for entry in ledger.unsettled(entries)
        if entry.resource == name
    ]


def _budget(resource: Resource, new: Limits, pilots: Iterable[Pilot], spent: float) -> list[Cap]:
    """A pilot is charged for its whole walltime until it has ended; `new` is one that is submitted now."""
    if resource.max_node_hours is None:
        return []
    promised = sum(
        _promised_s(each, resource)
        for each in pilots
        if each.job.resource == new.name and each.phase is not PilotPhase.ENDED
    )
    left = resource.max_node_hours - spent - promised / 3600
    hours = max(new.walltime_s, 60) / 3600
    why = f"max_node_hours {resource.max_node_hours:g} ({max(0.0, left):.1f} left, a pilot may take {hours:g})"
    return [Cap("", max(0, int(left // hours)), why, kind=Cut.BUDGET)]


def _promised_s(each: Pilot, resource: Resource) -> float:
    """What a live pilot may use in all."""
    job = each.job
    if job.started is not None and job.ends is not None:
        return job.ends - job.started
    return job.time_limit_s if job.time_limit_s is not None else resource.walltime.total_seconds()


def _clock(resource: Resource, memory: Resources, name: str, now: int) -> list[Cap]:
    if resource.max_hours is None:
        return []
    clock = memory.clocks.get(name)
    since = clock.since if clock is not None and clock.max_hours == resource.max_hours else now
    if now - since < resource.max_hours * 3600:
        return []
    return [Cap("", 0, f"max_hours {resource.max_hours:g} since {_clock_time(since)} are over", kind=Cut.MAX_HOURS)]


def _clock_time(when: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
