"""What a look adds to what the controller knows. Only `apply_resets` changes anything on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller import act, follow
from htcebridge.controller.observe import Observation
from htcebridge.controller.situation import fingerprint
from htcebridge.errors import UnknownState
from htcebridge.model import EndedPilot, Wait
from htcebridge.pilot.exit_codes import PilotExit
from htcebridge.slurm.commands import Slurm
from htcebridge.state.ledger import Entry, unsettled
from htcebridge.state.memory import Clock, Disabled, Memory, ReadLimits, recall, remember

# Limits of QOS and associations change by an admin's hand.
_LIMITS_LAST_S = 900


def learn(
    config: Config, slurm: Slurm, memory: Memory, entries: Sequence[Entry], seen: Observation
) -> tuple[Memory, list[Entry]]:
    """Memory and ledger with what this look shows. Raises UnknownState if a resource's node-hours cannot be read."""
    known = {ended.id for ended in memory.ended}
    memory = follow.update(memory, entries, seen.pilots, seen.demand, seen.now)
    memory = follow.settle(config, slurm, memory, seen.pilots, seen.now)
    memory = follow.budgets(config, slurm, memory)
    settled = act.settlements(entries, (each.job for each in seen.pilots), memory, seen.now)
    settled = {**settled, **_seen_by_slurmdbd(config, slurm, entries, settled)}
    entries = [replace(entry, outcome=settled.get(entry.key, entry.outcome)) for entry in entries]
    oldest = seen.now - config.tier1.remember_schedds.total_seconds()
    schedds = {name: when for name, when in memory.schedds.items() if when >= oldest}
    new = [ended for ended in memory.ended if ended.id not in known]
    memory = replace(
        memory,
        schedds={**schedds, **dict.fromkeys(seen.schedds, seen.now)},
        ghosts=seen.negotiator.tracks if seen.negotiator is not None else memory.ghosts,
        qdates=seen.qdates if seen.qdates is not None else memory.qdates,
        disabled=_disabled(config, memory, seen, new),
        clocks=_clocks(config, memory, seen.now),
        slurm_limits=_slurm_limits(config, slurm, memory, seen.now),
        unsettled={entry.key: memory.unsettled.get(entry.key, 0) + 1 for entry in unsettled(entries)},
    )
    return memory, entries


def _seen_by_slurmdbd(
    config: Config, slurm: Slurm, entries: Sequence[Entry], settled: Mapping[str, str]
) -> dict[str, str]:
    """Of the submissions that squeue does not show: which slurmdbd has, by job name and comment, after all.

    While it does not answer they stay unsettled ("").
    """
    found: dict[str, str] = {}
    for entry in entries:
        if settled.get(entry.key) != "none" or entry.resource not in config.resources:
            continue
        try:
            submitted = slurm.submitted_since(config.resources[entry.resource].job_name, entry.when - 60)
        except UnknownState as error:
            logs.event(
                "whether it was submitted is not known",
                logging.WARNING,
                plan=entry.plan_id,
                resource=entry.resource,
                why=error,
            )
            found[entry.key] = ""
            continue
        job = next((each.id for each in submitted if each.plan_id == entry.plan_id), None)
        if job is not None:
            found[entry.key] = job.partition("_")[0]
    return found


def request_reset(config: Config, resource: str) -> None:
    """Have the next cycle forget a resource's failures, refusals and quarantine."""
    path = _reset_file(config, resource)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def apply_resets(config: Config) -> None:
    """Forget what an admin wants forgotten (`pressure reset`)."""
    for name in config.resources:
        request = _reset_file(config, name)
        if not request.exists():
            continue
        memory = recall(config)
        remember(
            config,
            replace(
                memory,
                disabled={other: each for other, each in memory.disabled.items() if other != name},
                paused={other: each for other, each in memory.paused.items() if other != name},
                resets={**memory.resets, name: int(time.time())},
            ),
        )
        request.unlink(missing_ok=True)
        logs.event("reset by request", resource=name)


def _reset_file(config: Config, resource: str) -> Path:
    directory = config.pressure.state_dir.path
    return directory / f"{config.pressure.instance}.reset.{resource}"


def _disabled(config: Config, memory: Memory, seen: Observation, ended: Sequence[EndedPilot]) -> dict[str, Disabled]:
    """The resources that only a person can put right; a changed configuration gives one its next chance."""
    disabled = {
        name: each
        for name, each in memory.disabled.items()
        if name in config.resources and each.fingerprint == fingerprint(config.resources[name])
    }
    causes = [
        (each.job.resource, f"Slurm will never start its pilots: {each.job.reason}")
        for each in seen.pilots
        if each.wait is Wait.NEVER
    ]
    causes += [
        (each.resource, f"pilot {each.id} ended itself: {each.said}")
        for each in ended
        if each.exit_code == PilotExit.BILLED_OTHERWISE
    ]
    for name, why in causes:
        if name in config.resources and name not in disabled:
            disabled[name] = Disabled(why, seen.now, fingerprint(config.resources[name]))
    return disabled


def _clocks(config: Config, memory: Memory, now: int) -> dict[str, Clock]:
    clocks = {}
    for name, resource in config.resources.items():
        if resource.max_hours is not None:
            known = memory.clocks.get(name)
            same = known is not None and known.max_hours == resource.max_hours
            clocks[name] = known if known is not None and same else Clock(resource.max_hours, now)
    return clocks


def _slurm_limits(config: Config, slurm: Slurm, memory: Memory, now: int) -> dict[str, ReadLimits]:
    """Slurm's limits, read now and then. Without slurmdbd they are not known, and nothing is cut by them."""
    read = {}
    for name, resource in config.resources.items():
        billing = (resource.account, resource.partition, resource.qos)
        known = memory.slurm_limits.get(name)
        if known is not None and known.billing == billing and now - known.at < _LIMITS_LAST_S:
            read[name] = known
            continue
        try:
            read[name] = ReadLimits(slurm.limits(*billing), billing, now)
            if read[name].limits.unknown:
                why = f"{read[name].limits.unknown}: nothing is cut by what is not known"
                logs.event("Slurm's limits are not known", logging.WARNING, resource=name, why=why)
        except UnknownState as error:
            logs.event("Slurm's limits are not known", logging.WARNING, resource=name, why=error)
            if known is not None and known.billing == billing:
                read[name] = known
    return read
