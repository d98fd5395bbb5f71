"""The benchmarks ask what the product asks: their own scripts run here, against scripted daemons."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import htcondor2
import pytest

from benchmarks import demand_query
from htcebridge.config.tables import Config
from htcebridge.controller.waiting import ask_schedds
from htcebridge.state.memory import Schedds
from htcebridge.tier1 import pool

VERSION = "$CondorVersion: 25.14.1 2026-10-16 $"
SCHEDD = pool.Schedd("ce01.cr.example.org", "<1>", VERSION)


class AskedSchedd:
    def __init__(self, _: object) -> None:
        pass

    def query(self, constraint: str, projection: list[str], opts: Any = None, limit: int = -1) -> list[Any]:
        assert constraint == "true" or 'OpportunisticSite =?= "leonardo"' in constraint
        return []


def script(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, stdin: str = ""
) -> str:
    """What a script of the benchmark prints."""
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    exec(compile(text, "script", "exec"), {"__name__": "__main__"})  # noqa: S102  the benchmark's own
    return capsys.readouterr().out


def test_the_demand_benchmark_asks_what_the_product_asks(
    config: Config,
    design_example: str,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = own_home / ".config/htcebridge/htcebridge.toml"
    file.parent.mkdir(parents=True)
    file.write_text(design_example)
    others = (pool.Schedd("ce02", "<2>", VERSION),)
    monkeypatch.setattr(pool, "read_pool", lambda *_: pool.PoolView((SCHEDD, *others), ()))
    request = script(demand_query.REQUEST, monkeypatch, capsys)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(pool, "ask", lambda _, asked: sent.append(dict(asked)) or {"groups": [], "qdates": {}})
    ask_schedds(config, [SCHEDD], Schedds(), 0)
    assert json.loads(request) == json.loads(json.dumps(sent[0]))
    monkeypatch.setattr(htcondor2, "Schedd", AskedSchedd)
    for way in ("plain", "first", "again"):
        seconds, kilobytes = script(demand_query.QUERY, monkeypatch, capsys, way, stdin=request).split()
        assert float(seconds) >= 0
        assert int(kilobytes) > 0
