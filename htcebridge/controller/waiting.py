"""What waits: the schedds' answers, each group of jobs matched against each resource."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from htcebridge.config.tables import Config
from htcebridge.model import Demand, Group, ScheddAnswer, Shape, Startd
from htcebridge.pilot import script
from htcebridge.state.memory import LastAnswer, Learnt, Schedds
from htcebridge.tier1 import pool
from htcebridge.tier1.fit import Fit, Job, Matcher, evaluate

# Older than some negotiation cycles a rejection says nothing about now.
REJECTED_LATELY_S = 1800
# A schedd that does not answer is counted as it was for so many cycles, and no longer than this; its jobs have moved on
# by then, and it is silent. So much of an answer is kept.
_STANDS_IN_CYCLES = 3
_STANDS_IN_S = 600
_GROUPS_KEPT = 200


def ask_schedds(
    config: Config, schedds: Sequence[pool.Schedd], before: Schedds, now: int, window_s: int | None = None
) -> list[pool.ScheddGroups]:
    """Ask these schedds what waits; `before` is what the last cycle left. One that is in the collector and does not
    answer is counted as it was, if that is not long ago: its `error` stays, and `age_s` says how long.

    `window_s`: ask also what the negotiator turned away for so long.
    """
    if window_s is None and config.pressure.either_only_rejected:
        window_s = REJECTED_LATELY_S
    since = now - window_s if window_s is not None else None
    answers = pool.read_demand(pool.pool_of(config), schedds, pool.tag_of(config), before.qdates, since)
    lately = _lately(config, before, now)
    return [
        replace(each, groups=lately[each.schedd].groups, age_s=now - lately[each.schedd].at)
        if each.error is not None and schedd.address and schedd.name in lately
        else each
        for schedd, each in zip(schedds, answers, strict=True)
    ]


def to_keep(config: Config, answers: Sequence[pool.ScheddGroups], before: Schedds, now: int) -> dict[str, LastAnswer]:
    """What may stand in for these schedds in the next cycles: their largest groups, without what is of this moment."""
    said = {each.schedd: _kept(each, now) for each in answers if each.error is None}
    return {**_lately(config, before, now), **said}


def _lately(config: Config, before: Schedds, now: int) -> dict[str, LastAnswer]:
    oldest = now - min(_STANDS_IN_S, _STANDS_IN_CYCLES * config.pressure.cycle_s)
    return {name: each for name, each in before.answers.items() if oldest <= each.at <= now}


def _kept(answer: pool.ScheddGroups, now: int) -> LastAnswer:
    largest = sorted(answer.groups, key=lambda group: -group.idle)[:_GROUPS_KEPT]
    return LastAnswer(now, tuple(replace(each, refused=None, rejected=None, autoclusters={}) for each in largest))


def slot_ads(
    config: Config,
    schedds: Iterable[pool.Schedd],
    learnt: Mapping[str, Learnt],
    lives: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Resource -> the slot of a pilot that would be started now, as ClassAd text. `lives`: `walltimes.job_lives`.

    Raises ConfigError.
    """
    version = version_of(schedds)
    # A manual glidein's startds are in another pool: no job of this one runs there.
    ours = [name for name, resource in config.resources.items() if resource.executor is None]
    known = {name: in_force(config, name, learnt.get(name)) for name in ours}
    return {name: script.template_ad(config, name, version, known[name], (lives or {}).get(name)) for name in ours}


def in_force(config: Config, name: str, learnt: Learnt | None) -> Mapping[str, str] | None:
    """What pilots of today's configuration showed. Raises ConfigError."""
    return learnt.slot if learnt is not None and learnt.made == script.slot_fingerprint(config, name) else None


def matched(
    config: Config,
    new: Mapping[str, str],
    answers: Sequence[pool.ScheddGroups],
    now: int,
    there: There | None = None,
) -> list[Group]:
    """What waits, each group of each schedd matched against each resource.

    `new`: resource -> the slot of a pilot that would be started, as ClassAd text; `there`: the pilots that are there.
    """
    matchers = Matcher(new), there or There(config, (), {})
    return [group for answer in answers for group in _groups(answer, *matchers, config, now)]


# Of jobs at single slots in one cycle: a second of a core.
_MOST_LOOKS = 25_000
_NO = Fit(Job(Shape(0, 0), 0), "it is of no resource")


class There:
    """The pilots that are there, as slots that jobs are matched against: equal ones once.

    Each by itself, as it is at this moment, is looked at for jobs alone that look at what is free or how long it lives;
    for the first groups, if these are many.
    """

    def __init__(self, config: Config, startds: Iterable[Startd], kinds: Mapping[str, Mapping[str, str]]) -> None:
        self._config, self._kinds, self._startds = config, kinds, tuple(startds)
        self._whole = Matcher(standing_ads(config, self._startds, kinds))
        self._resource_of = _resource_of(config, self._startds, kinds)
        self._left = _MOST_LOOKS

    def judge(self, job_text: str, default: Job) -> dict[str, Fit]:
        """How such a job fits each kind, and each slot where that may be something else. Raises nothing."""
        found = self._whole.judge(job_text, default)
        if self._left > 0 and Matcher.looks_at_the_moment(job_text):
            self._left -= len(self._startds)
            return found | self._each.judge(job_text, default)
        return found

    def resources(self, found: Mapping[str, Fit]) -> tuple[str, ...]:
        """The resources of which some pilot takes a job that was judged so."""
        taking = {
            each.kind for each in self._startds if not (found.get(each.moment) or found.get(each.kind, _NO)).why_not
        }
        return tuple(
            name for name in self._config.resources if name in {self._resource_of.get(kind) for kind in taking}
        )

    @cached_property
    def _each(self) -> Matcher:
        kinds, names = self._kinds, self._resource_of
        gives = {name: script.gives(self._config, name) for name in set(names.values())}
        return Matcher(
            {
                each.moment: script.standing_ad(
                    self._config, names[each.kind], kinds[each.kind], gives[names[each.kind]], each
                )
                for each in self._startds
                if each.kind in names
            }
        )


def standing_ads(config: Config, startds: Iterable[Startd], kinds: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """`Startd.kind` -> the slot of such pilots as ClassAd text, of resources in the configuration."""
    resource_of = _resource_of(config, startds, kinds)
    gives = {name: script.gives(config, name) for name in set(resource_of.values())}
    return {kind: script.standing_ad(config, name, kinds[kind], gives[name]) for kind, name in resource_of.items()}


def _resource_of(config: Config, startds: Iterable[Startd], kinds: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """`Startd.kind` -> the resource in the configuration that it is of."""
    names = {each.kind: kinds[each.kind].get("PilotResource", "").strip('"') for each in startds}
    return {kind: name for kind, name in names.items() if name in config.resources}


def demand_of(groups: Iterable[Group], answers: Sequence[pool.ScheddGroups]) -> Demand:
    """The groups of all schedds together, largest first, and how each schedd answered."""
    return Demand(
        groups=tuple(
            sorted(merged(groups), key=lambda group: (-group.idle, -group.running, group.owner, group.walltime_s))
        ),
        schedds=tuple(ScheddAnswer(each.schedd, each.seconds, each.error, each.age_s) for each in answers),
    )


def version_of(schedds: Iterable[pool.Schedd]) -> str:
    """The HTCondor that the pool runs, for which pilots are taken to be too."""
    return next((schedd.version for schedd in schedds if schedd.version), "")


def merged(groups: Iterable[Group]) -> list[Group]:
    """Groups that differ in nothing that anybody sees become one."""
    found: dict[object, Group] = {}
    for group in groups:
        by_slot = (group.why_not, group.walltimes, group.refused_by)
        by_resource = (
            group.resources,
            group.standing,
            *(tuple(sorted(each.items())) for each in by_slot),
            *sorted(group.shapes.items()),
        )
        key = (group.shape, group.walltime_s, group.owner, group.vo, by_resource, group.rejected, group.refused)
        other = found.get(key)
        found[key] = (
            replace(
                group,
                idle=group.idle + other.idle,
                running=group.running + other.running,
                oldest_s=max(group.oldest_s, other.oldest_s),
                key="",
                keys=tuple(dict.fromkeys((*other.keys, *group.keys))),
            )
            if other
            else group
        )
    return list(found.values())


def _groups(answer: pool.ScheddGroups, new: Matcher, standing: There, config: Config, now: int) -> Iterable[Group]:
    default_s = int(config.pilot.default_walltime.total_seconds())
    either = {vo.name.lower() for vo in config.vos if vo.placement == "either"}
    for group in answer.groups:
        asked = evaluate(group.ad, config.demand.walltime, default_s)
        fits, there = new.judge(group.ad, asked), standing.judge(group.ad, asked)
        yield Group(
            shape=asked.shape,
            walltime_s=asked.walltime_s,
            owner=group.owner,
            vo=group.vo,
            idle=group.idle,
            running=group.running,
            oldest_s=max(0, now - group.oldest_qdate) if group.oldest_qdate is not None else 0,
            resources=tuple(name for name, each in fits.items() if not each.why_not),
            why_not={name: each.why_not for name, each in fits.items() if each.why_not},
            either=group.vo.lower() in either,
            rejected=group.rejected,
            refused=group.refused,
            key=group.key,
            keys=(group.key,) if group.key else (),
            walltimes={
                name: each.job.walltime_s for name, each in fits.items() if each.job.walltime_s != asked.walltime_s
            },
            shapes={
                where: each.job.shape
                for where, each in (*fits.items(), *there.items())
                if not each.why_not and each.job.shape != asked.shape
            },
            refused_by={kind: each.why_not for kind, each in there.items() if each.why_not},
            standing=standing.resources(there),
        )
