"""`htcebridge demand`: what waits, who may run it, and why the rest can't."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from htcebridge.cli import App
from htcebridge.cli.choose import chosen, list_options
from htcebridge.cli.output import (
    Column,
    Listing,
    Note,
    brief,
    busy,
    json_option,
    notes,
    print_json,
    show,
    watch_option,
)
from htcebridge.config.tables import Config
from htcebridge.controller import observe, waiting
from htcebridge.controller.decide import counted
from htcebridge.controller.observation import Source
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.model import Demand, Group
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.state.memory import recall
from htcebridge.tier1 import pool
from htcebridge.units import format_duration, format_megabytes, plural


@click.command()
@json_option
@watch_option
@list_options
@click.pass_obj
def command(
    app: App, as_json: bool, watch: float | None, filters: tuple[str, ...], sort: str | None, reverse: bool
) -> int:
    """Show the tagged jobs of every schedd of the Tier-1, in groups of equal shape.

    Exit code 1 if a schedd did not answer: then its jobs are counted as the controller saw them a moment ago, or the
    numbers are a lower bound. 75 if nothing is known of any.
    """
    config = app.config()
    last: list[Demand] = []

    def read() -> Demand:
        now = int(time.time())
        view = observe.read_collector(config)
        memory = recall(config)
        limits: dict[str, Source[SlurmLimits]] = {}
        schedds = pool.with_absent(config, view.schedds, now, memory.schedds.known)
        answers = waiting.ask_schedds(config, schedds, memory.schedds, now)
        if not memory.resources.limits:  # no controller has run here, and Slurm's commands may be elsewhere
            with suppress(ConfigError):
                limits = observe.read_limits(config, memory, now)
        ads = observe.slot_ads(config, view, schedds, memory, observe.job_lives(config, memory, limits, now))
        there = waiting.There(config, view.startds, view.kinds)
        found = waiting.demand_of(waiting.matched(config, ads, answers, now, there), answers)
        groups = chosen(found.groups, _row, KEYS, filters, sort, reverse)
        last[:] = [replace(found, groups=tuple(groups))]
        return last[0]

    chosen((), _row, KEYS, filters, sort, reverse)  # a wrong key is said before anybody is asked
    if watch is not None and not as_json:
        show(lambda: _picture(config, read(), bool(filters)), watch)
    with busy(f"asking the collector {config.tier1.collector} and its schedds"):
        demand = read()
    if as_json:
        print_json(as_document(config, demand, time.time()))
    else:
        show(lambda: _picture(config, demand, bool(filters)), None)
    if not any(schedd.ok or schedd.age_s is not None for schedd in last[0].schedds):
        return ExitCode.TEMPFAIL
    return ExitCode.OK if last[0].complete else ExitCode.PROBLEM


def as_document(config: Config, demand: Demand, now: float) -> dict[str, Any]:
    """`demand --json`, schema 1 (docs/schema/demand.json)."""
    return {
        "schema": 1,
        "time": int(now),
        "collector": config.tier1.collector,
        "schedds": [
            {
                "name": schedd.name,
                "ok": schedd.ok,
                "error": schedd.error,
                "seconds": round(schedd.seconds, 3),
                "age_s": schedd.age_s,
            }
            for schedd in demand.schedds
        ],
        "groups": [_row(group) for group in demand.groups],
        "totals": {
            "idle_jobs": sum(group.idle for group in demand.groups),
            "idle_cpus": sum(group.idle * group.shape.cpus for group in demand.groups),
            "running_jobs": sum(group.running for group in demand.groups),
            "unmatched_jobs": sum(group.idle for group in demand.groups if not group.resources),
        },
    }


KEYS = (
    *("cpus", "memory_mb", "gpus", "disk_mb", "walltime_s", "owner", "vo", "idle", "running", "oldest_s", "resources"),
    "why_not",
)


def _row(group: Group) -> dict[str, Any]:
    return {
        "cpus": group.shape.cpus,
        "memory_mb": group.shape.memory_mb,
        "gpus": group.shape.gpus,
        "disk_mb": group.shape.disk_mb,
        "walltime_s": group.walltime_s,
        "owner": group.owner,
        "vo": group.vo,
        "idle": group.idle,
        "running": group.running,
        "oldest_s": group.oldest_s,
        "resources": list(group.resources),
        "why_not": dict(group.why_not),
    }


_COLUMNS = (
    Column("idle", number=True),
    Column("running", number=True),
    Column("vo"),
    Column("owner", wraps=12),
    Column("cpus", number=True),
    Column("memory", number=True),
    Column("gpus", number=True, spare=1),
    Column("walltime", number=True),
    Column("oldest", number=True, spare=2),
    Column("runs on", wraps=12),
)
# A person reads no more; what is cut is counted.
_REASONS = 20


def _picture(config: Config, demand: Demand, filtered: bool = False) -> RenderableType:
    rows = [
        (
            (str(group.idle), "bold" if group.idle else ""),
            (str(group.running), ""),
            (group.vo or "-", ""),
            (group.owner, ""),
            (str(group.shape.cpus), ""),
            (format_megabytes(group.shape.memory_mb), ""),
            (str(group.shape.gpus), ""),
            (format_duration(group.walltime_s), ""),
            (brief(group.oldest_s) if group.idle else "-", ""),
            _runs_on(group),
        )
        for group in demand.groups
    ]
    title = f"Jobs granted {config.grant.value!r} in the pool of {config.tier1.collector}"
    what = f"carries the grant {config.grant.value!r}"
    nothing = Note(f"No job {what}, or none that --filter lets through." if filtered else f"No job {what}.", indent=0)
    totals = as_document(config, demand, 0)["totals"]
    unmatched = [line for group in demand.groups if not group.resources and group.idle for line in _reasons(group)]
    answered = [schedd for schedd in demand.schedds if schedd.ok]
    silent = [f"schedd {each.name}: {each.error}; {counted(each)}" for each in demand.schedds if not each.ok]
    return Lines(
        Listing(title, _COLUMNS, rows) if rows else nothing,
        Text(),
        Note(
            f"{plural(totals['idle_jobs'], 'idle job')} asking {plural(totals['idle_cpus'], 'cpu')}; "
            f"{totals['running_jobs']} running; {totals['unmatched_jobs']} fitting no resource.",
            indent=0,
        ),
        *notes(unmatched, _REASONS),
        Note(f"{len(answered)} of {len(demand.schedds)} schedds answered.", indent=0),
        *(Note(line, "bold red") for line in silent),
        *([Note("htcebridge doctor says what is in the way.")] if silent else []),
    )


def _runs_on(group: Group) -> tuple[str, str]:
    """What takes them: new pilots, else those that are there, else nothing."""
    if group.resources:
        return (", ".join(group.resources), "green")
    if group.standing:
        return (f"joined {', '.join(group.standing)}", "green")
    return ("nowhere", "bold yellow")


def _reasons(group: Group) -> list[str]:
    if not group.why_not:
        return [f"{group.idle} of {group.owner}: no resource is configured"]
    return [f"{group.idle} of {group.owner} not on {name}: {why}" for name, why in group.why_not.items()]
