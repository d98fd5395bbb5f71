"""--since and --until, for the commands that look back."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from htcebridge.units import parse_duration


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A time: ISO 8601 in local time unless it says otherwise, or a duration before now. Seconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "now":
            return int(time.time())
        try:
            return int(time.time() - parse_duration(value).total_seconds())
        except ValueError:
            pass
        try:
            return int(datetime.fromisoformat(value).astimezone().timestamp())
        except (ValueError, OverflowError, OSError):
            self.fail(f'{value!r} is no time; write "2026-11-26", "2026-11-26T08:00" or, before now, "7d"', param, ctx)


def period_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The two options; the command gets `since` and `until` in seconds since the epoch, the first before the second."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--since",
            type=Moment(),
            default=default,
            show_default=True,
            metavar="TIME",
            help='From this time: "2026-11-26", "2026-11-26T08:00", or so long before now: "7d".',
        )
        @click.option(
            "--until", type=Moment(), default="now", show_default=True, metavar="TIME", help="Up to this time."
        )
        @functools.wraps(command)
        def checked(*args: Any, since: int, until: int, **kwargs: Any) -> Any:
            if since >= until:
                raise click.UsageError("--since must be before --until")
            return command(*args, since=since, until=until, **kwargs)

        return checked

    return decorate
