"""Cycles are written down, learnt from and decided again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from htcebridge.cli import cli
from htcebridge.config.tables import Config
from htcebridge.controller import cycle, snapshots
from htcebridge.controller.observation import Observation
from htcebridge.errors import ConfigError
from htcebridge.simulation.replay import replay
from htcebridge.state import resets
from htcebridge.state.lock import ControllerLock
from tests.unit.controller.made import World, group, row, waiting


@pytest.fixture
def recording(two: Config, world: World, tmp_path: Path) -> Path:
    """Cycles with a submission, pilots that start and end, a reset, a refusal, a changed configuration, a held one."""
    path = tmp_path / "cycles.jsonl"

    def cycled(config: Config) -> cycle.CycleResult:
        with ControllerLock(config) as lock:
            return cycle.cycle(config, lock, path)

    first = cycled(two)
    rows = [row("4711_1", "RUNNING", first.plan_id), row("4711_2", "PENDING", first.plan_id)]
    world.queue(*rows)
    cycled(two)
    world.demand = waiting(group(idle=280), group(idle=28, resources=("zweite",)))
    world.sbatch(stderr="sbatch: error: QOSMaxSubmitJobPerUserLimit\n", code=1)
    cycled(two)
    resets.request(two, "dcgp")
    cycled(two)
    world.queue("no header")
    cycled(two)
    world.queue(row("4711_1", "PREEMPTED", first.plan_id), rows[1])
    world.sbatch()
    changed = two.resources["zweite"].model_copy(update={"max_running": 1})
    cycled(two.model_copy(update={"resources": {**two.resources, "zweite": changed}}))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_configuration_and_memory_are_recorded_where_they_do_not_follow(recording: Path) -> None:
    assert ["config" in line for line in lines_of(recording)] == [True, False, False, False, False, True]


def test_a_recording_is_learnt_from_and_decided_again_exactly(recording: Path) -> None:
    found = replay(recording)
    assert (found.cycles, found.differences) == (6, ())


def test_what_is_recorded_is_read_back_exactly(recording: Path) -> None:
    for text in recording.read_text().splitlines():
        read = snapshots.load(text)
        assert TypeAdapter(Observation).dump_python(read.seen, mode="json") == json.loads(text)["seen"]


def test_a_replay_shows_where_a_decision_differs(recording: Path, tmp_path: Path) -> None:
    lines = lines_of(recording)
    lines[2]["plan"]["resources"]["dcgp"]["submit"] += 5
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (difference,) = replay(path).differences
    assert (difference.line, difference.resource, difference.changes[0][0]) == (3, "dcgp", "submit")
    said = CliRunner().invoke(cli, ["simulate", "--replay", str(path)], standalone_mode=False)
    assert said.return_value == 1
    assert "line 3," in said.output
    same = CliRunner().invoke(cli, ["simulate", "--replay", str(recording)], standalone_mode=False)
    assert (same.return_value, same.output.count("\n")) == (0, 1)


def test_an_old_recording_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cycles.jsonl"
    path.write_text('{"schema": 1, "situation": {}, "plan": {}}\n')
    with pytest.raises(ConfigError, match=r"cycles.jsonl:1: recorded by an htcebridge that wrote down situations"):
        replay(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "no recorded cycle; is it a file of `pressure run --record`?"),
        ("[]", "not a recorded cycle of schema 2"),
        ('{"schema": 3}', "not a recorded cycle of schema 2"),
        ('{"schema": 2, "plan": {}}', "seen is missing"),
        ('{"schema": 2, "seen": {"near": {"now": "x"}}, "plan": {}}', "now"),
    ],
)
def test_a_damaged_recording_names_its_line(recording: Path, tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_text(recording.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=rf"{path.name}:2: .*{complaint}"):
        replay(path)


def test_a_recording_that_ends_in_the_middle_says_so(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(recording.read_text()[:-40])
    last = len(recording.read_text().splitlines())
    with pytest.raises(ConfigError, match=rf"cut.jsonl:{last}: this last line is cut off"):
        replay(path)


def test_a_recording_without_its_first_line_says_so(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(recording.read_text().splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match=r"cut.jsonl:1: the line with configuration and memory is not before it"):
        replay(path)
