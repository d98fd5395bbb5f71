"""What a cycle leaves: totals that only grow, and outcomes that wait until the history can be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from htcebridge import calls
from htcebridge.config.tables import Config
from htcebridge.history import recording, store
from htcebridge.history.usage import Use
from htcebridge.model import (
    Cut,
    Demand,
    EndedPilot,
    Limits,
    Outcome,
    Pilot,
    PilotPhase,
    Plan,
    Policy,
    ResourcePlan,
    Shape,
    Situation,
    SlurmJob,
    Startd,
)
from htcebridge.state.memory import Memory, Pilots, Records, Seen, Upkeep

NOW = 1_800_000_000
NODE = Shape(112, 494000)
STARTD = Startd("9_1", "s", "m", NODE, Shape(100, 400000), 2, NOW + 9999, True, False, {"cms": 8, "atlas": 4})
JOB = SlurmJob("9_1", "dcgp", "p1", "RUNNING", "None", "p", "q", "a", "n1", NOW - 99, NOW - 90, NOW + 9999, 43200)
SEEN = Seen("dcgp", "p1", NOW - 99, NOW - 90, NOW - 30, "n1", worked=True, busy_by_vo={"cms": 8, "atlas": 4})
ENDED = EndedPilot(
    "9_1", "dcgp", "p1", Outcome.PREEMPTED, NOW - 99, NOW - 90, NOW, NOW - 30, "n1", 0, "", False, 5, 2, 9000, 1200
)
PLAN = Plan({"dcgp": ResourcePlan(5, 1, 0, 0, submit=2, cancel=("8_1",), cuts={Cut.MAX_PENDING: 3})})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    calls.take()
    vos = [{"name": name, "owners": [f"{name}*"]} for name in ("CMS", "atlas")]
    return Config.model_validate(
        {"tier1": {"collector": "c"}, "pressure": {"state_dir": str(tmp_path / "state")}, "vo": vos}
    )


def situation() -> Situation:
    limits = {"dcgp": Limits("dcgp", NODE, 43200, 42000, 10, 5, 20)}
    pilots = (Pilot(JOB, PilotPhase.JOINED, STARTD),)
    return Situation(NOW, Demand((), ()), pilots, limits, Policy(0.25, 900, 3))


def known(accounted: int, seen: Mapping[str, Seen] | None = None, totals: Mapping[str, float] | None = None) -> Memory:
    return Memory(pilots=Pilots(seen=seen or {}), records=Records(accounted, totals=totals or {}))


def learnt(looked: int, ended: tuple[EndedPilot, ...] = (), before: Memory | None = None) -> Memory:
    records = before.records if before else Records()
    return Memory(pilots=Pilots(ended=ended), upkeep=Upkeep(looked=looked), records=records)


def test_what_was_seen_and_done_is_counted(config: Config) -> None:
    calls.count("squeue")
    before = known(NOW - 60, {"9_1": SEEN}, {"submitted|dcgp": 7.0})
    kept = recording.keep(config, before, learnt(NOW, (ENDED,), before), situation(), PLAN, "p9", 0.5, 1)
    assert kept.problems == ()
    assert kept.memory.records.accounted == NOW
    assert kept.memory.records.totals == {
        "cycles|problem": 1,
        "calls|squeue": 1,
        "submitted|dcgp": 9,
        "cancelled|dcgp": 1,
        "cut|dcgp|max_pending": 3,
        "outcome|dcgp|preempted": 1,
        "queued|dcgp": 1,
        "queued_s|dcgp": 9,
        "booted|dcgp": 1,
        "booted_s|dcgp": 60,
    }
    assert kept.core_s == {
        ("dcgp", "CMS", Use.BUSY): 480,
        ("dcgp", "atlas", Use.BUSY): 240,
        ("dcgp", "", Use.TAIL): 6000,
        ("dcgp", "CMS", Use.LOST): 800,
        ("dcgp", "atlas", Use.LOST): 400,
    }


def test_core_seconds_that_the_memory_of_the_version_before_counted_go_on(config: Config) -> None:
    """A counter that fell by a little would look to Prometheus as if it had begun anew."""
    before = known(NOW - 60, totals={"core_s|dcgp||tail": 9e5, "core_s|old|a|b|busy": 7.0, "cycles|ok": 3})
    kept = recording.keep(config, before, learnt(NOW, (), before), situation(), PLAN, "p9", 0.5, 0)
    assert kept.core_s is not None
    assert kept.core_s["dcgp", "", Use.TAIL] == 9e5 + 6000
    assert kept.core_s["old", "a|b", Use.BUSY] == 7
    assert not any(name.startswith("core_s") for name in kept.memory.records.totals)
    assert kept.memory.records.totals["cycles|ok"] == 4


def test_an_outcome_waits_until_the_history_can_be_written(config: Config) -> None:
    path = store.path_of(config)
    path.mkdir(parents=True)
    before = known(NOW - 60, {"9_1": SEEN})
    kept = recording.keep(config, before, learnt(NOW, (ENDED,)), situation(), PLAN, "p1", 0.5, 0)
    assert len(kept.problems) == 1
    assert kept.core_s is None
    assert kept.memory.records.unrecorded == ((ENDED, {"CMS": 8, "atlas": 4}),)
    path.rmdir()
    kept = recording.keep(
        config, kept.memory, replace(kept.memory, upkeep=Upkeep(looked=NOW + 60)), situation(), PLAN, "p2", 0.5, 0
    )
    assert kept.problems == ()
    assert kept.memory.records.unrecorded == ()
    with store.reading(path) as database:
        assert [tuple(row) for row in database.execute("SELECT id, outcome FROM pilots")] == [("9_1", "preempted")]
        lost = database.execute("SELECT vo, core_s FROM used WHERE use = 'lost' ORDER BY vo").fetchall()
    assert [tuple(row) for row in lost] == [("CMS", 800), ("atlas", 400)]


def test_the_time_of_a_held_cycle_is_counted_by_the_next(config: Config) -> None:
    before = known(NOW - 120)
    held = Plan({"dcgp": ResourcePlan(0, 0, 0, 0)}, held="squeue: no answer")
    kept = recording.keep(config, before, learnt(NOW - 60), None, held, "p1", 0.5, 1)
    assert (kept.memory.records.accounted, kept.memory.records.totals["cycles|held"]) == (NOW - 120, 1)
    kept = recording.keep(
        config, kept.memory, replace(kept.memory, upkeep=Upkeep(looked=NOW)), situation(), PLAN, "p2", 0.5, 0
    )
    assert kept.core_s is not None
    assert kept.core_s["dcgp", "", Use.TAIL] == 100 * 120


def test_a_vo_that_nobody_configured_is_other(config: Config) -> None:
    odd = replace(STARTD, busy_by_vo={"mine|all": 5, "yours": 3, "atlas": 4})
    seen = replace(situation(), pilots=(Pilot(JOB, PilotPhase.JOINED, odd),))
    kept = recording.keep(config, known(NOW - 1), learnt(NOW), seen, PLAN, "p1", 0.5, 0)
    assert kept.core_s is not None
    assert kept.core_s["dcgp", "other", Use.BUSY] == 8
    assert kept.core_s["dcgp", "atlas", Use.BUSY] == 4


def test_what_pilots_do_under_the_kill_switch_is_not_known(config: Config) -> None:
    """The pool is not asked then: a pilot that works looks as if it had not joined."""
    seen = replace(situation(), stop="leo: maintenance", pilots=(Pilot(JOB, PilotPhase.BOOTING),))
    kept = recording.keep(config, known(NOW - 60), learnt(NOW), seen, PLAN, "p1", 0.5, 0)
    assert kept.core_s == {}
    assert kept.memory.records.accounted == NOW
    with store.reading(store.path_of(config)) as database:
        assert [tuple(row) for row in database.execute("SELECT held FROM cycles")] == [("stopped: leo: maintenance",)]
        assert database.execute("SELECT count(*) FROM plans").fetchone()[0] == 0
