"""Shows that nothing of a bed is left, however it ends. Part of `testbed selftest`.

"Left" is looked for where it would be: processes of the bed, mounts under its run directory, interfaces of this
machine, the run directory itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .bed import Testbed
from .errors import TestbedError
from .inside import children
from .lifecycle import live_names
from .pace import Patience, scaled
from .places import HERE, run_dir

GONE_WITHIN_S = 10.0
UP_WITHIN_S = 120.0
# An owner as pytest is one: it holds the bed in a `with` block, and is killed there.
OWNER = """
import signal, sys
from tests.testbed import Testbed
with Testbed.up(sys.argv[1], name=sys.argv[2]):
    signal.pause()
"""


def killtest(suite: str, say: Callable[[str], object]) -> None:
    name = f"killtest-{suite}"
    for what, kill in (
        ("its init", lambda bed: bed.init_pid),
        ("the process above its init", lambda bed: parent(bed.init_pid)),
        ("the holder of a host's namespaces", lambda bed: holder(bed, "edge")),
    ):
        with watched(name, f"kill -9 of {what}", say):
            start(["-m", "tests.testbed", "up", "--suite", suite, "--name", name]).wait()
            os.kill(kill(Testbed.attach(name)), signal.SIGKILL)
    with watched(name, "kill -9 of the owner", say):
        owner = start(["-c", OWNER, suite, name])
        wait_ready(name)
        owner.kill()
        owner.wait()
    for signal_sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for after_s in (0.2, 0.6, 1.2, 1.8):
            with watched(name, f"{signal_sent.name} {after_s} s after the start of `up`", say):
                up = start(["-m", "tests.testbed", "up", "--suite", suite, "--name", name])
                time.sleep(after_s)  # the moment itself is what is tried
                up.send_signal(signal_sent)
                code = up.wait(timeout=scaled(GONE_WITHIN_S))
                if signal_sent is signal.SIGINT and code not in (130, -signal.SIGINT):
                    raise TestbedError(f"killtest: `up` ended with {code} after Ctrl-C")


@contextmanager
def watched(name: str, what: str, say: Callable[[str], object]) -> Iterator[None]:
    """What is done inside starts a bed and kills it: afterwards nothing of it may be there."""
    before = interfaces()
    yield
    started, patience = time.monotonic(), Patience(GONE_WITHIN_S)
    while left := leftovers(name, before):
        if patience.over():
            raise TestbedError(f"killtest: {what}: left after {patience}: {'; '.join(left)}")
        time.sleep(0.05)
    say(f"ok: nothing left by {what} ({time.monotonic() - started:.2f} s)")


def leftovers(name: str, before: set[str]) -> list[str]:
    live_names()  # what the next call of any command does: sweep
    left = [f"interface {new}" for new in interfaces() - before]
    if run_dir(name).exists():
        left.append(str(run_dir(name)))
    mark = str(run_dir(name))
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if f" {mark}/" in (process / "mountinfo").read_text():
                left.append(f"a mount in process {process.name}")
            if mark in (process / "cmdline").read_text():
                left.append(f"process {process.name}")
        except OSError:
            continue  # ended while we looked
    return left


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    command, checkout = [sys.executable, *arguments], HERE.parent.parent
    return subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_ready(name: str) -> None:
    patience = Patience(UP_WITHIN_S)
    while not (run_dir(name) / "ready").exists():
        if patience.over():
            raise TestbedError(f"killtest: bed {name} is not up after {patience}")
        time.sleep(0.1)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def holder(bed: Testbed, host: str) -> int:
    network = os.readlink(bed.door(host).namespaces / "net")
    for pid in children(bed.init_pid):
        if os.readlink(f"/proc/{pid}/ns/net") == network and Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
            return pid
    raise TestbedError(f"killtest: no holder of {host} found")
