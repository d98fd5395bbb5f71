from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from htcebridge import controller, tier1
from htcebridge.config import Config
from htcebridge.errors import ConfigError, ExitCode
from htcebridge.lock import ControllerLock, Memory, recall
from htcebridge.model import Demand, Group, Pilot, PilotPhase, ScheddAnswer, Shape, SlurmJob, Startd
from htcebridge.slurm import Slurm

NOW = 1_800_000_000
HOUR = 3600
SHAPE = Shape(8, 16000, 0, 1000)


def slurm_job(state: str = "RUNNING", **changes: object) -> SlurmJob:
    job = SlurmJob(
        id="7_1",
        resource="dcgp",
        plan_id="p",
        state=state,
        reason="None",
        partition="dcgp_usr_prod",
        qos="qos_lowprio",
        account="inf24_lhc_2",
        node="lrdn0001",
        submitted=NOW - 1000,
        started=NOW - 100,
        ends=NOW - 100 + 12 * HOUR,
        time_limit_s=12 * HOUR,
    )
    return replace(job, **changes)


def startd(pilot_id: str = "7_1") -> Startd:
    return Startd(pilot_id, "slot1@x", "x", Shape(112, 490_000), Shape(112, 490_000), 0, NOW + HOUR, accepting=True)


def group(**changes: object) -> Group:
    return replace(Group(SHAPE, HOUR, "cmspil", "cms", 5, 1, 60, ("dcgp",)), **changes)


def phase(job: SlurmJob, *startds: Startd) -> PilotPhase:
    (pilot,) = controller.join([job], startds, NOW, boot_timeout_s=900)
    return pilot.phase


# --------------------------------------------------------------------------- join


@pytest.mark.parametrize(
    ("state", "alone", "with_startd"),
    [
        ("PENDING", PilotPhase.PENDING, PilotPhase.JOINED),
        ("CONFIGURING", PilotPhase.PENDING, PilotPhase.JOINED),
        ("REQUEUED", PilotPhase.PENDING, PilotPhase.JOINED),
        ("RUNNING", PilotPhase.BOOTING, PilotPhase.JOINED),
        ("COMPLETING", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("SUSPENDED", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("SOMETHING_NEW", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("PREEMPTED", PilotPhase.ENDED, PilotPhase.ENDED),
        ("COMPLETED", PilotPhase.ENDED, PilotPhase.ENDED),
        ("NODE_FAIL", PilotPhase.ENDED, PilotPhase.ENDED),
        ("TIMEOUT", PilotPhase.ENDED, PilotPhase.ENDED),
    ],
)
def test_slurms_state_and_the_collector_give_the_phase(state: str, alone: PilotPhase, with_startd: PilotPhase) -> None:
    assert phase(slurm_job(state)) is alone
    assert phase(slurm_job(state), startd()) is with_startd


def test_a_pilot_that_has_not_joined_after_boot_timeout_is_lost() -> None:
    assert phase(slurm_job(started=NOW - 900)) is PilotPhase.BOOTING
    assert phase(slurm_job(started=NOW - 901)) is PilotPhase.LOST
    assert phase(slurm_job(started=NOW - 901), startd()) is PilotPhase.JOINED


def test_a_running_pilot_whose_start_is_unknown_is_booting() -> None:
    assert phase(slurm_job(started=None)) is PilotPhase.BOOTING


def test_a_startd_belongs_to_the_pilot_of_its_job_id_alone() -> None:
    jobs = [slurm_job(), slurm_job(id="7_2"), slurm_job(id="71")]
    joined = controller.join(jobs, [startd("7_2"), startd("unknown")], NOW, 900)
    assert [(each.job.id, each.startd is not None) for each in joined] == [("7_1", False), ("7_2", True), ("71", False)]


def test_a_dead_pilots_ad_that_lingers_is_not_shown_as_its_startd() -> None:
    (pilot,) = controller.join([slurm_job("PREEMPTED")], [startd()], NOW, 900)
    assert pilot.startd is None


# --------------------------------------------------------------------------- merging


def test_groups_of_several_schedds_that_look_the_same_become_one() -> None:
    (merged,) = controller._merged([group(idle=5, running=1, oldest_s=60), group(idle=7, running=2, oldest_s=90)])
    assert (merged.idle, merged.running, merged.oldest_s) == (12, 3, 90)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": Shape(9, 16000, 0, 1000)},
        {"walltime_s": HOUR + 1},
        {"owner": "other"},
        {"vo": "atlas"},
        {"resources": ()},
        {"why_not": {"dcgp": "too long"}},
    ],
)
def test_groups_that_differ_in_what_anybody_sees_stay_apart(change: dict[str, object]) -> None:
    assert len(controller._merged([group(), group(**change)])) == 2


def test_demand_of_every_schedd_is_matched_and_added_up(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = 'OpportunisticSite = "leonardo"; RequestMemory = 1000; BatchRuntime = 3600; Requirements = true'
    ad = f"[ {asks}; RequestCpus = %d ]"
    rows = {
        "ce01": [
            tier1.JobGroup(ad % 8, "cmspil", "cms", 3, 1, NOW - 50),
            tier1.JobGroup(ad % 200, "x", "cms", 1, 0, NOW),
        ],
        "ce02": [tier1.JobGroup(ad % 8, "cmspil", "cms", 4, 0, NOW - 70)],
    }
    answers = [tier1.ScheddGroups(name, 0.1, tuple(groups)) for name, groups in rows.items()]
    answers.append(tier1.ScheddGroups("ce03", 20.0, error="no answer in 20 s"))
    monkeypatch.setattr(tier1, "read_demand", lambda *_: answers)
    demand = controller.read_demand(config, [], NOW)
    fitting, too_big = demand.groups
    assert (fitting.idle, fitting.running, fitting.oldest_s, fitting.resources) == (7, 1, 70, ("dcgp",))
    assert (too_big.idle, too_big.resources) == (1, ())
    assert "200 cpus" in too_big.why_not["dcgp"]
    assert [answer.ok for answer in demand.schedds] == [True, True, False]
    assert not demand.complete


# --------------------------------------------------------------------------- schedds that went away


def test_a_schedd_that_left_the_collector_lately_is_silent_not_empty(config: Config) -> None:
    there = (tier1.Schedd("ce01", "<1.2.3.4:9618>", "v"),)
    memory = Memory(schedds={"ce01": NOW - 60, "ce02": NOW - 60, "old": NOW - 86_401})
    schedds = controller.with_absent(config, there, NOW, memory)
    assert [(schedd.name, schedd.address) for schedd in schedds] == [("ce01", "<1.2.3.4:9618>"), ("ce02", "")]


# --------------------------------------------------------------------------- budget


def budget_of(config: Config, hours: float) -> Config:
    resource = config.resources["dcgp"].model_copy(update={"max_node_hours": hours, "max_pending": 100})
    return config.model_copy(update={"resources": {"dcgp": resource}})


def seen(*pilots: Pilot, idle: int = 14 * 20) -> controller.Observation:
    demand = Demand((group(idle=idle, walltime_s=HOUR),), (ScheddAnswer("ce01", 0.1),))
    return controller.Observation(NOW, demand, pilots)


def test_node_hours_of_ended_and_running_pilots_are_used_up(config: Config, fake_command: Callable[..., Path]) -> None:
    ours = "GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|htcebridge:leonardo:dcgp:1"
    fake_command("sacct", stdout=f"{10 * HOUR}|1|COMPLETED|{ours}\n")
    tight = budget_of(config, 36)
    decision = controller.decide(tight, Slurm("leonardo"), seen(), {}).resources["dcgp"]
    assert decision.submit == 2
    assert any("max_node_hours (26.0 left" in reason for reason in decision.reasons)


def test_hours_that_live_pilots_may_still_use_are_not_promised_again(
    config: Config, fake_command: Callable[..., Path]
) -> None:
    fake_command("sacct")
    pending = slurm_job("PENDING", started=None, ends=None, node="")
    pilots = [Pilot(replace(pending, id=f"7_{number}"), PilotPhase.PENDING) for number in (1, 2)]
    decision = controller.decide(budget_of(config, 24), Slurm("leonardo"), seen(*pilots), {}).resources["dcgp"]
    assert decision.submit == 0


def test_a_budget_that_slurmdbd_does_not_tell_holds_the_cycle(
    config: Config, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_command("sacct", stderr="sacct: error: Connection refused", code=1)
    monkeypatch.setattr(controller, "observe", lambda *_: seen())
    monkeypatch.setattr(controller, "_check_pilots_can_start", lambda _: None)
    found = controller.look(budget_of(config, 24))
    assert found.plan.held
    assert "sacct failed" in found.plan.held


# --------------------------------------------------------------------------- one cycle


@pytest.fixture
def token(own_home: Path) -> Path:
    token = own_home / ".config/htcebridge/pilot.idtoken"
    token.parent.mkdir(parents=True)
    token.write_text("e30.e30.c2lnbmF0dXJl")  # a token that says nothing, not even when it expires
    token.chmod(0o600)
    return token


@pytest.fixture
def two(load: Callable[[str], Config], design_example: str) -> Config:
    second = design_example.partition("[resource.dcgp]")[2]
    return load((design_example + "\n[resource.zweite]" + second).replace("max_node_hours = 20000\n", ""))


def test_a_cycle_submits_what_the_plan_says_and_remembers(
    two: Config, token: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = fake_command("sbatch", stdout="4711\n")
    monkeypatch.setattr(controller, "observe", lambda *_: replace(seen(idle=28), schedds=frozenset({"ce01"})))
    with ControllerLock(two) as lock:
        result = controller.cycle(two, lock)
    assert (result.exit_code, result.problems) == (ExitCode.OK, ())
    arguments = (calls / "sbatch.args").read_text()
    assert "--array=1-2\n" in arguments
    assert f"--comment=htcebridge:leonardo:dcgp:{result.plan_id}\n" in arguments
    assert (tmp_path / "work/htcebridge/logs").is_dir()
    assert set(recall(two).schedds) == {"ce01"}


def test_a_refused_submission_is_a_problem_and_does_not_stop_the_others(
    two: Config, token: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (group(idle=14), group(idle=14, resources=("zweite",)))
    both = replace(seen(), demand=Demand(groups, (ScheddAnswer("ce01", 0.1),)))
    monkeypatch.setattr(controller, "observe", lambda *_: both)
    stub = 'case "$*" in *:dcgp:*) echo "Invalid qos specification" >&2; exit 1;; esac'
    calls = fake_command("sbatch", stdout="4711\n", first=stub)
    with ControllerLock(two) as lock:
        result = controller.cycle(two, lock)
    assert result.exit_code == ExitCode.PROBLEM
    (problem,) = result.problems
    assert problem.startswith("resource dcgp: sbatch failed")
    assert (calls / "sbatch.args").read_text().count("--comment") == 2


def test_a_resource_that_cannot_be_rendered_does_not_stop_the_others(
    two: Config, token: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = two.resources["dcgp"].model_copy(update={"shared_dir": "/per%cent"})
    config = two.model_copy(update={"resources": {"dcgp": broken, "zweite": two.resources["zweite"]}})
    monkeypatch.setattr(Path, "mkdir", _mkdir_but_not_in_root(Path.mkdir))
    groups = (group(idle=14), group(idle=14, resources=("zweite",)))
    monkeypatch.setattr(
        controller, "observe", lambda *_: replace(seen(), demand=Demand(groups, (ScheddAnswer("ce01", 0.1),)))
    )
    calls = fake_command("sbatch", stdout="4711\n")
    with ControllerLock(config) as lock:
        result = controller.cycle(config, lock)
    assert any("/per%cent" in problem for problem in result.problems)
    assert ":zweite:" in (calls / "sbatch.args").read_text()


def _mkdir_but_not_in_root(mkdir: Callable[..., None]) -> Callable[..., None]:
    return lambda path, *rest, **more: None if str(path).startswith("/per%cent") else mkdir(path, *rest, **more)


def test_a_held_cycle_calls_nothing_and_forgets_nothing(
    two: Config, token: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_command("sbatch", stdout="4711\n")
    fake_command("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    monkeypatch.setattr(tier1, "check_tokens", lambda _: None)
    memory = Memory(surplus={"dcgp": 2}, schedds={"ce01": NOW})
    with ControllerLock(two) as lock:
        lock.remember(memory)
        result = controller.cycle(two, lock)
    assert result.exit_code == ExitCode.TEMPFAIL
    assert "squeue failed" in result.plan.held
    assert not (calls / "sbatch.args").exists()
    assert recall(two) == memory


def test_a_pilot_token_that_is_missing_or_open_stops_the_cycle_before_anything_is_asked(
    two: Config, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "observe", lambda *_: pytest.fail("asked"))
    token.chmod(0o644)
    with ControllerLock(two) as lock, pytest.raises(ConfigError, match="open to others"):
        controller.cycle(two, lock)
    token.unlink()
    with ControllerLock(two) as lock, pytest.raises(ConfigError, match="cannot be read"):
        controller.cycle(two, lock)


def test_no_resource_means_nothing_to_do_and_says_so(load: Callable[[str], Config]) -> None:
    with pytest.raises(ConfigError, match=r"no \[resource\.NAME\]"):
        controller.look(load('[tier1]\ncollector = "cm"\n'))


# --------------------------------------------------------------------------- the loop


def test_a_broken_edit_keeps_the_last_good_configuration(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text("[tier1")
    kept, complaint = controller._reread(path, config)
    assert kept is config
    assert "last good configuration stays in force" in complaint


def test_a_good_edit_is_taken_over(config: Config, tmp_path: Path, design_example: str) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text(design_example.replace("max_running = 100", "max_running = 7"))
    taken, complaint = controller._reread(path, config)
    assert (taken.resources["dcgp"].max_running, complaint) == (7, None)


def test_another_instance_needs_a_restart(config: Config, tmp_path: Path, design_example: str) -> None:
    path = tmp_path / "htcebridge.toml"
    path.write_text(design_example.replace('instance = "leonardo"', 'instance = "other"'))
    kept, complaint = controller._reread(path, config)
    assert kept is config
    assert "restart" in complaint


def test_a_cycle_that_breaks_does_not_end_the_controller(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(controller, "cycle", broken)
    with ControllerLock(config) as lock:
        assert controller._surviving_cycle(config, lock) == ("a cycle failed: a bug",)
    assert "ZeroDivisionError" in caplog.text
