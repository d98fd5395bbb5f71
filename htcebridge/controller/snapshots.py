"""Cycles as JSON lines: what `pressure run --record` writes and `simulate --replay` reads.

A line has what was seen, decided and done. Configuration and memory stand in the first line, and again in one that
does not follow from the line before it: there the replay takes them from the file, elsewhere from what it has learnt.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from htcebridge.config.tables import Config
from htcebridge.controller.done import Done
from htcebridge.controller.observation import Observation
from htcebridge.model import Plan
from htcebridge.state.memory import Memory, Records, Upkeep

SCHEMA = 2


@dataclass(frozen=True)
class Cycle:
    """One recorded cycle. `config` and `before` are None where they follow from the cycle before it."""

    config: Config | None
    before: Memory | None
    seen: Observation
    plan: Plan
    done: Done


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made where it is needed: it takes longer than many a command."""
    return TypeAdapter(kind)


def append(path: Path, config: Config, before: Memory, seen: Observation, plan: Plan, done: Done, left: Memory) -> None:
    """Write one cycle down; `left` is what the next one will know. Raises OSError."""
    document: dict[str, Any] = {"schema": SCHEMA}
    if _last(path) != _digest(config, before):
        document["config"] = config.model_dump(mode="json", by_alias=True, exclude_none=True)
        document["before"] = _adapter(Memory).dump_python(_what_counts(before), mode="json")
    document["seen"] = _adapter(Observation).dump_python(_without_answers(seen), mode="json")
    document["plan"] = _adapter(Plan).dump_python(plan, mode="json")
    document["done"] = _adapter(Done).dump_python(done, mode="json")
    document["left"] = _digest(config, left)  # stands last: `_last` looks for it there
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(document, separators=(",", ":")) + "\n")


def load(line: str) -> Cycle:
    """What `append` wrote. Raises ValueError that says what is wrong with the line."""
    document: Any = json.loads(line)
    if isinstance(document, dict) and document.get("schema") == 1:
        raise ValueError("recorded by an htcebridge that wrote down situations, not observations; record anew")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a recorded cycle of schema {SCHEMA}")
    try:
        return Cycle(
            config=Config.model_validate(document["config"]) if "config" in document else None,
            before=_adapter(Memory).validate_python(document["before"]) if "before" in document else None,
            seen=_adapter(Observation).validate_python(document["seen"]),
            plan=_adapter(Plan).validate_python(document["plan"]),
            done=_adapter(Done).validate_python(document["done"]),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _what_counts(memory: Memory) -> Memory:
    """What a decision can rest on. A schedd's last answer is in the demand where one rested on it."""
    return replace(memory, schedds=replace(memory.schedds, answers={}), upkeep=Upkeep(), records=Records())


def _without_answers(seen: Observation) -> Observation:
    if seen.waiting.value is None:
        return seen
    return replace(seen, waiting=replace(seen.waiting, value=replace(seen.waiting.value, answers={})))


def _digest(config: Config, memory: Memory) -> str:
    text = config.model_dump_json(by_alias=True).encode() + _adapter(Memory).dump_json(_what_counts(memory))
    return hashlib.sha256(text).hexdigest()[:16]


def _last(path: Path) -> str:
    """The `left` of the last line; "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            _, _, end = file.read().rpartition(b'"left":"')
    except FileNotFoundError:
        return ""
    return end.removesuffix(b'"}\n').decode("ascii", "replace") if end.endswith(b'"}\n') else ""
