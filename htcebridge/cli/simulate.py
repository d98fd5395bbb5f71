"""`htcebridge simulate`: try a policy on a recorded or made-up workload, or decide recorded cycles again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from htcebridge.cli import App
from htcebridge.cli.output import clock, json_option, print_json, show, table
from htcebridge.config import file
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.simulation import plot as plots
from htcebridge.simulation import recorded, workload
from htcebridge.simulation.cluster import Weather
from htcebridge.simulation.metrics import Result, Sample
from htcebridge.simulation.ours import Ours
from htcebridge.simulation.replay import Difference, replay
from htcebridge.simulation.scenario import CATALOGUE, Scenario, built_in, from_config
from htcebridge.simulation.world import simulate


@click.command()
@click.option(
    "--workload",
    "source",
    default="bursty",
    metavar="NAME|FILE",
    help=f"{', '.join(workload.WORKLOADS)}, or a file of recorded jobs (CSV or JSON lines). Default: bursty.",
)
@click.option("--days", type=click.IntRange(1, 60), help="Days in which jobs come. Default: 4, or as many as recorded.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of all that is random. Default: 0.")
@click.option(
    "--unmatchable", type=click.IntRange(min=0), default=0, metavar="N", help="Add N tagged jobs that fit nowhere."
)
@click.option(
    "--built-in",
    multiple=True,
    type=click.Choice(list(CATALOGUE)),
    help="Simulate this built-in resource, with the shipped defaults, instead of those of the configuration. "
    "Again for one more.",
)
@click.option("--nodes", type=click.IntRange(1, 5000), default=Weather.nodes, help="Nodes of each partition.")
@click.option(
    "--pilots-per-node",
    type=click.IntRange(1, 256),
    default=1,
    help="How many of the partition's largest pilots fit onto a node. Default: 1.",
)
@click.option("--paid", type=click.FloatRange(0, 1), default=Weather.paid_share, help="Part that paying jobs ask for.")
@click.option("--bad", type=click.FloatRange(0, 1), default=0.0, help="Part of the nodes on which pilots fail.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="PNG, SVG or PDF.")
@click.option(
    "--replay",
    "recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Decide the cycles again that `pressure run --record FILE` wrote; exit code 1 if any differs.",
)
@json_option
@click.pass_obj
def command(
    app: App,
    source: str,
    days: int | None,
    seed: int,
    unmatchable: int,
    built_in: tuple[str, ...],
    nodes: int,
    pilots_per_node: int,
    paid: float,
    bad: float,
    plot: Path | None,
    recording: Path | None,
    as_json: bool,
) -> int:
    """Run the planner against a simulated pool and Slurm, and show what it would come to.

    Resources and [pressure] are those of the configuration; without one, a built-in DCGP node with the shipped
    defaults. Nothing real is asked or touched. Equal options give equal numbers.
    """
    if recording is not None:
        return _replay(recording, as_json)
    if plot is not None:
        plots.check(plot)
    jobs, days = _jobs(source, days, seed)
    weather = Weather(nodes=nodes, paid_share=paid, bad_share=bad)
    scenario, of_what = _scenario(app, built_in, weather, pilots_per_node)
    extra = workload.unmatchable(unmatchable, days, seed)
    everything = sorted([*jobs, *extra], key=lambda job: job.submitted_s)
    name = Path(source).name if source not in workload.WORKLOADS else source
    with _progress(app, f"{days} days of {name}") as tell:
        outcome, samples = simulate(scenario, everything, days, Ours(scenario), seed, (of_what, name), tell)
    if plot is not None:
        plots.draw(samples, outcome, plot)
    if as_json:
        print_json(as_document(outcome, samples))
    else:
        show(lambda: _picture(outcome, len(everything), days, plot), None)
    return ExitCode.OK


def as_document(outcome: Result, samples: list[Sample]) -> dict[str, object]:
    """`simulate --json`, schema 1 (docs/performance.md). Core-hours, minutes, pilots; samples every 5 minutes."""
    numbers = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(outcome).items()}
    numbers["idle"] = {use: round(hours, 3) for use, hours in outcome.idle.items()}
    del numbers["cpu_s"]
    return {"schema": 1, **numbers, "samples": [asdict(sample) for sample in samples]}


def _jobs(source: str, days: int | None, seed: int) -> tuple[list[workload.Job], int]:
    if source in workload.WORKLOADS:
        return workload.WORKLOADS[source](days or 4, seed), days or 4
    if not Path(source).is_file():
        raise ConfigError(
            f"{source!r} is no workload: it is neither {', '.join(workload.WORKLOADS)} nor a file of recorded jobs"
        )
    jobs = recorded.read(Path(source))
    return jobs, days or recorded.days(jobs)


def _scenario(app: App, names: tuple[str, ...], weather: Weather, per_node: int) -> tuple[Scenario, str]:
    """What is simulated, and its name."""
    if not names and (app.config_path or os.environ.get(file.ENVIRONMENT) or _has_config(app)):
        scenario = from_config(app.config(), weather, per_node)
        return scenario, "+".join(scenario.limits)
    chosen = tuple(dict.fromkeys(names)) or ("dcgp",)
    return built_in(chosen, weather), "built-in " + "+".join(chosen)


def _has_config(app: App) -> bool:
    try:
        app.path()
    except ConfigError:
        return False
    return True


@contextmanager
def _progress(app: App, what: str) -> Iterator[Callable[[float], None]]:
    """A bar on standard error where somebody looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    hidden = app.verbosity < 0 or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda part: bar.update(task, completed=part)


def _picture(outcome: Result, jobs: int, days: int, plot: Path | None) -> RenderableType:
    title = f"{outcome.workload}: {jobs} jobs in {days} days, seed {outcome.seed}, on {outcome.controller}"
    hours = table("", ("cores were held for", "core-h", "of all"), ("core-h", "of all"))
    uses = [("good: jobs that complete", outcome.good), ("lost: runs that were killed", outcome.lost)]
    uses += [(_MEANS[use], amount) for use, amount in outcome.idle.items()]
    uses += [("failed: on nodes where pilots fail", outcome.failed), ("[bold]held in all[/bold]", outcome.held)]
    for name, amount in uses:
        hours.add_row(name, f"{amount:,.0f}", f"{amount / outcome.held:.1%}" if outcome.held else "-")
    ramp = f"; 80 % of a burst runs after {outcome.ramp_min:.0f} min" if outcome.ramp_min is not None else ""
    return Lines(
        f"[bold]{escape(title)}[/bold]",
        "",
        hours,
        "",
        f"work: {outcome.work:,.0f} core-h came, {outcome.good:,.0f} served, {outcome.unserved:,.0f} not",
        f"jobs waited {outcome.wait_mean_min:.0f} min on average, "
        f"nine of ten under {outcome.wait_p90_min:.0f} min{ramp}",
        f"pilots: {outcome.submitted} submitted, {outcome.started} started, {outcome.preempted} preempted, "
        f"{outcome.cancelled} cancelled, {outcome.failed_pilots} failed,",
        f"  {outcome.never_used} never used ({outcome.never_used_share:.1%} of the started), "
        f"at most {outcome.peak_pending} pending",
        f"{outcome.cycles} cycles; {outcome.cpu_s:.1f} s of CPU for the whole simulation",
        *([f"plot: {plot}"] if plot is not None else []),
    )


_MEANS = {
    "boot": "idle: pilot boots",
    "unmatched": "idle: joined, no job yet",
    "fragmentation": "idle: jobs wait, none fits here",
    "tail": "idle: nothing waits",
    "drained": "idle: drained",
}


def _replay(recording: Path, as_json: bool) -> int:
    found = replay(recording)
    if as_json:
        print_json({"schema": 1, "cycles": found.cycles, "differences": [asdict(each) for each in found.differences]})
    else:
        for each in found.differences:
            show(lambda each=each: _difference(each), None)  # type: ignore[misc]
        lines = len({each.line for each in found.differences})
        click.echo(f"{found.cycles} cycles decided again: {lines or 'none'} differ{'s' if lines == 1 else ''}")
    return ExitCode.PROBLEM if found.differences else ExitCode.OK


def _difference(each: Difference) -> RenderableType:
    changes = [f"  {what}: {_short(before)} was recorded, now {_short(after)}" for what, before, after in each.changes]
    return Lines(
        f"line {each.line}, {clock(each.when)}, {escape(each.resource)}:",
        *(escape(change) for change in changes),
        *(escape(f"  because: {reason}") for reason in each.reasons),
    )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
