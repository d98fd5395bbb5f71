"""Finds, reads and explains htcebridge.toml. Every mistake is named with its line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htcebridge import trusted
from htcebridge.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from htcebridge.config.tables import Config
    from htcebridge.config.types import Table

ENVIRONMENT = "HTCEBRIDGE_CONFIG"
PLACES = ("~/.config/htcebridge/htcebridge.toml", "/etc/htcebridge/htcebridge.toml")


def find(given: str | None) -> Path:
    """The config file to use: the one given, $HTCEBRIDGE_CONFIG, or the first of the usual places.

    Raises ConfigError where there is none.
    """
    for source, path in (("--config", given), (f"${ENVIRONMENT}", os.environ.get(ENVIRONMENT))):
        if path:
            expanded = Path(os.path.expanduser(path))
            if not expanded.is_file():
                raise ConfigError(f"{path}: no such file (named by {source})")
            return expanded
    for place in PLACES:
        if Path(place).expanduser().is_file():
            return Path(place).expanduser()
    raise ConfigError(
        f"no configuration: looked in --config, ${ENVIRONMENT}, {', '.join(PLACES)}; "
        "write one with: htcebridge config init"
    )


def load(path: Path) -> Config:
    """Read and validate a configuration file. Raises ConfigError that lists every mistake, with lines, or says that
    others can change it."""
    from pydantic import ValidationError

    from htcebridge.config.tables import Config

    try:
        text = path.read_text(encoding="utf-8")
        trusted.check_file(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        mistakes = {_explain(path, text, raw, mistake) for mistake in error.errors()}
        raise ConfigError("\n".join(sorted(mistakes, key=_by_line))) from None


@dataclass(frozen=True)
class Salvage:
    """What of a broken file can be used. `left_out`: the keys and tables that were dropped for it."""

    config: Config | None
    left_out: tuple[str, ...]


def salvage(path: Path) -> Salvage:
    """What remains of a configuration without its mistakes; config is None if nothing does. For looking only: a
    controller never works with it.

    An unknown key is left out alone, any other mistake with the table that it stands in.
    """
    from pydantic import ValidationError

    from htcebridge.config.tables import Config

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return Salvage(None, ())
    left_out: list[str] = []
    while True:
        try:
            return Salvage(Config.model_validate(raw), tuple(left_out))
        except ValidationError as error:
            mistake = error.errors()[0]
        location = _written_location(raw, mistake["loc"])
        gone = location if mistake["type"] == "extra_forbidden" else location[:2]
        if gone[:1] == ("pilot",) and mistake["type"] != "extra_forbidden":
            raw.pop("resource", None)  # they inherit what is broken
        if not gone or not _drop(raw, gone):
            return Salvage(None, tuple(left_out))
        left_out.append(".".join(map(str, gone)))


def _drop(raw: Any, location: Sequence[int | str]) -> bool:
    """Take a key or table out of what was read; false if it is not there."""
    for part in location[:-1]:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return False
    try:
        del raw[location[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _by_line(message: str) -> tuple[int, str]:
    found = re.search(r":(\d+): ", message)
    return (int(found[1]) if found else 0, message)


def _explain(path: Path, text: str, raw: dict[str, Any], mistake: ErrorDetails) -> str:
    location = _written_location(raw, mistake["loc"])
    key = ".".join(str(part) for part in location)
    line = line_of(text, location)
    where = f"{path}:{line}" if line else str(path)
    if mistake["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{_nearest(location)}"
    if mistake["type"] == "missing":
        table = ".".join(str(part) for part in location[:-1])
        inside = f"[{table}]" if table else "the file"
        return f"{where}: {inside} lacks {location[-1]}{_meaning(location)}"
    message = mistake["msg"].removeprefix("Value error, ")
    return f"{where}: {key + ': ' if key else ''}{message}"


def _written_location(raw: dict[str, Any], location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where the admin wrote a value: a resource's inherited pilot setting stands in [pilot]."""
    if len(location) >= 3 and location[0] == "resource":
        own = raw.get("resource", {}).get(location[1], {})
        if location[2] not in own and isinstance(raw.get("pilot"), dict) and location[2] in raw["pilot"]:
            return ("pilot", *location[2:])
    return tuple(location)


def _table_fields(location: Sequence[int | str]) -> dict[str, str]:
    """Key -> description of the table that a location is in."""
    from htcebridge.config.tables import Config
    from htcebridge.config.types import table_in

    model: type[Table] = Config
    for part in location[:-1]:
        field = next((f for name, f in model.model_fields.items() if part in (f.alias, name)), None)
        model = (table_in(field.annotation) or model) if field else model
    return {field.alias or name: field.description or "" for name, field in model.model_fields.items()}


def _nearest(location: Sequence[int | str]) -> str:
    known = list(_table_fields(location))
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _meaning(location: Sequence[int | str]) -> str:
    description = _table_fields(location).get(str(location[-1]), "")
    return f" ({description.rstrip('.')})" if description else ""


def line_of(text: str, location: Sequence[int | str]) -> int | None:
    """The line, from 1, on which a key (or else its table) is written; None if nowhere.

    Knows the forms that people write: [table], [[array]], key = value and dotted keys.
    """
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line)
        key = re.match(r"""\s*([\w.'"-]+(?:\s*\.\s*[\w'"-]+)*)\s*=""", line)
        if header:
            table = _parts(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
            path = _with_index(table, counts)
        elif key:
            path = (*_with_index(table, counts), *_parts(key[1]))
        else:
            continue
        wanted = tuple(str(part) for part in location)
        depth = len(path)
        if path == wanted[:depth] and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _with_index(table: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    return (*table, str(counts[table])) if table in counts else table
