"""How the commands print: tables for people, JSON for programs, a picture that refreshes for --watch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from htcebridge.errors import UnknownState

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, schema 1, for programs.")
watch_option = click.option(
    "--watch", type=click.FloatRange(min=1), metavar="SECONDS", help="Show it again every so many seconds."
)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


def console() -> Console:
    """Standard output; NO_COLOR is honoured by rich, and a pipe gets plain text of 100 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def table(title: str, columns: Sequence[str], numbers: Sequence[str] = (), wraps: Sequence[str] = ()) -> Table:
    """A table with plain borders; columns in `numbers` stand right, those in `wraps` break their text."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in numbers else "left", no_wrap=column not in wraps, overflow="fold"
        )
    return made


def show(draw: Callable[[], RenderableType], watch: float | None) -> None:
    """Print what `draw` returns once, or again and again until Ctrl-C. A source that fails meanwhile is shown."""
    if watch is None:
        console().print(draw())
        return
    from rich.live import Live

    live_console = console()
    with Live(console=live_console, auto_refresh=False, screen=live_console.is_terminal) as live:
        while True:
            try:
                picture = draw()
            except UnknownState as error:
                picture = Group(f"[bold]unknown:[/bold] {error}")
            stamp = f"every {watch:g} s, at {clock(time.time())}; Ctrl-C ends"
            live.update(Group(picture, "", stamp), refresh=True)
            time.sleep(watch)


def clock(seconds: float | None) -> str:
    """A time of today as 14:03:05, another day's with its date, none as a dash."""
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%m-%d %H:%M")
