from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config import Config
from htcebridge.errors import ConfigError, ExitCode, LockHeld
from htcebridge.lock import ControllerLock, Memory, recall

HOLDER = """
import sys
from pathlib import Path
from htcebridge import config_file
from htcebridge.lock import ControllerLock
with ControllerLock(config_file.load(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


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


def test_killing_the_holder_frees_the_lock(config: Config, other_holder: subprocess.Popen[str]) -> None:
    os.kill(other_holder.pid, signal.SIGKILL)
    other_holder.wait()
    with ControllerLock(config) as lock:
        lock.file.seek(0)
        assert f"pid {os.getpid()} on" in lock.file.read()


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


def test_what_a_cycle_remembers_the_next_one_recalls(config: Config) -> None:
    memory = Memory(surplus={"dcgp": 2}, schedds={"ce01": 1_800_000_000})
    with ControllerLock(config) as lock:
        lock.remember(memory)
    assert recall(config) == memory


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b'{"surplus": 3, "schedds": {}}',
        b'{"surplus": null, "schedds": {}}',
        b'{"surplus": {"dcgp": "many"}, "schedds": {}}',
        b'{"surplus": {"dcgp": null}, "schedds": {}}',
        b'{"surplus": {"dcgp": 1e999}, "schedds": {}}',
        b'{"surplus": {}, "schedds": []}',
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_memory_only_starts_the_count_again(config: Config, own_home: Path, damaged: bytes) -> None:
    with ControllerLock(config) as lock:
        (own_home / ".local/state/htcebridge/leonardo.json").write_bytes(damaged)
        assert recall(config) == Memory()
        lock.remember(Memory(surplus={"dcgp": 1}))
    assert recall(config) == Memory(surplus={"dcgp": 1})


def test_no_memory_yet_means_nothing_is_known(config: Config) -> None:
    assert recall(config) == Memory()


def test_a_memory_that_cannot_be_written_does_not_stop_the_cycle(config: Config, own_home: Path) -> None:
    with ControllerLock(config) as lock:
        (own_home / ".local/state/htcebridge/leonardo.json").mkdir()
        lock.remember(Memory(surplus={"dcgp": 1}))
    assert recall(config) == Memory()


def test_a_state_directory_that_cannot_be_written_is_a_config_error(config: Config, own_home: Path) -> None:
    (own_home / ".local").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"pressure\.state_dir"), ControllerLock(config):
        pass
