"""The loop around the cycle."""

from __future__ import annotations

from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import cycle, loop
from htcebridge.state.lock import ControllerLock


def test_a_broken_edit_keeps_the_last_good_configuration(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text("[tier1")
    kept, complaint = loop._reread(path, config)
    assert kept is config
    assert "last good configuration stays in force" in complaint


def test_a_good_edit_is_taken_over(config: Config, tmp_path: Path, design_example: str) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text(design_example.replace("max_running = 100", "max_running = 7"))
    taken, complaint = loop._reread(path, config)
    assert (taken.resources["dcgp"].max_running, complaint) == (7, None)


def test_another_instance_needs_a_restart(config: Config, tmp_path: Path, design_example: str) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text(design_example.replace('instance = "leonardo"', 'instance = "other"'))
    kept, complaint = loop._reread(path, config)
    assert kept is config
    assert "restart" in complaint


def test_a_cycle_that_breaks_does_not_end_the_controller(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cycle, "cycle", broken)
    with ControllerLock(config) as lock:
        result = loop._surviving_cycle(config, lock, None)
    assert result.problems == ("a cycle failed: a bug",)
    assert "ZeroDivisionError" in caplog.text
