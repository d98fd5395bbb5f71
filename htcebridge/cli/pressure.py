"""`htcebridge pressure`: show a decision, carry out one, or do so for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from htcebridge import logs
from htcebridge.cli import App
from htcebridge.cli.output import Column, Listing, Note, busy, json_option, print_json, show
from htcebridge.config.tables import Config
from htcebridge.controller import cycle
from htcebridge.errors import BridgeError, ConfigError, ExitCode, LockHeld
from htcebridge.metrics import export
from htcebridge.model import Plan
from htcebridge.pilot import marks, script
from htcebridge.state import resets
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import recall
from htcebridge.units import plural


@click.group()
def command() -> None:
    """Decide how many pilots to start, and start them."""


@command.command()
@json_option
@click.pass_obj
def plan(app: App, as_json: bool) -> int:
    """Show what a cycle would do now, with its reasons. Changes nothing.

    Exit code 75 if something could not be observed, so that nothing was decided.
    """
    config = app.config()
    with busy(f"asking Slurm, the collector {config.tier1.collector} and its schedds"):
        found = cycle.look(config)
    if as_json:
        print_json(as_document(found.plan, time.time()))
    else:
        show(lambda: _picture(found.plan), None)
    return _report(found.plan, found.problems)


def _writable(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """A recording that cannot be written is said before the first cycle, not beside each."""
    if path is not None and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise click.BadParameter(f"{path}: cannot be written: is its directory there, and is it yours?")
    return path


_record_option = click.option(
    "--record",
    metavar="FILE",
    callback=_writable,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append what was seen and decided to FILE, for `htcebridge simulate --replay FILE`.",
)


@command.command()
@_record_option
@click.pass_obj
def once(app: App, record: Path | None) -> int:
    """Do one cycle: observe, plan, submit, cancel and drain. For cron.

    Waits for pressure.min_interval if Slurm was asked a moment ago. Exit code 75 if something could not be observed
    and so nothing was done, or another controller is at work.
    """
    config = app.config()
    _log(app, config)
    with ControllerLock(config) as lock:
        cycle.wait_for_min_interval(config)
        result = cycle.cycle(config, lock, record)
        unwritten = export.write_textfile(config, result)
    if app.verbosity >= 0 and not result.plan.held:
        show(lambda: _picture(result.plan), None)
    for problem in (*result.problems, *unwritten):
        click.echo(f"htcebridge: {problem}", err=True)
    return ExitCode.PROBLEM if unwritten and result.exit_code is ExitCode.OK else result.exit_code


@command.command()
@_record_option
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve the report of the last 24 hours and /metrics there, read only: 127.0.0.1:PORT for users of this host.",
)
@click.pass_obj
def run(app: App, record: Path | None, http: str | None) -> int:
    """Do a cycle every pressure.interval, until SIGTERM or Ctrl-C. For systemd.

    The configuration is read again before each cycle. SIGHUP starts a cycle at once.
    """
    # The other commands of this group need neither report nor web server, and start sooner without.
    from htcebridge.controller import loop
    from htcebridge.report import web

    if http is not None:
        web.parse(http)
    _log(app, app.config())
    loop.run(app.path(), record, http=http)
    return ExitCode.OK


@command.command()
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever finds it stopped.")
@click.pass_obj
def stop(app: App, reason: str) -> int:
    """The kill switch: submit nothing, cancel what is pending, let running pilots finish their jobs and leave.

    It holds until `pressure resume`, for every controller and pilot that uses the same shared_dir. Does one cycle at
    once if no controller runs. `touch SHARED_DIR/STOP` does the same at the next cycle.
    """
    config = app.config()
    failed = _set_stop(config, reason or "htcebridge pressure stop")
    _log(app, config)
    try:
        with ControllerLock(config) as lock:
            result = cycle.cycle(config, lock)
    except LockHeld as error:
        click.echo(f"{error}: its next cycle cancels what is pending")
        return ExitCode.OK
    if result.exit_code is ExitCode.TEMPFAIL:
        why = "; ".join(result.problems)
        raise BridgeError(f"STOP is set, and pilots will see it; pending ones are not cancelled yet: {why}")
    cancelled = sum(len(each.cancel) for each in result.plan.resources.values())
    failed += [result.unfinished] if result.unfinished else []
    if failed:
        raise BridgeError(f"STOP is set, and not everybody is reached: {'; '.join(failed)}")
    click.echo(f"{plural(cancelled, 'pending pilot')} cancelled; running ones finish their jobs and leave")
    return ExitCode.OK


def _set_stop(config: Config, why: str) -> list[str]:
    """Set it in every shared directory. Returns where that failed and why; raises BridgeError if it did everywhere."""
    if not config.resources:
        raise ConfigError("no [resource.NAME] in the configuration: nothing to stop")
    failed: dict[str, BridgeError] = {}
    done: set[Path] = set()
    for resource in config.resources.values():
        try:
            directory = resource.shared_dir.path
            if directory in done:
                continue
            marks.make_if_new(directory)
            already = marks.read_stop([directory])
            if not already:
                marks.set_stop(directory, why)
            click.echo(f"was stopped already: {already}" if already else f"stopped: {marks.stop_mark(directory)}")
            done.add(directory)
        except BridgeError as error:
            failed[str(resource.shared_dir)] = error
    if not done:
        raise next(iter(failed.values()))
    return [str(error) for error in failed.values()]


@command.command()
@click.pass_obj
def resume(app: App) -> int:
    """Lift the kill switch. Pilots that have not left yet take jobs again."""
    config = app.config()
    # The controller looks where an earlier configuration had it, too.
    earlier = {Path(each) for each in recall(config).upkeep.shared if Path(each).is_dir()}
    ours = {each.shared_dir.path for each in config.resources.values()}
    lifted = [directory for directory in sorted(ours | earlier) if marks.lift_stop(directory)]
    for directory in lifted:
        click.echo(f"lifted: {marks.stop_mark(directory)}")
    if not lifted:
        click.echo("it was not stopped")
    return ExitCode.OK


@command.command()
@click.argument("resource")
@click.pass_obj
def reset(app: App, resource: str) -> int:
    """Give a disabled or backed-off RESOURCE its next chance: forget its failures, refusals and quarantine.

    The next cycle does it.
    """
    config = app.config()
    script.resource_of(config, resource)
    try:
        resets.request(config, resource)
    except OSError as error:
        raise BridgeError(f"{config.pressure.state_dir}: cannot be written: {error.strerror}") from None
    click.echo(f"{resource}: the next cycle forgets its failures")
    return ExitCode.OK


def _log(app: App, config: Config) -> None:
    logs.setup(config.log.file.path if config.log.file else None, config.log.format, app.verbosity)


def as_document(decision: Plan, now: float) -> dict[str, Any]:
    """`pressure plan --json`, schema 1 (docs/schema/plan.json)."""
    return {
        "schema": 1,
        "time": int(now),
        "resources": {
            name: {
                "needed": resource.needed,
                "running": resource.running,
                "booting": resource.booting,
                "pending": resource.pending,
                "submit": resource.submit,
                "cancel": list(resource.cancel),
                "reasons": list(resource.reasons),
                "drain": list(resource.drain),
                "undrain": list(resource.undrain),
                "walltime_s": resource.walltime_s,
                "time_min_s": resource.time_min_s,
                "exclude": list(resource.exclude),
                "lower_bound": resource.lower_bound,
            }
            for name, resource in decision.resources.items()
        },
        "held": decision.held,
    }


_COLUMNS = (
    Column("resource", wraps=12),
    *(Column(name, number=True) for name in ("running", "booting", "pending", "needed")),
    *(Column(name, number=True) for name in ("submit", "cancel", "drain", "undrain")),
)
# What a cycle does, in colour where it does something.
_STYLES = {"submit": "bold green", "cancel": "bold yellow", "drain": "magenta", "undrain": "cyan"}


def _picture(decision: Plan) -> RenderableType:
    if decision.held:
        return Lines(
            Note(f"Held: {decision.held}", "bold", indent=0),
            Note("Nothing is submitted or cancelled on what is not known. htcebridge doctor says more.", indent=0),
        )
    rows = []
    for name, resource in decision.resources.items():
        values = [getattr(resource, column.name) for column in _COLUMNS[1:]]
        numbers = [value if isinstance(value, int) else len(value) for value in values]
        styles = [_STYLES.get(column.name, "") for column in _COLUMNS[1:]]
        rows.append(((name, ""), *((str(n), style if n else "") for n, style in zip(numbers, styles, strict=True))))
    reasons = [Note(f"{name}: {why}") for name, each in decision.resources.items() for why in each.reasons]
    return Lines(Listing("Plan", _COLUMNS, rows), Text(), *reasons)


def _report(decision: Plan, problems: tuple[str, ...]) -> int:
    for problem in problems:
        click.echo(f"htcebridge: {problem}", err=True)
    if decision.held:
        return ExitCode.TEMPFAIL
    return ExitCode.PROBLEM if problems else ExitCode.OK
