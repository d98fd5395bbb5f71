"""`htcebridge render`: exactly what a pilot will run."""

from __future__ import annotations

import click

from htcebridge import pilot
from htcebridge.cli import App


@click.group()
def command() -> None:
    """Print exactly what a pilot will run. No secret is in it."""


@command.command()
@click.argument("resource")
@click.pass_obj
def startd(app: App, resource: str) -> None:
    """The HTCondor configuration of this resource's pilots."""
    click.echo(pilot.startd_config(app.config(), resource), nl=False)


@command.command()
@click.argument("resource")
@click.pass_obj
def script(app: App, resource: str) -> None:
    """The script that sbatch gets for this resource's pilots."""
    click.echo(pilot.script(app.config(), resource), nl=False)
