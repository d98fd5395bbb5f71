from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import UnknownState
from htcebridge.pilot.logs import OutcomeLine, log_path, parse_outcome, prune_logs, read_outcome

DAY_S = 86400
GOOD = "2026-11-22T19:41:42 htcebridge-outcome code=0 joined=yes jobs=4 reason=drained (stop)\n"
FAILED = "2026-11-22T19:41:42 htcebridge-outcome code=31 joined=no jobs=0 reason=never seen\n"
Log = Callable[..., Path]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    (tmp_path / "logs").mkdir()

    def write(name: str, text: str = GOOD, days: float = 0.0) -> Path:
        path = tmp_path / "logs" / name
        path.write_text(text)
        then = time.time() - days * DAY_S
        os.utime(path, (then, then))
        return path

    return write


# --------------------------------------------------------------------------- the outcome line


def test_the_last_line_is_the_outcome() -> None:
    assert parse_outcome("2026-11-22T19:40:11 pilot 5_1 on lrdn0001: resource dcgp\n" + GOOD) == OutcomeLine(
        0, True, 4, "drained (stop)"
    )


def test_what_it_lost_is_read_where_it_is_said() -> None:
    said = GOOD.replace("jobs=4", "jobs=4 evicted=2 core_s=900 lost_core_s=300")
    assert parse_outcome(said) == OutcomeLine(0, True, 4, "drained (stop)", 2, 900, 300)


def test_what_slurm_adds_below_it_does_not_hide_it() -> None:
    added = "slurmstepd: error: *** JOB 5 ON lrdn0001 CANCELLED AT 2026-11-22T19:41:43 DUE TO PREEMPTION ***\n"
    assert parse_outcome(FAILED + added) == OutcomeLine(31, False, 0, "never seen")


def test_of_two_lines_the_last_counts() -> None:
    assert parse_outcome(GOOD + FAILED) == parse_outcome(FAILED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22T19:40:11 pilot 5_1 on lrdn0001: resource dcgp\n",
        "11/22/26 19:38:18 StartLog: htcebridge-outcome code=0 joined=yes jobs=1 reason=forged\n",
        "x " + GOOD,
        GOOD.replace("yes", "maybe"),
        GOOD.replace("code=0", "code="),
        GOOD.replace("jobs=4", "jobs=-4"),
        GOOD[:70],
        GOOD.replace("code=0 ", "code=0 reason=idle "),
    ],
)
def test_no_such_line_is_no_outcome(text: str) -> None:
    assert parse_outcome(text) is None


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_outcome(text)
    said = parse_outcome(text + "\n" + GOOD + text)
    assert said is not None


def test_the_log_of_a_job_that_is_no_array_task_is_found(tmp_path: Path, log: Log) -> None:
    assert log_path(tmp_path, "123_4").name == "123_4.out"
    log("7_4294967294.out")
    assert read_outcome(tmp_path, "7") == OutcomeLine(0, True, 4, "drained (stop)")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, log: Log) -> None:
    log("1_1.out", "é" * 500_000 + "\n" + FAILED)
    assert read_outcome(tmp_path, "1_1") == OutcomeLine(31, False, 0, "never seen")
    log("1_2.out", GOOD + "é" * 500_000)
    assert read_outcome(tmp_path, "1_2") is None


def test_no_log_is_no_outcome_and_an_unreadable_one_is_unknown(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_outcome(tmp_path, "1_1") is None

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(UnknownState, match=r"1_1\.out: cannot be read"):
        read_outcome(tmp_path, "1_1")


# --------------------------------------------------------------------------- pruning


def test_good_logs_go_after_their_time_and_failed_ones_after_four_times_as_long(tmp_path: Path, log: Log) -> None:
    log("1_1.out", GOOD, days=9)
    old = log("1_2.out", GOOD, days=11)
    log("1_3.out", FAILED, days=39)
    failed = log("1_4.out", FAILED, days=41)
    log("1_5.out", "killed", days=39)
    killed = log("1_6.out", "killed", days=41)
    assert set(prune_logs(tmp_path, keep_days=10, keep_bytes=10**6)) == {old, failed, killed}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"1_1.out", "1_3.out", "1_5.out"}


def test_over_the_limit_the_oldest_good_logs_go_first_and_then_the_oldest_failed_ones(tmp_path: Path, log: Log) -> None:
    size = len(GOOD)
    paths = [
        log("1_1.out", FAILED.ljust(size), days=5),
        log("1_2.out", GOOD, days=4),
        log("1_3.out", FAILED.ljust(size), days=3),
        log("1_4.out", GOOD, days=2),
    ]
    by_removal = [paths[1], paths[3], paths[0], paths[2]]
    sizes = [path.stat().st_size for path in by_removal]
    total = sum(sizes)
    assert prune_logs(tmp_path, 100, total) == ()
    assert prune_logs(tmp_path, 100, total - 1) == (by_removal[0],)
    assert prune_logs(tmp_path, 100, sizes[3]) == (by_removal[1], by_removal[2])


def test_what_expired_counts_towards_the_limit(tmp_path: Path, log: Log) -> None:
    old, young = log("1_1.out", GOOD, days=11), log("1_2.out", GOOD, days=1)
    assert prune_logs(tmp_path, 10, young.stat().st_size) == (old,)


def test_logs_of_live_pilots_and_of_the_last_hour_stay(tmp_path: Path, log: Log) -> None:
    log("1_1.out", GOOD, days=99)
    log("2_4294967294.out", "pilot 2 on lrdn0001", days=99)
    log("1_2.out", GOOD, days=0.02)
    assert prune_logs(tmp_path, 10, 0, live_ids={"1_1", "2"}) == ()


def test_files_that_no_pilot_wrote_stay(tmp_path: Path, log: Log) -> None:
    for name in ("notes.out", "1_1.out.bak", "1_1", "%A_%a.out", ".1_1.out"):
        log(name, GOOD, days=99)
    assert prune_logs(tmp_path, 1, 0) == ()


def test_a_missing_directory_of_logs_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownState, match="logs: cannot be read"):
        prune_logs(tmp_path, 1, 0)
