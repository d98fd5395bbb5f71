"""`htcebridge pressure`: show a decision, carry out one, or do so for ever."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.markup import escape

from htcebridge import controller
from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json, show, table
from htcebridge.errors import ExitCode
from htcebridge.lock import ControllerLock
from htcebridge.model import Plan


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
    found = controller.look(config)
    if as_json:
        print_json(as_document(found.plan, time.time()))
    else:
        show(lambda: _picture(found.plan), None)
    return _report(found.plan, found.problems)


@command.command()
@click.pass_obj
def once(app: App) -> int:
    """Do one cycle: observe, plan, submit and cancel. For cron.

    Exit code 75 if something could not be observed and so nothing was done, or another controller is at work.
    """
    config = app.config()
    _log_to_stderr(app.verbosity)
    with ControllerLock(config) as lock:
        result = controller.cycle(config, lock)
    if app.verbosity >= 0 and not result.plan.held:
        show(lambda: _picture(result.plan), None)
    for problem in result.problems:
        click.echo(f"htcebridge: {problem}", err=True)
    return result.exit_code


@command.command()
@click.pass_obj
def run(app: App) -> int:
    """Do a cycle every pressure.interval, until SIGTERM or Ctrl-C. For systemd.

    The configuration is read again before each cycle. SIGHUP starts a cycle at once.
    """
    _log_to_stderr(app.verbosity)
    controller.run(app.path())
    return ExitCode.OK


def as_document(decision: Plan, now: float) -> dict[str, Any]:
    """`pressure plan --json`, schema 1 (docs/how-it-decides.md)."""
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
            }
            for name, resource in decision.resources.items()
        },
        "held": decision.held,
    }


def _picture(decision: Plan) -> RenderableType:
    if decision.held:
        return f"[bold]Held:[/bold] {escape(decision.held)}\nNothing is submitted or cancelled on what is not known."
    numbers = ("running", "booting", "pending", "needed", "submit", "cancel")
    rows = table("Plan", ("resource", *numbers), numbers)
    for name, resource in decision.resources.items():
        rows.add_row(name, *(str(getattr(resource, field)) for field in numbers[:-1]), str(len(resource.cancel)))
    reasons = [f"  {name}: {escape(why)}" for name, each in decision.resources.items() for why in each.reasons]
    return Lines(rows, "", *reasons)


def _report(decision: Plan, problems: tuple[str, ...]) -> int:
    for problem in problems:
        click.echo(f"htcebridge: {problem}", err=True)
    if decision.held:
        return ExitCode.TEMPFAIL
    return ExitCode.PROBLEM if problems else ExitCode.OK


def _log_to_stderr(verbosity: int) -> None:
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG if verbosity > 0 else logging.ERROR)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
