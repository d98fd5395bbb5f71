"""What waits: the schedds' answers, each group of jobs matched against each resource."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge.config.tables import Config
from htcebridge.model import Demand, Group, ScheddAnswer, Startd
from htcebridge.pilot import script
from htcebridge.state.memory import LastAnswer, Learnt, Schedds
from htcebridge.tier1 import pool
from htcebridge.tier1.fit import Matcher, evaluate

# Older than some negotiation cycles a rejection says nothing about now.
_REJECTED_LATELY_S = 1800
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
        window_s = _REJECTED_LATELY_S
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
    standing: Mapping[str, str] | None = None,
) -> list[Group]:
    """What waits, each group of each schedd matched against each resource.

    `new`: resource -> the slot of a pilot that would be started; `standing`: `Startd.kind` -> that of pilots that are
    there (`standing_ads`), as ClassAd text.
    """
    matchers = Matcher(new), Matcher(standing or {})
    return [group for answer in answers for group in _groups(answer, *matchers, config, now)]


def standing_ads(config: Config, startds: Iterable[Startd], kinds: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """`Startd.kind` -> the slot of such pilots as ClassAd text, of resources in the configuration."""
    resource_of = {each.kind: kinds[each.kind].get("PilotResource", "").strip('"') for each in startds}
    return {
        kind: script.standing_ad(config, name, kinds[kind])
        for kind, name in resource_of.items()
        if name in config.resources
    }


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
            *(tuple(sorted(each.items())) for each in by_slot),
            *sorted(group.shapes.items()),
        )
        key = (group.shape, group.walltime_s, group.owner, group.vo, by_resource, group.rejected)
        other = found.get(key)
        found[key] = (
            replace(
                group,
                idle=group.idle + other.idle,
                running=group.running + other.running,
                oldest_s=max(group.oldest_s, other.oldest_s),
                key="",
            )
            if other
            else group
        )
    return list(found.values())


def _groups(answer: pool.ScheddGroups, new: Matcher, standing: Matcher, config: Config, now: int) -> Iterable[Group]:
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
            key=group.key,
            walltimes={
                name: each.job.walltime_s for name, each in fits.items() if each.job.walltime_s != asked.walltime_s
            },
            shapes={
                where: each.job.shape
                for where, each in (*fits.items(), *there.items())
                if not each.why_not and each.job.shape != asked.shape
            },
            refused_by={kind: each.why_not for kind, each in there.items() if each.why_not},
        )
