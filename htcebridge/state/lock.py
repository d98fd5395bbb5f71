"""Keeps a second controller of the same instance out, on this host and on any other that shares `state_dir`.

Two layers. flock: the kernel lets go of it when its last holder is gone, kill -9 included, but some shared file
systems keep it to one host (Lustre mounted with localflock) or refuse it. An owner record beside it, taken with
link(2), which is atomic on all of them: it names host and process, is renewed every cycle, and counts as dead when
its process is (on this host) or when it was not renewed for a lease (on another). Whoever removes a dead one holds a
record of its own meanwhile, and looks again once it has that: two that find the same owner dead do not both get it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError, LockHeld, UnknownState

# A controller on another host that was not heard of for so long, or five intervals if that is longer, is dead.
_LEASE_S = 600


@dataclass(frozen=True)
class Owner:
    """Who holds the lock. `born` is the process's start time in clock ticks since boot: pids are used again."""

    host: str
    pid: int
    born: str
    boot: str
    since: float
    renewed: float

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


class ControllerLock:
    """Held while a controller works.

    sbatch inherits `file`: a controller killed while Slurm is still taking a submission leaves the lock to sbatch,
    so no other cycle can look at Slurm before that submission shows there.
    """

    file: IO[str]

    def __init__(self, config: Config) -> None:
        directory = config.pressure.state_dir.path
        self._path = directory / f"{config.pressure.instance}.lock"
        self._record = directory / f"{config.pressure.instance}.owner"
        self._lease_s = max(_LEASE_S, 5 * config.pressure.cycle_s)
        self._me: Owner | None = None

    def __enter__(self) -> ControllerLock:
        """Take the lock. Raises LockHeld that says who has it, ConfigError where it cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(self._path, error) from None
        try:
            self._flock()
            self._own()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where that cannot be known, the record stays: its process is dead soon.
        with suppress(UnknownState):
            if self._me is not None and self._is_mine():
                self._record.unlink(missing_ok=True)
        self.file.close()

    def renew(self) -> None:
        """Say that this controller lives. Raises LockHeld if another one took over, UnknownState if that is unknown."""
        if self._me is None:
            return
        if not self._is_mine():
            raise LockHeld(f"this controller was taken for dead and replaced: {self._holder() or 'by somebody'}")
        self._me = replace(self._me, renewed=time.time())
        with suppress(OSError):  # a full disk: the lease is long
            temporary = self._write(self._me)
            temporary.replace(self._record)

    def holder(self, now: float) -> Owner | None:
        """Who has it and lives, whether or not it is taken here. Raises UnknownState."""
        found = self._holder()
        return found if found is not None and self._alive(found, now) else None

    def _flock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(self._holder()) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise ConfigError(f"{self._path}: cannot be locked: {error.strerror}") from None
            # A file system without flock: the owner record alone decides.

    def _own(self) -> None:
        now = time.time()
        me = Owner(socket.gethostname(), os.getpid(), _born(os.getpid()), _boot(), now, now)
        try:
            temporary = self._write(me)
        except OSError as error:
            raise self._unwritable(self._record, error) from None
        try:
            self._take(self._record, temporary, now)
        except OSError as error:
            raise self._unwritable(self._record, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        self._me = me

    def _take(self, record: Path, mine: Path, now: float) -> None:
        """Link `mine` to `record`, instead of a dead owner's. Raises LockHeld where somebody lives who has it."""
        while True:
            try:
                os.link(mine, record)
            except FileExistsError:
                if self._is_dead(record, now):
                    takeover = record.with_name(f"{record.name}.takeover")
                    self._take(takeover, mine, now)
                    try:
                        if self._is_dead(record, now):
                            record.unlink()
                    finally:
                        takeover.unlink()
            else:
                return

    def _is_dead(self, record: Path, now: float) -> bool:
        """Whether a record is there and its owner is gone. Raises LockHeld where its owner lives."""
        try:
            found = _read(record)
        except ValueError:
            return True  # written whole before it was linked: the machine died
        if found is not None and self._alive(found, now):
            raise self._held(found)
        return found is not None

    def _unwritable(self, path: Path, error: OSError) -> BridgeError:
        """A full disk passes; a directory that is not ours is a mistake."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return UnknownState(f"{path}: cannot be written: {error.strerror}")
        return ConfigError(f"{path}: cannot be written: {error.strerror}; set pressure.state_dir")

    def _write(self, owner: Owner) -> Path:
        temporary = self._record.with_name(f"{self._record.name}.{owner.host}.{owner.pid}")
        try:
            temporary.write_text(json.dumps(asdict(owner)), encoding="utf-8")
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _holder(self) -> Owner | None:
        with suppress(ValueError):
            return _read(self._record)
        return None

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and self._me is not None and _same(holder, self._me)

    def _alive(self, holder: Owner, now: float) -> bool:
        if holder.host == socket.gethostname():
            return holder.boot == _boot() and holder.born == _born(holder.pid)
        return now - holder.renewed < self._lease_s

    def _held(self, holder: Owner | None) -> LockHeld:
        who = str(holder) if holder else "somebody who has not said who (an sbatch that has not ended yet?)"
        return LockHeld(f"another controller of this instance is at work: {who} (lock {self._path})")


def holder(config: Config) -> Owner | None:
    """Who holds the lock, by the record beside it; None if nobody who lives. Takes nothing. Raises UnknownState."""
    return ControllerLock(config).holder(time.time())


def _read(record: Path) -> Owner | None:
    """A record; None if there is none. Raises ValueError for what is no record, UnknownState where none can be read."""
    try:
        return Owner(**json.loads(record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise UnknownState(f"{record}: cannot be read: {error.strerror}") from None


def _same(one: Owner, other: Owner) -> bool:
    return (one.host, one.pid, one.born, one.boot) == (other.host, other.pid, other.born, other.boot)


def _born(pid: int) -> str:
    """A process's start time in clock ticks since boot (proc(5), stat field 22); "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
