"""Files of the admin's that decide what runs here and on every node: nobody else may be able to change them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from htcebridge.errors import ConfigError


def folder(path: Path, key: str) -> list[Path]:
    """The files of a folder that `key` names, by name, hidden ones left out. Raises ConfigError."""
    try:
        files = sorted(each for each in path.iterdir() if not each.name.startswith(".") and each.is_file())
        for each in (path, *files):
            check(each)
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r}: {(error.strerror or str(error)).lower()}") from None
    return files


def check(path: Path) -> None:
    """Raises ConfigError if somebody else owns it or may write it, OSError if it cannot be seen."""
    status = path.stat()
    if status.st_mode & 0o022:
        raise ConfigError(f"{path}: others may write it, and it runs on every node; chmod go-w {path}")
    if status.st_uid not in (0, os.getuid()):
        raise ConfigError(f"{path}: it runs on every node, and another user owns it")


def check_file(path: Path) -> None:
    """Raises ConfigError if others can change a file, or put another one in its place, OSError if it cannot be seen."""
    why = next(others(path), "")
    if why:
        raise ConfigError(f"{path}: it says what runs here and on every node, and {why}")


def others(path: Path) -> Iterator[str]:
    """How others can change a file or a folder, or put another one in its place: a sentence each, with what to do.

    Itself and the folder that it stands in must be this user's or root's, and writable for nobody else; one above may
    not be writable for everybody. A group that is one user's own is that user. Raises OSError if it cannot be seen.
    """
    for place in dict.fromkeys((Path(os.path.abspath(path)), path.resolve(strict=True))):
        for each in (place, *place.parents):
            status, near = each.stat(), each in (place, place.parent)
            theirs = status.st_mode & (0o022 if near else 0o002)
            if theirs == 0o020 and _own_group(status.st_gid):
                theirs = 0
            # In such a folder, like /tmp, everybody may add files, and take away their own alone.
            if each != place and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
                theirs = 0
            if theirs:
                yield f"others may write {each}: chmod {'go-w' if near else 'o-w'} {each}"
            elif near and status.st_uid not in (0, os.getuid()):
                yield f"{_name(status.st_uid)} owns {each}: let it be yours or root's"


def _own_group(gid: int) -> bool:
    """Whether a group is this user's alone: of the same name, with nobody else in it."""
    try:
        group, me = grp.getgrgid(gid), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == me and set(group.gr_mem) <= {me}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
