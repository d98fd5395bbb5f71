"""The JobRouterLog: which route table the running router has, when it took it, and how many jobs each route has.

It is the only place that says so: the router's ad in the collector carries no route (HTCondor 23.9, 25.14). After every
reconfig, changed or not, the router writes each route's text ("route X converted to :") and then the order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import BridgeError

# Between the time and the text stand what D_PID, D_CATEGORY and others add.
_STAMP = r"(?P<stamp>\d\d/\d\d/\d\d \d\d:\d\d:\d\d)?.*?\b"
_ORDER = re.compile(_STAMP + r"Routes will be matched in this order: (?P<order>.*)$")
_CONVERTED = re.compile(_STAMP + r"route (?P<name>\S+) converted to ?:$")
_COUNTS = re.compile(r"(?P<name>\S+) +\S+ +(?P<jobs>\d+)/ *(?P<max_jobs>-?\d+) +(?P<idle>\d+)/ *(?P<max_idle>-?\d+) ")
_BAD = re.compile(
    r"\bERROR\b|is not valid|CONFIGURATION ERROR|not found|disabled|dropping route|Routes will be matched|EXCEPT"
)
# 25.13.2 and later write these for every job that is routed well.
_NOISE = re.compile(r"ERROR in (transform|route) \S+ ?:$")
# Of a table that the router will not have. A job that it can't route makes it write ERROR too.
_REFUSES = re.compile(r'ERROR: JOB_ROUTER_\w+ not found|CONFIGURATION ERROR|\bis disabled|ERROR "|EXCEPT')


@dataclass(frozen=True)
class Table:
    """A route table that a router took: when (seconds since the epoch, None if not said), the order, each text."""

    time: float | None
    order: tuple[str, ...]
    texts: Mapping[str, str]

    def agrees(self, wanted: Table, routes: Sequence[str]) -> bool:
        """Whether each of `routes` is in it if it is wanted, and then with the same text, and the order is the same.

        Another route may be in one of them only: knobs with the prefix JOB_ROUTER. are the daemon's alone.
        """
        common = set(self.order) & set(wanted.order)
        return [name for name in self.order if name in common] == [
            name for name in wanted.order if name in common
        ] and all(
            (name in self.order) == (name in wanted.order) and self.texts.get(name) == wanted.texts.get(name)
            for name in routes
        )


@dataclass(frozen=True)
class Count:
    """The jobs that a route has now, and its limits. Held ones and those just claimed count as idle."""

    jobs: int
    max_jobs: int
    idle: int
    max_idle: int


@dataclass(frozen=True)
class Mark:
    """A place in a log that grows: the file, by its inode, and how far it was written."""

    inode: int
    size: int


def mark(log: Path) -> Mark:
    """The end of the log as it is now. A log that is not there yet will be new from its beginning."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return Mark(0, 0)
    except OSError as error:
        raise BridgeError(f"{log}: cannot be read: {error.strerror}") from None
    return Mark(found.st_ino, found.st_size)


def since(log: Path, start: Mark) -> str:
    """What was written after the mark, over one rotation (HTCondor renames a full log to .old)."""
    now = mark(log)
    if now.inode == start.inode and now.size >= start.size:
        return _read(log, start.size)
    old = log.with_name(log.name + ".old")
    before = _read(old, start.size) if start.inode and mark(old).inode == start.inode else ""
    return before + _read(log, 0)


def whole(log: Path) -> str:
    """All that there is of the log, the rotated one first. Raises BridgeError if it cannot be read."""
    return _read(log.with_name(log.name + ".old"), 0) + _read(log, 0)


def parse_tables(text: str) -> list[Table]:
    """Every route table in a JobRouterLog or in what condor_job_router_info says, oldest first."""
    tables: list[Table] = []
    texts: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if converted := _CONVERTED.match(line):
            name = converted["name"]
            texts[name] = ""
        elif name and line.startswith("\t"):
            texts[name] += line.strip() + "\n"
        elif order := _ORDER.match(line):
            names = tuple(part.strip() for part in order["order"].split(",") if part.strip())
            tables.append(Table(_seconds(order["stamp"]), names, {key: texts[key] for key in names if key in texts}))
            texts, name = {}, ""
        else:
            name = ""
    return tables


def parse_counts(text: str) -> dict[str, Count]:
    """Route -> its jobs, from the last complete "routing table is:" of a JobRouterLog."""
    for block in reversed(text.split("Checking for candidate jobs. routing table is:\n")[1:]):
        lines = block.splitlines()[1:]  # without the header
        counts: dict[str, Count] = {}
        for line in lines:
            row = _COUNTS.match(line)
            if row is None:
                break
            counts[row["name"]] = Count(int(row["jobs"]), int(row["max_jobs"]), int(row["idle"]), int(row["max_idle"]))
        if counts:
            return counts
    return {}


def refuses(text: str) -> bool:
    """Whether the router says that it cannot have the routes that it was given."""
    return _REFUSES.search(text) is not None


def complaints(text: str, most: int = 12) -> list[str]:
    """The lines that tell why a table was not taken, the newest last."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if _BAD.search(line) and not _NOISE.search(line)][-most:]


def _read(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BridgeError(f"{path}: cannot be read: {error.strerror}") from None


def _seconds(stamp: str | None) -> float | None:
    with suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(stamp or "", "%m/%d/%y %H:%M:%S"))
    return None
