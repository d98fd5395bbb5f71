from __future__ import annotations

import dataclasses
import json
from datetime import date
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.model import EndedPilot, Outcome, Shape, Startd, Streaks, Track
from htcebridge.slurm.limits import Bound, SlurmLimits, Unit
from htcebridge.slurm.reservations import Maintenance
from htcebridge.state.memory import (
    Clock,
    Disabled,
    LastAnswer,
    Memory,
    Pause,
    Pilots,
    ReadLimits,
    Records,
    Resources,
    Schedds,
    Seen,
    Spent,
    Submissions,
    Upkeep,
    recall,
    remember,
)
from htcebridge.tier1.pool import JobGroup

ENDED = EndedPilot("2_1", "dcgp", "p", Outcome.PREEMPTED, 1, 2, 3, node="lrdn0001")
STARTD = Startd("1_1", "slot1@x", "x", Shape(112, 490_000), Shape(8, 1), 1, 99, accepting=True, busy_by_vo={"cms": 8})
MAINTENANCE = Maintenance("maint", 5, 6, whole=True)
FULL = Memory(
    pilots=Pilots(
        seen={"1_1": Seen("dcgp", "p", started=1, worked=True)},
        ended=(ENDED,),
        undrained={"1_1": 5},
    ),
    resources=Resources(
        streaks=Streaks(surplus={"dcgp": 2}, wanted={"dcgp": 1}, sparse={}),
        disabled={"dcgp": Disabled("why", 1, "f")},
        paused={"dcgp": Pause(1, 2, "why")},
        spent={"dcgp": Spent(date(2026, 11, 1), 17.5)},
        clocks={"dcgp": Clock(2.5, 1)},
        limits={"dcgp": ReadLimits(SlurmLimits(user=1000, max_wall_s=3600), ("a", "p", "q"), 1)},
        resets={"dcgp": 3},
    ),
    schedds=Schedds(
        known={"ce01": 1_800_000_000},
        qdates={"ce01": {"1.0": 1_700_000_000}},
        answers={"ce01": LastAnswer(1_800_000_000, (JobGroup("[ ]", "a", "cms", 5, 1, 1_700_000_000, "key"),))},
    ),
    ghosts={"dcgp": Track("d", 1, 2, {"key": ((1, 5),)})},
    submissions=Submissions(missing={"p:dcgp": 1}),
    upkeep=Upkeep(looked=5, pruned=4, shared=("/shared",)),
    records=Records(accounted=6, unrecorded=((ENDED, {"cms": 8}),), totals={"cycles|ok": 7.0}),
)
# The same as htcebridge 0.1 wrote it.
FLAT = {
    "streaks": {"surplus": {"dcgp": 2}, "wanted": {"dcgp": 1}, "sparse": {}},
    "schedds": {"ce01": 1_800_000_000},
    "qdates": {"ce01": {"1.0": 1_700_000_000}},
    "pilots": {"1_1": {"resource": "dcgp", "plan_id": "p", "started": 1, "worked": True}},
    "ended": [dataclasses.asdict(ENDED)],
    "disabled": {"dcgp": {"why": "why", "since": 1, "fingerprint": "f"}},
    "paused": {"dcgp": {"until": 1, "times": 2, "why": "why"}},
    "spent": {"dcgp": {"since": "2026-11-01", "node_hours": 17.5}},
    "clocks": {"dcgp": {"max_hours": 2.5, "since": 1}},
    "slurm_limits": {"dcgp": {"limits": {"user": 1000, "max_wall_s": 3600}, "billing": ["a", "p", "q"], "at": 1}},
    "ghosts": {"dcgp": {"digest": "d", "since": 1, "read": 2, "counts": {"key": [[1, 5]]}}},
    "unsettled": {"p:dcgp": 1},
    "resets": {"dcgp": 3},
    "undrained": {"1_1": 5},
    "shared": ["/shared"],
    "looked": 5,
    "pruned": 4,
    "accounted": 6,
    "unrecorded": [[dataclasses.asdict(ENDED), {"cms": 8}]],
    "totals": {"cycles|ok": 7.0},
}


@pytest.fixture
def state(own_home: Path) -> Path:
    directory = own_home / ".local/state/htcebridge"
    directory.mkdir(parents=True)
    return directory


@pytest.mark.usefixtures("state")
def test_pilots_startds_bounds_and_maintenances_are_recalled(config: Config) -> None:
    gpus = Bound("MaxTRESPU", "QOS q", Unit.GPUS, 4, own=True, qos="q", gpu_type="a100")
    read = ReadLimits(SlurmLimits(1000, bounds=(gpus,), maintenances=(MAINTENANCE,)), ("a", "p", "q"), 1)
    known = Memory(
        pilots=Pilots(seen={"1_1": Seen("dcgp", "p", startd=STARTD, missing=7)}),
        resources=Resources(limits={"dcgp": read}),
    )
    remember(config, known)
    assert recall(config) == known


def test_limits_that_were_read_before_memory_and_gpus_counted_are_recalled(config: Config, state: Path) -> None:
    bound = {"name": "GrpTRES cpu", "holder": "QOS q", "unit": "cores", "most": 9, "own": False, "qos": "q"}
    read = {"limits": {"user": 1, "bounds": [bound]}, "billing": ["a", "p", "q"], "at": 1}
    document = {"schema": 2, "memory": {"resources": {"limits": {"dcgp": read}}}}
    (state / "leonardo.json").write_text(json.dumps(document))
    (found,) = recall(config).resources.limits["dcgp"].limits.bounds
    assert (found.tres, found.most) == ("cpu", 9)


@pytest.mark.usefixtures("state")
def test_what_a_cycle_remembers_the_next_one_recalls(config: Config) -> None:
    remember(config, FULL)
    assert recall(config) == FULL


def test_the_file_of_the_version_before_is_carried_over_whole(config: Config, state: Path) -> None:
    """A controller is upgraded under running pilots: what is known of them, their ends and budgets goes on."""
    (state / "leonardo.json").write_text(json.dumps(FLAT))
    carried = dataclasses.replace(FULL, schedds=dataclasses.replace(FULL.schedds, answers={}))  # it kept none
    assert recall(config) == carried
    remember(config, recall(config))
    assert json.loads((state / "leonardo.json").read_text())["schema"] == 2
    assert recall(config) == carried


def test_a_file_of_the_version_before_that_lacks_fields_is_carried_over(config: Config, state: Path) -> None:
    (state / "leonardo.json").write_text(json.dumps({"streaks": {}, "looked": 7}))
    assert recall(config) == Memory(upkeep=Upkeep(looked=7))


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"schema": 3, "memory": {}}',
        b'{"schema": 2}',
        b'{"schema": 2, "memory": {"pilots": {"seen": 3}}}',
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
