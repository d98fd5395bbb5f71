"""docs/schema: each is a schema, each describes all its keys, and what is not as it says is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests import schema

# What DESIGN.md promises: these keys are there, and stay.
PROMISED = {
    "demand": {"schema", "time", "collector", "schedds", "groups", "totals"},
    "pilots": {"schema", "time", "pilots"},
    "plan": {"schema", "time", "resources", "held"},
}


def test_every_command_has_its_schema() -> None:
    assert schema.names() == sorted(schema.COMMANDS.values())


@pytest.mark.parametrize("name", schema.names())
def test_it_is_a_schema_of_2020_12_and_says_which_command_it_is_of(name: str) -> None:
    read = schema.read(name)
    Draft202012Validator.check_schema(read)
    assert read["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert read["title"].startswith("htcebridge ")
    assert read["properties"]["schema"]["const"] == 1
    assert "schema" in read["required"]


@pytest.mark.parametrize("name", schema.names())
def test_new_keys_are_no_mistake_for_a_program_that_holds_to_it(name: str) -> None:
    """Keys may be added: no part of a schema forbids those that it does not know."""
    assert not [part for part in parts(schema.read(name)) if part.get("additionalProperties") is False]


@pytest.mark.parametrize("name", schema.names())
def test_what_is_required_is_described(name: str) -> None:
    for part in parts(schema.read(name)):
        if "properties" in part:
            assert set(part["required"]) <= set(part["properties"])


def parts(read: Any) -> Iterator[dict[str, Any]]:
    if isinstance(read, dict):
        yield read
        for value in read.values():
            yield from parts(value)


@pytest.mark.parametrize(("name", "keys"), PROMISED.items())
def test_what_is_promised_is_required(name: str, keys: set[str]) -> None:
    assert keys <= set(schema.read(name)["required"])


def test_a_document_that_is_not_as_it_says_is_noticed() -> None:
    good: dict[str, Any] = {"schema": 1, "time": 5, "resources": {}, "held": None}
    schema.check("plan", good)
    for bad in ({**good, "time": "now"}, {**good, "new": 1}, {**good, "schema": 2}, {"schema": 1}, {**good, "held": 3}):
        with pytest.raises(AssertionError, match=r"docs/schema/plan\.json: "):
            schema.check("plan", bad)
    part = {"needed": 1, "running": 0}
    with pytest.raises(AssertionError, match="'booting' is a required property"):
        schema.check("plan", {**good, "resources": {"dcgp": part}})


def test_a_command_line_finds_its_schema() -> None:
    schema.check_command(("config", "show"), {"anything": 1})
    with pytest.raises(AssertionError):
        schema.check_command(("pressure", "plan"), {})
