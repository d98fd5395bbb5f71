"""How the commands print: tables for people, JSON for programs, a picture that refreshes for --watch.

A table fits the terminal, or 100 columns in a pipe: it leaves out columns that can be missed, and says which. What
colour says stands there as a word, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from htcebridge.errors import BridgeError, UnknownState
from htcebridge.units import format_duration

Command = TypeVar("Command", bound=Callable[..., Any])

WIDTH = 100
_GAP = 2

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, schema 1, for programs.")
watch_option = click.option(
    "--watch", type=click.FloatRange(min=1), metavar="SECONDS", help="Show it again every so many seconds."
)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


def write_file(path: Path, text: str) -> None:
    """All of it or nothing: whoever has the old file open never sees half of a new one. Raises BridgeError."""
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise BridgeError(f"{path}: cannot be written: {error.strerror}") from None


def console() -> Console:
    """Standard output; NO_COLOR is honoured by rich, and a pipe gets plain text of 100 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def table(title: str, columns: Sequence[str], numbers: Sequence[str] = (), wraps: Sequence[str] = ()) -> Table:
    """A table with plain borders; columns in `numbers` stand right, those in `wraps` break their text."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in numbers else "left", no_wrap=column not in wraps, overflow="fold"
        )
    return made


@dataclass(frozen=True)
class Column:
    """A column of a `Listing`. One that `wraps` may become so many characters narrow; 0: it stays whole. Those with the
    highest `spare` are left out first where there is no room; 0: never."""

    name: str
    number: bool = False
    wraps: int = 0
    spare: int = 0


@dataclass
class Listing:
    """A table of many rows. Cells are a text and its style, taken as they are: no markup. `most` rows are shown."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[tuple[str, str]]]
    most: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = list(range(len(self.columns)))
        for number in sorted(kept, key=lambda number: -self.columns[number].spare):
            if not self.columns[number].spare or sum(self._least(kept)) <= options.max_width - _GAP * (len(kept) - 1):
                break
            kept.remove(number)
        made = table("", ())
        for number, width in zip(kept, self._widths(kept, options.max_width), strict=True):
            column = self.columns[number]
            # In a window that is too narrow for all that, too, nothing is cut off: a number without its end is another.
            made.add_column(column.name, justify="right" if column.number else "left", overflow="fold", width=width)
        shown = self.rows if self.most is None else self.rows[: self.most]
        for row in shown:
            made.add_row(*(Text(*row[number]) for number in kept))
        yield Text(self.title, style="bold")
        yield made
        if len(shown) < len(self.rows):
            yield Text(f"... and {len(self.rows) - len(shown)} more: make the window higher, or use --filter")
        if len(kept) < len(self.columns):
            names = ", ".join(each.name for number, each in enumerate(self.columns) if number not in kept)
            yield Text(f"No room for: {names}", style="dim")

    def _natural(self, number: int) -> int:
        return max([cell_len(self.columns[number].name), *(cell_len(row[number][0]) for row in self.rows)])

    def _least(self, kept: Sequence[int]) -> list[int]:
        """How narrow these columns may become."""
        least = [(self._natural(number), self.columns[number].wraps) for number in kept]
        return [min(natural, wraps) if wraps else natural for natural, wraps in least]

    def _widths(self, kept: Sequence[int], room: int) -> list[int]:
        """The least that each column needs; what is left goes to those that would have to wrap."""
        widths = self._least(kept)
        left = room - _GAP * (len(kept) - 1) - sum(widths)
        while left > 0:
            wants = [max(0, self._natural(number) - width) for number, width in zip(kept, widths, strict=True)]
            if not any(wants):
                break
            # The one that lacks least first: it is the one that can be satisfied.
            index = min((index for index, want in enumerate(wants) if want), key=wants.__getitem__)
            given = min(left, wants[index])
            widths[index] += given
            left -= given
        return widths


@dataclass(frozen=True)
class Note:
    """A sentence below a table, taken as it is, that goes on further right where it does not fit the line."""

    text: str
    style: str = ""
    indent: int = 2

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        hanging = self.indent + 2
        lines = Text(self.text, style=self.style).wrap(console, max(20, options.max_width - hanging))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text(" " * (hanging if number else self.indent)).append_text(line)


def notes(texts: Iterable[str], most: int, style: str = "") -> list[Note]:
    """The first `most` of these, and how many more there are."""
    texts = list(texts)
    more = [Note(f"... and {len(texts) - most} more: --json has them all")] if len(texts) > most else []
    return [*(Note(text, style) for text in texts[:most]), *more]


def show(draw: Callable[[], RenderableType], watch: float | None) -> None:
    """Print what `draw` returns once, or again and again until Ctrl-C. A source that fails meanwhile is shown."""
    shown = console()
    if watch is None:
        _print(shown, draw())
        return
    if not shown.is_terminal:
        while True:
            _print(shown, _drawn(draw, watch))
            sys.stdout.flush()
            time.sleep(watch)
    from rich.live import Live

    # The alternate screen is written over in place and never cleared: that is what does not flicker.
    with Live(console=shown, auto_refresh=False, screen=True) as live:
        while True:
            picture = _drawn(draw, watch)
            _cut_to_height(picture, shown)
            live.update(picture, refresh=True)
            time.sleep(watch)


def _print(shown: Console, picture: RenderableType) -> None:
    """A pipe gets no blanks at the ends of lines."""
    if shown.is_terminal:
        shown.print(picture)
        return
    with shown.capture() as capture:
        shown.print(picture)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _drawn(draw: Callable[[], RenderableType], watch: float) -> Group:
    """One picture of --watch, under a line that says from when it is: below a long list it would not be seen."""
    try:
        picture = draw()
    except UnknownState as error:
        picture = Note(f"unknown: {error}", "bold", indent=0)
    return Group(Text(f"every {watch:g} s, at {clock(time.time())}; Ctrl-C ends", style="dim"), Text(), picture)


def _cut_to_height(picture: Group, shown: Console) -> None:
    """Leave rows out of the lists until what stands below them is seen."""
    for listing in _listings(picture):
        while (over := len(shown.render_lines(picture, pad=False)) - shown.height) > 0:
            rows = len(listing.rows) if listing.most is None else listing.most
            if rows <= 1:
                break
            # The line that says so takes one as well; a row may take several.
            listing.most = max(1, rows - max(1, over // 4 if listing.most else over + 1))


def _listings(picture: RenderableType) -> Iterator[Listing]:
    if isinstance(picture, Listing):
        yield picture
    elif isinstance(picture, Group):
        for each in picture.renderables:
            yield from _listings(each)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Say on standard error what is waited for, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True, highlight=False).status(what):
        yield


def clock(seconds: float | None) -> str:
    """A time of today as 14:03:05, another day's with its date, none as a dash."""
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%m-%d %H:%M")


def brief(seconds: float) -> str:
    """A duration in its two largest units at most: "47s", "12m", "9h47m", "2d3h"."""
    for unit_s in (86400, 3600, 60):
        if seconds >= unit_s:
            grain_s = {86400: 3600, 3600: 60, 60: 60}[unit_s]
            return format_duration(seconds // grain_s * grain_s)
    return format_duration(max(0, seconds))


def counted(counts: Iterable[tuple[str, int]]) -> str:
    """ "3 joined, 1 pending", without what there is none of."""
    return ", ".join(f"{count} {name}" for name, count in counts if count)
