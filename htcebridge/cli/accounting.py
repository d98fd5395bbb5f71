"""`htcebridge accounting`: usage records of what ran on the HPC, for the site's accounting."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from htcebridge.cli import App
from htcebridge.cli.output import write_file
from htcebridge.cli.period import period_options
from htcebridge.errors import BridgeError, ExitCode
from htcebridge.report import accounting
from htcebridge.report.accounting import JobRecord, PilotRecord
from htcebridge.units import plural


@click.group()
def command() -> None:
    """Usage records of what ran on the HPC: per job, per pilot.

    For APEL, AUDITOR or another pipeline, so that this work is not published as the Tier-1's own hardware.
    """


_form_option = click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with a header.",
)
_output_option = click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to FILE, whole or not at all. Default: standard output.",
)


@command.command()
@period_options(default="1d")
@_form_option
@_output_option
@click.pass_obj
def jobs(app: App, since: int, until: int, form: str, output: Path | None) -> int:
    """One record for each job whose last run was in a pilot, from the schedds' histories.

    Exit code 1 if a schedd did not answer, 75 if none did: the records are not complete then, and no FILE is written.
    """
    found = accounting.jobs(app.config(), since, until)
    for name, why in found.silent.items():
        click.echo(f"htcebridge: schedd {name}: {why}; its jobs are missing", err=True)
    if found.silent and output is not None:
        raise BridgeError(f"{output}: not written: the records are not complete; ask again when every schedd answers")
    _write(found.records, JobRecord, form, output)
    return ExitCode.PROBLEM if found.silent else ExitCode.OK


@command.command()
@period_options(default="1d")
@_form_option
@_output_option
@click.pass_obj
def pilots(app: App, since: int, until: int, form: str, output: Path | None) -> int:
    """One record for each ended pilot that had a node, from this controller's history."""
    _write(accounting.pilots(app.config(), since, until), PilotRecord, form, output)
    return ExitCode.OK


def _write(records: Sequence[Any], kind: type[Any], form: str, output: Path | None) -> None:
    text = _FORMS[form](records, [field.name for field in fields(kind)])
    if output is None:
        click.echo(text, nl=False)
        if not records:
            click.echo("htcebridge: no record in this period", err=True)
        return
    write_file(output, text)
    click.echo(f"{output}: {plural(len(records), 'record')}", err=True)


def _json_lines(records: Sequence[Any], names: Sequence[str]) -> str:
    return "".join(json.dumps({"schema": accounting.SCHEMA, **asdict(record)}) + "\n" for record in records)


def _csv(records: Sequence[Any], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return text.getvalue()


_FORMS: dict[str, Callable[[Sequence[Any], Sequence[str]], str]] = {"jsonl": _json_lines, "csv": _csv}
