"""Keeps a second controller of the same instance out, and carries the little that one cycle hands to the next."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING

from htcebridge.errors import ConfigError, LockHeld
from htcebridge.pilot import expand

if TYPE_CHECKING:
    from htcebridge.config import Config

log = logging.getLogger("htcebridge")


class ControllerLock:
    """Held while a controller works. The kernel lets go of it when its last holder is gone, kill -9 included.

    sbatch inherits `file`: a controller killed while Slurm is still taking a submission leaves the lock to sbatch,
    so no other cycle can look at Slurm before that submission shows there.
    """

    file: IO[str]

    def __init__(self, config: Config) -> None:
        directory = expand(config.pressure.state_dir, "pressure.state_dir")
        self._path = directory / f"{config.pressure.instance}.lock"
        self._memory = directory / f"{config.pressure.instance}.json"

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

    @property
    def surplus(self) -> dict[str, int]:
        """Cycles of surplus per resource, from the last cycle. A lost or damaged file only starts the count again."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads(self._memory.read_text(encoding="utf-8"))
            return {str(name): int(count) for name, count in known["surplus"].items()}
        return {}

    @surplus.setter
    def surplus(self, counts: dict[str, int]) -> None:
        temporary = self._memory.with_suffix(".new")
        try:
            temporary.write_text(json.dumps({"surplus": counts}), encoding="utf-8")
            temporary.replace(self._memory)
        except OSError as error:
            log.warning("%s: cannot be written (%s): surplus pilots wait longer", self._memory, error.strerror)
