"""`htcebridge routes`: what a CE admin shows, checks, tries and installs."""

from __future__ import annotations

from pathlib import Path

import click

from htcebridge import routes
from htcebridge.cli import App
from htcebridge.cli.routes_check import check
from htcebridge.cli.routes_install import install, status, uninstall
from htcebridge.cli.routes_try import try_
from htcebridge.errors import ConfigError


@click.group()
def command() -> None:
    """The CE routes that tag jobs."""


@command.command()
@click.option(
    "--side",
    type=click.Choice(["ce", "pool"]),
    default="ce",
    show_default=True,
    help="The CE's part (/etc/condor-ce/config.d), or that of the Tier-1 schedd beside it (/etc/condor/config.d).",
)
@click.pass_obj
def show(app: App, side: str) -> None:
    """Print what would be installed: the CE's job-router configuration, or the pool's part of it."""
    for file in routes.render_files(app.config()):
        if file.side == side:
            click.echo(file.text, nl=False)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def convert(file: Path) -> None:
    """Print a site's old ClassAd-syntax routes (JOB_ROUTER_ENTRIES) in today's syntax.

    The routes go to standard output; what needs a person's eye goes to standard error.
    """
    from htcebridge.routes.convert import convert as converted

    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    made = converted(file)
    click.echo(made.text, nl=False)
    for note in made.notes:
        click.echo(f"look at {note}", err=True)


for each in (check, try_, install, uninstall, status):
    command.add_command(each)
