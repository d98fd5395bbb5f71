"""Birth and death of a bed: the supervisor process, the state file, and the sweeping of what a killed bed left."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import TestbedError, UsageError
from .hosts import Host, Role
from .inside import Door, children, start_time
from .pace import Patience, scaled
from .places import HERE, RUN_BASE, locked, run_dir, try_lock
from .root import users_lock

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
HOSTS_UP_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class State:
    """What others need to find a running bed; kept in its run directory."""

    name: str
    suite: str
    hosts: tuple[Host, ...]
    init_pid: int  # process 1 of the bed, as this machine numbers it
    init_start: str
    holders: dict[str, int]  # host -> the process that holds its namespaces, as the bed numbers it

    def door(self, host: str) -> Door:
        return Door(self.init_pid, self.holders[host])

    def alive(self) -> bool:
        return start_time(self.init_pid) == self.init_start

    def save(self) -> None:
        record = asdict(self)
        record["hosts"] = [{"name": host.name, "role": host.role.value, "address": host.address} for host in self.hosts]
        write_whole(run_dir(self.name) / "bed.json", json.dumps(record))


@dataclass
class Owned:
    """The owner's hold on a bed that it started: when the pipe closes, by kill -9 too, the bed ends."""

    supervisor: subprocess.Popen[str]
    pipe: int | None

    def detach(self) -> None:
        """Let the bed live on without an owner."""
        if self.pipe is not None:
            os.write(self.pipe, b"detach")
        self.close()

    def close(self) -> None:
        if self.pipe is not None:
            os.close(self.pipe)
            self.pipe = None


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a bed: small letters, digits and -, at most 31")


def launch(name: str, suite: str, hosts: tuple[Host, ...], root: Path) -> tuple[State, Owned]:
    """Start the supervisor and wait until all hosts exist. Nothing runs on them yet."""
    run = run_dir(name)
    RUN_BASE.mkdir(parents=True, exist_ok=True)
    with locked(RUN_BASE / "lock"):
        sweep()
        if run.exists():
            raise UsageError(
                f"a bed named {name} is running; `testbed down --name {name}` ends it, --name gives another one a name"
            )
        (run / "base").mkdir(parents=True)
        alive = try_lock(run / "alive")
    uses = try_lock(users_lock(root), shared=True)
    if alive is None or uses is None or not root.is_dir():
        raise TestbedError(f"{root} is being removed by another testbed; try again")
    shapes = [
        {"name": h.name, "fqdn": h.fqdn, "address": h.address, "shared": h.is_hpc, "gpus": str(h.gpus)} for h in hosts
    ]
    spec = {"root": str(root), "hosts": shapes}
    write_whole(run / "spec.json", json.dumps(spec))
    theirs, ours = os.pipe()
    command = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--mount-proc", "--net", "--uts"]
    command += [sys.executable, "-I", str(HERE / "supervisor.py"), str(run)]
    with (run / "supervisor.log").open("w") as log:
        supervisor = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=(alive, uses),
            start_new_session=True,
        )
    for fd in (theirs, alive, uses):
        os.close(fd)
    owned = Owned(supervisor, ours)
    try:
        holders = hear_holders(supervisor, run)
        init = children(supervisor.pid)[0]
        state = State(name, suite, hosts, init, start_time(init), holders)
        state.save()
    except BaseException:
        owned.close()
        supervisor.kill()
        supervisor.wait()
        shutil.rmtree(run, ignore_errors=True)
        raise
    return state, owned


def hear_holders(supervisor: subprocess.Popen[str], run: Path) -> dict[str, int]:
    """The supervisor's one line: the holders, or what went wrong."""
    assert supervisor.stdout is not None
    readable, _, _ = select.select([supervisor.stdout], [], [], scaled(HOSTS_UP_TIMEOUT_S))
    line = supervisor.stdout.readline() if readable else ""
    if not line:
        raise TestbedError(
            f"the hosts could not be made: {(run / 'supervisor.log').read_text().strip() or 'no answer'}"
        )
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise TestbedError(f"the hosts could not be made: {answer['error']}")
    holders: dict[str, int] = answer["holders"]
    return holders


def load(name: str) -> State:
    """The state of a running bed. Raises UsageError if there is no such bed."""
    check_name(name)
    try:
        record = json.loads((run_dir(name) / "bed.json").read_text())
    except FileNotFoundError:
        record = None
    if record is not None:
        hosts = tuple(Host(h["name"], Role(h["role"]), h["address"]) for h in record.pop("hosts"))
        state = State(hosts=hosts, **record)
        if state.alive():
            return state
    names = ", ".join(live_names())
    raise UsageError(
        f"no bed named {name} is running; "
        + (f"there are: {names}" if names else "there is none, `testbed up` starts one")
    )


def live_names() -> list[str]:
    """The running beds, after sweeping what is left of the dead ones."""
    if not RUN_BASE.is_dir():
        return []
    with locked(RUN_BASE / "lock"):
        sweep()
    return sorted(path.name for path in beds_on_disk())


def end(name: str) -> None:
    """Kill a bed and wait until nothing of it is left."""
    try:
        state = load(name)
    except UsageError:
        return
    os.kill(state.init_pid, signal.SIGKILL)
    patience = Patience(END_TIMEOUT_S)
    while state.alive():
        if patience.over():
            raise TestbedError(f"process {state.init_pid}, the init of bed {name}, does not die")
        time.sleep(0.02)


def sweep() -> None:
    """Remove the run directories of beds that are gone. The caller holds the lock."""
    for path in beds_on_disk():
        lock = try_lock(path / "alive")
        if lock is not None:  # nobody of that bed lives
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)


def beds_on_disk() -> Iterator[Path]:
    for path in RUN_BASE.iterdir():
        if path.is_dir():
            yield path


def write_whole(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_text(text)
    unfinished.replace(path)
