"""One cycle of the pressure controller: observe, decide, act, record. `loop` runs it for ever.

The pilots are in Slurm and in the collector. What a cycle cannot see there it keeps in `state`, so a controller killed
at any line starts again and goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller import act, ads, follow, learn, observe, renew, snapshots, tidy
from htcebridge.controller.decide import Decision, decide
from htcebridge.controller.done import Done
from htcebridge.controller.observation import Observation
from htcebridge.errors import BridgeError, ConfigError, ExitCode
from htcebridge.history import recording
from htcebridge.history.result import CycleResult
from htcebridge.model import EndedPilot, Pilot, PilotPhase, Plan
from htcebridge.state import resets
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import Memory, recall, remember
from htcebridge.units import format_duration


def look(config: Config) -> Decision:
    """Observe and decide, change nothing. Raises ConfigError for what only the admin can mend."""
    before = recall(config)
    seen = observe.observe(config, before, observe.near(config, before))
    if seen.refused:
        raise ConfigError(seen.refused)
    return decide(config, before, seen)


def cycle(config: Config, lock: ControllerLock, record: Path | None = None) -> CycleResult:
    """One cycle. Raises ConfigError for what only the admin can mend, after what safety asks has been done.

    `record`: a file to which what was seen and done is appended, for `htcebridge simulate --replay`.
    """
    began = time.monotonic()
    plan_id = f"{int(time.time()):x}{secrets.token_hex(2)}"
    before = recall(config)
    near = observe.near(config, before)
    safe = act.safety(config, near, before)
    seen = observe.observe(config, before, near)
    if seen.refused:
        looked = replace(before, upkeep=replace(before.upkeep, looked=near.now))
        remember(config, learn.acted(config, looked, safe))
        raise ConfigError(seen.refused)
    found = decide(config, before, seen)
    _log(plan_id, seen, before, found)
    done = _act(config, seen, found, plan_id, lock, safe)
    memory = learn.acted(config, found.memory, done)
    problems = [*found.problems, *done.problems]
    if record is not None:
        problems += _record(record, config, before, seen, found.plan, done, memory)
    if found.situation is not None:
        problems += _at_the_collector(config, seen, memory)
        problems += renew.keep(config, _starting(found.situation.pilots, seen, found.plan))
        memory, failures = tidy.tidy(config, near, memory)
        problems += failures
    result = _kept(config, before, found, memory, plan_id, time.monotonic() - began, problems)
    if found.situation is not None:
        resets.done(config, seen.resets)
    return replace(result, unfinished=safe.unfinished)


def _act(config: Config, seen: Observation, found: Decision, plan_id: str, lock: ControllerLock, safe: Done) -> Done:
    """Settle what is known by now, then do what the plan says. With the kill switch on safety has done it all."""
    if found.situation is None or safe.unfinished:
        return safe
    try:
        act.settle(config, seen.near.entries, found.memory.submissions)
    except BridgeError as error:
        return replace(safe, problems=(*safe.problems, str(error)))
    return safe if seen.near.stop is not None else act.carry_out(config, found.plan, plan_id, lock, safe)


def _starting(pilots: Iterable[Pilot], seen: Observation, plan: Plan) -> set[str]:
    """Resources with a pilot that may still have to read its token: any that Slurm may have and that has not joined."""
    done = (PilotPhase.JOINED, PilotPhase.ENDED)
    starting = {each.job.resource for each in pilots if each.phase not in done}
    starting |= {entry.resource for entry in seen.near.entries if not entry.outcome}
    return starting | {name for name, decision in plan.resources.items() if decision.submit}


def _at_the_collector(config: Config, seen: Observation, memory: Memory) -> list[str]:
    in_pool = frozenset(startd.pilot_id for startd in seen.startds)
    problems = ads.keep_ghosts(config, seen.negotiator, int(time.time()))
    return problems + ads.say_goodbyes(config, follow.dead_in_pool(memory.pilots, in_pool))


def _kept(
    config: Config,
    before: Memory,
    found: Decision,
    memory: Memory,
    plan_id: str,
    seconds: float,
    problems: list[str],
) -> CycleResult:
    """Remember, count and record. A history that cannot be written is said; the rest was done."""
    kept = recording.keep(config, before, memory, found.situation, found.plan, plan_id, seconds, len(problems))
    remember(config, kept.memory)
    code = ExitCode.PROBLEM if problems or kept.problems else ExitCode.OK
    if found.situation is None:
        code = ExitCode.TEMPFAIL
    said = (*problems, *kept.problems)
    return CycleResult(
        found.plan, plan_id, said, code, seconds, found.situation, core_s=kept.core_s, memory=kept.memory
    )


def _record(
    path: Path, config: Config, before: Memory, seen: Observation, plan: Plan, done: Done, memory: Memory
) -> list[str]:
    try:
        snapshots.append(path, config, before, seen, plan, done, memory)
    except OSError as error:
        return [f"{path}: the cycle is not recorded: {error.strerror}"]
    return []


# --------------------------------------------------------------------------- the log


def _log(plan_id: str, seen: Observation, before: Memory, found: Decision) -> None:
    for name in seen.resets if found.situation is not None else ():
        logs.event("reset by request", resource=name)
    for what, facts in _unknown(seen) if found.situation is not None else ():
        logs.event(what, logging.WARNING, **facts)
    known = {each.id for each in before.pilots.ended}
    for ended in found.memory.pilots.ended:
        if ended.id not in known:
            _log_end(ended)
    _log_plan(plan_id, found.plan)


def _unknown(seen: Observation) -> Iterator[tuple[str, dict[str, object]]]:
    """What could not be read and does not stop a cycle."""
    if seen.ends.unknown:
        yield "outcomes are not known yet", {"why": seen.ends.unknown}
    for id_, words in seen.words.items():
        if words.unknown:
            yield "a pilot's last words cannot be read", {"pilot": id_, "why": words.unknown}
    for name, read in seen.limits.items():
        why = read.unknown or (read.value.unknown if read.value else "")
        if why:
            nothing = "" if read.unknown else ": nothing is cut by what is not known"
            yield "Slurm's limits are not known", {"resource": name, "why": f"{why}{nothing}"}
    for key, answer in seen.submitted.items():
        if answer.unknown:
            plan, _, resource = key.partition(":")
            yield "whether it was submitted is not known", {"plan": plan, "resource": resource, "why": answer.unknown}


def _log_end(ended: EndedPilot) -> None:
    logs.event(
        "ended",
        pilot=ended.id,
        resource=ended.resource,
        plan=ended.plan_id,
        outcome=ended.outcome,
        node=ended.node or "-",
        code=ended.exit_code,
        jobs=ended.jobs,
        evicted=ended.evicted,
        lost_core_s=ended.lost_core_s,
        said=ended.said or "-",
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


def wait_for_min_interval(config: Config) -> None:
    """Before a single cycle: the rest of min_interval since anybody of this instance asked Slurm."""
    least_s = config.pressure.min_interval.total_seconds()
    since = time.time() - recall(config).upkeep.looked
    if 0 <= since < least_s:
        logging.getLogger("htcebridge").info(
            "Slurm was asked %.0f s ago: waiting for min_interval %s", since, format_duration(least_s)
        )
        time.sleep(least_s - since)
