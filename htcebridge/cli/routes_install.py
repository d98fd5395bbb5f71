"""`htcebridge routes install | uninstall | status`: the routes in a CE, put there, taken out, compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from htcebridge.cli import App
from htcebridge.cli.output import clock, console, json_option, print_json, table
from htcebridge.errors import ExitCode

if TYPE_CHECKING:
    from htcebridge.routes.host import Host
    from htcebridge.routes.status import Status

Command = TypeVar("Command", bound=Callable[..., Any])


def host_options(command: Command) -> Command:
    """The options that say where the CE is."""
    directory = click.Path(path_type=Path, file_okay=False)
    for option in (
        click.option("--pool-config-dir", type=directory, help="The pool's. Default: /etc/condor/config.d."),
        click.option("--config-dir", type=directory, help="The CE's. Default: config.d beside its condor_config."),
        click.option(
            "--ce-config",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The CE's condor_config. Default: /etc/condor-ce/condor_config.",
        ),
    ):
        command = option(command)
    return command


def change_options(command: Command) -> Command:
    """The options of what changes a host's HTCondor."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=1),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="How long what runs may take to be as it should before all is taken back.",
        ),
        click.option(
            "--reconfig/--no-reconfig", default=True, help="Tell HTCondor, and wait until it has it. Default: do."
        ),
        click.option("--dry-run", is_flag=True, help="Check, try, and show the difference; write nothing."),
    ):
        command = option(command)
    return command


@click.command()
@change_options
@host_options
@click.pass_obj
def install(
    app: App,
    dry_run: bool,
    reconfig: bool,
    timeout: float,
    ce_config: Path | None,
    config_dir: Path | None,
    pool_config_dir: Path | None,
) -> None:
    """Check the routes, put them into the CE, and wait until its router has them.

    If the router doesn't take them, what was there before is put back (exit code 1). A second run changes nothing. A
    file that `routes install` didn't write, or that was edited since, is never touched (exit code 2).
    """
    from htcebridge import routes
    from htcebridge.routes import install as installer

    config = app.config()
    files = routes.render_files(config)
    options = installer.Options(timeout, dry_run, reconfig, (config.grant.attribute, config.grant.vo_attribute))
    installer.install(_host(ce_config, config_dir, pool_config_dir), files, options, _say(app))


@click.command()
@change_options
@host_options
@click.pass_obj
def uninstall(
    app: App,
    dry_run: bool,
    reconfig: bool,
    timeout: float,
    ce_config: Path | None,
    config_dir: Path | None,
    pool_config_dir: Path | None,
) -> None:
    """Take our files out of the CE, and wait until its router is as it was without them. Needs no configuration."""
    from htcebridge.routes import install as installer

    options = installer.Options(timeout, dry_run, reconfig)
    installer.uninstall(_host(ce_config, config_dir, pool_config_dir), options, _say(app))


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Show how the installed files differ.")
@json_option
@host_options
@click.pass_obj
def status(
    app: App,
    verbose: bool,
    as_json: bool,
    ce_config: Path | None,
    config_dir: Path | None,
    pool_config_dir: Path | None,
) -> int:
    """Are the routes installed, loaded, and those of the configuration? Jobs of each route.

    Exit code 0: all in step. 1: something is not, and the output says what.
    """
    from htcebridge import routes
    from htcebridge.routes.status import look

    found = look(_host(ce_config, config_dir, pool_config_dir), routes.render_files(app.config()))
    if as_json:
        print_json(as_document(found))
    else:
        _print(found, verbose or app.verbosity > 0)
    return ExitCode.OK if found.in_step else ExitCode.PROBLEM


def as_document(found: Status) -> dict[str, Any]:
    """`routes status --json`, schema 1."""
    return {
        "schema": 1,
        "in_step": found.in_step,
        "installed": found.installed,
        "version": found.version,
        "differs": bool(found.differences),
        "loaded": found.loaded,
        "router_runs": found.router_runs,
        "table_time": None if found.table_time is None else int(found.table_time),
        "table": list(found.order),
        "files": [str(path) for path in found.files],
        "routes": [
            {
                "name": name,
                "loaded": name in found.order,
                "jobs": count.jobs if count else None,
                "max_jobs": count.max_jobs if count else None,
                "idle": count.idle if count else None,
                "max_idle": count.max_idle if count else None,
            }
            for name, count in found.routes.items()
        ],
        "problems": list(found.problems),
        "diff": "\n".join(found.differences),
    }


def _print(found: Status, verbose: bool) -> None:
    for path in found.files:
        click.echo(f"Installed: {path}, by htcebridge {found.version}")
    click.echo(f"The router's last table, of {clock(found.table_time)}: {', '.join(found.order) or 'none seen'}")
    columns = ("route", "loaded", "jobs", "max jobs", "idle", "max idle")
    rows = table("", columns, columns[2:])
    for name, count in found.routes.items():
        numbers = (
            [str(value) for value in (count.jobs, count.max_jobs, count.idle, count.max_idle)] if count else "----"
        )
        rows.add_row(name, "yes" if name in found.order else "no", *numbers)
    console().print(rows)
    for problem in found.problems:
        click.echo(f"Not in step: {problem}")
    if verbose:
        for difference in found.differences:
            click.echo(difference, nl=False)
    if found.in_step:
        click.echo("In step: what the configuration says is installed and loaded.")


def _host(ce_config: Path | None, config_dir: Path | None, pool_config_dir: Path | None) -> Host:
    from htcebridge.routes.ce import CE_CONFIG
    from htcebridge.routes.host import POOL_CONFIG_DIR, Host

    return Host.at(ce_config or CE_CONFIG, config_dir, pool_config_dir or POOL_CONFIG_DIR)


def _say(app: App) -> Callable[[str], object]:
    return (lambda _: None) if app.verbosity < 0 else click.echo
