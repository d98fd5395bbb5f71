"""`htcebridge explain`: why one job does or does not go to the HPC."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from htcebridge.cli import App
from htcebridge.cli.output import json_option, print_json
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.routes import explain, jobad
from htcebridge.routes.ce import CE, CE_CONFIG
from htcebridge.routes.explain import Explanation, Step

WIDTH = 100
_WORDS = {True: "yes", False: "no", None: "-"}


@click.command()
@click.argument("job", metavar="JOB_ID|JOBAD")
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
def command(app: App, job: str, ce_config: Path, as_json: bool) -> int:
    """Show why a job does or does not go to the HPC, clause by clause, in the order in which things happen.

    JOB_ID is a job of the CE's queue, JOBAD a file with one job ad. The CE's present configuration decides, with the
    routes that are installed in it.

    Exit code 1 if the job does not go there.
    """
    config = app.config()
    ce = CE(ce_config)
    routed = None
    if re.fullmatch(r"\d+(\.\d+)?", job):
        ad, routed = explain.find(ce, job)
    else:
        ads = jobad.read_files([Path(job)])
        if len(ads) != 1:
            raise ConfigError(f"{job}: {len(ads)} job ads in it; give a file with one")
        ad = ads[0]
    found = explain.explain(ce, config, ad, routed)
    if as_json:
        print_json(as_document(found))
    else:
        for filled in ad.filled:
            click.echo(f"The ad has no {filled.partition(' ')[0]}; explained with {filled}.")
        for step in found.steps:
            click.echo("\n".join(_lines(step)))
        click.echo()
        click.echo("\n".join(textwrap.wrap(found.sentence, WIDTH, break_on_hyphens=False)))
    return ExitCode.OK if found.goes else ExitCode.PROBLEM


def as_document(found: Explanation) -> dict[str, Any]:
    """`explain --json`, schema 1."""
    return {
        "schema": 1,
        "job": found.job,
        "goes": found.goes,
        "resources": list(found.resources),
        "sentence": found.sentence,
        "steps": [
            {
                "step": step.title,
                "ok": step.ok,
                "note": step.note,
                "clauses": [{"clause": clause.text, "value": clause.value} for clause in step.clauses],
            }
            for step in found.steps
        ],
    }


def _lines(step: Step) -> Iterator[str]:
    yield from _wrapped(f"{_WORDS[step.ok]:<4}", step.title + (f": {step.note}" if step.note else ""))
    for clause in step.clauses:
        yield from _wrapped(f"      {clause.value:<10} ", clause.text)


def _wrapped(head: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, WIDTH - len(head), break_on_hyphens=False) or [""]
    yield head + lines[0]
    yield from (" " * len(head) + line for line in lines[1:])
