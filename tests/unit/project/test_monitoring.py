"""Alert rules and dashboard: what they ask for is what the controller exports, and promtool agrees."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import htcebridge
from htcebridge.metrics import export
from htcebridge.metrics.table import TABLE
from htcebridge.model import Cap, Cut, Outcome, PilotPhase
from htcebridge.plan import planner
from tests import made_cycles as made
from tests.testbed.errors import TestbedError
from tests.testbed.prometheus import ensure_prometheus

ROOT = Path(htcebridge.__file__).resolve().parent.parent
if not (ROOT / "deploy" / "prometheus").is_dir():
    pytest.skip("not a checkout: no rules", allow_module_level=True)
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
PASTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "htcebridge.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def exposition() -> bytes:
    """Everything that there is to export."""
    seen = made.situation(
        made.pilot(PilotPhase.JOINED, {"cms": 16}),
        groups=(made.group(),),
        limits={"dcgp": made.LIMITS, "booster": made.LIMITS},
    )
    totals = {**made.TOTALS, **{f"outcome|dcgp|{outcome}": 1 for outcome in Outcome}}
    expiries = {("controller", ""): made.NOW, ("pilot", "dcgp"): made.NOW}
    return export.render(made.CONFIG, made.result(seen, totals=totals), expiries)


@cache
def exported() -> tuple[set[str], dict[str, set[str]]]:
    """The names of all series, and the values that each label has."""
    names, values = set(), dict[str, set[str]]()
    for family in text_string_to_metric_families(exposition().decode()):
        for sample in family.samples:
            names.add(sample.name)
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    return names, values


def queries() -> Iterator[Any]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"panel {panel['title']} {target['refId']}")
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield pytest.param(variable["query"]["query"], id=f"variable {variable['name']}")
    # One rule is one item of the list; its text, annotations too, is what is looked through.
    for rule in RULES.read_text(encoding="utf-8").split("- alert: ")[1:]:
        yield pytest.param(rule.partition("annotations:")[0], id=f"alert {rule.splitlines()[0]}")
    for number, block in enumerate(re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)):
        yield pytest.param(block, id=f"docs/metrics.md {number}")


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_asks_for_what_is_exported(query: str) -> None:
    names, values = exported()
    asked = set(re.findall(r"\bhtcebridge_\w+", query))
    assert asked
    assert asked <= names
    for label, operator, wanted in re.findall(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"", query):
        assert label in values, label
        for word in wanted.split("|") if "~" in operator else [wanted]:
            assert word.startswith("$") or any(re.fullmatch(word, value) for value in values[label]), (label, word)
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= set(values)


def test_every_metric_of_the_table_is_exported() -> None:
    names, _ = exported()
    for metric in TABLE:
        wanted = {f"{metric.name}_sum", f"{metric.name}_count"} if metric.kind == "summary" else {metric.name}
        assert wanted <= names


# --------------------------------------------------------------------------- promtool


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return ensure_prometheus() / "promtool"
    except TestbedError as error:
        pytest.skip(f"no promtool: {error}")


def run(*command: str | Path, stdin: bytes = b"") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_promtool_takes_the_rules(promtool: Path) -> None:
    assert f"{len(alerts())} rules found" in run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_rules_say_what_they_should_of_made_up_pasts(promtool: Path) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", PASTS)


def test_promtool_finds_nothing_in_the_exposition(promtool: Path) -> None:
    held = made.result(None, planner.hold("silent", made.CONFIG.resources))
    assert run(promtool, "check", "metrics", stdin=exposition()) == ""
    assert run(promtool, "check", "metrics", stdin=export.render(made.CONFIG, held)) == ""


# --------------------------------------------------------------------------- rules


def alerts() -> dict[str, str]:
    """Alert -> severity."""
    return dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", RULES.read_text(encoding="utf-8"), re.DOTALL))


def test_each_alert_has_a_severity_a_summary_and_its_own_place_in_the_runbook() -> None:
    for rule in RULES.read_text(encoding="utf-8").split("- alert: ")[1:]:
        name = rule.splitlines()[0]
        kebab = re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
        assert f"runbook: docs/runbook.md#{kebab}\n" in rule
        assert re.search(r"^ +severity: (critical|warning|info)$", rule, re.MULTILINE), name
        assert re.search(r"^ +summary: \S", rule, re.MULTILINE), name
        assert re.search(r"^ +for: \S", rule, re.MULTILINE), name


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = re.split(r"^      - ", PASTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    fired = {name for case in cases if "exp_alerts:" in case for name in re.findall(r"alertname: (\w+)", case)}
    quiet = {name for case in cases if "exp_alerts:" not in case for name in re.findall(r"alertname: (\w+)", case)}
    assert fired == quiet == set(alerts())


def test_the_docs_list_each_alert() -> None:
    assert dict(re.findall(r"^\| (Htcebridge\w+) \| (\w+) \|", PAGE, re.MULTILINE)) == alerts()


# --------------------------------------------------------------------------- dashboard


def test_no_data_source_is_hard_wired() -> None:
    (source,) = (each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource")
    used = {json.dumps(each) for each in sources(DASHBOARD) if each.get("type") == "prometheus"}
    assert used == {json.dumps({"type": "prometheus", "uid": f"${{{source['name']}}}"})}


def sources(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if isinstance(part.get("datasource"), dict):
            yield part["datasource"]
        for inner in part.values():
            yield from sources(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from sources(inner)


def test_variables_that_queries_use_are_there() -> None:
    there = {each["name"] for each in DASHBOARD["templating"]["list"]}
    of_grafana = {"__interval", "__range", "__rate_interval", "__all"}
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= there | of_grafana
    assert there <= set(re.findall(r"\$\{?(\w+)", text))


@pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in PANELS])
def test_a_panel_has_a_unit_a_title_and_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_what_blocks_a_resource_is_worded_as_the_rules_ask() -> None:
    caps = tuple(Cap("", 0, "why", kind=cut) for cut in Cut)
    seen = made.situation(limits={"dcgp": replace(made.LIMITS, caps=caps)})
    blocked = {
        dict(labels)["reason"]
        for (name, labels), value in made.parsed(export.render(made.CONFIG, made.result(seen))).items()
        if name == "htcebridge_resource_blocked" and value == 1
    }
    text = RULES.read_text(encoding="utf-8")
    asked = {word for wanted in re.findall(r'resource_blocked\{reason=~?"([^"]+)"', text) for word in wanted.split("|")}
    assert asked <= blocked
