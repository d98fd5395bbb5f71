"""How often this process has asked Slurm and the Tier-1, by command and kind of question: for the metrics."""

from __future__ import annotations

import threading
from collections import Counter

_lock = threading.Lock()
_counted: Counter[str] = Counter()


def count(what: str) -> None:
    """One more of these. Schedds are asked from threads."""
    with _lock:
        _counted[what] += 1


def take() -> dict[str, int]:
    """What was counted since the last time, which is begun anew."""
    with _lock:
        taken = dict(_counted)
        _counted.clear()
    return taken
