"""Where the testbed keeps things on this machine, and the locks that say who uses them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ETC = HERE / "etc"
RUN_BASE = Path("/run/htcebridge-testbed")


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/htcebridge`: root directories and wheels, kept between beds."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "htcebridge"
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_dir(name: str) -> Path:
    """State of one running bed. A few small files: what its hosts write stays in their private tmpfs."""
    return RUN_BASE / name


def try_lock(path: Path, shared: bool = False) -> int | None:
    """An open file descriptor that holds the lock on `path`, or None if somebody else has it.

    The lock lives as long as any copy of the descriptor, so a process that inherits it keeps it, and kill -9 frees it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the exclusive lock on `path` and hold it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
