"""The Testbed: a Tier-1, two CEs and a Slurm cluster that run on this machine, and what a test does with them."""

from __future__ import annotations

import os
import signal as signals
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from . import bringup, condor, lifecycle
from .commands import Commands
from .errors import TestbedError, UsageError
from .hosts import MAX_NODES, make_hosts
from .pace import Patience
from .places import run_dir
from .root import check_machine, ensure_root
from .services import Service, expected, orphans, running, service_of

Say = Callable[[str], object]
STOP_TIMEOUT_S = 20.0
START_TIMEOUT_S = 60.0
EXEC_TIMEOUT_S = 5.0
POLL_S = 0.2
# Daemons are started as children of process 1, with what they say before they have a log of their own in a file.
SPAWN = 'out=$1; shift; exec setsid --fork "$@" >>"$out" 2>&1 </dev/null'


class Testbed(Commands):
    """One running bed. `up` starts one and owns it: it ends with the `with` block, or with the process that started it.

    `attach` joins a bed that is running; leaving its `with` block leaves it running.
    """

    __test__ = False  # pytest: not a test class

    def __init__(self, state: lifecycle.State, owned: lifecycle.Owned | None = None) -> None:
        super().__init__(state)
        self._owned = owned
        self.suite = state.suite
        self.init_pid = state.init_pid
        self.nodes = [host.name for host in state.hosts if host.is_node]

    @classmethod
    def up(
        cls,
        suite: str = "trixie",
        nodes: int = 2,
        gpu_nodes: int = 1,
        name: str | None = None,
        ce_config: Path | None = None,
        say: Say = print,
    ) -> Testbed:
        """Start a bed and wait until all of it can be used. `name` is the suite's unless given.

        Raises UsageError for bad arguments and TestbedError if something does not start, after taking all down again.
        """
        check_machine(suite)
        name = name or suite
        lifecycle.check_name(name)
        for what, count in (("nodes", nodes), ("gpu_nodes", gpu_nodes)):
            if not 0 <= count <= MAX_NODES:
                raise UsageError(f"{what} is {count}; 0 to {MAX_NODES} can be had")
        if nodes + gpu_nodes == 0:
            raise UsageError("a Slurm cluster needs at least one node")
        if ce_config is not None:
            condor.check_ce_config(ce_config)
        root = ensure_root(suite, say)
        progress = bringup.Progress(say)
        hosts = make_hosts(nodes, gpu_nodes)
        state, owned = lifecycle.launch(name, suite, hosts, root)
        bed = cls(state, owned)
        try:
            progress(f"{len(hosts)} hosts up")
            bringup.bring_up(bed, hosts, ce_config, progress)
            (run_dir(name) / "ready").touch()
            progress(f"bed {name} ready")
        except BaseException:
            bed.down()
            raise
        return bed

    @classmethod
    def attach(cls, name: str) -> Testbed:
        """The running bed of that name. Raises UsageError if there is none."""
        return cls(lifecycle.load(name))

    def __enter__(self) -> Testbed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned is not None:
            self.down()

    def detach(self) -> None:
        """Let the bed live on when this process ends."""
        if self._owned is not None:
            self._owned.detach()
            self._owned = None

    def down(self) -> None:
        """End the bed: no process, mount, namespace or interface of it is left. Safe to call twice."""
        if self.alive():
            lifecycle.end(self.name)
        if self._owned is not None:
            self._owned.close()
            self._owned.supervisor.wait()
            if self._owned.supervisor.stdout is not None:
                self._owned.supervisor.stdout.close()
            self._owned = None
        lifecycle.live_names()  # sweeps

    # ---- daemons

    def stop(self, host: str, service: str) -> None:
        """Stop a daemon as systemd would, and wait until it is gone. It stays down until `start`."""
        there = service_of(self.host(host), service)
        if there.master_daemon:
            self.on(host, ["condor_off", "-daemon", there.master_daemon], env=there.env)
        else:
            self._signal(host, there, there.stop_signal)
        killed = False
        patience = Patience(STOP_TIMEOUT_S)
        while self.pids(host, service):
            over = patience.over()
            if over and killed:
                raise TestbedError(f"{service} on {host} does not stop\n{self.log_tail(host, there)}")
            if over:
                # slurmctld waits for what it has under way with its nodes, minutes now and then (24.11, 26.05).
                self._signal(host, there, signals.SIGKILL)
                killed, patience = True, Patience(STOP_TIMEOUT_S)
            time.sleep(POLL_S)

    def start(self, host: str, service: str) -> None:
        """Start a daemon, if it isn't running, and wait until it can be used."""
        there = service_of(self.host(host), service)
        if not self.pids(host, service):
            for pid in orphans(there, self.door(host)):  # as systemd does with what a failed service leaves
                with suppress(ProcessLookupError):
                    os.kill(pid, signals.SIGKILL)
            self.spawn(host, there)
        self.wait_ready(host, there)

    def kill(self, host: str, service: str, signal: int) -> None:
        """Send `signal` to a daemon. HTCondor's master starts a killed daemon again; nobody starts the others."""
        there = service_of(self.host(host), service)
        if not self._signal(host, there, signal):
            raise TestbedError(f"{service} on {host} is not running")

    def pids(self, host: str, service: str) -> list[int]:
        """The processes of a daemon, as this machine numbers them."""
        return running(service_of(self.host(host), service), self.door(host))

    def status(self) -> dict[str, dict[str, bool]]:
        """host -> daemon -> is it alive"""
        return {
            host.name: {s.name: bool(self.pids(host.name, s.name)) for s in expected(host)}
            for host in self._state.hosts
        }

    def spawn(self, host: str, service: Service) -> None:
        if service.master_daemon:
            self.on(host, ["condor_on", "-daemon", service.master_daemon], env=service.env)
        else:
            out = f"/var/log/testbed/{service.name}.out"
            self.on(host, ["sh", "-c", SPAWN, "sh", out, *service.start], user=service.user, env=service.env)

    def wait_ready(self, host: str, service: Service, timeout: float = START_TIMEOUT_S) -> None:
        """Wait until a daemon can be used. Raises TestbedError with the end of its log if it ends or takes too long."""
        patience, gone = Patience(timeout), Patience(EXEC_TIMEOUT_S)
        while True:
            alive = bool(self.pids(host, service.name))
            gone = Patience(EXEC_TIMEOUT_S) if alive else gone
            # A daemon under condor_master may take the master's back-off to come; others are there at once or never.
            if not service.master_daemon and gone.over():
                raise TestbedError(f"{service.name} on {host} ended\n{self.log_tail(host, service)}")
            said = self.on(host, ["sh", "-c", service.ready], env=service.env, timeout=60, check=False)
            if alive and said.returncode == 0:
                return
            if patience.over():
                answer = (said.stdout + said.stderr).strip()[-500:]
                why = f"its check `{service.ready}` says {answer!r}" if alive else "it is not running"
                what = f"{service.name} on {host} is not ready after {patience}: {why}"
                raise TestbedError(f"{what}\n{self.log_tail(host, service)}")
            time.sleep(POLL_S)

    def log_tail(self, host: str, service: Service, lines: int = 15) -> str:
        """The last lines of a daemon's log, and of what it said before it had one."""
        tail = []
        for path in dict.fromkeys((service.log, f"/var/log/testbed/{service.name}.out")):
            end = self.on(host, ["tail", "-n", str(lines), path], check=False).stdout.rstrip()
            if end:
                tail.append(f"end of {host}:{path}:\n{end}")
        return "\n".join(tail) or f"{host}:{service.log} is empty"

    # ---- network

    def cut(self, node: str) -> None:
        """Take a host's network away, as if its cable were pulled."""
        self._plug(node, "down")

    def mend(self, node: str) -> None:
        """Give it back."""
        self._plug(node, "up")

    def _plug(self, node: str, state: str) -> None:
        name = self.host(node).name
        network = f"--net=/proc/{self._state.init_pid}/ns/net"
        done = subprocess.run(
            ["nsenter", network, "ip", "link", "set", f"v-{name}", state], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise TestbedError(f"network of {name} {state}: {done.stderr.strip()}")

    def _signal(self, host: str, service: Service, signal: int) -> bool:
        pids = self.pids(host, service.name)
        for pid in pids:
            with suppress(ProcessLookupError):  # a short-lived child of the daemon, gone since it was listed
                os.kill(pid, signal)
        return bool(pids)
