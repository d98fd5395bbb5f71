"""`htcebridge demand`: what waits, who may run it, and why the rest can't."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.markup import escape

from htcebridge import observation, tier1
from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json, show, table, watch_option
from htcebridge.config import Config
from htcebridge.errors import ExitCode
from htcebridge.memory import recall
from htcebridge.model import Demand, Group
from htcebridge.units import format_duration, format_megabytes, plural


@click.command()
@json_option
@watch_option
@click.pass_obj
def command(app: App, as_json: bool, watch: float | None) -> int:
    """Show the tagged jobs of every schedd of the Tier-1, in groups of equal shape.

    Exit code 1 if a schedd did not answer: then the numbers are a lower bound. 75 if none did.
    """
    config = app.config()
    last: list[Demand] = []

    def read() -> Demand:
        now = int(time.time())
        view = tier1.read_pool(observation.pool(config), config.pressure.instance, config.grant.vo_attribute)
        schedds = observation.with_absent(config, view.schedds, now, recall(config).schedds)
        answers = observation.ask_schedds(config, schedds, {}, now)
        last[:] = [observation.demand_of(observation.matched(config, schedds, answers, now), answers)]
        return last[0]

    if as_json:
        print_json(as_document(config, read(), time.time()))
    else:
        show(lambda: _picture(config, read()), watch)
    if not any(schedd.ok for schedd in last[0].schedds):
        return ExitCode.TEMPFAIL
    return ExitCode.OK if last[0].complete else ExitCode.PROBLEM


def as_document(config: Config, demand: Demand, now: float) -> dict[str, Any]:
    """`demand --json`, schema 1 (docs/how-it-decides.md)."""
    return {
        "schema": 1,
        "time": int(now),
        "collector": config.tier1.collector,
        "schedds": [
            {"name": schedd.name, "ok": schedd.ok, "error": schedd.error, "seconds": round(schedd.seconds, 3)}
            for schedd in demand.schedds
        ],
        "groups": [
            {
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
            for group in demand.groups
        ],
        "totals": {
            "idle_jobs": sum(group.idle for group in demand.groups),
            "idle_cpus": sum(group.idle * group.shape.cpus for group in demand.groups),
            "running_jobs": sum(group.running for group in demand.groups),
            "unmatched_jobs": sum(group.idle for group in demand.groups if not group.resources),
        },
    }


def _picture(config: Config, demand: Demand) -> RenderableType:
    numbers = ("idle", "running", "cpus", "memory", "gpus", "walltime", "oldest")
    groups = table(
        f"Jobs granted {config.grant.value!r} in the pool of {config.tier1.collector}",
        (*numbers[:2], "vo", "owner", *numbers[2:], "runs on"),
        numbers,
        wraps=("runs on",),
    )
    for group in demand.groups:
        groups.add_row(
            str(group.idle),
            str(group.running),
            group.vo or "-",
            group.owner,
            str(group.shape.cpus),
            format_megabytes(group.shape.memory_mb),
            str(group.shape.gpus),
            format_duration(group.walltime_s),
            format_duration(group.oldest_s) if group.idle else "-",
            ", ".join(group.resources) if group.resources else "nowhere",
        )
    totals = as_document(config, demand, 0)["totals"]
    lines: list[RenderableType] = [groups if demand.groups else f"No job carries the grant {config.grant.value!r}.", ""]
    lines.append(
        f"{plural(totals['idle_jobs'], 'idle job')} asking {plural(totals['idle_cpus'], 'cpu')}; "
        f"{totals['running_jobs']} running; {totals['unmatched_jobs']} fitting no resource."
    )
    unmatched = [group for group in demand.groups if not group.resources and group.idle]
    lines += [f"  {escape(line)}" for group in unmatched for line in _reasons(group)]
    answered = [schedd for schedd in demand.schedds if schedd.ok]
    lines.append(f"{len(answered)} of {len(demand.schedds)} schedds answered.")
    lines += [f"  schedd {schedd.name}: {escape(schedd.error or '')}" for schedd in demand.schedds if not schedd.ok]
    return Lines(*lines)


def _reasons(group: Group) -> list[str]:
    if not group.why_not:
        return [f"{group.idle} of {group.owner}: no resource is configured"]
    return [f"{group.idle} of {group.owner} not on {name}: {why}" for name, why in group.why_not.items()]
