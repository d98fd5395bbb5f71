"""Configuration files as text: which line says what. HTCondor reads them; this only finds the place again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HERE = re.compile(r"\s*([\w.$]+)\s*@=\s*(\S+)\s*$")
_SET = re.compile(r"\s*([\w.$]+)\s*:?=\s*(.*)$", re.DOTALL)
_IF = re.compile(r"\s*if\b", re.IGNORECASE)
_ENDIF = re.compile(r"\s*endif\b", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """A logical line: comments and blank lines left out, continuation lines joined; `number` is its first one's."""

    number: int
    last: int
    text: str


@dataclass(frozen=True)
class Assignment:
    """NAME = VALUE, or NAME @=tag ... @tag. `conditional`: inside an if, so it may not be in force."""

    name: str
    lines: tuple[Line, ...]
    first: int
    last: int
    conditional: bool = False

    @property
    def value(self) -> str:
        return "\n".join(line.text for line in self.lines)


@dataclass
class Files:
    """The configuration files, each read once. What can't be read, as the output of a script, is empty."""

    _texts: dict[str, str] = field(default_factory=dict)
    _assignments: dict[str, tuple[Assignment, ...]] = field(default_factory=dict)

    def text(self, path: str) -> str:
        if path not in self._texts:
            try:
                self._texts[path] = Path(path).read_text(encoding="utf-8", errors="replace")
            except (OSError, ValueError):
                self._texts[path] = ""
        return self._texts[path]

    def assignments(self, path: str) -> tuple[Assignment, ...]:
        if path not in self._assignments:
            self._assignments[path] = tuple(assignments(self.text(path)))
        return self._assignments[path]


def logical_lines(text: str, first: int = 1) -> Iterator[Line]:
    """Lines that end with a backslash are one with the next."""
    held, start = "", 0
    for number, raw in enumerate(text.splitlines(), first):
        line = raw.strip()
        if not held and (not line or line.startswith("#")):
            continue
        start = start if held else number
        if line.endswith("\\"):
            held += line[:-1] + " "
        else:
            yield Line(start, number, " ".join((held + line).split()) if held else line)
            held = ""
    if held.strip():
        yield Line(start, first + text.count("\n"), held.strip())


def assignments(text: str) -> Iterator[Assignment]:
    """Every setting of a configuration file, in its order."""
    depth, here, tag, body_start = 0, "", "", 0
    physical = text.splitlines()
    skip_until = 0
    for line in logical_lines(text):
        if line.number <= skip_until:
            continue
        opened = _HERE.match(line.text)
        if opened:
            here, tag, body_start = opened[1], f"@{opened[2]}", line.last
            end = next((n for n in range(body_start, len(physical)) if physical[n].strip() == tag), len(physical))
            body = tuple(logical_lines("\n".join(physical[body_start:end]), body_start + 1))
            skip_until = min(end + 1, len(physical))
            yield Assignment(here, body, line.number, skip_until, depth > 0)
        elif _IF.match(line.text):
            depth += 1
        elif _ENDIF.match(line.text):
            depth = max(0, depth - 1)
        elif setting := _SET.match(line.text):
            value = Line(line.number, line.last, setting[2])
            yield Assignment(setting[1], (value,), line.number, line.last, depth > 0)
