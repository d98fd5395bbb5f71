"""Our files in the configuration directories: how they are known, put there, and kept.

A set must be whole in effect at every moment, kill -9 and power cuts included, and a directory of configuration has no
transaction over several files. So all that belongs to one side of the host is one file, and each change of that file is
one rename(2). The two sides are two renames, one after the other: a file of the pool's side must do no harm alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from htcebridge import __version__
from htcebridge.errors import BridgeError, ConfigError, LockHeld
from htcebridge.routes import RouteFile

Side = Literal["ce", "pool", "central"]
SIDES: tuple[Side, ...] = ("pool", "ce")
KEPT_SETS = 5
_MARK = re.compile(
    r"# Installed by htcebridge (?P<version>\S+), sha256 (?P<digest>[0-9a-f]{64})\. "
    r".*htcebridge (?P<command>\w+) install.*\n"
)


@dataclass(frozen=True)
class Ours:
    """A file that `htcebridge COMMAND install` wrote, as it is now. `body` is `text` without the mark; not `intact`:
    edited since."""

    path: Path
    version: str
    command: str
    text: str
    body: str
    intact: bool
    mtime: float


@dataclass(frozen=True)
class Change:
    """One side's file, before and after. None: there is none."""

    side: Side
    directory: Path
    before: Ours | None
    after: RouteFile | None

    @property
    def path(self) -> Path:
        """Where the file is afterwards, or was."""
        if self.after is not None:
            return self.directory / self.after.name
        return self.before.path if self.before is not None else self.directory

    @property
    def is_one(self) -> bool:
        """Whether anything changes. The version in the mark alone is no change."""
        before = (self.before.path.name, self.before.body) if self.before is not None else None
        return before != ((self.after.name, self.after.text) if self.after is not None else None)

    @property
    def texts(self) -> list[str]:
        """The text before and the text after, as far as there is one."""
        return [*([self.before.body] if self.before else []), *([self.after.text] if self.after else [])]


def one_file_per_side(files: Iterable[RouteFile]) -> dict[Side, RouteFile]:
    """All of a side's text in one file, in the order in which HTCondor would read it, under the first one's name."""
    sides: dict[Side, RouteFile] = {}
    for file in sorted(files, key=lambda file: file.name):
        first = sides.get(file.side)
        sides[file.side] = RouteFile(file.side, first.name, f"{first.text}\n{file.text}") if first else file
    return sides


def sealed(file: RouteFile) -> str:
    """Its text under the line by which it is known as ours, and a later edit as an edit."""
    digest = hashlib.sha256(file.text.encode()).hexdigest()
    return (
        f"# Installed by htcebridge {__version__}, sha256 {digest}. "
        f"Don't edit: change htcebridge.toml and run `htcebridge {file.command} install`.\n{file.text}"
    )


def read(path: Path) -> Ours | None:
    """A file of ours; None if it is somebody else's, or if there is none. Raises ConfigError if it can't be read."""
    try:
        with path.open("rb") as file:
            if path.is_symlink() or not (found := _MARK.fullmatch(file.readline(400).decode(errors="replace"))):
                return None
            body = file.read()
            text = found[0] + body.decode(errors="replace")
            mtime = os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; run this as root") from None
    intact = hashlib.sha256(body).hexdigest() == found["digest"]
    return Ours(path, found["version"], found["command"], text, text.removeprefix(found[0]), intact, mtime)


def find(directory: Path, excluded: re.Pattern[str]) -> Ours | None:
    """The file of `routes install` that HTCondor reads in a directory. Raises ConfigError if there are two: one is a
    copy."""
    if not directory.is_dir():
        return None
    paths = [path for path in sorted(directory.iterdir()) if path.is_file() and not excluded.match(path.name)]
    ours = [found for path in paths if (found := read(path)) is not None and found.command == "routes"]
    if len(ours) > 1:
        names = " and ".join(found.path.name for found in ours)
        raise ConfigError(f"{directory}: {names} are both htcebridge's, and HTCondor reads both; move the copy away")
    return ours[0] if ours else None


def refuse_what_is_not_ours(change: Change) -> None:
    """Raises ConfigError if carrying out the change would overwrite or remove somebody else's work."""
    if change.before is not None and not change.before.intact:
        raise ConfigError(
            f"{change.before.path}: edited by hand since htcebridge {change.before.version} wrote it; nothing is "
            "changed. Put the edit into htcebridge.toml, or into a file of your own that is read after it; "
            "then move this file out of the directory and run this again"
        )
    target = change.path
    if change.after is not None and (change.before is None or target != change.before.path) and os.path.lexists(target):
        raise ConfigError(
            f"{target}: not written by `htcebridge {change.after.command} install`, so it is left as it is and "
            "nothing is changed. Move it out of the directory (or rename it), then run this again"
        )


def carry_out(change: Change) -> None:
    """Each step is one rename or unlink, and the file is whole before and after it. Raises OSError."""
    before, after = change.before, change.after
    if after is None:
        if before is not None:
            before.path.unlink()
    elif before is None or before.path.name == after.name:
        _replace(change.path, sealed(after))
    else:
        # A new name: both files at once, or neither, would be read between two steps of any other order.
        _replace(before.path, sealed(after))
        os.replace(before.path, change.path)
    _sync_directory(change.directory)


def undo(change: Change) -> None:
    """Back to the state before, byte for byte, in steps like those of carry_out. Raises OSError."""
    before, after = change.before, change.after
    if before is None:
        change.path.unlink(missing_ok=True)
    else:
        if after is not None and before.path.name != after.name and change.path.exists():
            os.replace(change.path, before.path)
        _replace(before.path, before.text)
    _sync_directory(change.directory)


def temporary_name(name: str) -> str:
    """The name under which a file is written before it has its own; HTCondor must not read it."""
    return f".{name}.htcebridge-new"


def keep(state: Path, changes: Sequence[Change]) -> Path:
    """Keep a copy of what the changes replace. The newest of previous/ is the set before the last change.

    Raises OSError. A directory with no file in it says that there was none.
    """
    kept = state / "previous"
    making = state / "previous.new"
    shutil.rmtree(making, ignore_errors=True)
    for change in changes:
        (making / change.side).mkdir(parents=True)
        if change.before is not None:
            _write(making / change.side / change.before.path.name, change.before.text)
    kept.mkdir(exist_ok=True)
    second, fraction = divmod(time.time_ns(), 10**9)
    final = kept / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(second))}-{fraction:09d}"
    os.replace(making, final)
    _sync_directory(kept)
    for old in sorted(kept.iterdir())[:-KEPT_SETS]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def tidy(state: Path, directories: Iterable[Path]) -> None:
    """Remove what a killed run has left under temporary names."""
    shutil.rmtree(state / "previous.new", ignore_errors=True)
    for directory in directories:
        for left in directory.glob(temporary_name("*")):
            with suppress(OSError):
                left.unlink()


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """One install or uninstall at a time. Raises LockHeld, and ConfigError where the directory cannot be written."""
    path = state / "lock"
    try:
        state.mkdir(mode=0o755, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; run this as root") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockHeld(f"another `htcebridge` is at work: {file.read().strip()} (lock {path})") from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def not_written(path: Path, error: OSError) -> BridgeError:
    """The error for a file or directory that cannot be written."""
    refused = isinstance(error, PermissionError)
    kind = ConfigError if refused else BridgeError
    return kind(f"{path}: cannot be written: {error.strerror}" + ("; run this as root" if refused else ""))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(temporary_name(path.name))
    try:
        _write(temporary, text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
