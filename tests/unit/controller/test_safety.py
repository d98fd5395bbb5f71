"""The safety path: the kill switch, and pilots under a wrong account."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config.paths import expand
from htcebridge.config.tables import Config
from htcebridge.controller import observe
from htcebridge.errors import ConfigError
from htcebridge.pilot import marks
from htcebridge.state.memory import (
    recall,
)
from htcebridge.tier1 import tokens
from tests.unit.controller.made import World, group, once, row, waiting, with_resource


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
