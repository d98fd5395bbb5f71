"""`htcebridge drain` and `undrain`: marks on the shared file system; it takes no right at the pool."""

from __future__ import annotations

from pathlib import Path

import click

from htcebridge.cli import App
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.pilot import marks
from htcebridge.slurm.commands import Slurm
from htcebridge.slurm.states import Stage, stage_of

_target = click.argument("target", metavar="RESOURCE|PILOT")


@click.command()
@_target
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever finds it drained.")
@click.pass_obj
def drain(app: App, target: str, reason: str) -> int:
    """Let the pilots of a RESOURCE, or one PILOT, finish their jobs and take no more.

    A pilot is named by its Slurm id, such as 123_4; 123 is all of an array.

    A drained pilot leaves its node when it is empty; until then `undrain` takes it back. A drained resource gets no
    new pilots.
    """
    config = app.config()
    directories, name = _marked(config, target)
    names = [name] if target in config.resources else _pilots_named(config, target)
    for directory in directories:
        marks.make_if_new(directory)
        for each in names:
            marks.set_drain(directory, each, reason or "htcebridge drain")
    click.echo(f"{target} drains; its pilots see it within half a minute. Back: htcebridge undrain {target}")
    return ExitCode.OK


@click.command()
@_target
@click.pass_obj
def undrain(app: App, target: str) -> int:
    """Let the pilots of a RESOURCE, or one PILOT, take jobs again."""
    directories, name = _marked(app.config(), target)
    lifted = [marks.lift_drain(directory, name) for directory in directories if directory.is_dir()]
    click.echo(f"{target} takes jobs again" if any(lifted) else f"{target} was not drained")
    return ExitCode.OK


def _marked(config: Config, target: str) -> tuple[list[Path], str]:
    """Where the mark of a resource or pilot lies, and its name. Raises ConfigError for what is neither."""
    shared = {name: each.shared_dir.path for name, each in config.resources.items()}
    if target in shared:
        return [shared[target]], marks.resource_mark(config.pressure.instance, target)
    if not target[:1].isdigit():
        known = ", ".join(shared) or "none is configured"
        raise ConfigError(f"{target!r} is neither a resource ({known}) nor a pilot's Slurm id such as 123_4")
    return sorted(set(shared.values())), target


def _pilots_named(config: Config, target: str) -> list[str]:
    """A pilot's id, or those of an array's live tasks. Raises ConfigError if Slurm has none of that name."""
    live = [job.id for job in Slurm(config.pressure.instance).queue().ours if stage_of(job.state) is not Stage.ENDED]
    found = [id_ for id_ in live if target in (id_, id_.partition("_")[0])]
    if not found:
        raise ConfigError(
            f"{target} is no live pilot of controller {config.pressure.instance!r}; see htcebridge pilots"
        )
    return found
