"""One cycle of the pressure controller: observe, plan, act, record. `loop` runs it for ever.

The pilots are in Slurm and in the collector. What a cycle cannot see there it keeps in `memory` and `ledger`, so a
controller killed at any line starts again and goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from htcebridge import (
    act,
    advertise,
    ghost,
    ghost_view,
    learn,
    ledger,
    leftovers,
    logs,
    marks,
    observation,
    pilot,
    planner,
    recording,
    snapshots,
    tier1,
)
from htcebridge.config import Config
from htcebridge.errors import BridgeError, ConfigError, ExitCode, UnknownState
from htcebridge.ledger import Entry, Ledger
from htcebridge.lock import ControllerLock
from htcebridge.memory import Memory, recall, remember
from htcebridge.model import Demand, Pilot, Plan, Situation, SlurmJob
from htcebridge.observation import Negotiator, Observation
from htcebridge.pilot_logs import prune_logs
from htcebridge.situation import Marks, build
from htcebridge.slurm import Slurm
from htcebridge.units import format_duration

_TIDY_S = 3600
_KEEP_LOGS_DAYS = 7
_KEEP_LOGS_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Look:
    """A plan and what it rests on. `situation` is None and the plan held where something is unknown.

    `memory` is what the next cycle should know, `entries` the ledger with what this look has found out of it;
    `problems` are sentences for a person.
    """

    plan: Plan
    problems: tuple[str, ...]
    memory: Memory
    situation: Situation | None = None
    entries: tuple[Entry, ...] = ()
    listed: frozenset[str] = frozenset()
    """Ids of all jobs of this user that Slurm lists, other instances' too."""
    negotiator: Negotiator | None = None
    before: Memory = field(default_factory=Memory)
    """What the last cycle left."""
    dead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Resource -> its pilots that have ended, as slurmdbd knows, and that the collector still shows."""


@dataclass(frozen=True)
class CycleResult:
    """What one cycle came to. `problems` are sentences for a person; `exit_code` is `pressure once`'s."""

    plan: Plan
    plan_id: str
    problems: tuple[str, ...] = ()
    exit_code: ExitCode = ExitCode.OK
    seconds: float = 0.0
    """How long it took."""
    situation: Situation | None = None
    memory: Memory = field(default_factory=Memory)


def look(config: Config) -> Look:
    """Observe and plan, change nothing. Raises ConfigError for what only the admin can mend."""
    if not config.resources:
        raise ConfigError("no [resource.NAME] in the configuration: nothing to start pilots on")
    check_pilots_can_start(config)
    slurm, now = Slurm(config.pressure.instance), int(time.time())
    before = recall(config)
    memory = replace(before, looked=now)
    pilots: Sequence[Pilot] = ()
    try:
        lying = _marks(config, memory)
        entries = Ledger(config).entries()
        queue = slurm.queue(_shared_accounts(memory))
        pilots = observation.join(queue.ours, (), now, config)
        seen = Observation(now, Demand((), ()), tuple(pilots), tuple(queue.others))
        if lying.stop is None:
            seen = _with_pool(config, seen, queue.ours, memory)
            pilots = seen.pilots
        memory, entries = learn.learn(config, slurm, memory, entries, seen)
        memory = replace(memory, shared=tuple(map(str, shared_directories(config, memory))))
    except ConfigError:
        raise
    except BridgeError as error:
        return Look(planner.hold(str(error), config.resources, pilots), (str(error),), memory, before=before)
    situation, alarms = build(config, seen, memory, entries, lying)
    plan = planner.plan(situation)
    problems = (*observation.silent_schedds(seen.demand), *alarms)
    if seen.negotiator is not None:
        problems = (*problems, *seen.negotiator.alarms)
    if lying.stop is not None:
        problems = (f"stopped: {lying.stop}; `htcebridge pressure resume` lifts it", *problems)
    listed = frozenset([each.id for each in queue.ours] + [each.id for each in queue.others])
    dead = dead_in_pool(memory, seen.in_pool)
    memory = replace(memory, streaks=plan.streaks)
    return Look(plan, problems, memory, situation, tuple(entries), listed, seen.negotiator, before, dead)


def _shared_accounts(memory: Memory) -> list[str]:
    """Accounts in which a limit of the whole account is in force: then others' jobs in it count too."""
    return sorted({account for read in memory.slurm_limits.values() for account in read.limits.watch})


def _marks(config: Config, memory: Memory) -> Marks:
    """What lies on the shared file system. Raises BridgeError if it cannot be seen: no answer is not no mark."""
    drained: dict[str, str] = {}
    tail: set[str] = set()
    shared = shared_directories(config, memory)
    for mark in (mark for directory in shared for mark in marks.marks(directory)):
        if mark.kind is marks.Kind.TAIL:
            tail.add(mark.name)
        elif mark.kind is marks.Kind.RESOURCE:
            drained[mark.name] = f"{mark.who}: {mark.why}"
    names = {marks.resource_mark(config.pressure.instance, name): name for name in config.resources}
    return Marks(
        stop=marks.read_stop(shared),
        drained={names[mark]: why for mark, why in drained.items() if mark in names},
        tail=frozenset(tail),
    )


def shared_directories(config: Config, memory: Memory) -> list[Path]:
    """Where the pilots of this configuration look for marks. One that was never there is left out: a first cycle finds
    none. Where the file system itself is missing the directory above is not there either."""
    expanded = {pilot.expand(each.shared_dir, "shared_dir") for each in config.resources.values()}
    return sorted(path for path in expanded if path.exists() or str(path) in memory.shared or not path.parent.is_dir())


def _with_pool(config: Config, seen: Observation, jobs: Sequence[SlurmJob], memory: Memory) -> Observation:
    """What the Tier-1 says. Raises UnknownState if the collector or all schedds are silent."""
    view = tier1.read_pool(observation.pool(config), config.pressure.instance, config.grant.vo_attribute)
    schedds = observation.with_absent(config, view.schedds, seen.now, memory.schedds)
    wants_negotiator = config.pressure.demand_source == "negotiator"
    refusal = ghost.refusal([each.version for each in view.negotiators]) if wants_negotiator else ""
    asks_negotiator = wants_negotiator and not refusal
    window_s = ghost.window_s(config, view) if asks_negotiator else None
    answers = observation.ask_schedds(config, schedds, memory.qdates, seen.now, window_s)
    if not any(answer.error is None for answer in answers):
        raise UnknownState("; ".join(f"schedd {answer.schedd}: {answer.error}" for answer in answers))
    groups = observation.matched(config, schedds, answers, seen.now)
    version = observation.version_of(schedds)
    says = Negotiator(view.ghosts, version, {}, (refusal,) if refusal else (), asks_negotiator)
    if asks_negotiator:
        found, tracks = ghost.read(config, view, answers, memory.ghosts, version, seen.now)
        says = replace(says, tracks=tracks, alarms=tuple(ghost_view.disagreements(groups, found)))
        groups = ghost_view.confirmed(groups, found)
    return replace(
        seen,
        demand=observation.demand_of(groups, answers),
        pilots=tuple(observation.join(jobs, view.startds, seen.now, config)),
        schedds=frozenset(schedd.name for schedd in view.schedds if schedd.address),
        in_pool=frozenset(startd.pilot_id for startd in view.startds),
        qdates=tier1.qdates(answers),
        negotiator=says,
    )


def cycle(config: Config, lock: ControllerLock, record: Path | None = None) -> CycleResult:
    """One cycle: observe, plan, act, record. Raises ConfigError for what only the admin can mend.

    `record`: a file to which situation and plan are appended, for `htcebridge simulate --replay`.
    """
    began = time.monotonic()
    plan_id = f"{int(time.time()):x}{secrets.token_hex(2)}"
    learn.apply_resets(config)
    found = look(config)
    _log_plan(plan_id, found.plan)
    if found.situation is None:
        memory = replace(recall(config), looked=found.memory.looked)
        return _kept(config, found, memory, plan_id, began, list(found.problems), ExitCode.TEMPFAIL)
    problems = list(found.problems)
    if record is not None:
        problems += _record(record, found.situation, found.plan)
    memory, failures = _act(config, found, plan_id, lock)
    problems += failures
    problems += _ghosts(config, found, int(time.time()))
    problems += say_goodbyes(config, found)
    memory, failures = _tidied(config, found, memory)
    problems += failures
    return _kept(config, found, memory, plan_id, began, problems, ExitCode.PROBLEM if problems else ExitCode.OK)


def _kept(
    config: Config, found: Look, memory: Memory, plan_id: str, began: float, problems: list[str], code: ExitCode
) -> CycleResult:
    """Remember, count and record. A history that cannot be written is said; the rest was done."""
    seconds = time.monotonic() - began
    memory, unwritten = recording.keep(
        config, found.before, memory, found.situation, found.plan, plan_id, seconds, len(problems)
    )
    remember(config, memory)
    if unwritten and code is ExitCode.OK:
        code = ExitCode.PROBLEM
    return CycleResult(found.plan, plan_id, (*problems, *unwritten), code, seconds, found.situation, memory)


def _act(config: Config, found: Look, plan_id: str, lock: ControllerLock) -> tuple[Memory, list[str]]:
    """Settle what is known by now, cancel what would be billed by mistake, then do what the plan says."""
    memory, plan = found.memory, found.plan
    if found.situation is None:
        return memory, []
    book = Ledger(config)
    try:
        for entry in ledger.unsettled(book.entries()):
            known = next((each.outcome for each in found.entries if each.key == entry.key), "")
            if known:
                book.settle(entry, known)
                logs.event("settled", plan=entry.plan_id, resource=entry.resource, job=known)
        if found.situation.stop is not None:
            memory = act.tell_executors(config, found.situation.pilots, memory)
        wrong = act.misbilled(found.situation.pilots, found.entries)
        memory = act.cancel_misbilled(config, wrong, memory)
    except BridgeError as error:
        return memory, [str(error)]
    said = [f"resource {name}: {cases[0][1]}: cancelled, and the resource disabled" for name, cases in wrong.items()]
    served = {name: each for name, each in plan.resources.items() if name not in wrong}
    memory, failures = act.carry_out(config, replace(plan, resources=served), plan_id, memory, lock)
    return memory, said + failures


def _tidied(config: Config, found: Look, memory: Memory) -> tuple[Memory, list[str]]:
    """Now and then remove what is left of pilots that are gone: marks, logs, lines of the ledger."""
    now = memory.looked
    if now - memory.pruned < _TIDY_S:
        return memory, []
    try:
        for directory in shared_directories(config, memory):
            marks.sweep(directory, found.listed, now)
            prune_logs(directory, _KEEP_LOGS_DAYS, _KEEP_LOGS_BYTES, found.listed)
        for scratch in {each.job_scratch for each in config.resources.values() if each.job_scratch}:
            leftovers.sweep(pilot.expand(scratch, "job_scratch"), found.listed, now)
        Ledger(config).prune(now)
        recording.prune(config, now)
    except BridgeError as error:
        return memory, [str(error)]
    return replace(memory, pruned=now), []


def _ghosts(config: Config, found: Look, now: int) -> list[str]:
    """Keep the negotiator's offline slots as they should be: there while they are asked, gone otherwise."""
    says = found.negotiator
    try:
        if says is not None and says.asked:
            ghost.advertise(config, says.condor_version, says.ghosts, now)
        elif says is not None and says.ghosts:
            ghost.withdraw(config)
    except BridgeError as error:
        return [f"the negotiator cannot be asked: {error}"]
    return []


def dead_in_pool(memory: Memory, in_pool: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Resource -> ids of pilots that have ended by slurmdbd's account and that the collector still shows."""
    dead: dict[str, tuple[str, ...]] = {}
    for each in memory.ended:
        if each.id in in_pool:
            dead[each.resource] = (*dead.get(each.resource, ()), each.id)
    return dead


def say_goodbyes(config: Config, found: Look) -> list[str]:
    """A pilot that died hard could not take its ads out of the collector: they would be matched until they expire."""
    problems = []
    for name, ids in found.dead.items():
        if name not in config.resources:
            continue
        try:
            advertise.say_goodbye(config, config.resources[name].token_file, ids)
            logs.event("goodbye", resource=name, pilots=ids)
        except BridgeError as error:
            problems.append(f"resource {name}: {error}")
    return problems


def withdraw_ghosts(config: Config) -> None:
    """When nobody will look at them any more. Where that fails their lifetime ends them."""
    if config.pressure.demand_source == "negotiator":
        try:
            ghost.withdraw(config)
        except BridgeError as error:
            logs.event("the offline slots stay until they expire", logging.WARNING, why=error)


def _record(path: Path, situation: Situation, plan: Plan) -> list[str]:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(snapshots.dump(situation, plan) + "\n")
    except OSError as error:
        return [f"{path}: the cycle is not recorded: {error.strerror}"]
    return []


def check_pilots_can_start(config: Config) -> None:
    """What would make every pilot fail, found before the first is submitted. Raises ConfigError."""
    tier1.check_tokens(observation.pool(config).token_directory)
    for resource in config.resources.values():
        pilot.expand(resource.shared_dir, "shared_dir")
        if resource.executor is not None:
            continue
        token = pilot.expand(resource.token_file, "token_file")
        tier1.check_secret(token)
        expires = tier1.token_expiry(token)
        if expires is not None and expires < time.time() + resource.walltime.total_seconds():
            raise ConfigError(
                f"{token}: expires {time.strftime('%Y-%m-%d %H:%M', time.localtime(expires))}, before a pilot of "
                f"{format_duration(resource.walltime.total_seconds())} started now would end; replace it"
            )


def _log_plan(plan_id: str, plan: Plan) -> None:
    """One line per resource: loud where something is done, quiet where nothing changes."""
    for name, decision in plan.resources.items():
        busy = decision.submit or decision.cancel or decision.drain or decision.undrain
        logs.event(
            "decided",
            logging.INFO if busy else logging.DEBUG,
            plan=plan_id,
            resource=name,
            needed=decision.needed,
            running=decision.running,
            booting=decision.booting,
            pending=decision.pending,
            submit=decision.submit,
            cancel=len(decision.cancel),
            drain=len(decision.drain),
            undrain=len(decision.undrain),
            why="; ".join(decision.reasons),
        )
