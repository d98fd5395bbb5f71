"""`htcebridge report` over a year of 50 pilots an hour, against the same command over a day of it; and its page.

Whole commands, each a fresh process: wall time and CPU seconds of it. The day is what the command costs anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import made_history

ROUNDS = 5
_FORMS = ("table", "json", "html")


def run() -> Iterator[str]:
    """Make the histories, measure, give the lines of the tables."""
    now = int(time.time()) // 3600 * 3600
    with tempfile.TemporaryDirectory(prefix="htcebridge-bench-") as directory:
        year, month = Path(directory) / "year", Path(directory) / "month"
        pilots = made_history.make(year, 365, now)
        yield f"a year: {pilots:,} pilots, {_megabytes(year)} MB of history; medians of {ROUNDS} runs"
        day = _times(year, "1d", "table")
        yield f"  {'a day of it, table':<24}{day[0]:6.2f} s  CPU {day[1]:5.2f} s"
        for form in _FORMS:
            took = _times(year, "365d", form)
            ratio = f"ratio {took[0] / day[0]:5.2f}  CPU {took[1] / day[1]:5.2f}"
            yield f"  {'the year, ' + form:<24}{took[0]:6.2f} s  CPU {took[1]:5.2f} s  {ratio}"
        pilots = made_history.make(month, 30, now)
        page = len(_report(month, "30d", "html"))
        yield f"a month: {pilots:,} pilots, {_megabytes(month)} MB of history, a page of {page / 1e6:.2f} MB"


def _times(path: Path, since: str, form: str) -> tuple[float, float]:
    found = [_time(path, since, form) for _ in range(ROUNDS)]
    return median(wall for wall, _ in found), median(cpu for _, cpu in found)


def _time(path: Path, since: str, form: str) -> tuple[float, float]:
    before, began = os.times(), time.monotonic()
    _report(path, since, form)
    wall, after = time.monotonic() - began, os.times()
    return wall, (after.children_user - before.children_user) + (after.children_system - before.children_system)


def _report(path: Path, since: str, form: str) -> bytes:
    command = [sys.executable, "-m", "htcebridge", "report", "--history", str(path), "--since", since, "--format", form]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f}"
