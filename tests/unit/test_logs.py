"""A log line is one event: key=value that a shell can cut, or a JSON object."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge import logs
from htcebridge.errors import ConfigError


@pytest.fixture
def fresh() -> Iterator[None]:
    log = logging.getLogger("htcebridge")
    handlers, level = log.handlers[:], log.level
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers[:], log.level = handlers, level


def logged(tmp_path: Path, form: str, verbosity: int = 0) -> Path:
    path = tmp_path / "htcebridge.log"
    logs.setup(path, form, verbosity)
    return path


@pytest.mark.usefixtures("fresh")
def test_text_is_an_event_and_its_facts(tmp_path: Path) -> None:
    path = logged(tmp_path, "text")
    logs.event("submitted", plan="6b0", count=3, pilots=("7_1", "7_2"), why='a "cap"\nand more', none="")
    line = path.read_text()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO submitted plan=6b0 count=3 pilots=7_1,7_2 "
        r'why="a \\"cap\\"\\nand more" none=""\n',
        line,
    )


@pytest.mark.usefixtures("fresh")
def test_json_is_an_object_a_line(tmp_path: Path) -> None:
    path = logged(tmp_path, "json")
    logs.event("ended", logging.WARNING, pilot="7_1", why=OSError("x"))
    logging.getLogger("htcebridge").exception("a cycle failed", exc_info=ValueError("inner"))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.pop("time").startswith("20")
    assert first == {"level": "warning", "event": "ended", "pilot": "7_1", "why": "x"}
    assert "ValueError: inner" in second["traceback"]


@pytest.mark.usefixtures("fresh")
def test_a_rotated_file_is_followed_and_verbosity_counts(tmp_path: Path) -> None:
    path = logged(tmp_path, "text", verbosity=-1)
    logs.event("quiet")
    logs.event("loud", logging.WARNING)
    path.rename(path.with_suffix(".1"))
    logs.event("after", logging.WARNING)
    assert path.read_text().endswith("WARNING after\n")
    assert path.with_suffix(".1").read_text().endswith("WARNING loud\n")


@pytest.mark.usefixtures("fresh")
def test_a_file_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ConfigError, match=r"log\.file: /proc/none/log: cannot be written"):
        logs.setup(Path("/proc/none/log"), "text", 0)


def test_the_journal_gets_priorities_and_no_second_clock(tmp_path: Path) -> None:
    program = """
import logging
from htcebridge import logs
logs.setup(None, 'text', 0)
logs.event("problem", logging.WARNING, why="x y")
"""
    with (tmp_path / "journal").open("w+") as journal:
        there = os.fstat(journal.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
        subprocess.run([sys.executable, "-c", program], stderr=journal, env=environment, check=True)
        journal.seek(0)
        assert journal.read() == '<4>problem why="x y"\n'


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(), max_size=4))
def test_whatever_is_logged_stays_one_line_and_can_be_read_back(facts: dict[str, str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs._Text(journal=False))
    record = logging.LogRecord("htcebridge", logging.INFO, "", 0, "something", (), None)
    record.facts = facts
    handler.emit(record)
    line = stream.getvalue()
    assert line.count("\n") == 1
    fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    assert {key: json.loads(text) if text[0] == '"' else text for key, text in fields} == facts
