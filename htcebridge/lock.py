"""Keeps a second controller of the same instance out, and carries the little that one cycle hands to the next."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from htcebridge.errors import ConfigError, LockHeld
from htcebridge.pilot import expand

if TYPE_CHECKING:
    from htcebridge.config import Config

log = logging.getLogger("htcebridge")


@dataclass(frozen=True)
class Memory:
    """What one cycle hands to the next. All else is in Slurm and in the collector.

    `surplus`: resource -> cycles with pending pilots too many. `schedds`: name -> when the collector last knew it
    (seconds since the epoch), because a schedd that stops takes its ad away, and is unknown then, not empty.
    """

    surplus: dict[str, int] = field(default_factory=dict)
    schedds: dict[str, int] = field(default_factory=dict)


class ControllerLock:
    """Held while a controller works. The kernel lets go of it when its last holder is gone, kill -9 included.

    sbatch inherits `file`: a controller killed while Slurm is still taking a submission leaves the lock to sbatch,
    so no other cycle can look at Slurm before that submission shows there.
    """

    file: IO[str]

    def __init__(self, config: Config) -> None:
        directory = expand(config.pressure.state_dir, "pressure.state_dir")
        self._path = directory / f"{config.pressure.instance}.lock"
        self._memory = _memory_file(config)

    def __enter__(self) -> ControllerLock:
        """Take the lock. Raises LockHeld that says who has it, ConfigError where it cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}; set pressure.state_dir") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "somebody who has not said who"
            self.file.close()
            raise LockHeld(f"another controller of this instance is at work: {holder} (lock {self._path})") from None
        self.file.truncate(0)
        self.file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self.file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.truncate(0)
        self.file.close()

    def remember(self, memory: Memory) -> None:
        """Keep what the next cycle wants to know. A disk that is full only makes it forget."""
        temporary = self._memory.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(asdict(memory)), encoding="utf-8")
            temporary.replace(self._memory)
        except OSError as error:
            log.warning("%s: cannot be written (%s): the next cycle starts without it", self._memory, error.strerror)


def recall(config: Config) -> Memory:
    """What the last cycle left. A lost or damaged file only makes surplus count anew and silent schedds unknown."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError):
        known = json.loads(_memory_file(config).read_text(encoding="utf-8"))
        return Memory(
            surplus={str(name): int(count) for name, count in known["surplus"].items()},
            schedds={str(name): int(seen) for name, seen in known["schedds"].items()},
        )
    return Memory()


def _memory_file(config: Config) -> Path:
    return expand(config.pressure.state_dir, "pressure.state_dir") / f"{config.pressure.instance}.json"
