"""--since and --until read what people write."""

from __future__ import annotations

import time
from datetime import datetime

import click
import pytest
from click.testing import CliRunner

from htcebridge.cli.period import period_options


@click.command()
@period_options(default="1d")
def shown(since: int, until: int) -> None:
    click.echo(f"{since} {until}")


def read(*arguments: str) -> tuple[int, int]:
    result = CliRunner().invoke(shown, arguments)
    assert result.exit_code == 0, result.output
    since, until = map(int, result.output.split())
    return since, until


def test_a_duration_is_before_now() -> None:
    since, until = read()
    assert abs(until - time.time()) < 60
    assert until - since in (86399, 86400, 86401)
    assert read("--since", "1h30m")[1] - read("--since", "1h30m")[0] in (5399, 5400, 5401)


def test_a_date_is_local_and_an_offset_is_heeded() -> None:
    since, until = read("--since", "2026-11-01", "--until", "2026-11-02T00:00+02:00")
    assert since == datetime(2026, 11, 1).astimezone().timestamp()
    assert until == 1793570400


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday-ish"], "'yesterday-ish' is no time; write"),
        (["--since", "2026-13-01"], "is no time"),
        (["--since", "1h", "--until", "2h"], "--since must be before --until"),
    ],
)
def test_a_bad_time_is_named(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(shown, arguments)
    assert result.exit_code == 2
    assert said in result.output
