"""`htcebridge undrain`: takes the mark of `htcebridge drain` away."""

from __future__ import annotations

import click

from htcebridge.cli import App
from htcebridge.cli.drain import marked
from htcebridge.errors import ExitCode
from htcebridge.pilot import marks


@click.command()
@click.argument("target", metavar="RESOURCE|PILOT")
@click.pass_obj
def command(app: App, target: str) -> int:
    """Let the pilots of a RESOURCE, or one PILOT, take jobs again."""
    directories, name = marked(app.config(), target)
    lifted = [marks.lift_drain(directory, name) for directory in directories if directory.is_dir()]
    click.echo(f"{target} takes jobs again" if any(lifted) else f"{target} was not drained")
    return ExitCode.OK
