"""Recorded cycles learnt from and decided again: where does today's version decide otherwise?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from htcebridge.config.tables import Config
from htcebridge.controller import learn, snapshots
from htcebridge.controller.decide import decide
from htcebridge.errors import ConfigError
from htcebridge.model import Plan, ResourcePlan
from htcebridge.state.memory import Memory

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
    """Learn and decide every cycle of a recording again. Raises ConfigError with the line that cannot be read."""
    differences: list[Difference] = []
    cycles = 0
    config: Config | None = None
    memory: Memory | None = None
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    recorded = snapshots.load(line)
                except json.JSONDecodeError:
                    raise ConfigError(f"{path}:{number}: {_no_json(line)}") from None
                except ValueError as error:
                    raise ConfigError(f"{path}:{number}: {error}") from None
                config, memory = recorded.config or config, recorded.before or memory
                if config is None or memory is None:
                    raise ConfigError(f"{path}:{number}: the line with configuration and memory is not before it")
                cycles += 1
                now = decide(config, memory, recorded.seen)
                memory = learn.acted(config, now.memory, recorded.done)
                differences += _differences(number, recorded.seen.now, recorded.plan, now.plan)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recording: {error}") from None
    if not cycles:
        raise ConfigError(f"{path}: no recorded cycle in it")
    return Replayed(cycles, tuple(differences))


def _no_json(line: str) -> str:
    if line.startswith("{") and not line.endswith("\n"):
        return "this last line is cut off; take it out of the recording"
    return "no recorded cycle; is it a file of `pressure run --record`?"


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
