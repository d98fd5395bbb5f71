"""`htcebridge pilots`: Slurm's view and the collector's view of each pilot on one line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
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
    clock,
    counted,
    json_option,
    notes,
    print_json,
    show,
    watch_option,
)
from htcebridge.config.tables import Config
from htcebridge.controller import observe
from htcebridge.controller.pilots import join
from htcebridge.errors import ExitCode
from htcebridge.model import Pilot, PilotPhase
from htcebridge.slurm.commands import Slurm
from htcebridge.state.memory import recall
from htcebridge.units import plural


@click.command()
@json_option
@watch_option
@click.option("--all", "ended_too", is_flag=True, help="Also the pilots that have ended and Slurm still lists.")
@list_options
@click.pass_obj
def command(
    app: App,
    as_json: bool,
    watch: float | None,
    ended_too: bool,
    filters: tuple[str, ...],
    sort: str | None,
    reverse: bool,
) -> int:
    """Show the pilots of this controller: where they are in Slurm, and what their startds do."""
    config = app.config()

    def read() -> list[Pilot]:
        jobs = Slurm(config.pressure.instance).queue().ours
        view = observe.read_collector(config)
        pilots = join(jobs, view.startds, int(time.time()), config, recall(config).pilots.seen)
        listed = [pilot for pilot in pilots if ended_too or pilot.phase is not PilotPhase.ENDED]
        return chosen(listed, _row, KEYS, filters, sort, reverse)

    chosen((), _row, KEYS, filters, sort, reverse)  # a wrong key is said before anybody is asked
    if watch is not None and not as_json:
        show(lambda: _picture(config, read(), time.time()), watch)
    with busy(f"asking Slurm and the collector {config.tier1.collector}"):
        pilots = read()
    if as_json:
        print_json(as_document(pilots, time.time()))
    else:
        show(lambda: _picture(config, pilots, time.time()), None)
    return ExitCode.OK


def as_document(pilots: Sequence[Pilot], now: float) -> dict[str, Any]:
    """`pilots --json`, schema 1 (docs/schema/pilots.json)."""
    return {"schema": 1, "time": int(now), "pilots": [_row(pilot) for pilot in pilots]}


KEYS = (
    *("id", "resource", "slurm_state", "reason", "node", "submitted", "started", "ends", "joined", "cpus", "cpus_busy"),
    *("jobs", "draining", "phase"),
)


def _row(pilot: Pilot) -> dict[str, Any]:
    job, startd = pilot.job, pilot.startd
    return {
        "id": job.id,
        "resource": job.resource,
        "slurm_state": job.state,
        "reason": job.reason,
        "node": job.node,
        "submitted": job.submitted,
        "started": job.started,
        "ends": job.ends,
        "joined": startd is not None,
        "cpus": startd.total.cpus if startd else None,
        "cpus_busy": startd.total.cpus - startd.free.cpus if startd else None,
        "jobs": startd.jobs if startd else None,
        "draining": startd.draining or not startd.accepting if startd else None,
        "phase": pilot.phase.value,
    }


_COLUMNS = (
    Column("pilot"),
    Column("resource", wraps=10),
    Column("Slurm", spare=1),
    Column("pool"),
    Column("node or reason", wraps=14),
    Column("started", spare=3),
    Column("ends", spare=4),
    Column("left", number=True),
    Column("cpus busy", number=True),
    Column("jobs", number=True, spare=2),
)
_STYLES = {
    PilotPhase.PENDING: "yellow",
    PilotPhase.BOOTING: "cyan",
    PilotPhase.JOINED: "green",
    PilotPhase.LOST: "bold red",
    PilotPhase.LEAVING: "magenta",
    PilotPhase.ENDED: "dim",
}


# The longest of Slurm's one-word reasons has 30; the others are sentences, and stand below in full.
_REASON = 30
_REASONS = 10


def _picture(config: Config, pilots: Sequence[Pilot], now: float) -> RenderableType:
    if not pilots:
        return Note(f"Controller {config.pressure.instance!r} has no such pilot in Slurm.", indent=0)
    title = f"Pilots of controller {config.pressure.instance!r}"
    long = Counter(pilot.job.reason for pilot in pilots if not pilot.job.node and len(pilot.job.reason) > _REASON)
    return Lines(
        Listing(title, _COLUMNS, [_cells(pilot, now) for pilot in pilots]),
        Text(),
        _totals(pilots),
        *notes([f"{plural(count, 'pilot')}: {reason}" for reason, count in long.most_common()], _REASONS),
    )


def _cells(pilot: Pilot, now: float) -> tuple[tuple[str, str], ...]:
    job, startd = pilot.job, pilot.startd
    draining = startd is not None and not startd.accepting
    lives = job.ends is not None and pilot.phase not in (PilotPhase.ENDED, PilotPhase.PENDING)
    return (
        (job.id, ""),
        (job.resource, ""),
        (job.state, ""),
        ("draining", "magenta") if draining else (pilot.phase.value, _STYLES[pilot.phase]),
        (job.node or _short(job.reason), ""),
        (clock(job.started), ""),
        (clock(job.ends), ""),
        (brief(job.ends - now) if lives and job.ends is not None else "-", ""),
        (f"{startd.total.cpus - startd.free.cpus}/{startd.total.cpus}" if startd else "-", ""),
        (str(startd.jobs) if startd else "-", ""),
    )


def _short(reason: str) -> str:
    if reason == "None":
        return "-"
    return reason if len(reason) <= _REASON else f"{reason[: _REASON - 3].rstrip()}..."


def _totals(pilots: Sequence[Pilot]) -> Note:
    phases = Counter(pilot.phase for pilot in pilots)
    startds = [pilot.startd for pilot in pilots if pilot.startd is not None]
    cpus = sum(startd.total.cpus for startd in startds)
    busy_cpus = cpus - sum(startd.free.cpus for startd in startds)
    jobs = sum(startd.jobs for startd in startds)
    by_phase = counted((phase.value, phases[phase]) for phase in PilotPhase)
    used = f"; {busy_cpus} of {plural(cpus, 'cpu')} busy with {plural(jobs, 'job')}" if startds else ""
    return Note(f"{plural(len(pilots), 'pilot')}: {by_phase}{used}.", indent=0)
