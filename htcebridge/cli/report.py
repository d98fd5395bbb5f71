"""`htcebridge report`: what was used, lost and wasted, as table, CSV, JSON or one page with plots."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.markup import escape

from htcebridge.cli import App
from htcebridge.cli.output import json_option, show, table, write_file
from htcebridge.cli.period import period_options
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.history import store
from htcebridge.report import text as report_text
from htcebridge.report.queries import HOUR_S, read
from htcebridge.report.text import hours, percent, took
from htcebridge.report.totals import NodeRow, Period, Report

# A tab that shows the first lines is enough to see which nodes are bad.
_NODES_SHOWN = 10
Row = TypeVar("Row")


@click.command()
@period_options(default="7d")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "html"]),
    default="table",
    show_default=True,
    help="html: one page with plots, complete in itself.",
)
@click.option(
    "--by",
    type=click.Choice(report_text.BY),
    help="table, csv: one line for each resource, VO and resource, or node. csv: resource, if left out.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: standard output."
)
@click.option(
    "--history",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Another history than this configuration's, such as a copy from another host.",
)
@json_option
@click.pass_obj
def command(
    app: App, since: int, until: int, form: str, by: str | None, output: Path | None, file: Path | None, as_json: bool
) -> int:
    """Show what pilots and cores were used for in a period, and what was lost and wasted.

    Reads only the history that `pressure once` and `run` write; nothing is asked of Slurm or HTCondor. Core-hours are
    known by the hour: the period is widened to whole hours. Jobs are counted when their pilot has ended.
    """
    if as_json and form not in ("table", "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other")
    now = time.time()
    period = the_period(since, until, now)
    name, path = (file.name.partition(".")[0], file) if file else _configured(app)
    found = read(path, name, period, all_nodes=by == "node")
    form = "json" if as_json else form
    if form == "table" and output is None:
        show(lambda: picture(found, by), None)
        return ExitCode.OK
    text = _text(found, form, by, now)
    if found.empty:
        click.echo(f"htcebridge: {report_text.emptiness(found)}", err=True)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text)
    return ExitCode.OK


def the_period(since: int, until: int, now: float) -> Period:
    """A period in whole hours and not beyond now, for the history has core-hours by the hour. Raises ConfigError."""
    begin, end = since // HOUR_S * HOUR_S, min(until, int(now))
    if begin >= end:
        raise ConfigError(f"the period begins in the future ({report_text.moment(begin)}): --since comes before now")
    return Period(begin, min(-(-end // HOUR_S) * HOUR_S, int(now)))


def _configured(app: App) -> tuple[str, Path]:
    config = app.config()
    return config.pressure.instance, store.path_of(config)


def _text(found: Report, form: str, by: str | None, now: float) -> str:
    match form:
        case "json":
            return json.dumps(report_text.as_document(found, now), indent=2) + "\n"
        case "csv":
            return report_text.as_csv(found, by or "resource")
        case "html":
            from htcebridge.report.page import page

            return page(found, now)
    from rich.console import Console

    plain = Console(width=100, highlight=False, no_color=True)
    with plain.capture() as captured:
        plain.print(picture(found, by))
    return captured.get()


# --------------------------------------------------------------------------- the table


def picture(found: Report, by: str | None = None) -> RenderableType:
    """The report in 100 columns; with `by` only those rows."""
    if found.empty:
        return escape(report_text.emptiness(found))
    head = f"[bold]Report of {escape(found.name)}[/bold]: {report_text.span(found)}\n{report_text.watched(found)}"
    parts: dict[str, list[RenderableType]] = {
        "resource": [_pilots(found), "", _cores(found), "", _times(found)],
        "vo": [_vos(found)],
        "node": [_nodes(found.nodes if by else found.nodes[:_NODES_SHOWN], len(found.nodes))],
    }
    chosen = [parts[by]] if by else list(parts.values())
    return Lines(head, *(line for part in chosen for line in ("", *part)))


def _pilots(found: Report) -> RenderableType:
    counts = ("pilots", "started", "joined", "preempted", "failed", "alive", "node-hours", "jobs", "evicted")
    rows = table("Pilots", ("resource", *counts), counts)
    for name, each in _with_total([(row.resource, row.pilots) for row in found.resources], found.pilots):
        numbers = (each.count, each.started, each.joined, each.preempted, each.failed, each.outcomes.get("alive", 0))
        rows.add_row(
            name,
            *(f"{number:,}" for number in numbers),
            hours(each.node_s),
            *(f"{number:,}" for number in (each.jobs, each.evicted)),
        )
    return rows


def _cores(found: Report) -> RenderableType:
    """Hours for what came of it, parts of what was held for why nothing did."""
    hours_of = ("held", "good", "lost", "idle")
    total = found.cores.split()
    wasted = [use for use in report_text.USES if use not in hours_of and (total[use] or use != "elsewhere")]
    columns = (*hours_of, "good/held", *("fragm." if use == "fragmentation" else use for use in wasted))
    rows = table("Core-hours, and how much of what was held went where", ("resource", *columns), columns)
    for name, each in _with_total([(row.resource, row.cores) for row in found.resources], found.cores):
        split = each.split()
        parts = (percent(split[use] / each.held if each.held else None).replace(" ", "") for use in wasted)
        rows.add_row(name, *(hours(getattr(each, kind)) for kind in hours_of), percent(each.efficiency), *parts)
    return rows


def _times(found: Report) -> RenderableType:
    columns = ("in Slurm p50", "p90", "boot p50", "p90 ", "to joining p50", " p90 ", "pilots")
    rows = table("From a pilot's submission to its joining", ("resource", *columns), columns)
    for row in found.resources:
        spreads = (row.queued, row.booted, row.to_join)
        times = (took(value) for each in spreads for value in (each.p50, each.p90))
        rows.add_row(escape(row.resource), *times, f"{row.to_join.count:,}")
    return rows


def _vos(found: Report) -> RenderableType:
    columns = ("good core-h", "lost core-h", "mean waiting jobs", "their cores", "longest wait")
    rows = table("VOs", ("vo", "resource", *columns), columns)
    waited = {row.vo: row for row in found.waited}
    for row in found.vos:
        wait = waited.pop(row.vo, None)
        demand = (f"{wait.idle_jobs:,.1f}", f"{wait.idle_cpus:,.1f}", took(wait.oldest_s)) if wait else ("", "", "")
        rows.add_row(escape(row.vo) or "-", escape(row.resource), hours(row.cores.good), hours(row.cores.lost), *demand)
    for vo, wait in waited.items():
        demand = (f"{wait.idle_jobs:,.1f}", f"{wait.idle_cpus:,.1f}", took(wait.oldest_s))
        rows.add_row(escape(vo) or "-", "-", "0", "0", *demand)
    return rows


def _nodes(nodes: tuple[NodeRow, ...], known: int) -> RenderableType:
    if not nodes:
        return "No node failed or lost work."
    columns = ("pilots", "failed", "preempted", "lost core-h")
    title = "Worst nodes" + (f" ({len(nodes)}; --by node shows all)" if len(nodes) < known else "")
    rows = table(title, ("node", *columns, "last failure"), columns, wraps=("last failure",))
    for row in nodes:
        numbers = (row.pilots, row.failed, row.preempted)
        lost = hours(row.lost_core_s)
        rows.add_row(escape(row.node), *(f"{number:,}" for number in numbers), lost, escape(row.said) or "-")
    return rows


def _with_total(rows: list[tuple[str, Row]], total: Row) -> list[tuple[str, Row]]:
    named = [(escape(name), row) for name, row in rows]
    return [*named, ("[bold]all[/bold]", total)] if len(named) > 1 else named
