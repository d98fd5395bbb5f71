"""`htcebridge config`: write, check, show and import the configuration."""

from __future__ import annotations

from pathlib import Path

import click

from htcebridge.cli import App
from htcebridge.cli.output import print_json
from htcebridge.config import file as config_file
from htcebridge.errors import ConfigError, UnsetVariable


@click.group()
def command() -> None:
    """Write, check, show and import the configuration."""


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def init(file: Path | None) -> None:
    """Write a first configuration with every key explained (FILE, or the user's usual place). Overwrites nothing."""
    from htcebridge.config.example import example

    path = file or Path(config_file.PLACES[0]).expanduser()
    _write_new(path, example())
    click.echo(f"Wrote {path}. Edit it, then: htcebridge --config {path} config check")


@command.command()
@click.pass_obj
def check(app: App) -> None:
    """Say whether the configuration can be used, templates and checks included; every mistake with its line."""
    from htcebridge.pilot import script

    path = app.path()
    config = app.config()
    for name in config.resources:
        try:
            script.script(config, name)
        except UnsetVariable as error:
            # A CE admin has the same file, and none of the HPC's variables.
            click.echo(f"htcebridge: resource {name}: {error}: its script is not looked at here", err=True)
        except ConfigError as error:
            raise ConfigError(f"{path}: resource {name}: {error}") from None
    if config.pressure.interval < config.pressure.min_interval:
        click.echo(f"htcebridge: pressure: {config.pressure.pace}", err=True)
    resources = ", ".join(config.resources) or "none"
    vos = ", ".join(vo.name for vo in config.vos) or "none"
    click.echo(f"{path}: good (VOs: {vos}; resources: {resources})")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of TOML.")
@click.pass_obj
def show(app: App, as_json: bool) -> None:
    """Show the configuration in force, with every default and what each resource inherits."""
    from htcebridge.config.example import dump

    config = app.config()
    if as_json:
        print_json(config.model_dump(mode="json", by_alias=True))
    else:
        click.echo(f"# from {app.path()}, defaults included")
        click.echo(dump(config), nl=False)


@command.command("import")
@click.argument("files", metavar="FILE.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write it there. Overwrites nothing.")
def import_(files: tuple[Path, ...], output: Path | None) -> None:
    """Make a configuration of the old tool's JSON files and the scripts that they name."""
    from htcebridge.config.legacy import import_files

    imported = import_files(files)
    for note in imported.notes:
        click.echo(f"htcebridge: {note}", err=True)
    if output is None:
        click.echo(imported.text, nl=False)
    else:
        _write_new(output, imported.text)
        click.echo(f"Wrote {output}. Fill in: {', '.join(imported.missing)}")
        click.echo(f"Then: htcebridge --config {output} config check")


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; it is left as it is") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
