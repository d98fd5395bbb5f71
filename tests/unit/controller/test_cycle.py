from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from htcebridge.cli import cli
from htcebridge.config.paths import expand
from htcebridge.config.tables import Config
from htcebridge.controller import ads, cycle, follow, loop, observe, situation, snapshots
from htcebridge.controller.observation import Collector, Marks, Near, Observation, Source, Waiting
from htcebridge.errors import ConfigError, ExitCode, UnknownState
from htcebridge.model import (
    Demand,
    EndedPilot,
    Group,
    Outcome,
    Pilot,
    PilotPhase,
    ScheddAnswer,
    Shape,
    SlurmJob,
    Streaks,
)
from htcebridge.pilot import marks
from htcebridge.plan import planner
from htcebridge.simulation.replay import replay
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.slurm.text import QUEUE_HEADER, Queue
from htcebridge.state import resets
from htcebridge.state.ledger import Entry, Ledger
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import (
    Memory,
    Pilots,
    ReadLimits,
    Records,
    Resources,
    Schedds,
    Spent,
    Upkeep,
    fingerprint,
    recall,
    remember,
)
from htcebridge.tier1 import tokens

NOW = 1_800_000_000
HOUR = 3600
SHAPE = Shape(8, 16000, 0, 1000)
ACCOUNT, PARTITION, QOS = "INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio"


def slurm_job(state: str = "RUNNING", **changes: object) -> SlurmJob:
    job = SlurmJob(
        id="7_1",
        resource="dcgp",
        plan_id="p",
        state=state,
        reason="None",
        partition=PARTITION,
        qos=QOS,
        account="inf24_lhc_2",
        node="lrdn0001",
        submitted=NOW - 1000,
        started=NOW - 100,
        ends=NOW - 100 + 12 * HOUR,
        time_limit_s=12 * HOUR,
    )
    return replace(job, **changes)


def pending(number: int, **changes: object) -> Pilot:
    return Pilot(
        slurm_job("PENDING", id=f"7_{number}", started=None, ends=None, node="", **changes), PilotPhase.PENDING
    )


def group(**changes: object) -> Group:
    return replace(Group(SHAPE, HOUR, "cmspil", "cms", 5, 1, 600, ("dcgp",)), **changes)


def waiting(*groups: Group) -> Demand:
    return Demand(groups, (ScheddAnswer("ce01", 0.1),))


def seen(idle: int = 14 * 20, entries: Iterable[Entry] = (), marks: Marks = Marks()) -> Observation:  # noqa: B008
    near = Near(NOW, 1000, Source(NOW), Source(NOW, marks), Source(NOW, Queue((), ())), Source(NOW, tuple(entries)))
    return Observation(
        near,
        collector=Source(NOW, Collector((), frozenset())),
        waiting=Source(NOW, Waiting(waiting(group(idle=idle)), {})),
        ends=Source(NOW, ()),
    )


def with_resource(config: Config, **changes: object) -> Config:
    resource = config.resources["dcgp"].model_copy(update=changes)
    return config.model_copy(update={"resources": {"dcgp": resource}})


def caps(config: Config, memory: Memory, *pilots: Pilot, entries: Iterable[Entry] = (), marks: Marks = Marks()):  # noqa: B008
    built, _ = situation.build(config, memory, pilots, seen(entries=entries, marks=marks))
    return {cap.why: cap.room for cap in built.limits["dcgp"].caps}


def room(found: dict[str, int], about: str) -> int:
    (why,) = [why for why in found if about in why]
    return found[why]


# --------------------------------------------------------------------------- budget


def spent(config: Config, hours: float) -> Memory:
    return Memory(resources=Resources(spent={"dcgp": Spent(config.resources["dcgp"].node_hours_since, hours)}))


def test_node_hours_of_ended_pilots_are_used_up(config: Config) -> None:
    budget = with_resource(config, max_node_hours=36)
    assert room(caps(budget, spent(config, 10)), "max_node_hours 36 (26.0 left, a pilot may take 12)") == 2


def test_hours_that_live_pilots_may_still_use_are_not_promised_again(config: Config) -> None:
    budget = with_resource(config, max_node_hours=36)
    assert room(caps(budget, spent(config, 0), pending(1), pending(2)), "max_node_hours 36 (12.0 left") == 1


# --------------------------------------------------------------------------- Slurm's own limits


def slurm_allows(**changes: object) -> Memory:
    read = ReadLimits(SlurmLimits(user=1000, **changes), (ACCOUNT, PARTITION, QOS), NOW)
    return Memory(resources=Resources(limits={"dcgp": read}))


def test_a_walltime_above_max_wall_is_cut_with_its_reason(config: Config) -> None:
    memory = slurm_allows(max_wall_s=8 * HOUR, max_wall_of="QOS qos_lowprio (MaxWall)")
    built, _ = situation.build(config, memory, (), seen())
    limits = built.limits["dcgp"]
    assert (limits.walltime_s, limits.job_life_s) == (8 * HOUR, 8 * HOUR - 540)
    assert limits.notes == ("walltime 12h cut to 8h by QOS qos_lowprio (MaxWall)",)


def test_a_max_wall_that_no_pilot_can_live_with_stops_submission(config: Config) -> None:
    memory = slurm_allows(max_wall_s=HOUR, max_wall_of="partition dcgp_usr_prod")
    assert room(caps(config, memory), "too short for a pilot") == 0


# --------------------------------------------------------------------------- caps per hour and day


def submission(count: int, minutes_ago: float, outcome: str = "1", **changes: object) -> Entry:
    when = NOW - int(minutes_ago * 60)
    entry = Entry(when, f"p{minutes_ago}", "dcgp", count, ACCOUNT, PARTITION, QOS, None, outcome)
    return replace(entry, **changes)


def test_what_was_submitted_in_the_last_hour_and_day_is_used_up(config: Config) -> None:
    found = caps(config, Memory(), entries=[submission(5, 10), submission(7, 90), submission(9, 25 * 60)])
    assert room(found, "max_new_per_hour 500 (5 submitted)") == 495
    assert room(found, "max_new_per_day 5000 (12 submitted)") == 4988


def test_a_submission_of_which_nobody_knows_stops_the_next(config: Config) -> None:
    found = caps(config, Memory(), entries=[submission(5, 1, outcome="")])
    assert room(found, "nobody knows yet whether Slurm took 5 pilots") == 0


# --------------------------------------------------------------------------- max_hours


def test_max_hours_end_a_resource_and_zero_stops_it_at_once(config: Config) -> None:
    assert room(caps(with_resource(config, max_hours=0.0), Memory()), "max_hours 0") == 0
    assert not any("max_hours" in why for why in caps(with_resource(config, max_hours=2.0), Memory()))


# --------------------------------------------------------------------------- marks


def test_a_drained_resource_gets_no_pilots(config: Config) -> None:
    found = caps(config, Memory(), marks=Marks(drained={"dcgp": "leo: maintenance"}))
    assert room(found, "it is drained: leo: maintenance") == 0


# --------------------------------------------------------------------------- a queue that stands


@pytest.mark.parametrize("nodes", [1, 40])
def test_a_day_in_which_slurm_starts_nothing_submits_once_and_cancels_nothing(config: Config, nodes: int) -> None:
    wide = with_resource(config, max_pending=200, max_running=200, max_node_hours=None)
    waited = [
        EndedPilot(f"9_{n}", "dcgp", "p", Outcome.RAN, NOW - 600 - 60 * n, NOW - 600, NOW - n, NOW - 500)
        for n in range(30)
    ]
    memory, pilots, submitted, reasons = (
        Memory(pilots=Pilots(ended=tuple(waited))),
        list[Pilot](),
        list[int](),
        set[str](),
    )
    for now in range(NOW, NOW + 24 * HOUR, 120):
        look = seen(idle=14 * nodes)
        look = replace(look, near=replace(look.near, now=now))
        decision = planner.plan(situation.build(wide, memory, pilots, look)[0])
        memory = replace(memory, resources=Resources(decision.streaks))
        dcgp = decision.resources["dcgp"]
        assert dcgp.cancel == ()
        reasons.update(dcgp.reasons)
        if dcgp.submit:
            submitted.append(dcgp.submit)
            pilots += [
                pending(now + n, reason="Priority", submitted=now, time_limit_s=12 * HOUR) for n in range(dcgp.submit)
            ]
    assert sum(submitted) == nodes
    assert any("would be no luckier" in reason for reason in reasons)


# --------------------------------------------------------------------------- one cycle


@pytest.fixture
def token(own_home: Path) -> Path:
    token = own_home / ".config/htcebridge/pilot.idtoken"
    token.parent.mkdir(parents=True)
    token.write_text("e30.e30.c2lnbmF0dXJl")  # a token that says nothing, not even when it expires
    token.chmod(0o600)
    return token


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path / "work/htcebridge"
    shared.mkdir(parents=True)
    return shared


@pytest.fixture
def two(load: Callable[[str], Config], design_example: str) -> Config:
    second = design_example.partition("[resource.dcgp]")[2]
    return load((design_example + "\n[resource.zweite]" + second).replace("max_node_hours = 20000\n", ""))


class World:
    """A Slurm of fake commands and a Tier-1 that answers at once."""

    def __init__(self, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self._fake = fake_command
        self.demand = waiting(group(idle=28))
        self.calls = fake_command("sbatch", stdout="4711\n")
        self.queue()
        for name in ("scancel", "sacct"):
            fake_command(name)
        for name in ("scontrol", "sacctmgr"):
            fake_command(name, stderr="slurmdbd is not there", code=1)
        monkeypatch.setattr(tokens, "check_directory", lambda _: None)
        monkeypatch.setattr(observe, "_with_tier1", lambda _, seen, *__: self._tier1(seen))

    def _tier1(self, seen: Observation) -> Observation:
        return replace(
            seen,
            collector=Source(seen.now, Collector((), frozenset())),
            waiting=Source(seen.now, Waiting(self.demand, {})),
        )

    def queue(self, *rows: str) -> None:
        self._fake("squeue", stdout="".join(f"{row}|;\n" for row in (QUEUE_HEADER, *rows)))

    def sbatch(self, stdout: str = "4711\n", **changes: object) -> None:
        self._fake("sbatch", stdout=stdout, **changes)

    def asked(self, command: str) -> str:
        path = self.calls / f"{command}.args"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def world(token: Path, shared: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> World:
    return World(fake_command, monkeypatch)


def row(id_: str, state: str, plan_id: str = "p", **changes: str) -> str:
    fields = {
        "id": id_,
        "state": state,
        "partition": PARTITION,
        "qos": QOS,
        "account": "inf24_lhc_2",
        "user": str(os.getuid()),
        "submitted": str(NOW),
        "start": str(NOW) if state == "RUNNING" else "N/A",
        "end": str(NOW + HOUR) if state == "RUNNING" else "N/A",
        "limit": "12:00:00",
        "node": "lrdn0001" if state == "RUNNING" else "",
        "nodes": "1",
        "reason": "None",
        "comment": f"htcebridge:leonardo:dcgp:{plan_id}",
    }
    return "|".join({**fields, **changes}.values())


def once(config: Config) -> cycle.CycleResult:
    with ControllerLock(config) as lock:
        return cycle.cycle(config, lock)


def test_a_cycle_submits_what_the_plan_says_and_remembers(two: Config, world: World, shared: Path) -> None:
    result = once(two)
    assert (result.exit_code, result.problems) == (ExitCode.OK, ())
    arguments = world.asked("sbatch")
    assert "--array=1-2\n" in arguments
    assert f"--comment=htcebridge:leonardo:dcgp:{result.plan_id}\n" in arguments
    assert shared.joinpath("logs").is_dir()
    (entry,) = Ledger(two).entries()
    assert (entry.count, entry.outcome, entry.account) == (2, "4711", ACCOUNT)
    assert recall(two).upkeep.looked > 0


def test_a_cycle_asks_slurm_once_and_submits_once_for_each_resource(two: Config, world: World) -> None:
    world.demand = waiting(group(idle=28), group(idle=28, resources=("zweite",)))
    once(two)
    assert [world.asked(command).count(option) for command, option in (("squeue", "--me"), ("sbatch", "--array"))] == [
        1,
        2,
    ]
    assert world.asked("sacct") == world.asked("scancel") == ""


def test_what_sbatch_says_is_one_resources_business(two: Config, world: World) -> None:
    world.demand = waiting(group(idle=14), group(idle=14, resources=("zweite",)))
    world.sbatch(first='case "$*" in *:dcgp:*) echo "sbatch: error: Invalid qos specification" >&2; exit 1;; esac')
    result = once(two)
    assert result.exit_code == ExitCode.PROBLEM
    assert any(problem.startswith("resource dcgp: sbatch failed") for problem in result.problems)
    assert world.asked("sbatch").count("--comment") == 2


def test_a_wrong_configuration_disables_the_resource_until_it_changes(config: Config, world: World) -> None:
    world.sbatch(
        stderr="sbatch: error: Invalid account or account/partition combination specified\n",
        code=1,
    )
    once(config)
    again = once(config)
    assert world.asked("sbatch").count("--comment") == 1
    assert any("disabled" in reason for reason in again.plan.resources["dcgp"].reasons)
    assert any("Invalid account" in problem for problem in again.problems)
    assert once(with_resource(config, max_running=7)).plan.resources["dcgp"].submit == 2


def test_a_reset_gives_a_disabled_resource_its_next_chance(config: Config, world: World) -> None:
    world.sbatch(stderr="sbatch: error: Invalid qos specification\n", code=1)
    once(config)
    resets.request(config, "dcgp")
    once(config)
    assert world.asked("sbatch").count("--comment") == 2


def test_a_limit_pauses_the_resource(config: Config, world: World) -> None:
    world.sbatch(stderr="sbatch: error: QOSMaxSubmitJobPerUserLimit\n", code=1)
    once(config)
    again = once(config)
    assert world.asked("sbatch").count("--comment") == 1
    assert any("QOSMaxSubmitJobPerUserLimit" in reason for reason in again.plan.resources["dcgp"].reasons)


def test_an_unknown_outcome_is_settled_before_anything_is_submitted_again(config: Config, world: World) -> None:
    world.sbatch(stderr="sbatch: error: Socket timed out on send/recv operation\n", code=1)
    first = once(config)
    (entry,) = Ledger(config).entries()
    assert entry.outcome == ""
    world.sbatch()
    assert once(config).plan.resources["dcgp"].submit == 0
    world.queue(row("99_1", "PENDING", first.plan_id), row("99_2", "PENDING", first.plan_id))
    assert once(config).plan.resources["dcgp"].submit == 0
    (entry,) = Ledger(config).entries()
    assert entry.outcome == "99"


def test_what_shows_in_no_listing_after_a_minute_was_never_submitted(config: Config, world: World) -> None:
    world_entry = submission(2, 0, outcome="", when=int(time.time()) - 61)
    path = config.pressure.state_dir.path
    path.mkdir(parents=True)
    Ledger(config).begin(world_entry)
    assert once(config).plan.resources["dcgp"].submit == 0
    assert once(config).plan.resources["dcgp"].submit == 2
    assert [entry.outcome for entry in Ledger(config).entries()] == ["none", "4711"]


def test_pilots_under_another_account_are_cancelled_and_the_resource_disabled(config: Config, world: World) -> None:
    result = once(config)
    rows = [row("4711_1", "RUNNING", result.plan_id, account="paying"), row("4711_2", "PENDING", result.plan_id)]
    world.queue(*rows)
    again = once(config)
    assert world.asked("scancel").splitlines()[-1] == "4711_1"
    assert any("account paying instead of inf24_lhc_2" in problem for problem in again.problems)
    world.queue()
    assert any("disabled" in reason for reason in once(config).plan.resources["dcgp"].reasons)


def test_pilots_that_slurm_will_never_start_are_cancelled_and_the_resource_disabled(
    config: Config, world: World
) -> None:
    world.queue(row("5_1", "PENDING", reason="PartitionTimeLimit"))
    result = once(config)
    assert result.plan.resources["dcgp"].cancel == ("5_1",)
    world.queue()
    assert any("PartitionTimeLimit" in reason for reason in once(config).plan.resources["dcgp"].reasons)
    assert not world.asked("sbatch")


def test_the_caps_per_hour_hold_whatever_the_plan_says(config: Config, world: World, shared: Path) -> None:
    pressure = config.pressure.model_copy(update={"max_new_per_hour": 1})
    tight = config.model_copy(update={"pressure": pressure})
    result = once(tight)
    assert "--array=1-1\n" in world.asked("sbatch")
    assert any("max_new_per_hour 1" in reason for reason in result.plan.resources["dcgp"].reasons)
    assert once(tight).plan.resources["dcgp"].submit == 0


def test_the_kill_switch_works_though_the_tier1_is_down(
    config: Config, world: World, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_with_tier1", lambda *_: pytest.fail("asked the Tier-1"))
    world.queue(row("5_1", "PENDING"), row("5_2", "RUNNING"))
    marks.set_stop(shared, "the HPC's admins want it")
    result = once(config)
    assert result.plan.resources["dcgp"].cancel == ("5_1",)
    assert any("the HPC's admins want it" in problem for problem in result.problems)
    assert "5_1" in world.asked("scancel")
    assert not world.asked("sbatch")


def test_the_kill_switch_needs_marks_and_squeue_alone(
    config: Config, world: World, shared: Path, token: Path, fake_command: Callable[..., Path]
) -> None:
    """Not a good token, an intact ledger, slurmdbd's answer, or that a resource is still configured."""
    config.pressure.state_dir.path.mkdir(parents=True)
    (config.pressure.state_dir.path / "leonardo.submissions").write_text("garbage\ngarbage\n")
    token.unlink()
    fake_command("sacct", stderr="slurmdbd is not there", code=1)
    gone = row("6_1", "PENDING").replace(":dcgp:", ":renamed:")
    world.queue(row("5_1", "PENDING"), row("5_2", "RUNNING"), row("5_3", "FAILED"), gone)
    marks.set_stop(shared, "the HPC's admins want it")
    result = once(config)
    assert {"5_1", "6_1"} <= set(world.asked("scancel").splitlines())
    assert {"5_2", "5_3"}.isdisjoint(world.asked("scancel").splitlines())
    assert result.plan.resources["dcgp"].cancel == ("5_1",)
    assert result.plan.resources["renamed"].cancel == ("6_1",)
    assert not world.asked("sbatch")


def test_stop_counts_in_an_earlier_shared_directory_while_pilots_live(
    config: Config, world: World, shared: Path, tmp_path: Path
) -> None:
    world.queue(row("5_1", "PENDING"))
    once(config)
    moved = with_resource(config, shared_dir=expand(str(tmp_path / "work/elsewhere"), "shared_dir"))
    once(moved)
    marks.set_stop(shared, "who does not know of the edit")
    assert "5_1" not in world.asked("scancel")
    assert any("who does not know of the edit" in problem for problem in once(moved).problems)
    assert "5_1" in world.asked("scancel")
    world.queue()
    marks.lift_stop(shared)
    for _ in range(6):
        once(moved)
    assert recall(moved).upkeep.shared == (str(tmp_path / "work/elsewhere"),)


def test_one_directorys_stop_counts_though_another_cannot_be_named(
    two: Config, world: World, shared: Path, load: Callable[[str], Config]
) -> None:
    lost = two.resources["zweite"].model_copy(update={"shared_dir": expand("$NOT_SET/htcebridge", "shared_dir")})
    config = two.model_copy(update={"resources": {**two.resources, "zweite": lost}})
    with pytest.raises(ConfigError, match="NOT_SET"):
        once(config)
    marks.set_stop(shared, "now")
    world.queue(row("5_1", "PENDING"))
    assert any("stopped" in problem for problem in once(config).problems)
    assert "5_1" in world.asked("scancel")


def test_stop_holds_though_every_resource_has_left_the_configuration(
    config: Config, world: World, shared: Path
) -> None:
    world.queue(row("5_1", "PENDING"))
    once(config)
    marks.set_stop(shared, "now")
    once(config.model_copy(update={"resources": {}}))
    assert "5_1" in world.asked("scancel")


def test_a_manual_glidein_of_a_resource_that_is_gone_is_told_once(
    two: Config, world: World, shared: Path, tmp_path: Path
) -> None:
    manual = two.resources["dcgp"].model_copy(update={"executor": expand("/x/glidein", "executor"), "mode": "constant"})
    world.queue(row("5_1", "RUNNING"))
    once(two.model_copy(update={"resources": {**two.resources, "dcgp": manual}}))
    marks.set_stop(shared, "now")
    without = two.model_copy(update={"resources": {"zweite": two.resources["zweite"]}})
    once(without)
    once(without)
    assert world.asked("scancel").splitlines().count("5_1") == 1
    assert "--signal=USR1" in world.asked("scancel")


def test_a_controller_begins_under_the_kill_switch_whatever_its_tokens_are(
    config: Config, shared: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "check_directory", lambda _: None)
    token.unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        observe.check_start(config)
    marks.set_stop(shared, "now")
    observe.check_start(config)


def test_misbilled_pilots_are_cancelled_before_a_token_is_looked_at(config: Config, world: World, token: Path) -> None:
    result = once(config)
    world.queue(row("4711_1", "RUNNING", result.plan_id, account="paying"))
    token.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        once(config)
    assert world.asked("scancel").splitlines()[-1] == "4711_1"
    assert recall(config).resources.disabled["dcgp"].why.endswith("account paying instead of inf24_lhc_2")


def test_a_slurm_that_does_not_answer_the_safety_path_is_asked_for_nothing_more(
    config: Config, world: World, fake_command: Callable[..., Path]
) -> None:
    result = once(config)
    submitted = world.asked("sbatch")
    world.queue(row("4711_1", "RUNNING", result.plan_id, account="paying"))
    fake_command("scancel", stderr="scancel: error: Unable to contact slurm controller (connect failure)", code=1)
    world.demand = waiting(group(idle=500))
    again = once(config)
    assert any("scancel failed" in problem for problem in again.problems)
    assert world.asked("sbatch") == submitted


def test_a_shared_directory_that_cannot_be_read_holds_the_cycle(config: Config, world: World, shared: Path) -> None:
    shared.rmdir()
    shared.parent.rmdir()
    result = once(config)
    assert "kill switch" in str(result.plan.held) or "drain marks" in str(result.plan.held)
    assert not world.asked("sbatch")


def test_the_first_cycle_of_all_finds_no_shared_directory_and_makes_it(
    config: Config, world: World, shared: Path
) -> None:
    shared.rmdir()
    assert once(config).plan.resources["dcgp"].submit == 2
    assert shared.joinpath("logs").is_dir()


def test_a_shared_directory_that_was_there_and_is_gone_holds_the_cycle(
    config: Config, world: World, shared: Path
) -> None:
    once(config)
    submitted = world.asked("sbatch")
    shared.rename(shared.with_name("hidden"))
    assert "kill switch" in str(once(config).plan.held)
    assert world.asked("sbatch") == submitted


def test_a_resource_that_is_configured_no_more_raises_no_alarm(config: Config, world: World) -> None:
    failed = [
        EndedPilot(f"9_{n}", "gone", "p", Outcome.NEVER_JOINED, 1, 2, int(time.time()) - n, exit_code=30)
        for n in range(5)
    ]
    config.pressure.state_dir.path.mkdir(parents=True)
    remember(config, Memory(pilots=Pilots(ended=tuple(failed))))
    assert once(config).problems == ()


def test_a_resource_that_cannot_be_rendered_does_not_stop_the_others(two: Config, world: World, tmp_path: Path) -> None:
    broken = two.resources["dcgp"].model_copy(update={"shared_dir": expand(str(tmp_path / "per%cent"), "shared_dir")})
    config = two.model_copy(update={"resources": {"dcgp": broken, "zweite": two.resources["zweite"]}})
    world.demand = waiting(group(idle=14), group(idle=14, resources=("zweite",)))
    result = once(config)
    assert any("per%cent" in problem for problem in result.problems)
    assert ":zweite:" in world.asked("sbatch")


def test_a_held_cycle_calls_nothing_and_forgets_nothing(
    two: Config, world: World, fake_command: Callable[..., Path]
) -> None:
    fake_command("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    memory = Memory(resources=Resources(Streaks(surplus={"dcgp": 2})), schedds=Schedds(known={"ce01": NOW}))
    two.pressure.state_dir.path.mkdir(parents=True)
    remember(two, memory)
    result = once(two)
    assert result.exit_code == ExitCode.TEMPFAIL
    assert "squeue failed" in str(result.plan.held)
    assert not world.asked("sbatch")
    after = recall(two)
    assert after.records.totals["cycles|held"] == 1
    assert replace(after, upkeep=Upkeep(), records=Records()) == memory


def test_a_held_plan_shows_the_pilots_that_were_seen(
    config: Config, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_: Config, seen: Observation, __: Memory) -> Observation:
        return replace(seen, collector=Source(seen.now, unknown="collector: no answer"))

    monkeypatch.setattr(observe, "_with_tier1", down)
    world.queue(row("5_1", "PENDING"))
    assert once(config).plan.resources["dcgp"].pending == 1


def test_a_damaged_ledger_holds_the_cycle(config: Config, world: World) -> None:
    once(config)
    path = config.pressure.state_dir.path / "leonardo.submissions"
    path.write_text("garbage\n" + path.read_text())
    assert "line 1 is damaged" in str(once(config).plan.held)


def test_an_ended_pilot_is_asked_about_once_and_remembered(
    two: Config, world: World, fake_command: Callable[..., Path]
) -> None:
    world.demand = waiting()
    world.queue(row("5_1", "RUNNING"))
    once(two)
    assert not world.asked("sacct")
    world.queue(row("5_1", "PREEMPTED", node="lrdn0001"))
    fake_command("sacct", stdout=f"5_1|PREEMPTED|0:0|{NOW}|{NOW}|{NOW + 600}|600|1|lrdn0001|None\n")
    once(two)
    asked = world.asked("sacct")
    once(two)
    assert world.asked("sacct") == asked != ""
    (ended,) = recall(two).pilots.ended
    assert (ended.outcome, ended.node) == (Outcome.PREEMPTED, "lrdn0001")


def test_without_slurmdbd_failing_pilots_back_off(
    two: Config, world: World, fake_command: Callable[..., Path], shared: Path
) -> None:
    """squeue's FAILED and the pilot's last line are evidence. Before: 35 pilots in 35 cycles, and no word."""
    fake_command("sacct", stderr="Slurm accounting storage is disabled", code=1)
    now = int(time.time())
    for number in range(1, 8):
        failed = [row(f"{n}_1", "FAILED", start=str(now), end=str(now + 1), node=f"lrdn{n}") for n in range(1, number)]
        world.queue(*failed, row(f"{number}_1", "RUNNING", start=str(now)))
        result = once(two)
    assert result.exit_code is ExitCode.PROBLEM
    assert any("never joined" in problem or "in a row failed" in problem for problem in result.problems)
    assert any("slurmdbd has not said for 6 cycles what became of pilots" in problem for problem in result.problems)
    assert any("back" in reason or "failed" in reason for reason in result.plan.resources["dcgp"].reasons)
    kept = recall(two).pilots
    assert set(kept.seen) == {"7_1"}
    assert [ended.outcome for ended in kept.ended] == [Outcome.NEVER_JOINED] * 6
    fake_command("sacct", stdout=f"6_1|FAILED|12:0|{now}|{now}|{now + 1}|1|1|lrdn6|None\n")
    once(two)
    assert len(recall(two).pilots.ended) == 6, "what slurmdbd says later counts twice"


def test_a_last_line_says_what_squeue_does_not(
    two: Config, world: World, fake_command: Callable[..., Path], shared: Path
) -> None:
    fake_command("sacct", stderr="Slurm accounting storage is disabled", code=1)
    now = int(time.time())
    log = shared / "logs/5_1.out"
    log.parent.mkdir()
    line = (
        "2026-11-28T12:00:00 htcebridge-outcome code=0 joined=yes jobs=3 evicted=0 core_s=900 lost_core_s=0 reason=idle"
    )
    log.write_text(f"{line}\n")
    world.queue(row("5_1", "RUNNING", start=str(now)))
    once(two)
    world.queue(row("5_1", "COMPLETED", start=str(now), end=str(now + 1), node="lrdn1"))
    once(two)
    (ended,) = recall(two).pilots.ended
    assert (ended.outcome, ended.jobs, ended.core_s) == (Outcome.RAN, 3, 900)


def test_a_pilot_token_that_is_missing_or_open_stops_the_cycle_before_anything_is_submitted(
    two: Config, world: World, token: Path
) -> None:
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        once(two)
    token.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        once(two)
    assert not world.asked("sbatch")


def test_no_resource_means_nothing_to_do_and_says_so(load: Callable[[str], Config]) -> None:
    with pytest.raises(ConfigError, match=r"no \[resource\.NAME\]"):
        cycle.look(load('[tier1]\ncollector = "cm"\n'))


def test_a_controller_is_upgraded_under_running_pilots(
    two: Config, world: World, fake_command: Callable[..., Path]
) -> None:
    """What the version before knew of them goes on: who was cancelled, who worked, what is disabled."""
    now = int(time.time())
    seen = {"resource": "dcgp", "plan_id": "p", "submitted": now - 900, "started": now - 800, "joined": now - 700}
    disabled = {"why": "Invalid qos", "since": now - 99, "fingerprint": fingerprint(two.resources["zweite"])}
    flat = {
        "streaks": {"surplus": {"dcgp": 2}, "wanted": {}, "sparse": {}},
        "pilots": {"5_1": {**seen, "worked": True}, "5_2": {**seen, "started": None, "cancelled": True}},
        "disabled": {"zweite": disabled},
        "totals": {"cycles|ok": 41.0},
        "looked": now - 60,
    }
    state = two.pressure.state_dir.path
    state.mkdir(parents=True)
    (state / "leonardo.json").write_text(json.dumps(flat))
    world.queue(row("5_1", "COMPLETED", end=str(now)), row("5_2", "CANCELLED"))
    ends = [
        f"5_1|COMPLETED|0:0|{now - 900}|{now - 800}|{now}|800|1|lrdn1|None",
        f"5_2|CANCELLED by {os.getuid()}|0:0|{now - 900}|{now}|{now}|0|0||None",
    ]
    fake_command("sacct", stdout="".join(f"{end}\n" for end in ends))
    result = once(two)
    memory = recall(two)
    assert {each.id: each.outcome for each in memory.pilots.ended} == {
        "5_1": Outcome.RAN,
        "5_2": Outcome.CANCELLED_BY_US,
    }
    assert "resource zweite: disabled: Invalid qos" in result.problems
    assert sum(number for name, number in memory.records.totals.items() if name.startswith("cycles|")) == 42


# --------------------------------------------------------------------------- recorded, and decided again


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
        ("{", "property name"),
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


def test_a_recording_without_its_first_line_says_so(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(recording.read_text().splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match=r"cut.jsonl:1: the line with configuration and memory is not before it"):
        replay(path)


# --------------------------------------------------------------------------- the loop


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


# --------------------------------------------------------------------------- ads of the dead


def test_ads_of_pilots_that_slurm_has_ended_are_taken_out_and_no_others(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(ads.advertise, "say_goodbye", lambda *arguments: sent.append(arguments[1:]))
    ended = [EndedPilot(id_, "dcgp", "p", Outcome.NODE_FAILED, 1, 2, 3) for id_ in ("7_1", "7_2", "7_3")]
    dead = follow.dead_in_pool(Pilots(ended=tuple(ended)), frozenset({"7_1", "7_3", "7_9"}))
    assert dead == {"dcgp": ("7_1", "7_3")}
    assert ads.say_goodbyes(config, {**dead, "gone": ("8_1",)}) == []
    assert sent == [(config.resources["dcgp"].token_file, ("7_1", "7_3"))]


def test_a_collector_that_takes_no_goodbye_is_a_problem_and_stops_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnknownState("collector x took no ads")

    monkeypatch.setattr(ads.advertise, "say_goodbye", refuse)
    assert ads.say_goodbyes(config, {"dcgp": ("7_1",)}) == ["resource dcgp: collector x took no ads"]
