"""docs/runbook.md quotes what the code really says, and has a place for every exit code, reason and alert."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import htcebridge
from htcebridge.model import Wait
from htcebridge.slurm.waits import is_known, wait_of

ROOT = Path(htcebridge.__file__).resolve().parent.parent
if not (ROOT / "docs" / "runbook.md").is_file():
    pytest.skip("not a checkout: no docs", allow_module_level=True)
PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)


@cache
def said() -> tuple[str, ...]:
    """Every text in the code, with a \\0 for each value that is put into it."""
    texts: list[str] = []
    for path in sorted((ROOT / "htcebridge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value.replace("%s", "\0"))  # the log's own values
    return tuple(texts)


def pieces(sentence: str) -> Iterator[str]:
    """What stands between the names and numbers of a quoted sentence."""
    for piece in sentence.split("..."):
        if len(text := piece.strip(" :;,()")) > 2:
            yield text


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_sentence_is_one_of_the_codes(sentence: str) -> None:
    found = list(pieces(sentence))
    assert found
    for piece in found:
        assert any(piece in text for text in said()), piece


def test_a_sentence_that_nobody_says_would_be_noticed() -> None:
    assert not any("this is not said anywhere at all" in text for text in said())
    assert any("is damaged or no history (\0)" in text for text in said())
    assert len(QUOTED) > 40


def test_every_sentence_about_the_history_is_explained() -> None:
    tree = ast.parse((ROOT / "htcebridge" / "history" / "store.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("HistoryError", "UnusableHistory"):
            parts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            longest = max((str(part) for part in parts), key=len)
            if len(longest) > 10 and "cannot be made" not in longest:
                assert any(piece in longest for quoted in QUOTED for piece in pieces(quoted)), longest


def test_every_exit_code_of_a_pilot_has_its_command() -> None:
    codes = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "pilot.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(codes) == set(re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    ("kind", "wait"),
    [
        ("a limit", Wait.LIMIT),
        ("a budget", Wait.BUDGET),
        ("an outage", Wait.OUTAGE),
        ("never", Wait.NEVER),
    ],
)
def test_slurms_reasons_mean_what_the_page_says(kind: str, wait: Wait) -> None:
    cells = re.search(rf"^\| ((?:`[^`]+`,? ?(?:and other )?)+): {kind} \|", PAGE, re.MULTILINE)
    assert cells, kind
    words = [word for word in re.findall(r"`([^`]+)`", cells[1]) if "..." not in word]
    assert [word for word in words if not is_known(word)] == []
    assert {wait_of(word, "PENDING") for word in words} <= {wait}


def test_every_alert_has_its_section() -> None:
    text = ALERTS.read_text(encoding="utf-8")
    wanted = [re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in re.findall(r"- alert: (\w+)", text)]
    sections = re.findall(r"^### (htcebridge-[\w-]+)$", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted(wanted)
    assert re.findall(r"docs/runbook\.md#(\S+)", text) == wanted
