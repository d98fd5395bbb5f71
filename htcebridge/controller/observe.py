"""Reads all that a cycle looks at, once: marks, squeue, ledger, then the Tier-1, sacct, Slurm's limits, last words.

What cannot be read is unknown, with the reason; what only the admin can mend is a ConfigError.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from htcebridge.config.tables import Config
from htcebridge.controller import follow, learn, submissions, unserved, waiting, walltimes
from htcebridge.controller.observation import Collector, Marks, Near, Negotiator, Observation, Source, Waiting
from htcebridge.controller.pilots import pilots_of
from htcebridge.errors import BridgeError, ConfigError, UnknownState
from htcebridge.pilot import ghost, ghost_view, marks
from htcebridge.pilot.logs import OutcomeLine, read_outcome
from htcebridge.plan import packing
from htcebridge.slurm.commands import Billing, Slurm
from htcebridge.slurm.limits import SlurmLimits, counts_sizes
from htcebridge.state import resets
from htcebridge.state.ledger import Entry, Ledger
from htcebridge.state.memory import Memory, recall
from htcebridge.tier1 import pool, tokens
from htcebridge.units import format_duration

T = TypeVar("T")


def near(config: Config, memory: Memory) -> Near:
    """Marks, squeue, ledger. Raises ConfigError for what only the admin can mend."""
    now = int(time.time())
    slurm = Slurm(config.pressure.instance)
    kill_switch = _read(now, lambda: _kill_switch(config, memory))
    if kill_switch.value is None and not config.resources:
        raise ConfigError("no [resource.NAME] in the configuration: nothing to start pilots on")
    accounts = _shared_accounts(memory) if kill_switch.value is None else []
    return Near(
        now=now,
        uid=os.getuid(),
        kill_switch=kill_switch,
        marks=_read(now, lambda: _marks(config, memory)) if kill_switch.value is None else Source(now, Marks()),
        queue=_read(now, lambda: slurm.queue(accounts)),
        ledger=_read(now, lambda: tuple(Ledger(config).entries())),
    )


def observe(config: Config, memory: Memory, near: Near) -> Observation:
    """The rest of what a cycle looks at. Raises ConfigError where Slurm's or HTCondor's client is missing."""
    nothing = Observation(
        near,
        collector=Source(near.now, unknown="the Tier-1 was not asked"),
        waiting=Source(near.now, unknown="the schedds were not asked"),
        ends=Source(near.now, unknown="slurmdbd was not asked"),
        resets=resets.requested(config),
    )
    if near.kill_switch.unknown or near.marks.unknown or near.queue.value is None:
        return nothing
    if near.stop is None and (refused := _refused(config, near.now)):
        return replace(nothing, refused=refused)
    # Before the demand: how long a new pilot lives says which jobs it takes.
    seen = replace(nothing, limits=read_limits(config, memory, near.now))
    if near.stop is None:
        seen = _with_holdings(config, _with_tier1(config, seen, memory), memory)
    return _with_accounting(config, seen, memory)


def read_limits(config: Config, memory: Memory, now: int) -> dict[str, Source[SlurmLimits]]:
    """Resource -> Slurm's limits, as far as they are due. Raises ConfigError where Slurm's client is missing."""
    slurm = Slurm(config.pressure.instance)
    due = learn.limits_due(config, memory.resources, now)
    return {name: _read(now, partial(slurm.limits, *billing)) for name, billing in due.items()}


def job_lives(config: Config, memory: Memory, read: Mapping[str, Source[SlurmLimits]], now: int) -> dict[str, int]:
    """Resource -> the longest walltime that a pilot submitted now can promise a job, seconds, by what is known."""
    return walltimes.job_lives(config, learn.limits_known(config, memory.resources, read), now)


def _read(now: int, ask: Callable[[], T | None]) -> Source[T]:
    try:
        return Source(now, ask())
    except ConfigError:
        raise
    except BridgeError as error:
        return Source(now, unknown=str(error))


# --------------------------------------------------------------------------- near


def shared_directories(config: Config, memory: Memory) -> list[Path]:
    """Where the pilots of this configuration look for marks. One that was never there is left out: a first cycle finds
    none. Where the file system itself is missing the directory above is not there either. Raises ConfigError."""
    return sorted({path for each in config.resources.values() if _may_hold(path := each.shared_dir.path, memory)})


def _may_hold(path: Path, memory: Memory) -> bool:
    return path.exists() or str(path) in memory.upkeep.shared or not path.parent.is_dir()


def _kill_switch(config: Config, memory: Memory) -> str | None:
    """The kill switch in words, None if it is off. Raises BridgeError if it cannot be seen.

    It is looked for where an earlier configuration had it, too, as long as that is there: pilots still look there. One
    resource's mistake does not hide the others' STOP.
    """
    places = {Path(each) for each in memory.upkeep.shared if os.path.isdir(each)}
    wrong: ConfigError | None = None
    for resource in config.resources.values():
        try:
            path = resource.shared_dir.path
        except ConfigError as error:
            wrong = error
            continue
        if _may_hold(path, memory):
            places.add(path)
    said = marks.read_stop(sorted(places))
    if wrong is not None and said is None:
        raise wrong
    return said


def _marks(config: Config, memory: Memory) -> Marks:
    """The drain marks. Raises BridgeError if they cannot be seen: no answer is not no mark."""
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
        drained={names[mark]: why for mark, why in drained.items() if mark in names},
        tail=frozenset(tail),
        shared=tuple(map(str, shared)),
    )


def _shared_accounts(memory: Memory) -> list[str]:
    """Accounts in which a limit of the whole account is in force: then others' jobs in it count too."""
    return sorted({account for read in memory.resources.limits.values() for account in read.limits.watch})


def _refused(config: Config, now: int) -> str:
    try:
        check_pilots_can_start(config, now)
    except ConfigError as error:
        return str(error)
    return ""


def check_start(config: Config) -> None:
    """What must be right where a controller begins. With the kill switch on it begins all the same, to do what that
    asks. Raises ConfigError."""
    stop = _read(0, lambda: _kill_switch(config, recall(config)))
    if stop.value is None:
        check_pilots_can_start(config, time.time())


def check_pilots_can_start(config: Config, now: float) -> None:
    """What would make every pilot fail, found before the first is submitted. Raises ConfigError.

    A token that a `token_command` makes is made when a pilot is submitted.
    """
    tokens.check_directory(config.tier1.token_directory.path)
    for resource in config.resources.values():
        resource.shared_dir.check()
        if resource.executor is not None:
            continue
        token = resource.token_file.path
        if resource.token_command:
            continue
        tokens.check_secret(token)
        expires = tokens.expiry(token)
        if expires is not None and expires < now + resource.walltime.total_seconds():
            raise ConfigError(
                f"{token}: expires {time.strftime('%Y-%m-%d %H:%M', time.localtime(expires))}, before a pilot of "
                f"{format_duration(resource.walltime.total_seconds())} started now would end; replace it"
            )


# --------------------------------------------------------------------------- the Tier-1


def _with_tier1(config: Config, seen: Observation, memory: Memory) -> Observation:
    now = seen.now
    asked = _read(now, lambda: read_collector(config))
    view = asked.value
    if view is None:
        return replace(seen, collector=Source(now, unknown=asked.unknown))
    schedds = frozenset(each.name for each in view.schedds if each.address)
    return replace(
        seen,
        collector=Source(now, Collector(view.startds, schedds, view.kinds, view.negotiators)),
        waiting=_read(now, lambda: _waiting(config, view, memory, job_lives(config, memory, seen.limits, now), now)),
    )


def read_collector(config: Config) -> pool.PoolView:
    """Ask the collector. Raises ConfigError, UnknownState."""
    return pool.read_pool(pool.pool_of(config), config.pressure.instance, config.grant.vo_attribute)


def _waiting(config: Config, view: pool.PoolView, memory: Memory, lives: Mapping[str, int], now: int) -> Waiting:
    """What the schedds say, now or a moment ago, matched against pilots of these `job_lives`.

    Raises UnknownState if all are silent.
    """
    schedds = pool.with_absent(config, view.schedds, now, memory.schedds.known)
    wants_negotiator = config.pressure.demand_source == "negotiator"
    refusal = ghost.refusal([each.version for each in view.negotiators]) if wants_negotiator else ""
    asks_negotiator = wants_negotiator and not refusal
    window_s = ghost.window_s(config, view) if asks_negotiator else None
    if window_s is None and unserved.suspected(memory.negotiations, packing.A_FEW_CYCLES):
        window_s = waiting.REJECTED_LATELY_S  # their reasons are for the plan's words
    answers = waiting.ask_schedds(config, schedds, memory.schedds, now, window_s)
    if all(answer.error is not None and answer.age_s is None for answer in answers):
        raise UnknownState("; ".join(f"schedd {answer.schedd}: {answer.error}" for answer in answers))
    ads = slot_ads(config, view, schedds, memory, lives)
    groups = waiting.matched(config, ads, answers, now, waiting.There(config, view.startds, view.kinds))
    says = Negotiator(view.ghosts, ads if asks_negotiator else {}, {}, (refusal,) if refusal else (), asks_negotiator)
    if asks_negotiator:
        found, tracks = ghost.read(config, view, answers, memory.ghosts, ads, now)
        says = replace(says, tracks=tracks, alarms=tuple(ghost_view.disagreements(groups, found)))
        groups = ghost_view.confirmed(groups, found)
    kept = waiting.to_keep(config, answers, memory.schedds, now)
    return Waiting(waiting.demand_of(groups, answers), pool.qdates(answers), says, kept)


def slot_ads(
    config: Config, view: pool.PoolView, schedds: Sequence[pool.Schedd], memory: Memory, lives: Mapping[str, int]
) -> dict[str, str]:
    """Resource -> the slot of a new pilot of these `job_lives`, as ClassAd text: as pilots show it now, or showed it.
    Raises ConfigError."""
    shown = Collector(view.startds, frozenset(), view.kinds)
    return waiting.slot_ads(config, schedds, learn.slots(config, memory.slots, shown), lives)


# --------------------------------------------------------------------------- what memory says is due


def _with_holdings(config: Config, seen: Observation, memory: Memory) -> Observation:
    """What jobs hold that are no pilots of this configuration, where a limit counts more of them than their number."""
    queue = seen.near.queue.value
    known = learn.limits_known(config, memory.resources, seen.limits)
    strange = queue is not None and (queue.others or any(job.resource not in config.resources for job in queue.ours))
    if not strange or not counts_sizes(each.limits for each in known.values()):
        return seen
    slurm, accounts = Slurm(config.pressure.instance), _shared_accounts(memory)
    return replace(seen, holdings=_read(seen.now, lambda: slurm.held(accounts)))


def _with_accounting(config: Config, seen: Observation, memory: Memory) -> Observation:
    """sacct for those that are gone, node-hours, last words: as much as is due."""
    slurm, now = Slurm(config.pressure.instance), seen.now
    pilots = pilots_of(config, seen, memory.pilots)
    followed = follow.listed(memory.pilots, seen.near.entries, pilots)
    gone = follow.gone(followed, pilots)
    in_doubt = submissions.in_doubt(seen.near.entries, pilots, memory.submissions, now)
    return replace(
        seen,
        ends=_read(now, lambda: tuple(slurm.ended(gone))) if gone else Source(now, ()),
        words={id_: _read(now, partial(_last_words, config, followed[id_].resource, id_)) for id_ in gone},
        spent={name: _read(now, partial(_spent, config, name)) for name in learn.spent_due(config, memory.resources)},
        submitted={each.key: _read(now, partial(_submitted, config, each)) for each in in_doubt},
    )


def _last_words(config: Config, resource: str, id_: str) -> OutcomeLine | None:
    """The outcome line at the end of a pilot's log on the shared file system. Raises UnknownState, ConfigError."""
    return read_outcome(config.resources[resource].shared_dir.path, id_) if resource in config.resources else None


def _spent(config: Config, name: str) -> float:
    """Node-hours of a resource's ended pilots, by slurmdbd. Raises UnknownState, ConfigError."""
    resource = config.resources[name]
    billing = Billing(resource.job_name, resource.account, resource.partition, resource.qos)
    return Slurm(config.pressure.instance).node_hours(name, billing, resource.node_hours_since)


def _submitted(config: Config, entry: Entry) -> str:
    """slurmdbd's word on a submission, by job name and comment: its job id, or "none"; of a resource that left the
    configuration "none", for nobody knows its job name. Raises UnknownState, ConfigError."""
    if entry.resource not in config.resources:
        return "none"
    name = config.resources[entry.resource].job_name
    found = Slurm(config.pressure.instance).submitted_since(name, entry.when - 60)
    job = next((each.id for each in found if each.plan_id == entry.plan_id), None)
    return job.partition("_")[0] if job is not None else "none"
