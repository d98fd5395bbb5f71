"""What waits: the schedds' answers, each group of jobs matched against each resource."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge.config.tables import Config
from htcebridge.model import Demand, Group, ScheddAnswer
from htcebridge.pilot import script
from htcebridge.tier1 import pool
from htcebridge.tier1.fit import Matcher, evaluate

# Older than some negotiation cycles a rejection says nothing about now.
_REJECTED_LATELY_S = 1800


def ask_schedds(
    config: Config, schedds: Sequence[pool.Schedd], known: pool.Qdates, now: int, window_s: int | None = None
) -> list[pool.ScheddGroups]:
    """Ask these schedds what waits; `known` is the cache that the last answers left (`tier1.pool.qdates`).

    `window_s`: ask also what the negotiator turned away for so long.
    """
    if window_s is None and config.pressure.either_only_rejected:
        window_s = _REJECTED_LATELY_S
    since = now - window_s if window_s is not None else None
    return pool.read_demand(pool.pool_of(config), schedds, pool.tag_of(config), known, since)


def matched(
    config: Config,
    schedds: Sequence[pool.Schedd],
    answers: Sequence[pool.ScheddGroups],
    now: int,
    lives: Mapping[str, int],
) -> list[Group]:
    """What waits, each group of each schedd matched against each resource. `lives`: `walltimes.job_lives`."""
    # A manual glidein's startds are in another pool: no job of this one runs there.
    ours = [name for name, resource in config.resources.items() if resource.executor is None]
    version = version_of(schedds)
    matcher = Matcher({name: script.template_ad(config, name, version, lives.get(name)) for name in ours})
    return [group for answer in answers for group in _groups(answer, matcher, config, now)]


def demand_of(groups: Iterable[Group], answers: Sequence[pool.ScheddGroups]) -> Demand:
    """The groups of all schedds together, largest first, and how each schedd answered."""
    return Demand(
        groups=tuple(
            sorted(merged(groups), key=lambda group: (-group.idle, -group.running, group.owner, group.walltime_s))
        ),
        schedds=tuple(ScheddAnswer(answer.schedd, answer.seconds, answer.error) for answer in answers),
    )


def version_of(schedds: Iterable[pool.Schedd]) -> str:
    """The HTCondor that the pool runs, for which pilots are taken to be too."""
    return next((schedd.version for schedd in schedds if schedd.version), "")


def merged(groups: Iterable[Group]) -> list[Group]:
    """Groups that differ in nothing that anybody sees become one."""
    found: dict[object, Group] = {}
    for group in groups:
        by_resource = (group.resources, *(tuple(sorted(each.items())) for each in (group.why_not, group.walltimes)))
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


def _groups(answer: pool.ScheddGroups, matcher: Matcher, config: Config, now: int) -> Iterable[Group]:
    default_s = int(config.pilot.default_walltime.total_seconds())
    own_defaults = {
        name: int(resource.default_walltime.total_seconds())
        for name, resource in config.resources.items()
        if resource.default_walltime != config.pilot.default_walltime
    }
    either = {vo.name.lower() for vo in config.vos if vo.placement == "either"}
    for group in answer.groups:
        job = evaluate(group.ad, config.demand.walltime, default_s)
        walltimes = {
            name: evaluate(group.ad, config.demand.walltime, own_s).walltime_s for name, own_s in own_defaults.items()
        }
        resources, why_not = matcher.fit(group.ad)
        yield Group(
            shape=job.shape,
            walltime_s=job.walltime_s,
            owner=group.owner,
            vo=group.vo,
            idle=group.idle,
            running=group.running,
            oldest_s=max(0, now - group.oldest_qdate) if group.oldest_qdate is not None else 0,
            resources=resources,
            why_not=why_not,
            either=group.vo.lower() in either,
            rejected=group.rejected,
            key=group.key,
            walltimes={name: walltime_s for name, walltime_s in walltimes.items() if walltime_s != job.walltime_s},
        )
