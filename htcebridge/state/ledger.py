"""Every submission, written down before it is made.

What is in here is not lost by a crash between sbatch and the next look: the hard caps per hour and day count it, a
submission whose outcome nobody knows is settled before another one is made, and a pilot that was asked for one
account and billed to another is recognised. Append-only JSON lines, each on disk before sbatch runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError

HOUR_S, DAY_S = 3600, 86400
# A pilot's life may be longer than the day that the caps look back.
KEEP_S = 8 * DAY_S


@dataclass(frozen=True)
class Entry:
    """One submission. `outcome` is the Slurm job id, "none" if nothing was submitted, "" while nobody knows."""

    when: int
    plan_id: str
    resource: str
    count: int
    account: str
    partition: str
    qos: str
    time_min_s: int | None = None
    outcome: str = ""

    @property
    def key(self) -> str:
        return f"{self.plan_id}:{self.resource}"


class Ledger:
    """The file of one instance. Every method raises BridgeError if it cannot be read or written."""

    def __init__(self, config: Config) -> None:
        directory = config.pressure.state_dir.path
        self._path = directory / f"{config.pressure.instance}.submissions"

    def entries(self) -> list[Entry]:
        """All that is still kept, oldest first. A last line that a crash tore is left out: sbatch had not run."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise BridgeError(f"{self._path}: cannot be read: {error}") from None
        entries: dict[str, Entry] = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                if number == len(lines):
                    break
                raise BridgeError(
                    f"{self._path}: line {number} is damaged, so the caps per hour and day are not known; look at "
                    "the file, then remove it"
                ) from None
            entries[entry.key] = entry
        return list(entries.values())

    def begin(self, entry: Entry) -> None:
        """Write down a submission that is about to be made."""
        self._append(entry)

    def settle(self, entry: Entry, outcome: str) -> None:
        """Write down what became of it."""
        self._append(replace(entry, outcome=outcome))

    def prune(self, now: int) -> None:
        """Forget what no cap and no living pilot can refer to any more."""
        entries = self.entries()
        kept = [entry for entry in entries if entry.when > now - KEEP_S]
        if len(kept) < len(entries):
            temporary = _beside(self._path)
            try:
                temporary.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")
                temporary.replace(self._path)
            except OSError as error:
                raise BridgeError(f"{self._path}: cannot be written: {error.strerror}") from None

    def _append(self, entry: Entry) -> None:
        try:
            with self._path.open("ab+") as file:
                file.seek(0)
                written = file.read()
                if not written.endswith(b"\n"):  # what a crash tore
                    file.truncate(written.rfind(b"\n") + 1)
                file.write(_line(entry).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BridgeError(
                f"{self._path}: cannot be written ({error.strerror}): nothing is submitted that is not written down"
            ) from None


def submitted_since(entries: Iterable[Entry], since: int) -> int:
    """Pilots submitted after a time, those included of which nobody knows."""
    return sum(entry.count for entry in entries if entry.when > since and entry.outcome != "none")


def unsettled(entries: Sequence[Entry]) -> list[Entry]:
    """Submissions of which nobody knows whether Slurm took them."""
    return [entry for entry in entries if not entry.outcome]


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")
