"""What a cycle leaves behind: its line in the history, and the totals that the metrics show.

Nothing here decides anything, and nothing here stops a cycle: what cannot be written is a sentence for a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from htcebridge import calls
from htcebridge.config.tables import Config
from htcebridge.history import store, usage
from htcebridge.history.store import HistoryError
from htcebridge.history.usage import Use, Used
from htcebridge.model import Demand, EndedPilot, Plan, Situation
from htcebridge.state.memory import Memory, Records, Seen

# While the history cannot be written: what `controller.follow` keeps as well.
_KEPT_ENDS = 5000

OTHER = "other"
Ended = tuple[EndedPilot, Mapping[str, int]]
# Of a memory that htcebridge 0.1 left: core-seconds are counted in the history since.
_CORE_S = "core_s|"


@dataclass(frozen=True)
class Kept:
    """`memory` is what to remember, `problems` what a person should know. `core_s` are the core-seconds of all time by
    (resource, VO, use), None where the history could not be written: they are counted there."""

    memory: Memory
    problems: tuple[str, ...] = ()
    core_s: Used | None = None


def keep(
    config: Config,
    before: Memory,
    memory: Memory,
    situation: Situation | None,
    plan: Plan,
    plan_id: str,
    seconds: float,
    problems: int,
) -> Kept:
    """Count what this cycle has seen and done, and write it down. `seconds` is how long it took.

    `situation` is None where nothing was decided.
    """
    vo_name = _vo_names(config)
    # While the kill switch is on the pool is not asked: what the pilots do is not known.
    stopped = situation.stop if situation else None
    used: Used = {}
    if situation and before.records.accounted and stopped is None:
        used = _renamed(usage.between(situation, before.records.accounted), vo_name)
    known = {each.id for each in before.pilots.ended}
    ended = [(each, _busy(before, each.id, vo_name)) for each in memory.pilots.ended if each.id not in known]
    records = Records(
        accounted=situation.now if situation else before.records.accounted,
        totals=_counted(memory.records.totals, plan, ended, problems),
        unrecorded=(*memory.records.unrecorded, *ended)[-_KEPT_ENDS:],
    )
    cycle = store.Cycle(
        at=memory.upkeep.looked,
        plan_id=plan_id,
        seconds=seconds,
        plan=plan if stopped is None else replace(plan, held=f"stopped: {stopped}"),
        demand=_demand(situation, vo_name) if situation else None,
        joined=[each for each in situation.pilots if each.startd] if situation else (),
        pilots=_changed(before.pilots.seen, memory.pilots.seen),
        ended=records.unrecorded,
        used=used,
        since=before.upkeep.looked,
        cpus={name: resource.cpus for name, resource in config.resources.items()},
        at_least=_carried_over(records.totals),
    )
    try:
        core_s = store.record(store.path_of(config), cycle)
    except HistoryError as error:
        return Kept(replace(memory, records=records), (str(error),))
    totals = {name: number for name, number in records.totals.items() if not name.startswith(_CORE_S)}
    return Kept(replace(memory, records=replace(records, unrecorded=(), totals=totals)), core_s=core_s)


def prune(config: Config, now: int) -> None:
    """Forget what is older than the configuration wants. Where that fails `keep` has said why."""
    kept = config.history
    with suppress(HistoryError):
        store.prune(store.path_of(config), now, int(kept.detail.total_seconds()), int(kept.keep.total_seconds()))


def _vo_names(config: Config) -> Callable[[str], str]:
    """A VO as the configuration writes it; OTHER for any further word that stands in a job: it is its owner's text."""
    names = {vo.name.lower(): vo.name for vo in config.vos} | {"": ""}
    return lambda name: names.get(name.lower(), OTHER)


def _renamed(used: Used, vo_name: Callable[[str], str]) -> Used:
    sums: Counter[tuple[str, str, Use]] = Counter()
    for (resource, vo, use), core_s in used.items():
        sums[resource, vo_name(vo), use] += core_s
    return dict(sums)


def _demand(situation: Situation, vo_name: Callable[[str], str]) -> Demand:
    demand = situation.demand
    return replace(demand, groups=tuple(replace(group, vo=vo_name(group.vo)) for group in demand.groups))


def _busy(before: Memory, id_: str, vo_name: Callable[[str], str]) -> Mapping[str, int]:
    sums: Counter[str] = Counter()
    if id_ in before.pilots.seen:
        for vo, cores in before.pilots.seen[id_].busy_by_vo.items():
            sums[vo_name(vo)] += cores
    return dict(sums)


def _changed(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> dict[str, Seen]:
    def facts(each: Seen | None) -> tuple[object, ...]:
        return (each.submitted, each.started, each.joined, each.node) if each else ()

    return {id_: each for id_, each in now.items() if facts(each) != facts(before.get(id_))}


def _carried_over(totals: Mapping[str, float]) -> Used:
    """Core-seconds that were counted in the memory: the metrics go on from there."""
    found: dict[tuple[str, str, Use], int] = {}
    for name, number in totals.items():
        if name.startswith(_CORE_S):
            resource, *vo, use = name.removeprefix(_CORE_S).split("|")
            if use in set(Use):
                found[resource, "|".join(vo), Use(use)] = int(number)
    return found


def _counted(before: Mapping[str, float], plan: Plan, ended: list[Ended], problems: int) -> dict[str, float]:
    """The totals: name, then its labels. Names of resources and VOs have no "|" in them."""
    totals = Counter(before)
    totals[f"cycles|{'held' if plan.held else 'problem' if problems else 'ok'}"] += 1
    for what, number in calls.take().items():
        totals[f"calls|{what}"] += number
    for name, each in plan.resources.items():
        totals[f"submitted|{name}"] += each.submit
        totals[f"cancelled|{name}"] += len(each.cancel)
        for cut, number in each.cuts.items():
            totals[f"cut|{name}|{cut}"] += number
    for pilot, _ in ended:
        totals[f"outcome|{pilot.resource}|{pilot.outcome}"] += 1
        if pilot.submitted is not None and pilot.started is not None:
            totals[f"queued|{pilot.resource}"] += 1
            totals[f"queued_s|{pilot.resource}"] += pilot.started - pilot.submitted
        if pilot.started is not None and pilot.joined is not None:
            totals[f"booted|{pilot.resource}"] += 1
            totals[f"booted_s|{pilot.resource}"] += max(0, pilot.joined - pilot.started)
    return dict(totals)
