"""The init process of a bed: makes the hosts, reaps orphans, and takes everything with it when it ends.

It runs as process 1 of a private PID namespace (`unshare --pid --fork --kill-child`), so whatever ends it, kill -9
included, makes the kernel end every process of the bed, and with the last process go mounts, network and interfaces.
It is started by path and imports nothing of the package.

It ends when its owner does (end of file on standard input, unless the owner wrote "detach"), at SIGTERM, and when one
of the processes that hold a host's namespaces dies.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path

HOST_SCRIPT = Path(__file__).resolve().parent / "etc" / "net" / "host.sh"


def main() -> int:
    run = Path(sys.argv[1])
    spec = json.loads((run / "spec.json").read_text())
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the owner's business
    try:
        holders = make_hosts(run, spec)
    except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"holders": {name: process.pid for name, process in holders.items()}}), flush=True)
    return watch({process.pid: name for name, process in holders.items()}, wake_r)


def make_hosts(run: Path, spec: dict[str, object]) -> dict[str, subprocess.Popen[str]]:
    """The bridge, the bed's tmpfs and all hosts, side by side. The processes returned hold the hosts' namespaces."""
    base = run / "base"
    for command in (
        ["mount", "-t", "tmpfs", "-o", "mode=0755", "testbed", str(base)],
        ["mkdir", str(base / "root"), str(base / "hosts"), str(base / "leonardo")],
        ["mount", "--bind", str(spec["root"]), str(base / "root")],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0"],
        ["ip", "link", "set", "bridge", "up"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    hosts = spec["hosts"]
    assert isinstance(hosts, list)
    started = {host["name"]: start_host(host, base) for host in hosts}
    for name, process in started.items():
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        if answer != "ready":
            _, complaint = process.communicate()
            raise RuntimeError(f"host {name}: {complaint.strip() or answer or 'ended without a word'}")
    return started


def start_host(host: dict[str, str], base: Path) -> subprocess.Popen[str]:
    shared = str(base / "leonardo") if host["shared"] else "-"
    command = ["unshare", "--mount", "--net", "--uts", "sh", str(HOST_SCRIPT)]
    command += [host["name"], host["fqdn"], host["address"], str(base), shared, host["gpus"]]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def watch(holders: dict[int, str], wake_fd: int) -> int:
    """Reap whatever ends, until the bed has to end."""
    log = os.open(Path(sys.argv[1]) / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_fd, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            said = os.read(key.fd, 4096)
            if key.fd == 0:
                if said != b"detach":
                    print("the owner is gone", flush=True)
                    return 0
                selector.unregister(0)
        while ended := reap():
            if ended in holders:
                print(f"the holder of {holders[ended]} was killed", flush=True)
                return 1


def reap() -> int:
    """The process that ended, 0 if none did."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
