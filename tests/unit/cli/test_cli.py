from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from htcebridge import __version__
from htcebridge.cli import demand as demand_command
from htcebridge.cli import output
from htcebridge.cli import pressure as pressure_command
from htcebridge.config.tables import Config
from htcebridge.controller import observe, waiting
from htcebridge.errors import ExitCode
from htcebridge.model import Demand, Group, Plan, ResourcePlan, ScheddAnswer, Shape, Startd
from htcebridge.slurm.text import QUEUE_HEADER
from htcebridge.state.lock import ControllerLock
from htcebridge.tier1 import pool, tokens
from tests import schema

Run = Callable[..., object]


@pytest.fixture
def example(tmp_path: Path, design_example: str) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(design_example)
    return path


# --------------------------------------------------------------------------- help, version, usage


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "htcebridge", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "htcebridge.cli" in imported
    heavy = {"htcondor2", "classad2", "pydantic", "jinja2", "rich", "rich.table", "htcebridge.controller.cycle"}
    assert not heavy & imported


def test_help_lists_every_command_with_its_purpose(htcebridge_command: Run) -> None:
    said = htcebridge_command("--help")
    assert said.code == 0
    for name in ("demand", "pressure", "pilots", "routes", "render", "config"):
        assert f"\n  {name} " in said.out


@pytest.mark.parametrize(
    "command",
    ["demand", "pressure", "pressure plan", "pressure once", "pressure run", "pilots", "routes show", "render startd",
     "render script", "config init", "config check", "config show", "doctor"],
)  # fmt: skip
def test_every_command_explains_itself(htcebridge_command: Run, command: str) -> None:
    for flag in ("--help", "-h"):
        said = htcebridge_command(*command.split(), flag)
        assert said.code == 0
        assert f"{command} [" in said.out


def test_version(htcebridge_command: Run) -> None:
    assert htcebridge_command("--version").out.strip() == f"htcebridge, version {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [["pilotes"], ["pressure", "often"], ["demand", "--jsn"], ["render", "script"], ["demand", "--watch", "0"]],
)
def test_a_wrong_command_line_is_usage(htcebridge_command: Run, arguments: list[str]) -> None:
    said = htcebridge_command(*arguments)
    assert said.code == ExitCode.USAGE
    assert "Usage:" in said.err
    assert "Error: " in said.err


def test_no_command_at_all_shows_the_help(htcebridge_command: Run) -> None:
    said = htcebridge_command()
    assert "Commands" in said.out + said.err


# --------------------------------------------------------------------------- config


def test_init_then_check_then_show(htcebridge_command: Run, own_home: Path) -> None:
    usual = own_home / ".config/htcebridge/htcebridge.toml"
    assert htcebridge_command("config", "init").code == 0
    assert usual.is_file()
    checked = htcebridge_command("config", "check")
    assert (checked.code, checked.out) == (0, f"{usual}: good (VOs: cms; resources: dcgp, booster)\n")
    shown = json.loads(htcebridge_command("config", "show", "--json").out)
    assert shown["resource"]["dcgp"]["memory"] == "494000M"
    assert "partition" in htcebridge_command("config", "show").out


def test_init_overwrites_nothing(htcebridge_command: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    said = htcebridge_command("config", "init", path)
    assert said.code == ExitCode.USAGE
    assert path.read_text() == "mine"


def test_an_interval_that_is_not_heeded_is_said(htcebridge_command: Run, example: Path) -> None:
    assert "interval" not in htcebridge_command("--config", example, "config", "check").err
    text = example.read_text()
    example.write_text(text.replace("[pressure]\n", '[pressure]\nmin_interval = "2m"\n'))
    checked = htcebridge_command("--config", example, "config", "check")
    assert checked.code == 0
    assert "pressure: a cycle every 2m: interval 1m is below min_interval 2m" in checked.err


def test_init_where_nothing_can_be_written_is_one_error(htcebridge_command: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = htcebridge_command("config", "init", tmp_path / "file" / "c.toml")
    assert said.code == ExitCode.USAGE
    assert said.err.startswith("htcebridge: ")


@pytest.mark.parametrize(
    ("good", "bad", "line_of", "says"),
    [
        ("[grant]", "[grant", "[grant", "not TOML"),
        ("max_running = ", "max_runing = ", "max_runing", "did you mean max_running?"),
        ('partition = "dcgp_usr_prod"\n', "", "[resource.dcgp]", "lacks partition"),
        ('memory = "494000M"', 'memory = "lots"', '"lots"', "'lots' is not a size"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "config check",
        "demand",
        "pressure plan",
        "pressure once",
        "pressure run",
        "pilots",
        "routes show",
        "render script dcgp",
    ],
)
def test_a_bad_configuration_is_one_clear_error_in_every_command(
    htcebridge_command: Run,
    tmp_path: Path,
    design_example: str,
    command: str,
    good: str,
    bad: str,
    line_of: str,
    says: str,
) -> None:
    path = tmp_path / "bad.toml"
    text = design_example.replace(good, bad, 1)
    path.write_text(text)
    line = next(number for number, content in enumerate(text.splitlines(), 1) if line_of in content)
    said = htcebridge_command("--config", path, *command.split())
    assert said.code == ExitCode.USAGE
    assert said.out == ""
    assert f"{path}:{line}: " in said.err or (f"{path}: not TOML" in said.err and f"line {line}," in said.err)
    assert says in said.err
    assert len(said.err.splitlines()) == 1


def test_no_configuration_is_one_clear_error(htcebridge_command: Run, tmp_path: Path) -> None:
    said = htcebridge_command("--config", tmp_path / "absent.toml", "demand")
    assert said.code == ExitCode.USAGE
    assert said.err == f"htcebridge: {tmp_path}/absent.toml: no such file (named by --config)\n"


# --------------------------------------------------------------------------- what is wrong out there


def test_an_unreachable_collector_is_temporary(htcebridge_command: Run, example: Path, own_home: Path) -> None:
    tokens = own_home / ".condor/tokens.d"
    tokens.mkdir(parents=True)
    (tokens / "reader").write_text("x.y.z")
    (tokens / "reader").chmod(0o600)
    example.write_text(example.read_text().replace("cm01.cr.example.org:9618", "127.0.0.1:1"))
    said = htcebridge_command("--config", example, "demand")
    assert said.code == ExitCode.TEMPFAIL
    assert said.err.startswith("htcebridge: collector 127.0.0.1:1: ")
    assert len(said.err.splitlines()) == 1


def test_no_token_is_one_clear_error(htcebridge_command: Run, example: Path, own_home: Path) -> None:
    said = htcebridge_command("--config", example, "demand")
    assert said.code == ExitCode.USAGE
    assert f"{own_home}/.condor/tokens.d: no token directory" in said.err


def test_a_token_that_others_can_read_is_one_clear_error(
    htcebridge_command: Run, example: Path, own_home: Path
) -> None:
    tokens = own_home / ".condor/tokens.d"
    tokens.mkdir(parents=True)
    (tokens / "reader").write_text("x.y.z")
    (tokens / "reader").chmod(0o644)
    said = htcebridge_command("--config", example, "demand")
    assert said.code == ExitCode.USAGE
    assert "chmod 600" in said.err


def test_no_slurm_on_path_is_one_clear_error(
    htcebridge_command: Run, example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = htcebridge_command("--config", example, "pilots")
    assert said.code == ExitCode.USAGE
    assert said.err.startswith("htcebridge: squeue: not on PATH")


def test_a_second_controller_is_temporary(htcebridge_command: Run, example: Path, config: Config) -> None:
    with ControllerLock(config):
        for command in ("once", "run"):
            said = htcebridge_command("--config", example, "pressure", command)
            assert said.code == ExitCode.TEMPFAIL
            assert "another controller of this instance is at work: pid" in said.err


def test_a_held_plan_is_temporary_and_still_a_document(
    htcebridge_command: Run, example: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_command("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    Path(os.environ["WORK"]).mkdir()
    monkeypatch.setattr(tokens, "check_directory", lambda _: None)
    monkeypatch.setattr(observe, "check_pilots_can_start", lambda *_: None)
    said = htcebridge_command("--config", example, "pressure", "plan", "--json")
    assert said.code == ExitCode.TEMPFAIL
    document = json.loads(said.out)
    schema.check("plan", document)
    assert document["held"].startswith("squeue failed")
    assert document["resources"]["dcgp"]["submit"] == 0


# --------------------------------------------------------------------------- JSON contracts (docs/how-it-decides.md)

GROUP = Group(Shape(8, 16000, 0, 1000), 3600, "cmspil", "cms", 5, 1, 60, ("dcgp",), {"booster": "it's too [bold]"})
NOWHERE = Group(Shape(200, 16000), 3600, "x", "", 2, 0, 60, (), {"dcgp": "asks 200 cpus, a pilot has 112"})
DEMAND = Demand((GROUP, NOWHERE), (ScheddAnswer("ce01", 0.12345), ScheddAnswer("ce02", 20.0, "no answer in 20 s")))


def test_demands_document_has_designs_keys(config: Config) -> None:
    document = json.loads(json.dumps(demand_command.as_document(config, DEMAND, 1_800_000_000.9)))
    schema.check("demand", document)
    assert set(document) == {"schema", "time", "collector", "schedds", "groups", "totals"}
    assert (document["schema"], document["time"]) == (1, 1_800_000_000)
    assert document["schedds"] == [
        {"name": "ce01", "ok": True, "error": None, "seconds": 0.123, "age_s": None},
        {"name": "ce02", "ok": False, "error": "no answer in 20 s", "seconds": 20.0, "age_s": None},
    ]
    assert document["groups"][0] == {
        "cpus": 8,
        "memory_mb": 16000,
        "gpus": 0,
        "disk_mb": 1000,
        "walltime_s": 3600,
        "owner": "cmspil",
        "vo": "cms",
        "idle": 5,
        "running": 1,
        "oldest_s": 60,
        "resources": ["dcgp"],
        "why_not": {"booster": "it's too [bold]"},
    }
    assert document["totals"] == {"idle_jobs": 7, "idle_cpus": 440, "running_jobs": 1, "unmatched_jobs": 2}


def test_plans_document_has_designs_keys() -> None:
    decision = ResourcePlan(
        3, 1, 1, 1, 1, ("7_1",), ("because",), 7200, 43200, ("lrdn0007",), ("8_1",), ("8_2",), lower_bound=1
    )
    document = pressure_command.as_document(Plan({"dcgp": decision}), 1_800_000_000.9)
    schema.check("plan", json.loads(json.dumps(document)))
    assert json.loads(json.dumps(document)) == {
        "schema": 1,
        "time": 1_800_000_000,
        "resources": {
            "dcgp": {
                "needed": 3,
                "running": 1,
                "booting": 1,
                "pending": 1,
                "submit": 1,
                "cancel": ["7_1"],
                "reasons": ["because"],
                "drain": ["8_1"],
                "undrain": ["8_2"],
                "walltime_s": 43200,
                "time_min_s": 7200,
                "exclude": ["lrdn0007"],
                "lower_bound": 1,
            }
        },
        "held": None,
    }


@pytest.fixture
def two_pilots(fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue lists two pilots, one of which is in the (replaced) collector."""
    rows = (
        f"7_1|RUNNING|p|q|a|{os.getuid()}|1795366000|1795366011|1795395351|8:09:00|lrdn0002|1|None|",
        f"7_2|PENDING|p|q|a|{os.getuid()}|1795366000|N/A|N/A|8:09:00||1|Priority|",
    )
    lines = [QUEUE_HEADER, *(row + "htcebridge:leonardo:dcgp:1" for row in rows)]
    fake_command("squeue", stdout="".join(f"{line}|;\n" for line in lines))
    joined = Startd("7_1", "slot1@x", "x", Shape(112, 490_000), Shape(72, 400_000), 5, 1795395000, accepting=False)
    schedds = (pool.Schedd("ce01", "<1.2.3.4:9618>", "v"),)
    monkeypatch.setattr(pool, "read_pool", lambda *_: pool.PoolView(schedds, (joined,)))


def test_pilots_document_has_designs_keys(htcebridge_command: Run, example: Path, two_pilots: None) -> None:
    said = htcebridge_command("--config", example, "pilots", "--json")
    assert said.code == 0
    document = json.loads(said.out)
    schema.check("pilots", document)
    assert document["schema"] == 1
    running, pending = document["pilots"]
    designs = {"id", "resource", "slurm_state", "reason", "node", "submitted", "started", "ends", "joined", "cpus",
               "cpus_busy", "jobs", "draining"}  # fmt: skip
    assert designs <= set(running)
    assert designs <= set(pending)
    assert (running["id"], running["joined"], running["cpus"], running["cpus_busy"]) == ("7_1", True, 112, 40)
    assert (running["jobs"], running["draining"], running["node"]) == (5, True, "lrdn0002")
    assert (pending["id"], pending["slurm_state"], pending["reason"]) == ("7_2", "PENDING", "Priority")
    assert (pending["joined"], pending["started"], pending["cpus_busy"]) == (False, None, None)


def test_pilots_stand_on_one_line_each(htcebridge_command: Run, example: Path, two_pilots: None) -> None:
    lines = htcebridge_command("--config", example, "pilots").out.splitlines()
    (running,) = [line for line in lines if "7_1" in line]
    assert "draining" in running
    assert "40/112" in running
    (pending,) = [line for line in lines if "7_2" in line]
    assert "Priority" in pending


# --------------------------------------------------------------------------- pictures


@pytest.fixture
def demand_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    schedds = (pool.Schedd("ce01", "<1.2.3.4:9618>", "v"),)
    monkeypatch.setattr(pool, "read_pool", lambda *_: pool.PoolView(schedds, ()))
    monkeypatch.setattr(waiting, "ask_schedds", lambda *_: [])
    monkeypatch.setattr(waiting, "matched", lambda *_: [])
    monkeypatch.setattr(waiting, "demand_of", lambda *_: DEMAND)


def test_demand_shows_reasons_and_silent_schedds(htcebridge_command: Run, example: Path, demand_shown: None) -> None:
    said = htcebridge_command("--config", example, "demand")
    assert said.code == ExitCode.PROBLEM
    assert "2 of x not on dcgp: asks 200 cpus, a pilot has 112" in said.out
    assert "1 of 2 schedds answered." in said.out
    assert "schedd ce02: no answer in 20 s; its jobs are not counted" in said.out


def test_demand_shows_a_busy_schedd_as_it_was_a_moment_ago(
    htcebridge_command: Run, example: Path, demand_shown: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lately = replace(DEMAND, schedds=(ScheddAnswer("ce02", 20.0, "no answer in 20 s", age_s=75),))
    monkeypatch.setattr(waiting, "demand_of", lambda *_: lately)
    said = htcebridge_command("--config", example, "demand")
    assert said.code == ExitCode.PROBLEM
    assert "schedd ce02: no answer in 20 s; its jobs are counted as they were 1m15s ago" in " ".join(said.out.split())
    shown = json.loads(htcebridge_command("--config", example, "demand", "--json").out)
    schema.check("demand", shown)
    assert shown["schedds"] == [
        {"name": "ce02", "ok": False, "error": "no answer in 20 s", "seconds": 20.0, "age_s": 75}
    ]


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def printed() -> str:
        shown = output.console()
        assert isinstance(shown, Console)
        shown.print("[red]word[/red]")
        return capsys.readouterr().out

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in printed()


def test_a_pipe_gets_plain_text(htcebridge_command: Run, example: Path, demand_shown: None) -> None:
    assert "\x1b" not in htcebridge_command("--config", example, "demand").out


@pytest.mark.parametrize("command", ["render script dcgp", "render startd dcgp", "routes show"])
def test_what_is_rendered_is_printed_alone(htcebridge_command: Run, example: Path, command: str) -> None:
    said = htcebridge_command("--config", example, *command.split())
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("#")


def test_an_unknown_resource_is_told_the_known_ones(htcebridge_command: Run, example: Path) -> None:
    said = htcebridge_command("--config", example, "render", "script", "dgcp")
    assert said.code == ExitCode.USAGE
    assert "no resource 'dgcp' in the configuration; known: dcgp" in said.err


def test_a_closed_pipe_is_no_traceback(example: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m htcebridge --config '{example}' render script dcgp | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# --------------------------------------------------------------------------- the kill switch and drain marks


@pytest.fixture
def slurm_with_two(fake_command: Callable[..., Path]) -> None:
    ours = f"5_1|RUNNING|p|q|a|{os.getuid()}|1|2|3|1:00:00|n|1|None|htcebridge:leonardo:dcgp:1"
    lines = [QUEUE_HEADER, ours, ours.replace("5_1", "5_2")]
    fake_command("squeue", stdout="".join(f"{line}|;\n" for line in lines))


def test_drain_of_an_array_marks_its_live_pilots(
    htcebridge_command: Run, example: Path, tmp_path: Path, slurm_with_two: None
) -> None:
    tmp_path.joinpath("work").mkdir()
    assert htcebridge_command("--config", example, "drain", "5").code == 0
    assert {path.name for path in (tmp_path / "work/htcebridge/drain").iterdir()} == {"5_1", "5_2"}
    assert "takes jobs again" in htcebridge_command("--config", example, "undrain", "5_1").out


def test_drain_of_a_pilot_that_is_not_there_is_refused(
    htcebridge_command: Run, example: Path, tmp_path: Path, slurm_with_two: None
) -> None:
    tmp_path.joinpath("work").mkdir()
    said = htcebridge_command("--config", example, "drain", "999_1")
    assert (said.code, "no live pilot" in said.err) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("command", [["drain", "dcgp"], ["pressure", "stop"]])
def test_no_mark_is_set_where_no_pilot_would_look(
    htcebridge_command: Run, example: Path, tmp_path: Path, command: list[str]
) -> None:
    said = htcebridge_command("--config", example, *command)
    assert said.code == ExitCode.PROBLEM
    assert "is the file system mounted?" in said.err
    assert not tmp_path.joinpath("work").exists()


@pytest.mark.parametrize("command", ["once", "run"])
def test_a_recording_that_cannot_be_written_is_said_before_the_first_cycle(
    htcebridge_command: Run, example: Path, tmp_path: Path, command: str
) -> None:
    said = htcebridge_command("--config", example, "pressure", command, "--record", tmp_path / "none" / "x.jsonl")
    assert said.code == 2
    assert "x.jsonl: cannot be written: is its directory there" in said.err
