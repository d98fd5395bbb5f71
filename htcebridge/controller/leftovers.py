"""Directories that killed pilots left in `job_scratch`: on a parallel file system nobody else removes them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from htcebridge.errors import BridgeError

_NAME = re.compile(r"htcebridge-(\d+(_\d+)?)", re.ASCII)
# A pilot that starts now may not be in the list yet.
_FRESH_S = 3600
# Of many small files each takes its time; the rest is for the next sweep.
_AT_A_TIME = 5


def sweep(directory: Path, live_ids: Collection[str], now: float) -> tuple[Path, ...]:
    """Remove this user's directories of pilots that Slurm does not list; returns which. Raises BridgeError."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name is None or name[1] in live_ids or not entry.is_dir(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.getuid() and now - status.st_mtime > _FRESH_S:
                    found.append(Path(entry.path))
        for path in sorted(found)[:_AT_A_TIME]:
            shutil.rmtree(path)
    except FileNotFoundError:
        return ()  # no pilot has made it yet
    except OSError as error:
        raise BridgeError(f"{directory}: what a killed pilot left cannot be removed: {error}") from None
    return tuple(sorted(found)[:_AT_A_TIME])
