"""Files of the admin's that are executed on every node: nobody else may be able to change them."""

from __future__ import annotations

import os
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
