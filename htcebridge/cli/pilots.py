"""`htcebridge pilots`: Slurm's view and the collector's view of each pilot on one line."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import RenderableType

from htcebridge import observation, tier1
from htcebridge.cli import App
from htcebridge.cli.output import clock, json_option, print_json, show, table, watch_option
from htcebridge.config import Config
from htcebridge.errors import ExitCode
from htcebridge.model import Pilot, PilotPhase
from htcebridge.slurm import Slurm


@click.command()
@json_option
@watch_option
@click.option("--all", "ended_too", is_flag=True, help="Also the pilots that have ended and Slurm still lists.")
@click.pass_obj
def command(app: App, as_json: bool, watch: float | None, ended_too: bool) -> int:
    """Show the pilots of this controller: where they are in Slurm, and what their startds do."""
    config = app.config()

    def read() -> list[Pilot]:
        jobs = Slurm(config.pressure.instance).queue().ours
        view = tier1.read_pool(observation.pool(config), config.pressure.instance, config.grant.vo_attribute)
        pilots = observation.join(jobs, view.startds, int(time.time()), config)
        return [pilot for pilot in pilots if ended_too or pilot.phase is not PilotPhase.ENDED]

    if as_json:
        print_json({"schema": 1, "time": int(time.time()), "pilots": [_row(pilot) for pilot in read()]})
    else:
        show(lambda: _picture(config, read()), watch)
    return ExitCode.OK


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


def _picture(config: Config, pilots: list[Pilot]) -> RenderableType:
    if not pilots:
        return f"Controller {config.pressure.instance!r} has no pilot in Slurm."
    columns = ("pilot", "resource", "Slurm", "reason", "pool", "node", "started", "ends", "cpus busy", "jobs")
    rows = table(f"Pilots of controller {config.pressure.instance!r}", columns, ("cpus busy", "jobs"))
    for pilot in pilots:
        job, startd = pilot.job, pilot.startd
        rows.add_row(
            job.id,
            job.resource,
            job.state,
            job.reason if job.reason != "None" else "-",
            pilot.phase.value if not startd or startd.accepting else "draining",
            job.node or "-",
            clock(job.started),
            clock(job.ends),
            f"{startd.total.cpus - startd.free.cpus}/{startd.total.cpus}" if startd else "-",
            str(startd.jobs) if startd else "-",
        )
    return rows
