"""What the docs show is what the code does: commands, configuration, JSON, exit codes, links."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import htcebridge
from htcebridge.cli import cli
from htcebridge.config.example import example
from htcebridge.config.tables import Config
from htcebridge.history import store
from htcebridge.metrics.table import TABLE
from htcebridge.report.accounting import JobRecord, PilotRecord
from htcebridge.routes import render_routes
from tests import schema

ROOT = Path(htcebridge.__file__).resolve().parent.parent
if not (ROOT / "docs" / "generate.py").is_file():
    pytest.skip("not a checkout: no docs", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, and where it stands."""

    where: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    fence = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in fence.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            body = "\n".join(row.removeprefix(found[1]) for row in found[3].splitlines())
            yield Block(f"{page.relative_to(ROOT)}:{line}", found[2], body)


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in blocks() if block.language in languages]


def words_after(line: str, name: str) -> list[str] | None:
    """The arguments of a command in a line of shell, up to a redirection, pipe or the next command; None if not there.

    The command may stand behind variables, a prompt, cron's five fields or a path.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="><|&;()")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    words = list(lexer)
    starts = [number for number, word in enumerate(words) if word.rpartition("/")[2] == name]
    if not starts or re.search(r"\b(pip|rm|venv)\b", line):
        return None
    arguments = words[starts[0] + 1 :]
    end = next((number for number, word in enumerate(arguments) if set(word) <= set("><|&;()")), len(arguments))
    return arguments[:end]


def lines_of_shell() -> Iterator[tuple[str, str]]:
    for block in blocks():
        if block.language in ("sh", "crontab"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield block.where, line


def commands(name: str) -> list[Any]:
    """Each command line of that name: shell blocks, and `name ...` in running text."""
    found = [(where, line, words_after(line, name)) for where, line in lines_of_shell() if name in line]
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for line in re.findall(rf"`({name} [^`]+)`", prose):
            found.append((str(page.relative_to(ROOT)), line, words_after(line, name)))
    return [pytest.param(words, id=f"{where}: {line.strip()}") for where, line, words in found if words]


def test_configuration_md_is_current() -> None:
    current = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert current == generator().render(), "stale: run python docs/generate.py"


def test_the_tables_of_metrics_md_are_current() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == generator().with_metrics(page), "stale: run python docs/generate.py"
    for metric in TABLE:
        assert f"| `{metric.name}` |" in page


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "pilot.md").read_text(encoding="utf-8")
    assert page == generator().with_exit_codes(page), "stale: run python docs/generate.py"
    assert "| 16 | Slurm would bill it" in page


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arguments", commands("htcebridge"))
def test_a_command_line_of_the_docs_is_understood(arguments: list[str]) -> None:
    answer = CliRunner().invoke(cli, [*arguments, "--help"])
    assert answer.exit_code == 0, answer.output


def test_the_docs_show_every_command() -> None:
    shown = {" ".join(word for word in words if not word.startswith("-")) for (words,) in values("htcebridge")}
    for command in (
        "config init",
        "config check",
        "demand",
        "pilots",
        "pressure plan",
        "pressure once",
        "routes show",
        "doctor",
    ):
        assert any(text.endswith(command) or f"{command} " in text for text in shown), command


def values(name: str) -> list[tuple[list[str]]]:
    return [parameter.values for parameter in commands(name)]


def test_a_wrong_command_line_would_be_noticed() -> None:
    for line in ("htcebridge no-such", "htcebridge demand --no-such", "x/htcebridge -q pressure onse > y"):
        answer = CliRunner().invoke(cli, [*(words_after(line, "htcebridge") or []), "--help"])
        assert answer.exit_code == 2, line


@pytest.mark.parametrize("block", of("sh"))
def test_a_shell_block_is_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert not done.stderr, done.stderr


@pytest.mark.parametrize("arguments", commands("make"))
def test_a_make_target_of_the_docs_exists(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in arguments if "=" not in word} <= set(targets)


@pytest.mark.parametrize("arguments", commands("testbed"))
def test_a_testbed_command_of_the_docs_is_understood(arguments: list[str]) -> None:
    from tests.testbed.cli import parse_on, parser

    plain = [word for word in arguments if not word.startswith(("[", "U]", "K=V]"))]
    assert parse_on(plain[1:]) if plain[0] == "on" else parser().parse_args(plain)


@pytest.mark.parametrize("block", of("toml"))
def test_a_toml_block_is_a_configuration_or_part_of_one(block: Block) -> None:
    raw = tomllib.loads(block.text)
    base = {} if "tier1" in raw else tomllib.loads(example())
    assert Config.model_validate({**base, **raw})


def test_the_sql_of_the_docs_runs_on_a_history(tmp_path: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    statements = re.findall(r'^sqlite3 \S+ "(SELECT .*)"$', text, re.MULTILINE)
    assert statements
    store.prune(tmp_path / "history.sqlite", now=0, detail_s=0, keep_s=0)
    with store.reading(tmp_path / "history.sqlite") as database:
        for statement in statements:
            assert database.execute(statement).fetchall() == []


@pytest.mark.parametrize("kind", [JobRecord, PilotRecord])
def test_accounting_md_has_every_field_of_a_record(kind: type[JobRecord] | type[PilotRecord]) -> None:
    page = (ROOT / "docs" / "accounting.md").read_text(encoding="utf-8")
    names = [field.name for field in fields(kind)]
    explained = {
        name for cell in re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE) for name in cell.strip("`").split("`, `")
    }
    assert set(names) <= explained
    shown = [json.loads(text) for text in re.findall(r"^```text\n(\{.*?\})\n```$", page, re.MULTILINE | re.DOTALL)]
    assert ["schema", *names] in [list(document) for document in shown]


# The JSON contract: keys may be added, none may go.
CONTRACT: dict[str, dict[str, set[str]]] = {
    "groups": {
        "": {"schema", "time", "collector", "schedds", "groups", "totals"},
        "schedds": {"name", "ok", "error", "seconds"},
        "groups": {
            *("cpus", "memory_mb", "gpus", "disk_mb", "walltime_s", "owner", "vo", "idle", "running", "oldest_s"),
            *("resources", "why_not"),
        },
        "totals": {"idle_jobs", "idle_cpus", "running_jobs", "unmatched_jobs"},
    },
    "pilots": {
        "": {"schema", "time", "pilots"},
        "pilots": {
            *("id", "resource", "slurm_state", "reason", "node", "submitted", "started", "ends", "joined", "cpus"),
            *("cpus_busy", "jobs", "draining"),
        },
    },
    "held": {
        "": {"schema", "time", "resources", "held"},
        "resources": {"needed", "running", "booting", "pending", "submit", "cancel", "reasons"},
    },
}


@pytest.mark.parametrize("block", of("json"))
def test_a_json_example_has_the_contracts_keys(block: Block) -> None:
    document = json.loads(block.text)
    (kind,) = (kind for kind in CONTRACT if kind in document)
    assert document["schema"] == 1
    for part, keys in CONTRACT[kind].items():
        inner = document[part] if part else document
        named = part == "resources"
        rows = inner if isinstance(inner, list) else list(inner.values()) if named else [inner]
        assert rows
        for row in rows:
            assert keys <= set(row), part
    schema.check({"groups": "demand", "pilots": "pilots", "held": "plan"}[kind], document)


def test_every_json_document_has_an_example() -> None:
    shown = [json.loads(block.text) for block in blocks() if block.language == "json"]
    for kind in CONTRACT:
        assert any(kind in document for document in shown)


def test_a_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"\w+://", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_routes_md_quotes_the_route_that_is_rendered() -> None:
    raw = tomllib.loads(example())
    raw["vo"][0].update(request="flag", placement="only")
    rendered = {line.strip() for line in render_routes(Config.model_validate(raw)).splitlines()}
    page = (ROOT / "docs" / "routes.md").read_text(encoding="utf-8").partition("## Traps")[0]
    quoted = [line.strip() for text in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in text.splitlines()]
    assert set(quoted) <= rendered
    not_quoted = {line for line in rendered - set(quoted) if line and not line.startswith("#")}
    assert not not_quoted


def test_install_md_has_a_reason_for_every_dependency() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for requirement in setup["options"]["install_requires"].split():
        assert f"| {requirement.replace('>=', ' >= ')} |" in page
    for extra in ("test", "lint", "docs"):
        for requirement in setup["options.extras_require"][extra].split():
            assert requirement.replace(">=", " >= ") in page


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", htcebridge.__version__]
