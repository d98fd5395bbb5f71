"""deploy/: what systemd, cron, logrotate and tmpfiles are told. Under a real systemd: tests/e2e/test_running.py."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import htcebridge
from htcebridge.cli import cli
from htcebridge.config import file
from htcebridge.config.tables import Config
from htcebridge.errors import ExitCode

ROOT = Path(htcebridge.__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
if not DEPLOY.is_dir():
    pytest.skip("not a checkout: no deploy/", allow_module_level=True)
RUNNING = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
UNITS = sorted((DEPLOY / "systemd").glob("*/*"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]
LONG = [path for path in SERVICES if "once" not in path.name]
ONCE = [path for path in SERVICES if "once" in path.name]
USERS = {"system": "/opt/htcebridge/bin/htcebridge", "user": "%h/htcebridge/bin/htcebridge"}


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def section(path: Path, name: str = "Service") -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, encoding="utf-8")
    return parser[name]


def seconds(text: str) -> int:
    (number, unit) = re.fullmatch(r"(\d+)(s|min)", text).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "min" else 1)


# --------------------------------------------------------------------------- units


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_a_unit_runs_a_command_that_there_is(unit: Path) -> None:
    program, *arguments = section(unit)["ExecStart"].split()
    assert program == USERS[unit.parent.name]
    assert arguments[-2:] == ["pressure", "once" if unit in ONCE else "run"]
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    assert arguments[1].replace("%h", "~") in file.PLACES


@pytest.mark.parametrize("unit", LONG, ids=ids)
def test_what_only_a_person_can_mend_is_not_tried_again_and_a_held_lock_is(unit: Path) -> None:
    service = section(unit)
    assert service["Restart"] == "on-failure"
    never = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert never == {ExitCode.USAGE}
    assert "SuccessExitStatus" not in service
    assert section(unit, "Unit")["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize("unit", LONG, ids=ids)
def test_systemd_hears_from_the_controller_and_waits_for_a_cycle(unit: Path, config: Config) -> None:
    service = section(unit)
    assert service["Type"] == "notify"
    # One that hangs in each of a dozen Slurm commands, a minute each, is still a cycle.
    assert seconds(service["WatchdogSec"]) >= 12 * 60
    assert seconds(service["TimeoutStopSec"]) > config.tier1.timeout.total_seconds() + 60
    assert "-HUP" in service["ExecReload"]


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_a_stop_kills_no_sbatch_under_way(unit: Path) -> None:
    assert section(unit)["KillMode"] == "mixed"


@pytest.mark.parametrize("unit", SERVICES, ids=ids)
def test_the_sandbox_leaves_open_what_a_cycle_needs(unit: Path) -> None:
    service = section(unit)
    assert service["NoNewPrivileges"] == "yes"
    # munge's socket, the Tier-1, and getifaddrs.
    assert set(service["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    # Lock and state are in the user's home, marks and logs in $WORK.
    assert "ProtectHome" not in service
    assert service.get("ProtectSystem", "full") == "full"
    assert not {"PrivateNetwork", "PrivateUsers", "IPAddressDeny", "DynamicUser"} & set(service)


def test_both_services_of_a_kind_and_both_timers_say_the_same() -> None:
    system, user = DEPLOY / "systemd" / "system", DEPLOY / "systemd" / "user"
    of_the_system = {"User", "ExecStart", "EnvironmentFile"}
    for name in ("htcebridge", "htcebridge-once"):
        here, there = dict(section(system / f"{name}@.service")), dict(section(user / f"{name}.service"))
        for key in set(there) - of_the_system:
            assert here[key] == there[key], key
        assert here["User"] == "%i"
    timers = [
        dict(section(path, "Timer")) for path in (system / "htcebridge-once@.timer", user / "htcebridge-once.timer")
    ]
    assert {timer["OnUnitInactiveSec"] for timer in timers} == {"1min"}
    assert all(seconds(timer["RandomizedDelaySec"]) > 0 for timer in timers)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_understands_every_unit(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "home" / "htcebridge" / "bin" / "htcebridge"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in (DEPLOY / "systemd" / kind).iterdir():
        text = unit.read_text(encoding="utf-8").replace("/opt/htcebridge", str(program.parent.parent))
        (folder / unit.name.replace("@", "@leo")).write_text(text)
        (folder / unit.name).write_text(text)
    for unit in folder.glob("*" if kind == "user" else "*@leo*"):
        command = ["systemd-analyze", *(["--user"] if kind == "user" else []), "verify", "--man=no", unit]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        said = [line for line in done.stderr.splitlines() if unit.name.split(".")[0] in line]
        assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_would_notice_a_mistake_in_a_unit(tmp_path: Path) -> None:
    text = LONG[0].read_text(encoding="utf-8").replace("WatchdogSec", "WatchdogSecs").replace("/opt/htcebridge", "/no")
    unit = tmp_path / "htcebridge@leo.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "WatchdogSecs" in done.stderr


# --------------------------------------------------------------------------- the other files


def test_the_environment_file_has_nothing_that_systemd_would_not_expand() -> None:
    for line in (DEPLOY / "environment").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[A-Z]+=[\w/:.-]+", line), line
    for unit in SERVICES:
        assert section(unit)["EnvironmentFile"].startswith("-"), "a site may need none"


def test_the_cron_lines_are_those_of_the_docs() -> None:
    lines = [line for line in (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    (shown,) = re.findall(r"```crontab\n(.*?)```", RUNNING, re.DOTALL)
    assert lines == shown.splitlines()


def test_crons_shell_runs_what_the_cron_lines_say(tmp_path: Path, own_home: Path) -> None:
    program = own_home / "htcebridge" / "bin" / "htcebridge"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$WORK $*"\necho complaint >&2\nexit 75\n')
    program.chmod(0o755)
    text = (DEPLOY / "crontab").read_text(encoding="utf-8")
    environment = dict(re.findall(r"^([A-Z]+)=(.*)$", text, re.MULTILINE))
    assert not any("$" in value for value in environment.values()), "cron expands nothing there"
    (command,) = re.findall(r"^(?:\S+ ){5}(.*htcebridge -q .*)$", text, re.MULTILINE)
    assert "%" not in command, "cron makes a line break of it"
    done = subprocess.run(["/bin/sh", "-c", command], env={**environment, "HOME": str(own_home)}, check=False)
    assert done.returncode == 75
    assert (own_home / "htcebridge.log").read_text() == f"{environment['WORK']} -q pressure once\ncomplaint\n"


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_takes_the_log_that_cron_writes(own_home: Path) -> None:
    conf = own_home / "logrotate.conf"
    shutil.copy(DEPLOY / "logrotate.conf", conf)
    log = own_home / "htcebridge.log"
    log.write_text("x\n" * 1000)
    for expected in ("htcebridge.log.1", "htcebridge.log.2.gz"):
        subprocess.run(["logrotate", "--force", "--state", own_home / "state", conf], check=True, timeout=60)
        assert (own_home / expected).is_file()
        log.write_text("y\n")


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd is not installed")
def test_tmpfiles_removes_old_pilot_logs_and_no_others(tmp_path: Path) -> None:
    text = (DEPLOY / "tmpfiles.conf").read_text(encoding="utf-8")
    (work,) = re.findall(r"^WORK=(.*)$", (DEPLOY / "environment").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"e {work}/htcebridge/logs " in text
    logs = tmp_path / "htcebridge" / "logs"
    logs.mkdir(parents=True)
    now = time.time()
    for name, days in (("old.out", 41), ("new.out", 30)):
        (logs / name).touch()
        os.utime(logs / name, (now - days * 86400,) * 2)
    conf = tmp_path / "tmpfiles.conf"
    # ctime cannot be set back: look at the access and modification times alone.
    conf.write_text(text.replace(work, str(tmp_path)).replace("- 40d", "- am:40d"))
    done = subprocess.run(
        ["systemd-tmpfiles", "--clean", conf], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in logs.iterdir()] == ["new.out"]


def test_the_docs_name_every_file_and_every_place() -> None:
    for path in (each for each in DEPLOY.rglob("*") if each.is_file() and "systemd" not in each.parts):
        if path.parent == DEPLOY and path.suffix != ".json":
            assert f"deploy/{path.name}" in RUNNING, path.name
    for unit in UNITS:
        name = unit.name.replace("@", "@leo")
        assert name in RUNNING or "once" in name, name
    for place in ("/etc/htcebridge/htcebridge.toml", "/etc/htcebridge/environment", "~/.config/htcebridge/environment"):
        assert place in RUNNING
