"""What one cycle sees: Slurm's jobs and the collector's startds joined into pilots, the schedds' jobs matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge import pilot, tier1
from htcebridge.config import Config
from htcebridge.ghost_view import Track
from htcebridge.matching import Matcher, evaluate
from htcebridge.model import Demand, Group, Pilot, PilotPhase, ScheddAnswer, SlurmJob, Startd, Wait
from htcebridge.slurm_text import ENDED_STATES, OtherJob
from htcebridge.waits import wait_of

# Slurm's job states (squeue(1), JOB STATE CODES). A state that is in none of these is unknown: not supply, shown.
PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "EXPEDITING"}
# Older than some negotiation cycles a rejection says nothing about now.
_REJECTED_LATELY_S = 1800


@dataclass(frozen=True)
class Negotiator:
    """What the Tier-1's negotiator says (demand_source = "negotiator"): `ghosts` are the offline slots that are there,
    `tracks` what to remember of them, `alarms` where it does not agree with the query, or why it is not asked.
    `asked`: it may be shown ghosts."""

    ghosts: tuple[tier1.Ghost, ...]
    condor_version: str
    tracks: Mapping[str, Track]
    alarms: tuple[str, ...] = ()
    asked: bool = False


@dataclass(frozen=True)
class Observation:
    """What one cycle saw. `now` in seconds since the epoch; `qdates` is the cache for the next demand query."""

    now: int
    demand: Demand
    pilots: tuple[Pilot, ...]
    others: tuple[OtherJob, ...] = ()
    schedds: frozenset[str] = frozenset()
    """The schedds that the collector knows now."""
    in_pool: frozenset[str] = frozenset()
    """Ids of the pilots whose startds the collector shows."""
    qdates: Mapping[str, Mapping[str, int]] | None = None
    negotiator: Negotiator | None = None


def pool(config: Config) -> tier1.Pool:
    """The Tier-1 as the configuration names it. Raises ConfigError."""
    return tier1.Pool(
        collector=config.tier1.collector,
        token_directory=pilot.expand(config.tier1.token_directory, "tier1.token_directory"),
        schedds=config.tier1.schedds,
        schedd_constraint=config.tier1.schedd_constraint,
        timeout_s=config.tier1.timeout.total_seconds(),
    )


def tag(config: Config) -> tier1.Tag:
    """How a granted job is known, as the configuration says."""
    grant = config.grant
    return tier1.Tag(grant.attribute, grant.value, grant.vo_attribute, config.demand.walltime, grant.provenance)


def ask_schedds(
    config: Config, schedds: Sequence[tier1.Schedd], known: tier1.Qdates, now: int, window_s: int | None = None
) -> list[tier1.ScheddGroups]:
    """Ask these schedds what waits; `known` is the cache that the last answers left (`tier1.qdates`).

    `window_s`: ask also what the negotiator turned away for so long.
    """
    if window_s is None and config.pressure.either_only_rejected:
        window_s = _REJECTED_LATELY_S
    return tier1.read_demand(
        pool(config), schedds, tag(config), known, now - window_s if window_s is not None else None
    )


def matched(
    config: Config, schedds: Sequence[tier1.Schedd], answers: Sequence[tier1.ScheddGroups], now: int
) -> list[Group]:
    """What waits, each group of each schedd matched against each resource."""
    # A manual glidein's startds are in another pool: no job of this one runs there.
    ours = [name for name, resource in config.resources.items() if resource.executor is None]
    matcher = Matcher({name: pilot.template_ad(config, name, version_of(schedds)) for name in ours})
    return [group for answer in answers for group in _groups(answer, matcher, config, now)]


def demand_of(groups: Iterable[Group], answers: Sequence[tier1.ScheddGroups]) -> Demand:
    """The groups of all schedds together, largest first, and how each schedd answered."""
    return Demand(
        groups=tuple(
            sorted(merged(groups), key=lambda group: (-group.idle, -group.running, group.owner, group.walltime_s))
        ),
        schedds=tuple(ScheddAnswer(answer.schedd, answer.seconds, answer.error) for answer in answers),
    )


def version_of(schedds: Iterable[tier1.Schedd]) -> str:
    """The HTCondor that the pool runs, for which pilots are taken to be too."""
    return next((schedd.version for schedd in schedds if schedd.version), "")


def with_absent(
    config: Config, schedds: Sequence[tier1.Schedd], now: int, known: Mapping[str, int]
) -> tuple[tier1.Schedd, ...]:
    """These schedds and the ones that the collector knew lately (name -> when): their jobs are unknown, not gone."""
    there = {schedd.name for schedd in schedds}
    oldest = now - config.tier1.remember_schedds.total_seconds()
    absent = () if config.tier1.schedds else (name for name, seen in known.items() if seen >= oldest)
    return (*schedds, *(tier1.Schedd(name, "", "") for name in sorted(absent) if name not in there))


def join(jobs: Iterable[SlurmJob], startds: Iterable[Startd], now: int, config: Config) -> list[Pilot]:
    """Slurm's view and the collector's view of each pilot, side by side."""
    by_id = {startd.pilot_id: startd for startd in startds}
    boot_timeout_s = config.pressure.boot_timeout.total_seconds()
    pilots = []
    for job in jobs:
        startd = by_id.get(job.id)
        phase = _phase(job, startd, now, boot_timeout_s)
        resource = config.resources.get(job.resource)
        if resource is not None and resource.executor is not None and job.state in RUNNING:
            phase = PilotPhase.JOINED  # another pool, which is not asked
        wait = wait_of(job.reason, job.state) if phase is PilotPhase.PENDING else Wait.NORMAL
        pilots.append(Pilot(job, phase, startd if phase is PilotPhase.JOINED else None, wait=wait))
    return pilots


def _phase(job: SlurmJob, startd: Startd | None, now: int, boot_timeout_s: float) -> PilotPhase:
    if job.state in ENDED_STATES:
        return PilotPhase.ENDED
    if job.state in PENDING:
        # It started, and joined, between the two looks.
        return PilotPhase.JOINED if startd else PilotPhase.PENDING
    if job.state not in RUNNING:
        return PilotPhase.LEAVING
    if startd:
        return PilotPhase.JOINED
    started = job.started if job.started is not None else now
    return PilotPhase.BOOTING if now - started <= boot_timeout_s else PilotPhase.LOST


def silent_schedds(demand: Demand) -> tuple[str, ...]:
    """A sentence for each schedd that did not answer."""
    return tuple(
        f"schedd {schedd.name}: {schedd.error}; its jobs are not counted, so nothing is cancelled"
        for schedd in demand.schedds
        if not schedd.ok
    )


def merged(groups: Iterable[Group]) -> list[Group]:
    """Groups that differ in nothing that anybody sees become one."""
    found: dict[object, Group] = {}
    for group in groups:
        why_not = tuple(sorted(group.why_not.items()))
        key = (group.shape, group.walltime_s, group.owner, group.vo, group.resources, why_not, group.rejected)
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


def _groups(answer: tier1.ScheddGroups, matcher: Matcher, config: Config, now: int) -> Iterable[Group]:
    default_s = int(config.pilot.default_walltime.total_seconds())
    either = {vo.name.lower() for vo in config.vos if vo.placement == "either"}
    for group in answer.groups:
        job = evaluate(group.ad, config.demand.walltime, default_s)
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
        )
