"""The JSON contract, docs/schema: what a command prints must be what its schema says, and every key must be in it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[1] / "docs" / "schema"
# First words of a command line -> its schema.
COMMANDS = {
    ("demand",): "demand",
    ("pilots",): "pilots",
    ("pressure", "plan"): "plan",
    ("doctor",): "doctor",
    ("report",): "report",
    ("explain",): "explain",
    ("routes", "check"): "routes-check",
    ("routes", "try"): "routes-try",
    ("routes", "status"): "routes-status",
    ("pool", "check"): "pool-check",
    ("simulate",): "simulate",
}


def names() -> list[str]:
    """The schemas that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def read(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def check(name: str, document: object) -> None:
    """Raises AssertionError with every place where the document is not what the schema says."""
    errors = [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(document)]
    assert not errors, f"docs/schema/{name}.json: " + "\n".join(errors)


def check_command(arguments: tuple[str, ...], document: object) -> None:
    """The same for what this command printed, if it has a schema."""
    for words, name in COMMANDS.items():
        if arguments[: len(words)] == words:
            check(name, document)


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(_closed(read(name)))


def _closed(schema: Any) -> Any:
    """The schema without room for keys that it does not describe. Programs must take those, our own tests need not."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") in ("object", ["object", "null"]):
        made.setdefault("additionalProperties", False)
    return made
