"""Recorded cycles decided again: where does today's planner decide otherwise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from htcebridge.controller import snapshots
from htcebridge.errors import ConfigError
from htcebridge.model import Plan, ResourcePlan
from htcebridge.plan import planner

# How a decision is put into words is no part of it.
_WORDS = {"reasons"}


@dataclass(frozen=True)
class Difference:
    """One recorded cycle and resource whose decision differs now. `changes`: (what, recorded, now)."""

    line: int
    when: int
    resource: str
    changes: tuple[tuple[str, object, object], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Replayed:
    """`cycles` were decided again."""

    cycles: int
    differences: tuple[Difference, ...]


def replay(path: Path) -> Replayed:
    """Decide every cycle of a recording again. Raises ConfigError with the line that cannot be read."""
    differences: list[Difference] = []
    cycles = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    situation, recorded = snapshots.load(line)
                except ValueError as error:
                    raise ConfigError(f"{path}:{number}: {error}") from None
                cycles += 1
                now = planner.plan(situation)
                differences += _differences(number, situation.now, recorded, now)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recording: {error}") from None
    if not cycles:
        raise ConfigError(f"{path}: no recorded cycle in it")
    return Replayed(cycles, tuple(differences))


def _differences(line: int, when: int, recorded: Plan, now: Plan) -> Iterator[Difference]:
    nothing = ResourcePlan(0, 0, 0, 0)
    for name in sorted({*recorded.resources, *now.resources}):
        then, today = recorded.resources.get(name, nothing), now.resources.get(name, nothing)
        changes = tuple(
            (field.name, getattr(then, field.name), getattr(today, field.name))
            for field in fields(ResourcePlan)
            if field.name not in _WORDS and getattr(then, field.name) != getattr(today, field.name)
        )
        if changes:
            yield Difference(line, when, name, changes, today.reasons)
