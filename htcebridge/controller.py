"""One cycle: observe, plan, act, record; and the loop around it.

The state lives in Slurm (each pilot's comment) and in the collector (each startd's Slurm job id), so a controller
that is killed at any line starts again and sees its pilots.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from htcebridge import config_file, pilot, planner, tier1
from htcebridge.errors import BridgeError, ConfigError, ExitCode, UnknownState
from htcebridge.lock import ControllerLock, Memory, recall
from htcebridge.matching import Matcher, evaluate
from htcebridge.model import (
    Demand,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Plan,
    Policy,
    ScheddAnswer,
    SlurmJob,
    Startd,
)
from htcebridge.slurm import Billing, Slurm, Submission
from htcebridge.units import format_duration

if TYPE_CHECKING:
    from htcebridge.config import Config, Resource

log = logging.getLogger("htcebridge")

# Slurm's job states (squeue(1), JOB STATE CODES). A state that is in none of these is unknown: not supply, shown.
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "EXPEDITING"}
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
}


@dataclass(frozen=True)
class Observation:
    """What one cycle saw. `now` in seconds since the epoch."""

    now: int
    demand: Demand
    pilots: tuple[Pilot, ...]
    schedds: frozenset[str] = frozenset()
    """The schedds that the collector knows now."""


@dataclass(frozen=True)
class CycleResult:
    """What one cycle came to. `problems` are sentences for a person; `exit_code` is `pressure once`'s."""

    plan: Plan
    plan_id: str
    problems: tuple[str, ...] = ()
    exit_code: ExitCode = ExitCode.OK


def pool(config: Config) -> tier1.Pool:
    """The Tier-1 as the configuration names it. Raises ConfigError."""
    return tier1.Pool(
        collector=config.tier1.collector,
        token_directory=pilot.expand(config.tier1.token_directory, "tier1.token_directory"),
        schedds=config.tier1.schedds,
        schedd_constraint=config.tier1.schedd_constraint,
        timeout_s=config.tier1.timeout.total_seconds(),
    )


def read_demand(config: Config, schedds: Sequence[tier1.Schedd], now: int) -> Demand:
    """Ask these schedds what waits, and match it against each resource."""
    grant = config.grant
    tag = tier1.Tag(grant.attribute, grant.value, grant.vo_attribute, config.demand.walltime, grant.provenance)
    answers = tier1.read_demand(pool(config), schedds, tag)
    version = next((schedd.version for schedd in schedds if schedd.version), "")
    matcher = Matcher({name: pilot.template_ad(config, name, version) for name in config.resources})
    groups = _merged(group for answer in answers for group in _groups(answer, matcher, config, now))
    return Demand(
        groups=tuple(sorted(groups, key=lambda group: (-group.idle, -group.running, group.owner, group.walltime_s))),
        schedds=tuple(ScheddAnswer(answer.schedd, answer.seconds, answer.error) for answer in answers),
    )


def observe(config: Config, slurm: Slurm, now: int, memory: Memory) -> Observation:
    """Read Slurm, the collector and all schedds. Raises UnknownState if Slurm, the collector or all schedds fail."""
    tier1.check_tokens(pool(config).token_directory)
    jobs = slurm.jobs()
    view = tier1.read_pool(pool(config), config.pressure.instance)
    schedds = with_absent(config, view.schedds, now, memory)
    demand = read_demand(config, schedds, now)
    if not any(schedd.ok for schedd in demand.schedds):
        raise UnknownState("; ".join(f"schedd {schedd.name}: {schedd.error}" for schedd in demand.schedds))
    boot_timeout_s = config.pressure.boot_timeout.total_seconds()
    pilots = tuple(join(jobs, view.startds, now, boot_timeout_s))
    return Observation(now, demand, pilots, frozenset(schedd.name for schedd in view.schedds if schedd.address))


def with_absent(config: Config, schedds: Sequence[tier1.Schedd], now: int, memory: Memory) -> tuple[tier1.Schedd, ...]:
    """These schedds and the ones that the collector knew lately: their jobs are unknown, not gone."""
    there = {schedd.name for schedd in schedds}
    oldest = now - config.tier1.remember_schedds.total_seconds()
    absent = () if config.tier1.schedds else (name for name, seen in memory.schedds.items() if seen >= oldest)
    return (*schedds, *(tier1.Schedd(name, "", "") for name in sorted(absent) if name not in there))


def join(jobs: Iterable[SlurmJob], startds: Iterable[Startd], now: int, boot_timeout_s: float) -> list[Pilot]:
    """Slurm's view and the collector's view of each pilot, side by side."""
    by_id = {startd.pilot_id: startd for startd in startds}
    pilots = []
    for job in jobs:
        startd = by_id.get(job.id)
        phase = _phase(job, startd, now, boot_timeout_s)
        pilots.append(Pilot(job, phase, startd if phase is PilotPhase.JOINED else None))
    return pilots


def _phase(job: SlurmJob, startd: Startd | None, now: int, boot_timeout_s: float) -> PilotPhase:
    if job.state in _ENDED:
        return PilotPhase.ENDED
    if job.state in _PENDING:
        # It started, and joined, between the two looks.
        return PilotPhase.JOINED if startd else PilotPhase.PENDING
    if job.state not in _RUNNING:
        return PilotPhase.LEAVING
    if startd:
        return PilotPhase.JOINED
    started = job.started if job.started is not None else now
    return PilotPhase.BOOTING if now - started <= boot_timeout_s else PilotPhase.LOST


def decide(config: Config, slurm: Slurm, seen: Observation, surplus: Mapping[str, int]) -> Plan:
    """The plan for what was seen. Raises UnknownState if a resource's node-hours cannot be read."""
    limits = {name: _limits(config, slurm, name, seen) for name in config.resources}
    policy = Policy(
        min_fill=config.pressure.min_fill,
        max_wait_s=int(config.pressure.max_wait.total_seconds()),
        surplus_cycles=config.pressure.surplus_cycles,
    )
    return planner.plan(seen.demand, seen.pilots, limits, policy, seen.now, surplus)


def _limits(config: Config, slurm: Slurm, name: str, seen: Observation) -> Limits:
    resource = config.resources[name]
    left = None
    if resource.max_node_hours is not None:
        billing = Billing(resource.job_name, resource.account, resource.partition, resource.qos)
        ended = slurm.node_hours(name, billing, resource.node_hours_since)
        live = sum(
            _promised_s(each.job, resource)
            for each in seen.pilots
            if each.job.resource == name and each.phase is not PilotPhase.ENDED
        )
        left = resource.max_node_hours - ended - live / 3600
    return replace(pilot.limits(name, resource, left), max_new_per_cycle=config.pressure.max_new_per_cycle)


def _promised_s(job: SlurmJob, resource: Resource) -> float:
    """What a live pilot may use in all."""
    if job.started is not None and job.ends is not None:
        return job.ends - job.started
    return job.time_limit_s if job.time_limit_s is not None else resource.walltime.total_seconds()


@dataclass(frozen=True)
class Look:
    """A plan and what it rests on. `seen` is None and the plan held where something is unknown."""

    plan: Plan
    problems: tuple[str, ...]
    seen: Observation | None = None


def look(config: Config) -> Look:
    """Observe and plan, change nothing. Raises ConfigError for what only the admin can mend."""
    if not config.resources:
        raise ConfigError("no [resource.NAME] in the configuration: nothing to start pilots on")
    _check_pilots_can_start(config)
    slurm, memory = Slurm(config.pressure.instance), recall(config)
    try:
        seen = observe(config, slurm, int(time.time()), memory)
        return Look(decide(config, slurm, seen, memory.surplus), _silent_schedds(seen.demand), seen)
    except UnknownState as error:
        return Look(planner.hold(str(error), config.resources), (str(error),))


def cycle(config: Config, lock: ControllerLock) -> CycleResult:
    """One cycle: observe, plan, act, record. Raises ConfigError for what only the admin can mend."""
    plan_id = f"{int(time.time()):x}{secrets.token_hex(2)}"
    found = look(config)
    _log_plan(plan_id, found.plan)
    if found.seen is None:
        return CycleResult(found.plan, plan_id, found.problems, ExitCode.TEMPFAIL)
    problems = (*found.problems, *_act(config, found.plan, plan_id, lock))
    lock.remember(_memory(config, found.plan, found.seen))
    return CycleResult(found.plan, plan_id, problems, ExitCode.PROBLEM if problems else ExitCode.OK)


def _memory(config: Config, plan: Plan, seen: Observation) -> Memory:
    oldest = seen.now - config.tier1.remember_schedds.total_seconds()
    known = {name: when for name, when in recall(config).schedds.items() if when >= oldest}
    return Memory(dict(plan.surplus), {**known, **dict.fromkeys(seen.schedds, seen.now)})


def _act(config: Config, plan: Plan, plan_id: str, lock: ControllerLock) -> list[str]:
    """Submit and cancel what the plan says; one resource's failure does not stop the others."""
    slurm = Slurm(config.pressure.instance)
    failures = []
    for name, decision in plan.resources.items():
        try:
            if decision.submit:
                pilot.expand(config.resources[name].shared_dir, "shared_dir").joinpath("logs").mkdir(
                    parents=True, exist_ok=True
                )
                script = pilot.script(config, name)
                submission = Submission(script, decision.submit, name, plan_id, decision.time_min_s)
                job_id = slurm.submit(submission, lock.file)
                log.info("plan=%s resource=%s submitted=%d job=%s", plan_id, name, decision.submit, job_id)
            if decision.cancel:
                slurm.cancel_pending(decision.cancel)
                log.info("plan=%s resource=%s cancelled=%s", plan_id, name, ",".join(decision.cancel))
        except (BridgeError, OSError) as error:
            failures.append(f"resource {name}: {error}")
    return failures


def run(path: Path, say: Callable[[str], None] = log.info) -> None:
    """Cycle for ever, until SIGTERM or SIGINT; both end it between two cycles. SIGHUP cycles at once.

    The file is read again before every cycle; a broken one is reported and the last good one kept. Raises ConfigError
    for what would fail from the start.
    """
    config = config_file.load(path)
    wake, ending = threading.Event(), threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        ending.set()
        wake.set()

    def now(signum: int, frame: FrameType | None) -> None:
        wake.set()

    for signum, handler in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGHUP, now)):
        signal.signal(signum, handler)
    with ControllerLock(config) as lock:
        _check_pilots_can_start(config)
        say(f"controller {config.pressure.instance} runs, a cycle every {config.pressure.interval.total_seconds():g} s")
        known: tuple[str, ...] = ()
        while not ending.is_set():
            config, complaint = _reread(path, config)
            problems = ((complaint,) if complaint else ()) + _surviving_cycle(config, lock)
            for problem in problems:
                if problem not in known:
                    log.warning("%s", problem)
            if known and not problems:
                log.info("all is well again")
            known = problems
            wake.wait(config.pressure.interval.total_seconds())
            wake.clear()
    say(f"controller {config.pressure.instance} ended; its pilots live on and leave when they are idle")


def _surviving_cycle(config: Config, lock: ControllerLock) -> tuple[str, ...]:
    """A cycle whose failure must not end the controller."""
    try:
        return cycle(config, lock).problems
    except BridgeError as error:
        return (str(error),)
    except Exception as error:
        log.exception("a cycle failed; the next one starts afresh")
        return (f"a cycle failed: {error}",)


def _reread(path: Path, last_good: Config) -> tuple[Config, str | None]:
    try:
        config = config_file.load(path)
    except ConfigError as error:
        return last_good, f"the last good configuration stays in force: {error}"
    if config.pressure.instance != last_good.pressure.instance:
        return last_good, "pressure.instance cannot change while the controller runs: restart it"
    return config, None


def _check_pilots_can_start(config: Config) -> None:
    """What would make every pilot fail, found before the first is submitted. Raises ConfigError."""
    for resource in config.resources.values():
        token = pilot.expand(resource.token_file, "token_file")
        tier1.check_secret(token)
        expires = tier1.token_expiry(token)
        if expires is not None and expires < time.time() + resource.walltime.total_seconds():
            raise ConfigError(
                f"{token}: expires {time.strftime('%Y-%m-%d %H:%M', time.localtime(expires))}, before a pilot of "
                f"{format_duration(resource.walltime.total_seconds())} started now would end; replace it"
            )
        pilot.expand(resource.shared_dir, "shared_dir")


def _groups(answer: tier1.ScheddGroups, matcher: Matcher, config: Config, now: int) -> Iterable[Group]:
    default_s = int(config.pilot.default_walltime.total_seconds())
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
        )


def _merged(groups: Iterable[Group]) -> list[Group]:
    """Groups that differ in nothing that anybody sees become one."""
    merged: dict[object, Group] = {}
    for group in groups:
        why_not = tuple(sorted(group.why_not.items()))
        key = (group.shape, group.walltime_s, group.owner, group.vo, group.resources, why_not)
        other = merged.get(key)
        merged[key] = (
            replace(
                group,
                idle=group.idle + other.idle,
                running=group.running + other.running,
                oldest_s=max(group.oldest_s, other.oldest_s),
            )
            if other
            else group
        )
    return list(merged.values())


def _silent_schedds(demand: Demand) -> tuple[str, ...]:
    return tuple(
        f"schedd {schedd.name}: {schedd.error}; its jobs are not counted, so nothing is cancelled"
        for schedd in demand.schedds
        if not schedd.ok
    )


def _log_plan(plan_id: str, plan: Plan) -> None:
    """One line per resource: loud where something is done, quiet where nothing changes."""
    for name, decision in plan.resources.items():
        level = logging.INFO if decision.submit or decision.cancel else logging.DEBUG
        log.log(
            level,
            "plan=%s resource=%s needed=%d running=%d booting=%d pending=%d submit=%d cancel=%d why=%r",
            plan_id,
            name,
            decision.needed,
            decision.running,
            decision.booting,
            decision.pending,
            decision.submit,
            len(decision.cancel),
            "; ".join(decision.reasons),
        )
