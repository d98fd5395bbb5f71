"""The pilots' logs in `shared_dir`/logs: how a pilot itself says that it ended, and how long its log is kept.

`conclude` in slurm_scripts/job-functions.sh writes the line; exit_codes.py lists the codes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from htcebridge.errors import BridgeError, UnknownState

# Slurm puts NO_VAL, 2**32 - 2, for %a where a job is no array task (24.11, 26.05).
_NO_TASK = "4294967294"
# A failed pilot's logs stand before its last line; slurmstepd may add lines of its own after it.
_TAIL_BYTES = 16 * 1024
_LINE = re.compile(
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d htcebridge-outcome "
    r"code=(?P<code>\d{1,3}) joined=(?P<joined>yes|no) jobs=(?P<jobs>\d{1,9})"
    r"( evicted=(?P<evicted>\d{1,9}) core_s=(?P<core_s>\d{1,12}) lost_core_s=(?P<lost_core_s>\d{1,12}))?"
    r" reason=(?P<reason>.*)$",
    re.MULTILINE | re.ASCII,
)

_LOG = re.compile(r"\d+_\d+\.out", re.ASCII)
# A failed pilot's log is evidence: it is kept so many times as long.
_FAILED_KEPT = 4
# A pilot that just ended: nobody may have read its outcome yet.
_FRESH_S = 3600


@dataclass(frozen=True)
class OutcomeLine:
    """A pilot's own account of its end.

    `code` is its exit code. `joined`: the collector has shown it, or a job has come to it. `jobs` is how many jobs its
    startd has started, `evicted` how many of them ran when it had to leave. `core_s` are the core-seconds of all its
    jobs, `lost_core_s` those of the evicted. A pilot with a site's own executor says none of it: no, and 0.
    """

    code: int
    joined: bool
    jobs: int
    reason: str
    evicted: int = 0
    core_s: int = 0
    lost_core_s: int = 0


def parse_outcome(text: str) -> OutcomeLine | None:
    """The last outcome line in the end of a pilot's log; None if there is none, as in the log of a killed pilot."""
    lines = list(_LINE.finditer(text))
    if not lines:
        return None
    found = lines[-1]
    return OutcomeLine(
        code=int(found["code"]),
        joined=found["joined"] == "yes",
        jobs=int(found["jobs"]),
        reason=found["reason"].strip(),
        evicted=int(found["evicted"] or 0),
        core_s=int(found["core_s"] or 0),
        lost_core_s=int(found["lost_core_s"] or 0),
    )


def read_outcome(shared_dir: Path, pilot_id: str) -> OutcomeLine | None:
    """The outcome line of this pilot; None if it has no log or no such line. Raises UnknownState."""
    path = log_path(shared_dir, pilot_id)
    try:
        return parse_outcome(_end_of(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnknownState(f"{path}: cannot be read: {error.strerror}") from None


def log_path(shared_dir: Path, pilot_id: str) -> Path:
    """Where Slurm writes the log of a pilot (--output=.../%A_%a.out): "123_4", or "123" for a job that is no array."""
    job, _, task = pilot_id.partition("_")
    return shared_dir / "logs" / f"{job}_{task or _NO_TASK}.out"


def prune_logs(
    shared_dir: Path,
    keep_days: float,
    keep_bytes: int,
    live_ids: Collection[str] = (),
    now: float | None = None,
) -> tuple[Path, ...]:
    """Remove old logs; returns which. Raises UnknownState, BridgeError.

    Logs of good pilots go after `keep_days`, those of failed or killed ones after four times as long. If more than
    `keep_bytes` is left, the oldest good ones go first, then the oldest failed ones. Logs of live pilots and of the
    last hour stay. It reads the end of every log that is old enough to go: something for once an hour or a day.
    """
    now = time.time() if now is None else now
    live = {log_path(shared_dir, pilot_id).name for pilot_id in live_ids}
    logs = _logs(shared_dir)
    old = [log for log in logs if log.path.name not in live and now - log.written > _FRESH_S]
    expired = [log for log in old if _expired(log, (now - log.written) / 86400, keep_days)]
    gone = {log.path for log in expired}
    kept = [log for log in old if log.path not in gone]
    surplus = sum(log.size for log in logs) - sum(log.size for log in expired) - keep_bytes
    removed = list(_removed(expired))
    for log in chain((log for log in kept if not log.failed), (log for log in kept if log.failed)):
        if surplus <= 0:
            break
        surplus -= log.size
        removed += _removed([log])
    return tuple(removed)


@dataclass(frozen=True)
class _Log:
    """A log as the directory shows it; `written` in seconds since the epoch."""

    path: Path
    written: float
    size: int

    @cached_property
    def failed(self) -> bool:
        """Also where there is no outcome line: that pilot was killed."""
        with suppress(OSError):
            outcome = parse_outcome(_end_of(self.path))
            return outcome is None or outcome.code != 0
        return True


def _expired(log: _Log, age_days: float, keep_days: float) -> bool:
    return age_days > keep_days and (age_days > keep_days * _FAILED_KEPT or not log.failed)


def _logs(shared_dir: Path) -> list[_Log]:
    """Oldest first."""
    found = []
    try:
        with os.scandir(shared_dir / "logs") as entries:
            for entry in entries:
                if _LOG.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append(_Log(Path(entry.path), status.st_mtime, status.st_size))
    except OSError as error:
        raise UnknownState(f"{shared_dir / 'logs'}: cannot be read: {error.strerror}") from None
    return sorted(found, key=lambda log: log.written)


def _removed(logs: Iterable[_Log]) -> Iterator[Path]:
    for log in logs:
        try:
            log.path.unlink(missing_ok=True)
        except OSError as error:
            raise BridgeError(f"{log.path}: the old log cannot be removed: {error.strerror}") from None
        yield log.path


def _end_of(path: Path) -> str:
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _TAIL_BYTES))
        return log.read(_TAIL_BYTES).decode("utf-8", errors="replace")
