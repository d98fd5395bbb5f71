"""`htcebridge routes`: what a CE admin installs."""

from __future__ import annotations

import click

from htcebridge import routes
from htcebridge.cli import App


@click.group()
def command() -> None:
    """The CE routes that tag jobs."""


@command.command()
@click.pass_obj
def show(app: App) -> None:
    """Print the job-router configuration for the CE: put it into /etc/condor-ce/config.d/60-htcebridge.conf."""
    click.echo(routes.render_routes(app.config()), nl=False)
