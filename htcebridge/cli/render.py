"""`htcebridge render`: exactly what a pilot will run."""

from __future__ import annotations

import click

from htcebridge.cli import App
from htcebridge.pilot import script as pilot_script


@click.group()
def command() -> None:
    """Print exactly what a pilot will run. No secret is in it."""


@command.command()
@click.argument("resource")
@click.pass_obj
def startd(app: App, resource: str) -> None:
    """The HTCondor configuration of this resource's pilots."""
    click.echo(pilot_script.startd_config(app.config(), resource), nl=False)


@command.command()
@click.argument("resource")
@click.pass_obj
def script(app: App, resource: str) -> None:
    """The script that sbatch gets for this resource's pilots."""
    click.echo(pilot_script.script(app.config(), resource), nl=False)
