"""Marks on the shared file system that pilots look at: the kill switch and the drain marks.

Below the `shared_dir` of a resource, where every pilot looks every 15 s (slurm_scripts/pilot-functions.sh):

    STOP                      the kill switch: every pilot of every instance that uses this directory drains
    drain/INSTANCE.RESOURCE   an admin drains a resource
    drain/PILOTID             an admin drains one pilot ("123_4")
    drain/PILOTID.tail        the controller's own, for the tail of a demand

That a mark is there is all that a pilot reads, so `touch STOP` does. The text, the file's owner and its time are for
people: why, who, when.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from htcebridge.errors import BridgeError, ConfigError, UnknownState

_PILOT = re.compile(r"\d+(_\d+)?", re.ASCII)
_RESOURCE = re.compile(r"[A-Za-z]\w*\.[A-Za-z]\w*", re.ASCII)
_TAIL = ".tail"
_WHY_BYTES = 500


class Kind(StrEnum):
    """Whose mark it is, in the words that the pilot advertises as PilotDrainReason."""

    STOP = "stop"
    RESOURCE = "resource"
    PILOT = "pilot"
    TAIL = "tail"


@dataclass(frozen=True)
class Mark:
    """A mark that lies there. `name` is "INSTANCE.RESOURCE" or a pilot's id; `since` in seconds since the epoch."""

    kind: Kind
    name: str
    why: str
    who: str
    since: int


def prepare(shared_dir: Path) -> None:
    """Make the directories that pilots expect; to be done before `read_stop` the first time. Raises BridgeError."""
    for directory in (shared_dir / "logs", shared_dir / "drain"):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BridgeError(f"{directory}: cannot be made: {error.strerror}; set shared_dir") from None


def make_if_new(shared_dir: Path) -> None:
    """Make a shared directory that is not there yet. Raises BridgeError if the one above is missing: then no pilot
    would look there."""
    if not shared_dir.parent.is_dir():
        raise BridgeError(f"{shared_dir}: {shared_dir.parent} is not there; is the file system mounted? see shared_dir")
    prepare(shared_dir)


def stop_mark(shared_dir: Path) -> Path:
    """The kill switch of all pilots that use this directory."""
    return shared_dir / "STOP"


def resource_mark(instance: str, resource: str) -> str:
    """The name of the mark that drains one resource of one instance."""
    return f"{instance}.{resource}"


def read_stop(shared_dirs: Iterable[Path]) -> str | None:
    """The kill switch in words: where, who, when, why; None if it is off in all of these directories.

    It is on if it is so in one of them, whatever the others are. Raises UnknownState where it is on in none that can be
    seen, and one cannot: a directory that is gone or unreadable is never "off".
    """
    stops, unseen = [], None
    for directory in dict.fromkeys(shared_dirs):
        try:
            stops.append(_stop_in(directory))
        except UnknownState as error:
            unseen = unseen or error
    said = "; ".join(stop for stop in stops if stop)
    if unseen is not None and not said:
        raise unseen
    return said or None


def set_stop(shared_dir: Path, why: str) -> None:
    """Turn the kill switch on. Raises BridgeError."""
    _write(stop_mark(shared_dir), why)


def lift_stop(shared_dir: Path) -> bool:
    """Turn the kill switch off; False if it was not on. Raises BridgeError."""
    return _remove(shared_dir, stop_mark(shared_dir))


def set_drain(shared_dir: Path, name: str, why: str, *, tail: bool = False) -> None:
    """Drain "INSTANCE.RESOURCE" or a pilot. `tail`: the controller's mark, beside an admin's. Raises BridgeError."""
    _write(_path(shared_dir, name, tail), why)


def lift_drain(shared_dir: Path, name: str, *, tail: bool = False) -> bool:
    """Take the mark away; False if there was none. Raises BridgeError."""
    return _remove(shared_dir, _path(shared_dir, name, tail))


def marks(shared_dir: Path) -> tuple[Mark, ...]:
    """The drain marks, admins' and the tail's, by name. Raises UnknownState if they cannot be read."""
    found = []
    try:
        if not shared_dir.is_dir():
            raise FileNotFoundError(2, "no such directory")
        for path in _entries(shared_dir):
            kind, name = _kind(path.name)
            if kind is not None:
                with suppress(FileNotFoundError):  # lifted since it was listed
                    found.append(_mark(path, kind, name))
    except OSError as error:
        raise UnknownState(f"{shared_dir}: drain marks cannot be read: {error.strerror}") from None
    return tuple(sorted(found, key=lambda mark: (mark.name, mark.kind)))


def sweep(shared_dir: Path, live_ids: Collection[str], now: float, older_than_s: int = 86400) -> tuple[str, ...]:
    """Remove the marks of pilots that are gone; returns their names. Raises UnknownState, BridgeError.

    `live_ids` are the ids of all jobs of this user in Slurm, other instances' too. Marks of another user, and those
    younger than `older_than_s` (a pilot may be newer than the listing), stay.
    """
    swept = []
    for mark in marks(shared_dir):
        gone = mark.kind in (Kind.PILOT, Kind.TAIL) and mark.name not in live_ids
        if gone and mark.who == _name(os.geteuid()) and now - mark.since > older_than_s:
            _remove(shared_dir, _path(shared_dir, mark.name, mark.kind is Kind.TAIL))
            swept.append(mark.name)
    return tuple(swept)


def _stop_in(shared_dir: Path) -> str | None:
    path = stop_mark(shared_dir)
    try:
        mark = _mark(path, Kind.STOP, path.name)
    except FileNotFoundError:
        # Not there, or nothing is there any more, as with a file system that is not mounted.
        try:
            os.listdir(shared_dir)
        except OSError as error:
            raise _stop_unknown(path, error) from None
        return None
    except OSError as error:
        raise _stop_unknown(path, error) from None
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(mark.since))
    return f"{path}: {mark.who}, {when}: {mark.why or 'no reason given'}"


def _stop_unknown(path: Path, error: OSError) -> UnknownState:
    return UnknownState(f"{path}: whether the kill switch is on cannot be seen: {error.strerror}")


def _mark(path: Path, kind: Kind, name: str) -> Mark:
    status = path.stat()
    why = ""
    # Somebody else's umask may hide the text; the mark counts all the same.
    with suppress(PermissionError, IsADirectoryError), path.open("rb") as file:
        why = _one_line(file.read(_WHY_BYTES).decode("utf-8", errors="replace"))
    return Mark(kind, name, why, _name(status.st_uid), int(status.st_mtime))


def _entries(shared_dir: Path) -> list[Path]:
    try:
        return list((shared_dir / "drain").iterdir())
    except FileNotFoundError:
        return []  # no mark was ever set


def _kind(file_name: str) -> tuple[Kind | None, str]:
    if _RESOURCE.fullmatch(file_name):
        return Kind.RESOURCE, file_name
    name = file_name.removesuffix(_TAIL)
    if _PILOT.fullmatch(name):
        return (Kind.PILOT if name == file_name else Kind.TAIL), name
    return None, file_name


def _path(shared_dir: Path, name: str, tail: bool) -> Path:
    pilot = _PILOT.fullmatch(name)
    if not pilot and (tail or not _RESOURCE.fullmatch(name)):
        what = "a pilot's id (123_4)" if tail else "a pilot's id (123_4) or INSTANCE.RESOURCE"
        raise ConfigError(f"{name!r} cannot be drained: it is not {what}")
    return shared_dir / "drain" / (name + _TAIL if tail else name)


def _write(path: Path, text: str) -> None:
    """All or nothing: pilots never see half a mark, and a full disk is an error, not a mark that is not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(_one_line(text) + "\n")
                file.flush()
                os.fsync(file.fileno())  # network file systems report a full quota here
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise BridgeError(f"{path}: the mark could not be set: {error.strerror}") from None


def _remove(shared_dir: Path, path: Path) -> bool:
    try:
        path.unlink()
        return True
    except FileNotFoundError:
        if shared_dir.is_dir():
            return False
        raise BridgeError(f"{path}: the mark could not be lifted: {shared_dir} is not there") from None
    except OSError as error:
        raise BridgeError(f"{path}: the mark could not be lifted: {error.strerror}") from None


def _one_line(text: str) -> str:
    """What stands in a mark, fit for a log line and a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
