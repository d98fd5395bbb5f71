"""`htcebridge routes check`: is there a mistake in the route configuration that HTCondor takes without a word?"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json
from htcebridge.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from htcebridge.routes import lint

WIDTH = 100


@click.command()
@click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Another CE root: a directory with a condor_config. Default: /etc/condor-ce.",
)
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE", help="One file of routes on its own, without its CE."
)
@json_option
@click.pass_context
def check(context: click.Context, config_dir: Path | None, file: Path | None, as_json: bool) -> None:
    """Look for mistakes in route configuration that HTCondor takes without a word.

    Reads the CE's effective configuration with HTCondor's own tools, so it sees what overrides what. Nothing is
    changed. Exit code 1 if there is an error; warnings alone are 0.
    """
    from htcebridge.routes import lint
    from htcebridge.routes.ce import CE, CE_CONFIG

    if config_dir and file:
        raise click.UsageError("give --config-dir or --file, not both")
    grants = _grants(context.obj)
    if file:
        _readable(file)
        report = lint.check_file(file, grants)
    else:
        root = config_dir / "condor_config" if config_dir else CE_CONFIG
        if config_dir:
            _readable(root)
        report = lint.check_ce(CE(root), grants)
    if as_json:
        print_json({"schema": 1, "findings": [finding.as_dict() for finding in report.findings]})
    else:
        click.echo(as_text(report))
    context.exit(ExitCode.PROBLEM if report.errors else ExitCode.OK)


def as_text(report: lint.Report) -> str:
    """The findings for a person, in 100 columns; the last line says how much was looked at."""
    blocks = []
    for finding in report.findings:
        head = f"{finding.severity} {finding.code} {finding.name}"
        place = (
            f"{head}  {finding.where}" if len(head) + len(finding.where) + 2 <= WIDTH else f"{head}\n{finding.where}"
        )
        blocks.append("\n".join([place, _wrapped(finding.message, ""), _wrapped(finding.fix, "Fix: "), ""]))
    warnings = len(report.findings) - report.errors
    found = f"{_count(report.errors, 'error')}, {_count(warnings, 'warning')}" if report.findings else "no finding"
    looked = f"{_count(report.routes, 'route')} and {_count(report.transforms, 'transform')} looked at"
    return "\n".join([*blocks, f"{found}; {looked}"])


def _wrapped(text: str, label: str) -> str:
    return textwrap.fill(
        label + text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _grants(app: App) -> tuple[str, ...]:
    """The attributes that htcebridge.toml grants; without one, its defaults."""
    from htcebridge.routes.lint import GRANTS

    try:
        app.path()
    except ConfigError:
        if app.config_path:
            raise
        return GRANTS
    grant = app.config().grant
    return (grant.attribute, grant.vo_attribute)
