"""How the controller logs: one event a line, its facts as key=value or as a JSON object.

The id of a plan stands under `plan` in every line that belongs to it, in the history and in its pilots' Slurm comment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from htcebridge.errors import ConfigError

_log = logging.getLogger("htcebridge")
# syslog(3); sd-daemon(3) has them in front of a line.
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def event(what: str, level: int = logging.INFO, **facts: object) -> None:
    """Log that something happened, or was decided, with its facts."""
    _log.log(level, what, extra={"facts": facts})


def setup(path: Path | None, form: str, verbosity: int) -> None:
    """Log to a file, or to standard error; `form` is "text" or "json", `verbosity` counts -v up and -q down.

    Raises ConfigError for a file that cannot be written.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG if verbosity > 0 else logging.ERROR)
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = WatchedFileHandler(path, encoding="utf-8")  # it follows a rotation from outside
        except OSError as error:
            raise ConfigError(f"log.file: {path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(_Json() if form == "json" else _Text(path is None and _to_journal()))
    _log.handlers[:] = [handler]
    _log.setLevel(level)


def _to_journal() -> bool:
    """Whether standard error is the journal, which has its own clock (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = getattr(record, "facts", {})
    return facts


class _Text(logging.Formatter):
    def __init__(self, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s")
        self._journal = journal

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        record.message = " ".join([record.message, *(f"{key}={_word(value)}" for key, value in _facts(record).items())])
        line = super().formatMessage(record).replace("\n", " ")
        return f"<{_PRIORITY.get(record.levelname, 6)}>{line}" if self._journal else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _word(value: object) -> str:
    """A value that reads as one word: in quotes, as JSON has them, where it would not."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = str(value)
    return text if text and all(33 <= ord(each) < 127 and each not in '"=' for each in text) else json.dumps(text)
