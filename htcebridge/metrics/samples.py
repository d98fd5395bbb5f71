"""What one cycle says in numbers. Pure: `export` writes them down.

What a cycle did not see is absent, never zero. Counters come from `memory.records`, so they go on where a process
ended. Labels take their words from the configuration and from this package alone (`table.LABELS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import htcebridge
from htcebridge.config.tables import Config
from htcebridge.history import usage
from htcebridge.history.result import CycleResult
from htcebridge.history.usage import Use
from htcebridge.metrics import table as table
from htcebridge.metrics.table import NOBODY, OTHER, Metric, Sample
from htcebridge.model import Cut, Demand, Group, Outcome, PilotPhase, Plan, Situation

# More VOs than these in a configuration are counted as one: each is a few dozen series.
_MOST_VOS = 50
# What Limits.caps can hold; the planner's own caps (max_running ...) are seen in the pilots.
_BLOCKS: tuple[Cut, ...] = tuple(
    cut for cut in Cut if cut not in (Cut.MAX_RUNNING, Cut.MAX_PENDING, Cut.PER_CYCLE, Cut.STUCK)
)
_BY_JOBS = (Use.BUSY, Use.LOST)
_STATES = tuple(phase for phase in PilotPhase if phase is not PilotPhase.ENDED)
# What Slurm alone knows of a pilot. Whether a running one has joined nobody looks while the kill switch is on.
_SLURMS = (PilotPhase.PENDING, PilotPhase.LEAVING)

Expiries = Mapping[tuple[str, str], int]
"""(token, resource) -> when it expires, seconds since the epoch."""


def samples(config: Config, result: CycleResult, expiries: Expiries) -> Iterator[Sample]:
    """Every number that there is of one cycle."""
    words = _Words.of(config)
    yield from _controller(result)
    for (token, resource), when in expiries.items():
        yield table.TOKEN.of(token, resource, value=when)
    if result.memory.records.totals:
        yield from _counted(result.memory.records.totals, words)
    if result.core_s is not None:
        yield from _core_seconds(result.core_s, words)
    situation = result.situation
    if situation is None:
        return
    yield table.STOPPED.of(value=situation.stop is not None)
    yield from _pilots(situation, words)
    yield from _limits(situation, result.plan)
    if situation.stop is None:
        yield from _demand(situation.demand, words)
        yield from _cores(situation, words)


@dataclass(frozen=True)
class _Words:
    """What labels may say of resources and VOs: other words are users' or older configurations'."""

    resources: tuple[str, ...]
    vos: Mapping[str, str]
    """Lower case, in which the planner compares them -> as it is configured."""

    @classmethod
    def of(cls, config: Config) -> _Words:
        return cls(tuple(config.resources), {vo.name.lower(): vo.name for vo in config.vos[:_MOST_VOS]})

    def resource(self, name: str) -> str:
        return name if name in self.resources else OTHER

    def vo(self, name: str) -> str:
        return self.vos.get(name.lower(), OTHER)

    def vo_of(self, name: str, use: str) -> str:
        """A job holds the core, though its VO may not be known; or nobody does."""
        return self.vo(name) if name or use in _BY_JOBS else NOBODY

    @property
    def all_vos(self) -> tuple[str, ...]:
        return (*self.vos.values(), OTHER)

    def uses(self, uses: Iterable[Use]) -> Iterator[tuple[str, str, Use]]:
        """Every (resource, VO, use) that there is. Series begin at zero, or Prometheus misses their first step."""
        for use in uses:
            for resource in self.resources:
                for vo in self.all_vos if use in _BY_JOBS else (NOBODY,):
                    yield resource, vo, use


def _controller(result: CycleResult) -> Iterator[Sample]:
    memory = result.memory
    yield table.BUILD_INFO.of(htcebridge.__version__, value=1)
    yield table.HELD.of(value=result.plan.held is not None)
    yield table.PROBLEMS.of(value=len(result.problems))
    if memory.upkeep.looked:
        yield table.LAST_CYCLE.of(value=memory.upkeep.looked)
    if memory.records.accounted:
        yield table.LAST_SUCCESS.of(value=memory.records.accounted)
    if result.plan_id:  # a cycle that failed half-way has none, and took nobody knows how long
        yield table.LAST_DURATION.of(value=result.seconds)


def _demand(demand: Demand, words: _Words) -> Iterator[Sample]:
    zero = [(vo, shape, state) for vo in words.all_vos for shape in table.SHAPES for state in ("idle", "running")]
    jobs, cores = Counter(dict.fromkeys(zero, 0)), Counter(dict.fromkeys(zero, 0))
    unmatched = Counter(dict.fromkeys(words.all_vos, 0))
    oldest = dict.fromkeys(words.all_vos, 0)
    for group in demand.groups:
        vo, shape = words.vo(group.vo), _shape(group)
        for state, number in (("idle", group.idle), ("running", group.running)):
            jobs[vo, shape, state] += number
            cores[vo, shape, state] += number * group.shape.cpus
        if group.idle:
            oldest[vo] = max(oldest[vo], group.oldest_s)
            unmatched[vo] += 0 if group.resources else group.idle
    for metric, found in ((table.DEMAND_JOBS, jobs), (table.DEMAND_CORES, cores)):
        yield from (metric.of(*labels, value=number) for labels, number in found.items())
    yield from (table.UNMATCHED.of(vo, value=number) for vo, number in unmatched.items())
    yield from (table.OLDEST.of(vo, value=seconds) for vo, seconds in oldest.items())
    silent = sum(not schedd.ok for schedd in demand.schedds)
    yield table.SCHEDDS.of("answering", value=len(demand.schedds) - silent)
    yield table.SCHEDDS.of("silent", value=silent)


def _shape(group: Group) -> str:
    if group.shape.gpus:
        return "gpu"
    for most, word in zip((1, 4, 8, 16), table.SHAPES, strict=False):
        if group.shape.cpus <= most:
            return word
    return "17+"


def _pilots(situation: Situation, words: _Words) -> Iterator[Sample]:
    known = _STATES if situation.stop is None else _SLURMS
    number = Counter({(resource, state): 0 for resource in words.resources for state in known})
    draining = Counter(dict.fromkeys(words.resources, 0))
    for pilot in situation.pilots:
        if pilot.phase in known:
            number[words.resource(pilot.job.resource), pilot.phase] += 1
        if pilot.startd is not None:
            draining[words.resource(pilot.job.resource)] += pilot.startd.draining
    yield from (table.PILOTS.of(resource, state, value=each) for (resource, state), each in number.items())
    if situation.stop is None:
        yield from (table.DRAINING.of(resource, value=each) for resource, each in draining.items())


def _limits(situation: Situation, plan: Plan) -> Iterator[Sample]:
    for name, limits in situation.limits.items():
        yield table.MAX_RUNNING.of(name, value=limits.max_running)
        yield table.QUARANTINED.of(name, value=len(limits.exclude))
        full = {cap.kind for cap in limits.caps if not cap.pilots}
        for cut in _BLOCKS:
            yield table.BLOCKED.of(name, _word(cut), value=cut in full)
        decided = plan.resources.get(name)
        if decided is None or situation.stop is not None:
            continue
        yield table.NEEDED.of(name, value=decided.needed)
        for cut in Cut:
            yield table.CUT_PILOTS.of(name, _word(cut), value=decided.cuts.get(cut, 0))


def _cores(situation: Situation, words: _Words) -> Iterator[Sample]:
    cores = Counter(dict.fromkeys(words.uses(usage.HELD), 0))
    # Core-seconds of one second are cores.
    for (resource, vo, use), number in usage.between(situation, situation.now - 1).items():
        cores[words.resource(resource), words.vo_of(vo, use), use] += number
    yield from (table.CORES.of(*labels, value=number) for labels, number in cores.items())


def _counted(totals: Mapping[str, float], words: _Words) -> Iterator[Sample]:
    """`recording` names them "name|label|label". Those whose labels are known beforehand begin at zero."""
    found: dict[Metric, Counter[tuple[str, ...]]] = {
        table.CYCLES: Counter({(result,): 0 for result in ("ok", "problem", "held")}),
        table.CALLS: Counter(),
        table.SUBMITTED: Counter({(name,): 0 for name in words.resources}),
        table.CANCELLED: Counter({(name,): 0 for name in words.resources}),
        table.CUTS: Counter({(name, _word(cut)): 0 for name in words.resources for cut in Cut}),
        table.ENDED: Counter({(name, _word(outcome)): 0 for name in words.resources for outcome in Outcome}),
    }
    for key, number in totals.items():
        name, *labels = key.split("|")
        if name in _COUNTERS:
            metric, of = _COUNTERS[name]
            found[metric][of(words, labels)] += number  # type: ignore[assignment]
    for metric, series in found.items():
        yield from (metric.of(*labels, value=number) for labels, number in series.items())
    for metric, count, seconds in (
        (table.QUEUE_TIME, "queued", "queued_s"),
        (table.BOOT_TIME, "booted", "booted_s"),
    ):
        for resource in words.resources:
            yield metric.of(
                resource, count=totals.get(f"{count}|{resource}", 0), value=totals.get(f"{seconds}|{resource}", 0)
            )


def _core_seconds(core_s: usage.Used, words: _Words) -> Iterator[Sample]:
    found = Counter(dict.fromkeys(words.uses(Use), 0))
    for (resource, vo, use), number in core_s.items():
        found[words.resource(resource), words.vo_of(vo, use), use] += number
    yield from (table.CORE_SECONDS.of(*labels, value=number) for labels, number in found.items())


_COUNTERS: Mapping[str, tuple[Metric, Callable[[_Words, list[str]], tuple[str, ...]]]] = {
    "cycles": (table.CYCLES, lambda _, labels: tuple(labels)),
    "calls": (table.CALLS, lambda _, labels: tuple(labels)),
    "submitted": (table.SUBMITTED, lambda words, labels: (words.resource(labels[0]),)),
    "cancelled": (table.CANCELLED, lambda words, labels: (words.resource(labels[0]),)),
    "cut": (table.CUTS, lambda words, labels: (words.resource(labels[0]), _known(Cut, labels[1]))),
    "outcome": (table.ENDED, lambda words, labels: (words.resource(labels[0]), _known(Outcome, labels[1]))),
}


def _word(value: StrEnum) -> str:
    """A label's value that needs no quoting in anybody's query; the enums' own values are for people."""
    return value.name.lower()


def _known(words: type[StrEnum], value: str) -> str:
    """What another version counted may have another name."""
    return next((_word(each) for each in words if each == value), OTHER)
