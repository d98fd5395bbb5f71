"""The history survives what happens to files, and never loses or doubles what it was given."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from htcebridge.history import store
from htcebridge.history.store import Cycle, HistoryError, UnusableHistory
from htcebridge.history.usage import Use
from htcebridge.model import (
    Demand,
    EndedPilot,
    Group,
    Outcome,
    Pilot,
    PilotPhase,
    Plan,
    ResourcePlan,
    ScheddAnswer,
    Shape,
    SlurmJob,
    Startd,
)
from htcebridge.state.memory import Seen

NOW = 1_800_000_000
PLAN = Plan({"dcgp": ResourcePlan(3, 1, 1, 1, submit=1, reasons=("1 new node for 4 more jobs",))})
DEMAND = Demand(
    (
        Group(Shape(8, 16000), 3600, "a", "cms", 4, 2, 600, ("dcgp",)),
        Group(Shape(1, 2000), 3600, "b", "cms", 2, 0, 60, ("dcgp",)),
    ),
    (ScheddAnswer("ce01", 0.1), ScheddAnswer("ce02", 20.0, "no answer")),
)
STARTD = Startd("9_1", "s", "m", Shape(112, 494000), Shape(96, 400000), 2, NOW + 9999, True, False, {"cms": 16})
JOB = SlurmJob("9_1", "dcgp", "p1", "RUNNING", "None", "p", "q", "a", "n1", NOW - 99, NOW - 90, NOW + 9999, 43200)
SEEN = Seen("dcgp", "p1", NOW - 99, NOW - 90, NOW - 30, "n1")
ENDED = EndedPilot(
    "9_1", "dcgp", "p1", Outcome.PREEMPTED, NOW - 99, NOW - 90, NOW + 600, NOW - 30, "n1", 0, "", False, 5, 2, 9000, 900
)


def cycle(at: int = NOW, **changes: object) -> Cycle:
    made = Cycle(
        at=at,
        plan_id=f"plan{at}",
        seconds=0.5,
        plan=PLAN,
        demand=DEMAND,
        joined=[Pilot(JOB, PilotPhase.JOINED, STARTD)],
        pilots={"9_1": SEEN},
        used={("dcgp", "cms", Use.BUSY): 960, ("dcgp", "", Use.TAIL): 5760},
        cpus={"dcgp": 112},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "leonardo.history.sqlite"


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with store.reading(path) as database:
        return [tuple(row) for row in database.execute(query)]


def test_a_cycle_is_kept_whole(path: Path) -> None:
    store.record(path, cycle())
    store.record(path, cycle(NOW + 60, since=NOW, ended=[(ENDED, {"cms": 12, "atlas": 4})], pilots={}))
    assert rows(path, "SELECT * FROM cycles") == [
        (NOW, f"plan{NOW}", 0.5, None, 1),
        (NOW + 60, f"plan{NOW + 60}", 0.5, None, 1),
    ]
    assert rows(path, "SELECT * FROM demand WHERE at = (SELECT min(at) FROM demand)") == [(NOW, "cms", 6, 34, 2, 600)]
    assert rows(path, "SELECT needed, busy_cpus, held_cpus, reasons FROM plans")[0] == (
        *(3, 16, 224),
        '["1 new node for 4 more jobs"]',
    )
    assert rows(path, "SELECT vo, use, sum(core_s) FROM used GROUP BY vo, use ORDER BY vo, use") == [
        ("", "tail", 11520),
        ("atlas", "lost", 225),
        ("cms", "busy", 1920),
        ("cms", "lost", 675),
    ]
    assert rows(path, "SELECT outcome, ended, cpus, jobs, lost_core_s FROM pilots") == [
        ("preempted", NOW + 600, 112, 5, 900)
    ]
    assert rows(path, "SELECT * FROM busy") == [("9_1", NOW, 16, 2)], "unchanged"


def test_a_pilot_is_looked_at_when_it_joins_and_then_every_ten_minutes(path: Path) -> None:
    for minute in range(40):
        startd = replace(STARTD, free=Shape(96 - minute, 400000))
        seen = cycle(NOW + 60 * minute, joined=[Pilot(JOB, PilotPhase.JOINED, startd)], since=NOW + 60 * minute - 60)
        store.record(path, seen if minute == 0 else replace(seen, pilots={}))
    first, *others = (at for (at,) in rows(path, "SELECT at FROM busy"))
    assert first == NOW
    assert len(others) == 4
    assert {later - at for at, later in pairwise(others)} == {600}  # type: ignore[operator]


def test_an_end_is_not_overwritten_by_an_old_listing(path: Path) -> None:
    store.record(path, cycle(ended=[(ENDED, {})]))
    store.record(path, cycle(NOW + 60, pilots={"9_1": replace(SEEN, node="n2")}))
    assert rows(path, "SELECT outcome, node FROM pilots") == [("preempted", "n1")]


def test_a_held_cycle_leaves_its_reason_and_no_zeros(path: Path) -> None:
    store.record(path, cycle(plan=Plan({"dcgp": ResourcePlan(0, 0, 0, 0)}, held="squeue: no answer"), demand=None))
    assert rows(path, "SELECT held FROM cycles") == [("squeue: no answer",)]
    assert rows(path, "SELECT count(*) FROM plans") == [(0,)]


def test_old_cycles_are_thinned_and_older_ones_forgotten(path: Path) -> None:
    start = NOW - NOW % 900
    for minute in range(60):
        store.record(path, cycle(start + 60 * minute))
    store.prune(path, start + 3600, detail_s=1800, keep_s=10**8)
    kept = [at for (at,) in rows(path, "SELECT at FROM cycles")]
    assert kept == [start, start + 900, *(start + 60 * minute for minute in range(30, 60))]
    assert [at for (at,) in rows(path, "SELECT DISTINCT at FROM plans")] == kept
    assert [at for (at,) in rows(path, "SELECT DISTINCT at FROM demand")] == kept
    store.prune(path, start + 3600 + 900, detail_s=900, keep_s=900)
    assert rows(path, "SELECT count(*) FROM cycles") == [(0,)]


def test_a_writer_that_is_killed_leaves_whole_cycles(path: Path) -> None:
    """kill -9 in the middle of writing, ten times: every cycle is there whole or not at all, in an intact file."""
    writer = f"""
import itertools, sys
from pathlib import Path
from htcebridge.history import store
from tests.unit.history.test_store import cycle
for at in itertools.count({NOW}):
    store.record(Path(sys.argv[1]), cycle(at))
    print(at, flush=True)
"""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(20):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        assert rows(path, "SELECT max(at) FROM cycles")[0][0] >= last  # type: ignore[operator]
        odd = (
            "SELECT count(*) FROM cycles LEFT JOIN plans USING (at) LEFT JOIN demand USING (at) WHERE resource IS NULL"
        )
        assert rows(path, odd + " OR vo IS NULL") == [(0,)]


def test_a_history_of_the_version_before_is_carried_over(path: Path) -> None:
    store.record(path, cycle())
    with closing(sqlite3.connect(path)) as database:
        (counted,) = database.execute("SELECT sum(core_s) FROM core_seconds").fetchone()
        database.execute("DROP TABLE core_seconds")
        database.execute("PRAGMA user_version = 1")
        database.commit()
    core_s = store.record(path, cycle(NOW + 60, used={}, pilots={}))
    assert sum(core_s.values()) == counted > 0
    assert rows(path, "PRAGMA user_version") == [(2,)]


def test_core_seconds_are_counted_on_when_old_hours_are_forgotten(path: Path) -> None:
    first = store.record(path, cycle())
    store.prune(path, NOW + 10**9, 3600, 7200)
    assert rows(path, "SELECT count(*) FROM used") == [(0,)]
    assert store.record(path, cycle(NOW + 10**9, used={}, pilots={})) == first


def test_a_newer_history_is_left_alone(path: Path) -> None:
    store.record(path, cycle())
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    for use in (lambda: store.record(path, cycle(NOW + 1)), lambda: rows(path, "SELECT 1")):
        with pytest.raises(UnusableHistory, match=r"newer htcebridge \(history version 7, this one knows 2\)"):
            use()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM cycles").fetchone() == (1,)


@pytest.mark.parametrize("damage", ["text", "middle", "another"])
def test_what_is_no_history_is_named_and_left_alone(path: Path, damage: str) -> None:
    store.record(path, cycle())
    if damage == "text":
        path.write_text("This is no database, whatever its name says. " * 50)
    elif damage == "middle":
        for at in range(NOW, NOW + 300):
            store.record(path, cycle(at))
        content = bytearray(path.read_bytes())
        content[4096:-4096] = b"\xa5" * (len(content) - 8192)
        path.write_bytes(content)
    else:
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE something (else_)")
    before = path.read_bytes()
    with pytest.raises(UnusableHistory, match=r"sqlite: (is damaged|is a database of something else)"):
        store.record(path, cycle(NOW + 1))
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(HistoryError, match="cannot be used"):
        store.record(path, cycle())
    with pytest.raises(HistoryError, match="cannot be made"):
        store.record(Path("/proc/none/history"), cycle())


def test_no_history_yet_is_a_sentence(path: Path) -> None:
    with pytest.raises(HistoryError, match="no history yet"):
        rows(path, "SELECT 1")
    assert not path.exists()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(UnusableHistory, match="is empty: no history yet"):
        rows(path, "SELECT 1")


def record_for_ever(path: Path) -> None:
    for at in itertools.count(NOW):
        store.record(path, cycle(at))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_the_file_stays_good(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
    try:
        path = disk / "history.sqlite"
        with pytest.raises(HistoryError, match=r"disk is full|cannot be used"):
            record_for_ever(path)
        saved = tmp_path / "saved"
        shutil.copytree(disk, saved)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert rows(saved / "history.sqlite", "PRAGMA integrity_check") == [("ok",)]
    assert rows(saved / "history.sqlite", "SELECT count(*) > 10 FROM cycles") == [(1,)]


def test_a_reader_does_not_wait_for_the_writer(path: Path) -> None:
    store.record(path, cycle())
    with store.reading(path) as database:
        store.record(path, cycle(NOW + 60))
        assert database.execute("SELECT count(*) FROM cycles").fetchone()[0] in (1, 2)
        first = database.execute("SELECT count(*) FROM cycles").fetchone()[0]
        store.record(path, cycle(NOW + 120))
        assert database.execute("SELECT count(*) FROM cycles").fetchone()[0] == first, "one state of it"
