from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError, ExitCode, LockHeld, UnknownState
from htcebridge.state import lock as lock_module
from htcebridge.state.lock import ControllerLock, Owner

HOLDER = """
import sys
from pathlib import Path
from htcebridge.config import file
from htcebridge.state.lock import ControllerLock
with ControllerLock(file.load(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def owner_file(home: Path) -> Path:
    return home / ".local/state/htcebridge/leonardo.owner"


@pytest.fixture
def other_holder(config: Config, tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "htcebridge.toml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_controller_is_told_who_has_the_lock(config: Config, other_holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockHeld) as error, ControllerLock(config):
        pass
    assert f"pid {other_holder.pid} on {socket.gethostname()}" in str(error.value)
    assert error.value.exit_code == ExitCode.TEMPFAIL


def test_a_refused_controller_leaves_the_holders_name_in_place(
    config: Config, other_holder: subprocess.Popen[str]
) -> None:
    for _ in range(2):
        with pytest.raises(LockHeld, match=f"pid {other_holder.pid} "), ControllerLock(config):
            pass


def test_killing_the_holder_frees_the_lock(config: Config, own_home: Path, other_holder: subprocess.Popen[str]) -> None:
    os.kill(other_holder.pid, signal.SIGKILL)
    other_holder.wait()
    with ControllerLock(config):
        assert owner_file(own_home).exists()


def test_the_lock_can_be_taken_again_after_it_was_given_back(config: Config) -> None:
    for _ in range(2):
        with ControllerLock(config):
            pass


def test_another_instance_has_its_own_lock(config: Config, design_example: str, load: Callable[[str], Config]) -> None:
    other = load(design_example.replace('instance = "leonardo"', 'instance = "other"'))
    with ControllerLock(config), ControllerLock(other):
        pass


def test_a_child_that_inherited_the_lock_keeps_it_until_it_ends(config: Config) -> None:
    with ControllerLock(config) as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.file.fileno()])
    try:
        with pytest.raises(LockHeld), ControllerLock(config):
            pass
    finally:
        child.communicate(b"")
    with ControllerLock(config):
        pass


def test_a_child_that_was_not_given_the_lock_does_not_keep_it(config: Config) -> None:
    with ControllerLock(config):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        with ControllerLock(config):
            pass
    finally:
        child.communicate(b"")


def test_a_state_directory_that_cannot_be_written_is_a_config_error(config: Config, own_home: Path) -> None:
    (own_home / ".local").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"pressure\.state_dir"), ControllerLock(config):
        pass


# --------------------------------------------------------------------------- a shared file system


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps flock to one host, seen from the other: it refuses nobody."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


def elsewhere(home: Path, age_s: float, **changes: object) -> None:
    owner = Owner("login02", 4711, "1", "another boot", time.time() - age_s, time.time() - age_s)
    path = owner_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(owner, **changes))))


@pytest.mark.usefixtures("without_flock")
def test_a_controller_on_another_host_keeps_the_lock_for_its_lease(config: Config, own_home: Path) -> None:
    elsewhere(own_home, age_s=599)
    with pytest.raises(LockHeld, match="pid 4711 on login02"), ControllerLock(config):
        pass


@pytest.mark.usefixtures("without_flock")
def test_a_controller_that_was_not_heard_of_for_a_lease_is_dead(config: Config, own_home: Path) -> None:
    elsewhere(own_home, age_s=601)
    with ControllerLock(config):
        assert json.loads(owner_file(own_home).read_text())["pid"] == os.getpid()
    assert not owner_file(own_home).exists()


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"boot": "before the reboot"}, {"born": "1"}])
def test_a_dead_process_of_this_host_holds_nothing_however_young(
    config: Config, own_home: Path, change: dict[str, object]
) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": lock_module._born(os.getpid())}
    elsewhere(own_home, age_s=1, **{**mine, "boot": lock_module._boot(), **change})
    with ControllerLock(config):
        pass


@pytest.mark.usefixtures("without_flock")
def test_a_living_process_of_this_host_holds_it_however_long(config: Config, own_home: Path) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getppid(), "born": lock_module._born(os.getppid())}
    elsewhere(own_home, age_s=10**6, **mine, boot=lock_module._boot())
    with pytest.raises(LockHeld), ControllerLock(config):
        pass


@pytest.mark.usefixtures("without_flock")
def test_who_judged_before_another_took_over_takes_nothing_from_it(
    config: Config, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(own_home, age_s=10**6)
    rivals: list[subprocess.Popen[str]] = []
    judged = ControllerLock._alive

    def alive(self: ControllerLock, holder: Owner, now: float) -> bool:
        verdict = judged(self, holder, now)
        if not rivals:
            start = [sys.executable, "-c", "import fcntl; fcntl.flock = lambda *_: None\n" + HOLDER]
            rivals.append(
                subprocess.Popen(
                    [*start, str(tmp_path / "htcebridge.toml")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            assert rivals[0].stdout.readline() == "held\n"
        return verdict

    monkeypatch.setattr(ControllerLock, "_alive", alive)
    try:
        with pytest.raises(LockHeld), ControllerLock(config):
            pass
        assert json.loads(owner_file(own_home).read_text())["pid"] == rivals[0].pid
    finally:
        for each in rivals:
            each.kill()
            each.communicate()


@pytest.mark.usefixtures("without_flock")
def test_a_takeover_that_was_cut_off_holds_nobody_up(config: Config, own_home: Path) -> None:
    elsewhere(own_home, age_s=10**6)
    record = owner_file(own_home)
    record.with_name(record.name + ".takeover").write_text(record.read_text())
    with ControllerLock(config):
        pass
    assert list(record.parent.glob("*.owner*")) == []


@pytest.mark.usefixtures("without_flock")
def test_a_record_that_cannot_be_read_is_nobodys_death(config: Config, own_home: Path) -> None:
    owner_file(own_home).mkdir(parents=True)
    with pytest.raises(UnknownState, match=r"leonardo\.owner: cannot be read"), ControllerLock(config):
        pass


@pytest.mark.usefixtures("without_flock")
def test_of_many_that_start_at_once_one_gets_it(config: Config, own_home: Path, tmp_path: Path) -> None:
    elsewhere(own_home, age_s=10**6)
    contender = (
        "import fcntl, sys, time; fcntl.flock = lambda *_: None\n"
        "from pathlib import Path; from htcebridge.config import file\n"
        "from htcebridge.state.lock import ControllerLock\n"
        "config = file.load(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "with ControllerLock(config): print('held', flush=True); sys.stdin.readline()\n"
    )
    start = [sys.executable, "-c", contender, str(tmp_path / "htcebridge.toml")]
    many = [
        subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(6)
    ]
    try:
        for each in many:
            assert each.stdout.readline() == "ready\n"
        for each in many:
            each.stdin.write("\n")
            each.stdin.flush()
        assert sorted(each.stdout.readline() for each in many) == ["", "", "", "", "", "held\n"]
    finally:
        for each in many:
            each.kill()
            each.communicate()


@pytest.mark.usefixtures("without_flock")
def test_a_controller_that_was_replaced_meanwhile_notices(config: Config, own_home: Path) -> None:
    with ControllerLock(config) as lock:
        lock.renew()
        elsewhere(own_home, age_s=0)
        with pytest.raises(LockHeld, match="taken for dead and replaced: pid 4711 on login02"):
            lock.renew()
    assert owner_file(own_home).exists()


def test_a_file_system_without_flock_is_no_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with ControllerLock(config), pytest.raises(LockHeld), ControllerLock(config):
        pass


def test_a_full_disk_is_temporary_and_leaves_nothing_behind(
    config: Config, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UnknownState, match="No space left"), ControllerLock(config):
        pass
    assert [path.name for path in owner_file(own_home).parent.iterdir()] == ["leonardo.lock"]
