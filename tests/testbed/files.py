"""Files for a host, sent in one go as a tar archive through standard input."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class File:
    path: str
    content: str | bytes
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class Directory:
    path: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"


# Owners go by name: tar looks the numbers up in the host's passwd. --no-overwrite-dir: directories keep their owners.
UNPACK = [
    "tar",
    "--extract",
    "--directory=/",
    "--preserve-permissions",
    "--same-owner",
    "--no-overwrite-dir",
    "--file=-",
]


def archive(entries: Iterable[File | Directory]) -> bytes:
    """A tar archive of `entries`, in the order given. tar makes directories that are not among them, as root's."""
    packed, now = io.BytesIO(), int(time.time())
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for entry in entries:
            info = tarfile.TarInfo(str(PurePosixPath(entry.path).relative_to("/")))
            info.mode, info.uname, info.gname, info.mtime = entry.mode, entry.owner, entry.group, now
            if isinstance(entry, Directory):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                content = entry.content.encode() if isinstance(entry.content, str) else entry.content
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()
