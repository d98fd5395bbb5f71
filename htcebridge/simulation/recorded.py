"""A recorded workload: one job a line, CSV with a header or JSON lines.

Columns: `submitted` (seconds since the epoch, or any origin), `cpus`, `memory_mb`, `runtime_s`; and, where known,
`walltime_s` (else the runtime), `gpus`, `disk_mb`, `owner`, `vo`. Other columns are ignored, and so is what
condor_history prints as "undefined"; docs/performance.md has the command.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from htcebridge.errors import ConfigError
from htcebridge.model import Shape
from htcebridge.simulation.workload import DAY_S, Job

_NEEDED = ("submitted", "cpus", "memory_mb", "runtime_s")


def read(path: Path) -> list[Job]:
    """The jobs of a file, first one on the day on which the simulation begins. Raises ConfigError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a workload: {error}") from None
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    jobs = [_job(path, line, row) for line, row in rows]
    if not jobs:
        raise ConfigError(f"{path}: no job in it")
    # Times of day are kept: a burst at 8 h in the file comes at 8 h.
    origin = min(job.submitted_s for job in jobs) // DAY_S * DAY_S
    shifted = [
        Job(job.submitted_s - origin, job.shape, job.runtime_s, job.walltime_s, job.owner, job.vo) for job in jobs
    ]
    return sorted(shifted, key=lambda job: job.submitted_s)


def days(jobs: list[Job]) -> int:
    """How many days these jobs come in, at least one."""
    return max(1, -(-(jobs[-1].submitted_s + 1) // DAY_S))


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: not a JSON object")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(f"{path}:1: the header lacks {', '.join(missing)}")
    for row in reader:
        yield reader.line_num, row


def _job(path: Path, line: int, row: Mapping[str, object]) -> Job:
    def number(name: str, default: int | None = None, least: int = 0) -> int:
        value = row.get(name)
        if value in (None, "", "undefined"):
            if default is None:
                raise ConfigError(f"{path}:{line}: {name} is missing")
            return default
        try:
            found = int(float(str(value)))
        except (ValueError, OverflowError):
            raise ConfigError(f"{path}:{line}: {name} is {value!r}, not a number") from None
        if found < least:
            raise ConfigError(f"{path}:{line}: {name} is {value}, under {least}")
        return found

    runtime_s = number("runtime_s", least=1)
    return Job(
        submitted_s=number("submitted"),
        shape=Shape(
            number("cpus", least=1),
            number("memory_mb", least=1),
            number("gpus", default=0),
            number("disk_mb", default=0),
        ),
        runtime_s=runtime_s,
        walltime_s=number("walltime_s", default=runtime_s, least=1),
        owner=str(row.get("owner") or "unknown"),
        vo=str(row.get("vo") or ""),
    )
