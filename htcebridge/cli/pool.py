"""`htcebridge pool`: what the Tier-1's central manager does against a stolen pilot's token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json
from htcebridge.cli.routes_install import change_options
from htcebridge.errors import ExitCode

if TYPE_CHECKING:
    from htcebridge.routes.central import CentralManager

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """A collector of the pilots' own behind the pool's, on the central manager."""


def _host_option(command: Command) -> Command:
    return click.option(
        "--config-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where HTCondor reads configuration. Default: /etc/condor/config.d.",
    )(command)


_cut_off = click.option("--cut-off", is_flag=True, help="Even if pilots that run now lose the pool by it.")
_transition = click.option(
    "--transition", is_flag=True, help="The pool's collector goes on taking pilots, until the old ones have ended."
)


@command.command()
@_transition
@click.pass_obj
def show(app: App, transition: bool) -> None:
    """Print what would be installed."""
    from htcebridge.routes import central

    click.echo(central.of(app.config(), closed=not transition).file.text, nl=False)


@command.command()
@_transition
@_host_option
@json_option
@click.pass_obj
def check(app: App, transition: bool, config_dir: Path | None, as_json: bool) -> int:
    """Is it installed, in force, and does it do what it is for? Tried with a token that lives for two minutes.

    Run it as root on the central manager. Exit code 1 if something is not as it should be, or could not be tried.
    """
    from htcebridge.routes import central

    closed, in_transition = (central.of(app.config(), closed=closed) for closed in (True, False))
    lines = central.look(_manager(config_dir), closed, in_transition, transition)
    good = all(line.good for line in lines)
    if as_json:
        rows = [{"what": line.what, "good": line.good, "said": line.said} for line in lines]
        print_json({"schema": 1, "good": good, "lines": rows})
    else:
        words = {True: "ok", False: "WRONG", None: "unknown"}
        for line in lines:
            click.echo(f"{words[line.good]:<8}{line.what}: {line.said}")
    return ExitCode.OK if good else ExitCode.PROBLEM


@command.command()
@_transition
@change_options
@_cut_off
@_host_option
@click.pass_obj
def install(
    app: App,
    transition: bool,
    cut_off: bool,
    dry_run: bool,
    reconfig: bool,
    timeout: float,
    config_dir: Path | None,
) -> None:
    """Start the pilots' collector, and let the pool's own refuse their token.

    What runs afterwards is tried; if it is not as it should be, all is put back (exit code 1). While pilots of the old
    kind run nothing is refused to them without --cut-off: install with --transition first (exit code 1 says so).
    """
    from htcebridge.routes import central

    options = central.Options(timeout, dry_run, reconfig, cut_off)
    central.install(_manager(config_dir), central.of(app.config(), closed=not transition), options, _say(app))


@command.command()
@change_options
@_cut_off
@_host_option
@click.pass_obj
def uninstall(app: App, cut_off: bool, dry_run: bool, reconfig: bool, timeout: float, config_dir: Path | None) -> None:
    """End the pilots' collector; the pool's own takes their token again."""
    from htcebridge.routes import central

    options = central.Options(timeout, dry_run, reconfig, cut_off)
    central.uninstall(_manager(config_dir), central.of(app.config()), options, _say(app))


def _manager(config_dir: Path | None) -> CentralManager:
    from htcebridge.routes.central import POOL_CONFIG, CentralManager

    return CentralManager.at(config_dir.parent / "condor_config" if config_dir else POOL_CONFIG, config_dir)


def _say(app: App) -> Callable[[str], object]:
    return (lambda _: None) if app.verbosity < 0 else click.echo
