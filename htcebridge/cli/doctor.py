"""`htcebridge doctor`: is everything in place, here and now?"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from htcebridge import __version__
from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json, show
from htcebridge.config import file
from htcebridge.doctor import checks as doctor_checks
from htcebridge.doctor.checks import Check, Finding, Status, finding
from htcebridge.errors import ConfigError
from htcebridge.units import plural

if TYPE_CHECKING:
    from htcebridge.config.tables import Config

_STYLES = {Status.OK: "green", Status.SKIP: "dim", Status.WARN: "yellow", Status.FAIL: "bold red"}
# Read at a glance without colour, too.
_WORDS = {Status.OK: "ok", Status.SKIP: "-", Status.WARN: "WARN", Status.FAIL: "FAIL"}


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one daemon, command or file system may take to answer.",
)
@click.option(
    "--from-node",
    is_flag=True,
    help="Also try the shared directories from a node: one Slurm job of a minute for each resource.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long such a job may wait for a node; then it is cancelled.",
)
@click.option(
    "--routes-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Compare the routes there, such as a copy of the CE's /etc/condor-ce/config.d, with the configuration.",
)
@click.option("--unit", "units", multiple=True, metavar="NAME", help="The systemd unit, if you named it otherwise.")
@json_option
@click.pass_obj
def command(
    app: App,
    timeout: float,
    from_node: bool,
    deadline: float,
    routes_dir: Path | None,
    units: Sequence[str],
    as_json: bool,
) -> int:
    """Check everything that this controller needs, and say how to mend what is wrong. Changes nothing.

    All checks run side by side. A line is ok, WARN or FAIL; "-" was not checked, and says what that takes.

    Exit code 0: no FAIL. 1: something has failed. 2: the configuration cannot be used; the rest is checked as far as
    it goes.
    """
    now = time.time()
    path, config, first = _configuration(app)
    checks = [] if config is None else _checks(config, now, timeout, from_node, deadline, routes_dir, units)
    findings = [*first, *_versions(), *_run(checks, quiet=app.verbosity < 0)]
    if as_json:
        print_json(as_document(path, config, findings, now))
    else:
        show(lambda: _picture(findings), None)
    return doctor_checks.exit_code(findings)


def _configuration(app: App) -> tuple[Path | None, Config | None, list[Finding]]:
    """The file, what of it can be used, and the finding about it."""
    try:
        path = app.path()
    except ConfigError as error:
        return None, None, [Finding("config", "", Status.FAIL, str(error), "htcebridge config init")]
    try:
        config = app.config()
    except ConfigError as error:
        saved = file.salvage(path)
        rest = f"; checked without {', '.join(saved.left_out)}" if saved.config else "; nothing else can be checked"
        said = f"{error}{rest}"
        return (
            path,
            saved.config,
            [Finding("config", "", Status.FAIL, said, f"edit {path}; then: htcebridge config check")],
        )
    resources = ", ".join(config.resources) or "none"
    said = f"{path}: VOs {', '.join(vo.name for vo in config.vos) or 'none'}; resources {resources}"
    return path, config, [finding("config", "", said)]


def _checks(
    config: Config,
    now: float,
    timeout: float,
    from_node: bool,
    deadline: float,
    routes_dir: Path | None,
    units: Sequence[str],
) -> list[Check]:
    from htcebridge.doctor import files, routes, site, tier1

    checks = routes.checks(config, routes_dir, timeout)
    if routes.is_ces_admin():
        said = "not checked: root on a CE; tokens, pool, Slurm, directories and cycles are the edge node's"
        return [
            *checks,
            Check("edge", "", lambda: Finding("edge", "", Status.SKIP, said, "run it there, too"), timeout),
        ]
    checks = [*tier1.checks(config, now, timeout), *checks]
    if config.resources:
        checks += [*site.checks(config, now, timeout, units), *files.checks(config, now, timeout)]
    if from_node:
        checks += [files.from_node(config, name, deadline) for name in config.resources]
    return checks


def _versions() -> list[Finding]:
    bindings = metadata.version("htcondor")
    python = ".".join(map(str, sys.version_info[:3]))
    return [finding("versions", "here", f"htcebridge {__version__}, Python {python}, HTCondor's bindings {bindings}")]


def _run(checks: Sequence[Check], quiet: bool) -> list[Finding]:
    """The checks, with what is still under way shown on a terminal."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    waiting = Counter(check.name for check in checks)
    err = Console(stderr=True, highlight=False)
    progress = Progress(
        SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=err, transient=True
    )
    with progress if err.is_terminal and not quiet else nullcontext():
        task = progress.add_task(" ".join(waiting), total=len(checks))

        def ended(check: Check) -> None:
            waiting[check.name] -= 1
            left = [name for name, count in waiting.items() if count]
            progress.update(task, advance=1, description=" ".join(left))

        return doctor_checks.run(checks, ended)


def as_document(path: Path | None, config: Config | None, findings: Sequence[Finding], now: float) -> dict[str, Any]:
    """`doctor --json`, schema 1 (docs/schema/doctor.json)."""
    counts = Counter(each.status for each in findings)
    return {
        "schema": 1,
        "time": int(now),
        "config": str(path) if path else None,
        "instance": config.pressure.instance if config else None,
        "exit_code": int(doctor_checks.exit_code(findings)),
        "checks": [
            {"check": each.check, "about": each.about, "status": each.status.value, "said": each.said, "fix": each.fix}
            for each in findings
        ],
        "totals": {status.value: counts[status] for status in Status},
    }


def _picture(findings: Sequence[Finding]) -> RenderableType:
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for each in findings:
        style = _STYLES[each.status]
        what = f"[bold]{escape(each.about)}[/bold]: " if each.about else ""
        lines.add_row(f"[{style}]{_WORDS[each.status]}[/]", each.check, what + escape(each.said))
        if each.fix and each.status is not Status.OK:
            lines.add_row("", "", f"[dim]->[/dim] {escape(each.fix)}")
    counts = Counter(each.status for each in findings)
    total = (
        f"{plural(len(findings), 'check')}: {counts[Status.OK]} ok, {plural(counts[Status.WARN], 'warning')}, "
        f"{counts[Status.FAIL]} failed, {counts[Status.SKIP]} not checked"
    )
    return Group(lines, "", total)
