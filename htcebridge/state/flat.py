"""The memory file of htcebridge 0.1, whose fields lay beside each other: read once, and carried over."""

from __future__ import annotations

import json
from typing import Any

# Field -> the part of today's `Memory` and its name there.
_PLACES = {
    "pilots": ("pilots", "seen"),
    "ended": ("pilots", "ended"),
    "undrained": ("pilots", "undrained"),
    "streaks": ("resources", "streaks"),
    "disabled": ("resources", "disabled"),
    "paused": ("resources", "paused"),
    "spent": ("resources", "spent"),
    "clocks": ("resources", "clocks"),
    "slurm_limits": ("resources", "limits"),
    "resets": ("resources", "resets"),
    "schedds": ("schedds", "known"),
    "qdates": ("schedds", "qdates"),
    "unsettled": ("submissions", "missing"),
    "looked": ("upkeep", "looked"),
    "pruned": ("upkeep", "pruned"),
    "shared": ("upkeep", "shared"),
    "accounted": ("records", "accounted"),
    "unrecorded": ("records", "unrecorded"),
    "totals": ("records", "totals"),
}


def carried_over(text: bytes) -> bytes | None:
    """The same as today's file has it; None if this is no such file."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict) or "streaks" not in document:
        return None
    parts: dict[str, Any] = {"ghosts": document.get("ghosts", {})}
    for field, (part, name) in _PLACES.items():
        if field in document:
            parts.setdefault(part, {})[name] = document[field]
    return json.dumps({"schema": 2, "memory": parts}).encode()
