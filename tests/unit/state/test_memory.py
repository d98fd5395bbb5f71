from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.model import EndedPilot, Outcome, Streaks
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.state.memory import Clock, Disabled, Memory, Pause, ReadLimits, Seen, Spent, recall, remember

FULL = Memory(
    streaks=Streaks(surplus={"dcgp": 2}, wanted={"dcgp": 1}, sparse={}),
    schedds={"ce01": 1_800_000_000},
    qdates={"ce01": {"1.0": 1_700_000_000}},
    pilots={"1_1": Seen("dcgp", "p", started=1, worked=True)},
    ended=(EndedPilot("2_1", "dcgp", "p", Outcome.PREEMPTED, 1, 2, 3, node="lrdn0001"),),
    disabled={"dcgp": Disabled("why", 1, "f")},
    paused={"dcgp": Pause(1, 2, "why")},
    spent={"dcgp": Spent(date(2026, 11, 1), 17.5)},
    clocks={"dcgp": Clock(2.5, 1)},
    slurm_limits={"dcgp": ReadLimits(SlurmLimits(user=1000, max_wall_s=3600), ("a", "p", "q"), 1)},
    unsettled={"p:dcgp": 1},
    looked=5,
)


@pytest.fixture
def state(own_home: Path) -> Path:
    directory = own_home / ".local/state/htcebridge"
    directory.mkdir(parents=True)
    return directory


@pytest.mark.usefixtures("state")
def test_what_a_cycle_remembers_the_next_one_recalls(config: Config) -> None:
    remember(config, FULL)
    assert recall(config) == FULL


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b'{"streaks": 3}',
        b'{"streaks": {"surplus": {"dcgp": "many"}}}',
        b'{"schedds": []}',
        b'{"ended": [{"id": "1"}]}',
        b'{"pilots": {"1_1": {"resource": null}}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_memory_only_starts_the_count_again(config: Config, state: Path, damaged: bytes) -> None:
    (state / "leonardo.json").write_bytes(damaged)
    assert recall(config) == Memory()
    remember(config, FULL)
    assert recall(config) == FULL


def test_no_memory_yet_means_nothing_is_known(config: Config) -> None:
    assert recall(config) == Memory()


def test_a_memory_that_cannot_be_written_does_not_stop_the_cycle(config: Config, state: Path) -> None:
    (state / "leonardo.json").mkdir()
    remember(config, FULL)
    assert recall(config) == Memory()
