"""`htcebridge drain`: marks on the shared file system that pilots look at; no right at the pool is needed."""

from __future__ import annotations

from pathlib import Path

import click

from htcebridge import marks, pilot
from htcebridge.cli import App
from htcebridge.config import Config
from htcebridge.errors import ConfigError, ExitCode


@click.command()
@click.argument("target", metavar="RESOURCE|PILOT")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever finds it drained.")
@click.pass_obj
def command(app: App, target: str, reason: str) -> int:
    """Let the pilots of a RESOURCE, or one PILOT (its Slurm id, such as 123_4), finish their jobs and take no more.

    A drained pilot leaves its node when it is empty; until then `undrain` takes it back. A drained resource gets no
    new pilots.
    """
    directories, name = marked(app.config(), target)
    for directory in directories:
        marks.set_drain(directory, name, reason or "htcebridge drain")
    click.echo(f"{target} drains; its pilots see it within half a minute. Back: htcebridge undrain {target}")
    return ExitCode.OK


def marked(config: Config, target: str) -> tuple[list[Path], str]:
    """Where the mark of a resource or pilot lies, and its name. Raises ConfigError for what is neither."""
    shared = {name: pilot.expand(each.shared_dir, "shared_dir") for name, each in config.resources.items()}
    if target in shared:
        return [shared[target]], marks.resource_mark(config.pressure.instance, target)
    if not target[:1].isdigit():
        known = ", ".join(shared) or "none is configured"
        raise ConfigError(f"{target!r} is neither a resource ({known}) nor a pilot's Slurm id such as 123_4")
    # Which resource a pilot is of only Slurm knows; a mark that no pilot looks for does no harm.
    return sorted(set(shared.values())), target
