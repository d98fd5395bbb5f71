"""One cycle, with a Slurm of fake commands and a Tier-1 that answers at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from htcebridge.config.paths import expand
from htcebridge.config.tables import Config
from htcebridge.controller import cycle, observe
from htcebridge.controller.observation import Observation, Source
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.model import (
    EndedPilot,
    Outcome,
    Streaks,
)
from htcebridge.slurm.limits import Bound, SlurmLimits, Unit
from htcebridge.slurm.tres import HELD_HEADER
from htcebridge.state import resets
from htcebridge.state.ledger import Ledger
from htcebridge.state.memory import (
    Memory,
    Pilots,
    ReadLimits,
    Records,
    Resources,
    Schedds,
    Upkeep,
    fingerprint,
    recall,
    remember,
)
from tests.unit.controller.made import (
    ACCOUNT,
    NOW,
    PARTITION,
    QOS,
    World,
    group,
    once,
    row,
    submission,
    waiting,
    with_resource,
)


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


CORES = Bound("MaxTRESPU cpu", "QOS qos_lowprio", Unit.CPUS, 300, own=True, qos="qos_lowprio")


@pytest.mark.parametrize(
    ("held", "submitted", "why"),
    [
        (f"{HELD_HEADER}\n9|cpu=70,mem=1G,node=1\n", "--array=1-2\n", "(70 there, 70 of them others')"),
        (f"{HELD_HEADER}\n", "--array=1-2\n", "(0 there)"),
        ("", "", "(0 there, and what 1 other job hold is not known)"),
    ],
)  # fmt: skip
def test_what_others_hold_is_asked_where_a_limit_counts_it(
    config: Config, world: World, held: str, submitted: str, why: str
) -> None:
    read = ReadLimits(SlurmLimits(user=os.getuid(), bounds=(CORES,)), (ACCOUNT, PARTITION, QOS), int(time.time()))
    config.pressure.state_dir.path.mkdir(parents=True)
    remember(config, Memory(resources=Resources(limits={"dcgp": read})))
    world.demand = waiting(group(idle=14 * 5))
    world.queue(row("9", "RUNNING", comment="theirs"), held=held)
    result = once(config)
    assert (submitted or "no") in (world.asked("sbatch") or "no")
    assert any(why in reason for reason in result.plan.resources["dcgp"].reasons), result.plan
    world.queue(held="")
    once(config)
    assert world.asked("squeue").count("tres-alloc") == 1, "nobody else is there"


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


def test_a_look_after_a_reset_shows_what_the_next_cycle_will_see(config: Config, world: World) -> None:
    now = int(time.time())
    failed = [
        EndedPilot(f"{number}_1", "dcgp", "p", Outcome.NEVER_JOINED, now - 900, now - 800, now - 60)
        for number in range(1, 5)
    ]
    config.pressure.state_dir.path.mkdir(parents=True)
    remember(config, Memory(pilots=Pilots(ended=tuple(failed))))
    before = cycle.look(config)
    assert any("in a row failed" in problem for problem in before.problems)
    resets.request(config, "dcgp")
    after = cycle.look(config)
    assert after.problems == ()
    assert after.plan.resources["dcgp"].submit == 2
    assert resets.requested(config) == ("dcgp",), "a look changes nothing"


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
