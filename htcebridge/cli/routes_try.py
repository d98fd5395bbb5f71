"""`htcebridge routes try`: job ads through the CE's real router, today and with the new routes."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from htcebridge import routes
from htcebridge.cli import App
from htcebridge.cli.output import busy, json_option, print_json, show, table
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.routes import jobad, trial
from htcebridge.routes.ce import CE, CE_CONFIG
from htcebridge.routes.jobad import JobAd
from htcebridge.routes.trial import Change, Trial
from htcebridge.units import plural

WIDTH = 100
# A queue's problems are shown up to here; --json has all.
_SHOWN = 20


@click.command(name="try")
@click.argument("jobads", nargs=-1, metavar="[JOBAD]...", type=click.Path(path_type=Path))
@click.option("--from-queue", is_flag=True, help="Try the jobs that are in the CE's queue now.")
@click.option(
    "--from-history", type=click.IntRange(min=1), metavar="N", help="Try the last N jobs of the CE's history."
)
@click.option(
    "--ce-config",
    type=click.Path(path_type=Path),
    default=CE_CONFIG,
    show_default=True,
    metavar="PATH",
    help="The CE's CONDOR_CONFIG.",
)
@json_option
@click.pass_obj
def try_(
    app: App, jobads: tuple[Path, ...], from_queue: bool, from_history: int | None, ce_config: Path, as_json: bool
) -> int:
    """Show what the new routes would do to jobs, before they are installed. Changes nothing.

    JOBAD is a file of job ads as `condor_q -long` prints them, or in [ ] form. They go through the CE's real router
    code, once with its present configuration and once with the new files in it; the routes' limits are lifted.

    Exit code 1 if a job is not routed or a transform fails on it.
    """
    if not (jobads or from_queue or from_history):
        raise ConfigError("nothing to try: give files of job ads, --from-queue or --from-history N")
    config = app.config()
    files = routes.render_files(config)
    ce = CE(ce_config)
    jobs = jobad.read_files(jobads)
    if from_queue:
        jobs += jobad.from_queue(ce)
    if from_history:
        jobs += jobad.from_history(ce, from_history)
    began = time.monotonic()
    with busy(f"trying {plural(len(jobs), 'job')} through the router"):
        trials = trial.try_routes(ce, files, config, jobad.numbered(jobs))
    if as_json:
        print_json(as_document(trials, time.monotonic() - began))
    else:
        for each in trials if not (from_queue or from_history) else ():
            click.echo("\n".join(_lines(each)) + "\n")
        _summary(trials, whole=from_queue or bool(from_history))
    return ExitCode.PROBLEM if any(each.failed for each in trials) else ExitCode.OK


def as_document(trials: Sequence[Trial], seconds: float) -> dict[str, Any]:
    """`routes try --json`, schema 1."""
    return {
        "schema": 1,
        "seconds": round(seconds, 3),
        "jobs": [
            {
                "job": each.job.label,
                "owner": each.job.owner,
                "filled": list(each.job.filled),
                "route_before": each.before.route,
                "route": each.after.route,
                "changes": [
                    {"attribute": change.name, "before": change.before, "after": change.after}
                    for change in each.changes
                ],
                "errors": list(each.after.errors),
                "errors_before": list(each.before.errors),
                "failed": each.failed,
                "runs_on": list(each.fits),
                "why_not": dict(each.why_not),
                "ad": each.after.attributes,
            }
            for each in trials
        ],
        "moves": [
            {"before": before, "after": after, "jobs": count} for (before, after), count in _moves(trials).items()
        ],
        "totals": {
            "jobs": len(trials),
            "change_route": sum(each.moves for each in trials),
            "failed": sum(each.failed for each in trials),
        },
    }


def _moves(trials: Sequence[Trial]) -> dict[tuple[str | None, str | None], int]:
    """(route before, route after) -> jobs, most first."""
    return dict(Counter((each.before.route, each.after.route) for each in trials).most_common())


def _lines(each: Trial) -> Iterator[str]:
    yield from _wrapped("", f"{_who(each.job)}: {_route(each)}")
    if each.job.filled:
        yield from _wrapped("  the ad has none, tried with:  ", "; ".join(each.job.filled))
    for change in each.changes:
        yield from _wrapped(f"  {change.name:<22} ", _change(change))
    for error in each.after.errors:
        known = " (today too)" if error in each.before.errors else ""
        yield from _wrapped("  ERROR" + known + "  ", error)
    if each.after.route is None:
        yield "  no route takes it; why not: htcebridge explain"
    for name in each.fits:
        yield f"  {name:<22} matches"
    for name, why in each.why_not.items():
        yield from _wrapped(f"  {name:<22} does not match: ", why)


def _who(job: JobAd) -> str:
    return f"{job.label} ({job.owner})"


def _route(each: Trial) -> str:
    before, after = each.before.route or "no route", each.after.route or "no route"
    return f"{after}, as today" if before == after else f"{before} -> {after}"


def _change(change: Change) -> str:
    if change.before is None:
        return f"added: {change.after}"
    if change.after is None:
        return f"removed, was: {change.before}"
    return f"{change.before} -> {change.after}"


def _wrapped(head: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        head + text, WIDTH, subsequent_indent=" " * min(len(head) or 4, 25), break_on_hyphens=False
    )


def _summary(trials: Sequence[Trial], whole: bool) -> None:
    if not trials:
        click.echo("No job to try.")
        return
    if whole:
        show(lambda: _picture(trials), None)
    failed = [each for each in trials if each.failed]
    for each in failed[:_SHOWN] if whole else ():
        why = "; ".join(each.after.errors) or "no route takes it"
        click.echo("\n".join(_wrapped("  ", f"{_who(each.job)}: {why}")))
    if whole and len(failed) > _SHOWN:
        click.echo(f"  and {len(failed) - _SHOWN} more: --json has them all")
    moves = sum(each.moves for each in trials)
    click.echo(f"{moves} of {len(trials)} jobs would change route; {len(failed)} fail.")


def _picture(trials: Sequence[Trial]) -> RenderableType:
    numbers = ("jobs", "granted fit", "Tier-1 fit", "failed")
    rows = table(
        "Jobs by route", ("today", "with the new files", *numbers), numbers, wraps=("today", "with the new files")
    )
    for (before, after), count in _moves(trials).items():
        group = [each for each in trials if (each.before.route, each.after.route) == (before, after)]
        rows.add_row(
            before or "no route",
            after or "no route",
            str(count),
            str(sum(any(name != trial.WORKER for name in each.fits) for each in group)),
            str(sum(trial.WORKER in each.fits for each in group)),
            str(sum(each.failed for each in group)),
        )
    return rows
