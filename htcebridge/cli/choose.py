"""`--sort` and `--filter` of the commands that list: by the keys of their JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import click

Row = Mapping[str, Any]
Thing = TypeVar("Thing")
Command = TypeVar("Command", bound=Callable[..., Any])
_FILTER = re.compile(r"(?P<key>\w+)\s*(?P<how>=|!=|>=|<=|>|<)\s*(?P<value>.*)")


def list_options(command: Command) -> Command:
    """--filter, --sort and --reverse."""
    for option in (
        click.option("--reverse", is_flag=True, help="The other way round."),
        click.option(
            "--sort", metavar="KEY", help="Order by a key of the JSON: numbers from the largest down, text from A to Z."
        ),
        click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="KEY=VALUE",
            help="Only rows with this value of a key of the JSON; * stands for any text. Numbers also with >, <, >=, "
            "<=; != for all others. Several must all hold. Totals are of what is shown.",
        ),
    ):
        command = option(command)
    return command


def chosen(
    things: Sequence[Thing],
    row: Callable[[Thing], Row],
    keys: Sequence[str],
    filters: Sequence[str],
    sort: str | None,
    reverse: bool,
) -> list[Thing]:
    """Those that the filters let through, in order. Raises click.UsageError for a key that is none of `keys`."""
    tests = [_test(text, keys) for text in filters]
    kept = [thing for thing in things if all(test(row(thing)) for test in tests)]
    if sort is not None:
        _known(sort, keys)
        values = {id(thing): row(thing)[sort] for thing in kept}
        numbers = all(isinstance(value, (int, float)) or value is None for value in values.values())
        # None, such as the jobs of a pilot that has not joined, stands last either way.
        without = [thing for thing in kept if values[id(thing)] is None]
        kept = [thing for thing in kept if values[id(thing)] is not None]
        kept.sort(key=lambda thing: values[id(thing)] if numbers else _text(values[id(thing)]), reverse=numbers)
        return (kept[::-1] if reverse else kept) + without
    return kept[::-1] if reverse else kept


def _known(key: str, keys: Sequence[str]) -> None:
    if key not in keys:
        raise click.UsageError(f"no key {key!r} here; there are: {', '.join(keys)}")


def _test(text: str, keys: Sequence[str]) -> Callable[[Row], bool]:
    found = _FILTER.fullmatch(text)
    if not found:
        raise click.UsageError(f"--filter {text!r}: write KEY=VALUE, or KEY>NUMBER; keys: {', '.join(keys)}")
    key, how, value = found["key"], found["how"], found["value"]
    _known(key, keys)
    if how in ("=", "!="):
        return lambda row: _matches(row[key], value) is (how == "=")
    try:
        number = float(value)
    except ValueError:
        raise click.UsageError(f"--filter {text!r}: {value!r} is no number") from None
    compare: dict[str, Callable[[float], bool]] = {
        ">": lambda have: have > number,
        "<": lambda have: have < number,
        ">=": lambda have: have >= number,
        "<=": lambda have: have <= number,
    }
    return lambda row: isinstance(row[key], (int, float)) and compare[how](row[key])


def _matches(value: object, pattern: str) -> bool:
    """A list matches if one of its elements does, an empty one as an empty text."""
    values = list(value) if isinstance(value, (list, dict)) else [value]
    return any(fnmatchcase(_text(each), pattern.lower()) for each in values or [""])


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value).lower()
