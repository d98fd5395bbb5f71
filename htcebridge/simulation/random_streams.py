"""One random stream for each purpose, so that what a controller does moves no other draw."""

from __future__ import annotations

import random


def stream(seed: int, purpose: str) -> random.Random:
    """A generator of its own; equal seeds and purposes give equal numbers on every machine."""
    return random.Random(f"{seed}:{purpose}")  # noqa: S311  a simulation keeps no secrets
