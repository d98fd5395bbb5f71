"""Situations and plans as JSON lines: what `pressure run --record` writes and `simulate --replay` reads."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from htcebridge.model import Plan, Situation

_SITUATION = TypeAdapter(Situation)
_PLAN = TypeAdapter(Plan)


def dump(situation: Situation, plan: Plan) -> str:
    """One line, without its end."""
    document = {
        "schema": 1,
        "situation": _SITUATION.dump_python(situation, mode="json"),
        "plan": _PLAN.dump_python(plan, mode="json"),
    }
    return json.dumps(document, separators=(",", ":"))


def load(line: str) -> tuple[Situation, Plan]:
    """What `dump` wrote. Raises ValueError that says what is wrong with the line."""
    document: Any = json.loads(line)
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise ValueError("not a recorded cycle of schema 1")
    try:
        return _SITUATION.validate_python(document["situation"]), _PLAN.validate_python(document["plan"])
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
