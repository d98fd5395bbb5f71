"""What happened: one SQLite file beside the controller's state, written at the end of every cycle.

It is for people and reports only: no decision rests on it, and a cycle that cannot write it goes on and says so. In
WAL mode readers and the controller do not wait for each other, and a kill -9 leaves a good file
(https://www.sqlite.org/wal.html). Cycles, demand and plans are kept whole for `history.detail`, then one in a quarter
of an hour; after `history.keep` all is forgotten.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ExitCode
from htcebridge.history.usage import Use, Used, shared_out
from htcebridge.model import Demand, EndedPilot, Pilot, Plan
from htcebridge.state.memory import Seen

VERSION = 2
# SQLite's application_id: "hceb".
_APPLICATION = 0x68636562
_HOUR_S = 3600
_THINNED_S = 900
# How full each pilot is, for the timeline: looked at so often, each pilot at its own moment, and kept so long.
_BUSY_EVERY_S = 600
_BUSY_KEPT_S = 3 * 86400
# `report` and the controller at the same moment.
_WAIT_S = 5.0

# Times in seconds since the epoch; "used" in core-seconds, by the hour that begins at `hour`. The two long indexes hold
# all that a report over a year asks of pilots, in the order in which it sums it up: 0.6 s instead of 4.
_SCHEMA = """
CREATE TABLE cycles (
  at INTEGER PRIMARY KEY, plan_id TEXT NOT NULL, seconds REAL NOT NULL, held TEXT, silent_schedds INTEGER NOT NULL);
CREATE TABLE demand (
  at INTEGER NOT NULL, vo TEXT NOT NULL, idle_jobs INTEGER NOT NULL, idle_cpus INTEGER NOT NULL,
  running_jobs INTEGER NOT NULL, oldest_s INTEGER NOT NULL, PRIMARY KEY (at, vo)) WITHOUT ROWID;
CREATE TABLE plans (
  at INTEGER NOT NULL, resource TEXT NOT NULL, needed INTEGER NOT NULL, running INTEGER NOT NULL,
  booting INTEGER NOT NULL, pending INTEGER NOT NULL, submit INTEGER NOT NULL, cancel INTEGER NOT NULL,
  drain INTEGER NOT NULL, undrain INTEGER NOT NULL, busy_cpus INTEGER NOT NULL, held_cpus INTEGER NOT NULL,
  reasons TEXT NOT NULL, PRIMARY KEY (at, resource)) WITHOUT ROWID;
CREATE TABLE used (
  hour INTEGER NOT NULL, resource TEXT NOT NULL, vo TEXT NOT NULL, use TEXT NOT NULL, core_s INTEGER NOT NULL,
  PRIMARY KEY (hour, resource, vo, use)) WITHOUT ROWID;
CREATE TABLE core_seconds (
  resource TEXT NOT NULL, vo TEXT NOT NULL, use TEXT NOT NULL, core_s INTEGER NOT NULL,
  PRIMARY KEY (resource, vo, use)) WITHOUT ROWID;
CREATE TABLE pilots (
  id TEXT PRIMARY KEY, resource TEXT NOT NULL, plan_id TEXT NOT NULL, submitted INTEGER, started INTEGER,
  joined INTEGER, ended INTEGER, node TEXT NOT NULL, cpus INTEGER NOT NULL, outcome TEXT, exit_code INTEGER,
  said TEXT, jobs INTEGER, evicted INTEGER, core_s INTEGER, lost_core_s INTEGER) WITHOUT ROWID;
CREATE INDEX pilots_by_end ON pilots (ended);
CREATE INDEX pilots_by_resource ON pilots (resource, outcome, ended, submitted, started, joined, jobs, evicted);
CREATE INDEX pilots_by_node ON pilots (node, ended, outcome, lost_core_s);
CREATE TABLE busy (
  pilot TEXT NOT NULL, at INTEGER NOT NULL, cpus INTEGER NOT NULL, jobs INTEGER NOT NULL,
  PRIMARY KEY (pilot, at)) WITHOUT ROWID;
"""


# What version 1 lacks: the sums of "used" since the history was begun, whatever has been forgotten of it.
_FROM_1_TO_2 = """
CREATE TABLE core_seconds (
  resource TEXT NOT NULL, vo TEXT NOT NULL, use TEXT NOT NULL, core_s INTEGER NOT NULL,
  PRIMARY KEY (resource, vo, use)) WITHOUT ROWID;
INSERT INTO core_seconds SELECT resource, vo, use, sum(core_s) FROM used GROUP BY resource, vo, use;
"""


class HistoryError(BridgeError):
    """The history cannot be read or written; the message says why and what to do."""


class UnusableHistory(HistoryError):
    """It is damaged, from a newer version, or no history at all: a person has to look at it."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Cycle:
    """What one cycle leaves. `at` in seconds since the epoch, `seconds` what it took, `cpus` a pilot's by resource.

    `demand` is None where nothing could be observed. `pilots` are those that changed, `ended` those whose outcome is
    new, each with the cores by VO that were busy when it was last seen.
    """

    at: int
    plan_id: str
    seconds: float
    plan: Plan
    demand: Demand | None = None
    joined: Sequence[Pilot] = ()
    pilots: Mapping[str, Seen] = field(default_factory=dict)
    ended: Sequence[tuple[EndedPilot, Mapping[str, int]]] = ()
    used: Used = field(default_factory=dict)
    since: int = 0
    """When the cycle before was."""
    cpus: Mapping[str, int] = field(default_factory=dict)
    at_least: Used = field(default_factory=dict)
    """Core-seconds of all time that were counted elsewhere before."""


def path_of(config: Config) -> Path:
    """Where the history of this configuration's controller is. Raises ConfigError."""
    if config.history.file:
        return config.history.file.path
    return config.pressure.state_dir.path / f"{config.pressure.instance}.history.sqlite"


def record(path: Path, cycle: Cycle) -> Used:
    """Write one cycle, in one transaction. Raises HistoryError; then nothing of it is in the file.

    Returns the core-seconds since the history was begun.
    """
    with _opened(path, write=True) as database, _transaction(database):
        _write_cycle(database, cycle)
        _write_pilots(database, cycle)
        _write_used(database, cycle)
        rows = database.execute("SELECT resource, vo, use, core_s FROM core_seconds").fetchall()
    return {(resource, vo, Use(use)): core_s for resource, vo, use, core_s in rows if use in set(Use)}


def prune(path: Path, now: int, detail_s: int, keep_s: int) -> None:
    """Thin what is older than `detail_s` seconds, forget what is older than `keep_s`. Raises HistoryError."""
    thin, forget = now - detail_s, now - keep_s
    with _opened(path, write=True) as database, _transaction(database):
        database.execute(
            "DELETE FROM cycles WHERE at < ? AND at NOT IN (SELECT min(at) FROM cycles WHERE at < ? GROUP BY at / ?)",
            (thin, thin, _THINNED_S),
        )
        database.execute("DELETE FROM cycles WHERE at < ?", (forget,))
        for table in ("demand", "plans"):
            database.execute(
                f"DELETE FROM {table} WHERE at < ? AND at NOT IN (SELECT at FROM cycles)",  # noqa: S608  a literal
                (thin,),
            )
        database.execute("DELETE FROM used WHERE hour < ?", (forget,))
        database.execute("DELETE FROM pilots WHERE coalesce(ended, started, submitted) < ?", (forget,))
        database.execute("DELETE FROM busy WHERE at < ?", (now - _BUSY_KEPT_S,))


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The history for queries: one state of it, whatever the controller writes meanwhile. Rows by column name.

    Raises HistoryError, also for an error inside the block.
    """
    if not path.exists():
        raise UnusableHistory(f"{path}: no history yet; `htcebridge pressure once` or `run` writes it")
    with _opened(path, write=False) as database:
        database.row_factory = sqlite3.Row
        database.execute("BEGIN")
        yield database


def _write_cycle(database: sqlite3.Connection, cycle: Cycle) -> None:
    silent = sum(not schedd.ok for schedd in cycle.demand.schedds) if cycle.demand else 0
    database.execute(
        "INSERT OR REPLACE INTO cycles VALUES (?, ?, ?, ?, ?)",
        (cycle.at, cycle.plan_id, round(cycle.seconds, 3), cycle.plan.held, silent),
    )
    if cycle.plan.held is not None:
        return
    database.executemany(
        "INSERT OR REPLACE INTO plans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _plan_rows(cycle)
    )
    if cycle.demand:
        rows = ((cycle.at, vo, *numbers) for vo, numbers in _by_vo(cycle.demand).items())
        database.executemany("INSERT OR REPLACE INTO demand VALUES (?, ?, ?, ?, ?, ?)", rows)


def _plan_rows(cycle: Cycle) -> Iterable[tuple[object, ...]]:
    for name, plan in cycle.plan.resources.items():
        startds = [each.startd for each in cycle.joined if each.job.resource == name and each.startd]
        yield (
            *(cycle.at, name, plan.needed, plan.running, plan.booting, plan.pending, plan.submit),
            *(len(plan.cancel), len(plan.drain), len(plan.undrain)),
            sum(startd.total.cpus - startd.free.cpus for startd in startds),
            (plan.running + plan.booting) * cycle.cpus.get(name, 0),
            json.dumps(plan.reasons),
        )


def _by_vo(demand: Demand) -> dict[str, tuple[int, int, int, int]]:
    """VO -> idle jobs, cores they ask for, running jobs, age of the oldest idle one in seconds."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for group in demand.groups:
        jobs, cores, running, oldest = found.get(group.vo, (0, 0, 0, 0))
        found[group.vo] = (
            jobs + group.idle,
            cores + group.idle * group.shape.cpus,
            running + group.running,
            max(oldest, group.oldest_s if group.idle else 0),
        )
    return found


def _write_pilots(database: sqlite3.Connection, cycle: Cycle) -> None:
    database.executemany(
        "INSERT INTO pilots (id, resource, plan_id, submitted, started, joined, node, cpus)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET submitted = excluded.submitted, started = excluded.started,"
        " joined = excluded.joined, node = excluded.node WHERE outcome IS NULL",
        (
            (id_, each.resource, each.plan_id, each.submitted, each.started, each.joined, each.node, _cpus(cycle, each))
            for id_, each in cycle.pilots.items()
        ),
    )
    database.executemany(
        "INSERT OR REPLACE INTO pilots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(each.id, each.resource, each.plan_id, each.submitted, each.started, each.joined, each.ended),
                *(each.node, _cpus(cycle, each), str(each.outcome), each.exit_code, each.said),
                *(each.jobs, each.evicted, each.core_s, each.lost_core_s),
            )
            for each, _ in cycle.ended
        ),
    )
    # A row only where something has changed since the pilot's last one.
    database.executemany(
        "INSERT OR REPLACE INTO busy SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS"
        " (SELECT 1 FROM (SELECT cpus, jobs FROM busy WHERE pilot = ?1 ORDER BY at DESC LIMIT 1)"
        " WHERE cpus = ?3 AND jobs = ?4)",
        (
            (each.job.id, cycle.at, each.startd.total.cpus - each.startd.free.cpus, each.startd.jobs)
            for each in cycle.joined
            if each.startd and (each.job.id in cycle.pilots or _its_moment(each.job.id, cycle))
        ),
    )


def _its_moment(id_: str, cycle: Cycle) -> bool:
    """Whether a pilot's own moment of every ten minutes has come since the last cycle: never all in one cycle."""
    moment = zlib.crc32(id_.encode()) % _BUSY_EVERY_S
    return (cycle.at - moment) // _BUSY_EVERY_S > (cycle.since - moment) // _BUSY_EVERY_S


def _cpus(cycle: Cycle, each: Seen | EndedPilot) -> int:
    return cycle.cpus.get(each.resource, 0)


def _write_used(database: sqlite3.Connection, cycle: Cycle) -> None:
    rows = [
        (cycle.at // _HOUR_S * _HOUR_S, resource, vo, str(use), core_s)
        for (resource, vo, use), core_s in cycle.used.items()
    ]
    for each, busy_by_vo in cycle.ended:
        hour = each.ended // _HOUR_S * _HOUR_S
        lost = shared_out(each.lost_core_s, busy_by_vo)
        rows += [(hour, each.resource, vo, str(Use.LOST), core_s) for vo, core_s in lost.items()]
    database.executemany(
        "INSERT INTO used VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (hour, resource, vo, use) DO UPDATE SET core_s = core_s + excluded.core_s",
        rows,
    )
    database.executemany(
        "INSERT INTO core_seconds VALUES (?, ?, ?, ?)"
        " ON CONFLICT (resource, vo, use) DO UPDATE SET core_s = max(core_s, excluded.core_s)",
        ((resource, vo, str(use), core_s) for (resource, vo, use), core_s in cycle.at_least.items()),
    )
    database.executemany(
        "INSERT INTO core_seconds VALUES (?, ?, ?, ?)"
        " ON CONFLICT (resource, vo, use) DO UPDATE SET core_s = core_s + excluded.core_s",
        (row[1:] for row in rows),
    )


@contextmanager
def _opened(path: Path, write: bool) -> Iterator[sqlite3.Connection]:
    """A connection to a history of this version; made if it is to be written and is not there. Raises HistoryError."""
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Read only by a pragma, not by mode=ro: in WAL mode a reader may have to make the -shm file.
        connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        with closing(connection) as database:
            begun = _check(path, database)
            if write:
                _prepare(database)
            elif not begun:
                raise UnusableHistory(f"{path}: is empty: no history yet")
            else:
                database.execute("PRAGMA query_only = ON")
            yield database
    except sqlite3.Error as error:
        raise _explained(path, error) from None
    except OSError as error:
        raise HistoryError(f"{path.parent}: cannot be made: {error.strerror}; see history.file") from None


def _check(path: Path, database: sqlite3.Connection) -> bool:
    """Whether anything is in it. Raises UnusableHistory."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    application = database.execute("PRAGMA application_id").fetchone()[0]
    if version > VERSION and application == _APPLICATION:
        raise UnusableHistory(
            f"{path}: written by a newer htcebridge (history version {version}, this one knows {VERSION}); use that "
            "one, or move the file away and a new one is begun"
        )
    empty = not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    if application != _APPLICATION and not empty:
        raise UnusableHistory(f"{path}: is a database of something else; set history.file to another path")
    return not empty


def _prepare(database: sqlite3.Connection) -> None:
    # NORMAL: what is written survives a crash of the controller; a power cut may take the last cycles, never the file.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version < VERSION:
        with _transaction(database):
            for statement in (_FROM_1_TO_2 if version else _SCHEMA).split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has rolled back by itself
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _explained(path: Path, error: sqlite3.Error) -> HistoryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return UnusableHistory(
                f"{path}: is damaged or no history ({error}); move it and its -wal and -shm away, and a new one is "
                "begun (`sqlite3 FILE .recover` saves what can be saved)"
            )
        case sqlite3.SQLITE_FULL:
            return HistoryError(f"{path}: the disk is full; nothing of this is in the history")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return HistoryError(f"{path}: another program has locked it for {_WAIT_S:g} s; close it")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            return HistoryError(f"{path}: cannot be used ({error}); look at its owner, mode and disk")
    return HistoryError(f"{path}: {error}")
