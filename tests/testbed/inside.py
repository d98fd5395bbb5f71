"""Runs commands inside a host: `nsenter` into its namespaces, then a clean environment, then the user."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Door:
    """How to get into one host: process 1 of its bed as this machine numbers it, and the holder as the bed does."""

    init_pid: int
    holder: int

    @property
    def namespaces(self) -> Path:
        # Through the bed's own /proc: the holder's number means something only there.
        return Path(f"/proc/{self.init_pid}/root/proc/{self.holder}/ns")

    @property
    def root(self) -> Path:
        """The host's "/" as seen from this machine. Never follow its absolute symlinks: they would lead out."""
        return Path(f"/proc/{self.init_pid}/root/proc/{self.holder}/root")

    def enter(self) -> list[str]:
        ns = self.namespaces
        pid_ns = f"--pid=/proc/{self.init_pid}/ns/pid"
        return ["nsenter", f"--mount={ns}/mnt", f"--net={ns}/net", f"--uts={ns}/uts", pid_ns]

    def account(self, user: str) -> Account:
        known = []
        for line in (self.root / "etc" / "passwd").read_text().splitlines():
            name, _, uid, gid, _, home, _ = line.split(":")
            known.append(name)
            if name == user:
                return Account(name, int(uid), int(gid), home)
        raise UsageError(f"no user {user!r} there; there are: {', '.join(sorted(known))}")


def command_line(door: Door, argv: Sequence[str], user: str | None, env: Mapping[str, str] | None) -> list[str]:
    """The command that runs `argv` in the host as `user` (root), at home, with a login-like environment plus `env`."""
    account = door.account(user or "root")
    directory = account.home if (door.root / account.home.lstrip("/")).is_dir() else "/"  # daemons' accounts have none
    environment = {
        "PATH": PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        **(env or {}),
    }
    # --pdeathsig: nsenter has to fork to enter the PID namespace; if it is killed, what it runs must not stay.
    become = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups", "--pdeathsig", "KILL"]
    clean = ["env", "-i", "--default-signal=INT,QUIT", f"--chdir={directory}"]
    clean += [f"{name}={value}" for name, value in environment.items()]
    return [*door.enter(), *become, *clean, *argv]


class InsideProcess(subprocess.Popen[Any]):
    """A process in a host. `pid` is nsenter's, which only waits; signals go to the command itself."""

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            for child in children(self.pid) or [self.pid]:
                os.kill(child, sig)

    def kill_session(self) -> None:
        """SIGKILL to the command and what it started, if it was started with start_new_session."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`, as this machine numbers them."""
    return [child for child, stat in processes() if int(stat[1]) == pid]


def start_time(pid: int) -> str:
    """What tells this process from a later one with the same number; empty if there is none."""
    try:
        return fields(Path("/proc") / str(pid))[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes() -> list[tuple[int, list[str]]]:
    """Every process with the fields of /proc/PID/stat from the third (the state) on: proc(5)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), fields(entry)))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def fields(process: Path) -> list[str]:
    return (process / "stat").read_text().rpartition(")")[2].split()
