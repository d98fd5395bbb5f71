"""deploy/'s units under a real systemd, on the testbed's edge node: docs/running.md."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.chain import CONFIGURATION, HTCEBRIDGE, Chain, never, wait_until
from tests.testbed.pace import scaled

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("trixie")]

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
HOME = "/leonardo/home/leo"
SERVICE, ONCE, TIMER = "htcebridge@leo.service", "htcebridge-once@leo.service", "htcebridge-once@leo.timer"
# A system manager in namespaces of its own, over the host's files: its /run is the host's, with munge's socket in it.
# The kernel is this machine's: its settings are read-only there, and what a booting system sets up is masked.
BOOT = """
mount --make-rprivate / && mount -t proc proc /proc && rm -rf /run/systemd && mount --bind /run /run || exit
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys || exit
umount -l /sys/fs/cgroup 2> /dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit
mkdir -p /sys/fs/cgroup/$1 && echo 1 > /sys/fs/cgroup/$1/cgroup.procs
for unit in /usr/lib/systemd/system/sysinit.target.wants/*; do
  ln -sf /dev/null "/etc/systemd/system/${unit##*/}"
done
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  setpriv --bounding-set=-sys_module,-sys_time,-sys_boot \\
  /usr/lib/systemd/systemd --system --unit=basic.target --log-target=console
"""
MANAGER = "/usr/lib/systemd/systemd --system .*"
# A user's manager, started by the system's as logind would.
USER_MANAGER = """
mkdir -p /run/user/$1 && chown $1 /run/user/$1
systemd-run --quiet --unit=leo-manager --uid=$1 -p Delegate=yes -E XDG_RUNTIME_DIR=/run/user/$1 -E HOME=$2 \\
  /usr/lib/systemd/systemd --user --unit=basic.target
"""


@dataclass(frozen=True)
class Systemd:
    """The edge node's systemd; `user` is leo's own manager."""

    chain: Chain
    user: bool = False

    def run(self, *argv: str, check: bool = True) -> str:
        """A command beside the manager: it answers nobody from outside its namespaces."""
        pid = self.chain.bed.on("edge", ["pgrep", "-fox", MANAGER]).stdout.strip()
        enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--cgroup"]
        done = self.chain.bed.on("edge", [*enter, *argv], check=check)
        return (done.stdout + done.stderr).strip()

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """systemctl"""
        if not self.user:
            return self.run("systemctl", *arguments, check=check)
        become = ["setpriv", f"--reuid={self.uid}", "--clear-groups", "env", f"XDG_RUNTIME_DIR=/run/user/{self.uid}"]
        return self.run(*become, "systemctl", "--user", *arguments, check=check)

    @property
    def uid(self) -> int:
        return self.chain.bed.door("edge").account("leo").uid

    def shows(self, unit: str, key: str) -> str:
        return self("show", "--value", "--property", key, unit)

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as `systemctl edit` does."""
        where = f"{HOME}/.config/systemd/user" if self.user else "/etc/systemd/system"
        self.chain.bed.write("edge", f"{where}/{unit}.d/test.conf", text, owner="leo" if self.user else "root")
        self("daemon-reload")


@pytest.fixture
def system(chain: Chain) -> Iterator[Systemd]:
    """A system manager on the edge node, with the units in place as docs/running.md says."""
    bed, systemd = chain.bed, Systemd(chain)
    bed.on("edge", ["tar", "cPf", "/var/tmp/systemd.tar", "/etc/systemd/system"])
    for unit in (UNITS / "system").iterdir():
        bed.write("edge", f"/etc/systemd/system/{unit.name}", unit.read_text())
    bed.write("edge", "/etc/htcebridge/htcebridge.toml", CONFIGURATION)
    bed.write("edge", "/etc/htcebridge/environment", "WORK=/leonardo/work/leo\nPATH=/usr/local/bin:/usr/bin:/bin\n")
    bed.on("edge", ["ln", "-sfn", str(Path(HTCEBRIDGE).parents[1]), "/opt/htcebridge"])
    group = f"htcebridge-{bed.name}"
    boot = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child", "sh", "-c", BOOT, "boot", group]
    with bed.popen("edge", boot, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            look = ["pgrep", "-fox", MANAGER]
            wait_until(lambda: not bed.on("edge", look, check=False).returncode, 30, "systemd has started")
            wait_until(lambda: systemd("is-active", "basic.target", check=False) == "active", 30, "systemd is up")
            yield systemd
        finally:
            process.kill()
            back = "rm -rf /etc/systemd/system/* && tar xPf /var/tmp/systemd.tar && rm /var/tmp/systemd.tar"
            bed.on("edge", ["sh", "-c", f"rm -rf /run/systemd /etc/htcebridge /opt/htcebridge; {back}"])
    wait_until(partial(_removed_groups, group), 30, "its processes are gone")


def _removed_groups(name: str) -> bool:
    """Remove the control groups that it has left, children first; false while a process is in one."""
    tops = [top / name for top in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))]
    for top in tops:
        for path in [*sorted(top.rglob("*/"), reverse=True), top]:
            with suppress(OSError):
                path.rmdir()
    return not any(top.is_dir() for top in tops)


@pytest.fixture
def own(system: Systemd) -> Systemd:
    """leo's own manager, with the user's units in place."""
    bed = system.chain.bed
    for unit in (UNITS / "user").iterdir():
        bed.write("edge", f"{HOME}/.config/systemd/user/{unit.name}", unit.read_text(), owner="leo")
    bed.write("edge", f"{HOME}/.config/htcebridge/environment", "WORK=/leonardo/work/leo\n", owner="leo")
    bed.on("edge", ["ln", "-sfn", str(Path(HTCEBRIDGE).parents[1]), f"{HOME}/htcebridge"], user="leo")
    system.run("sh", "-c", USER_MANAGER, "sh", str(system.uid), HOME)
    own = Systemd(system.chain, user=True)
    wait_until(lambda: own("is-active", "basic.target", check=False) == "active", 30, "leo's manager is up")
    return own


def test_the_system_service_runs_pilots_inside_its_sandbox(system: Systemd) -> None:
    chain = system.chain
    system("start", SERVICE)
    assert system.shows(SERVICE, "ActiveState") == "active"
    jobs = chain.submit(count=2)
    wait_until(lambda: chain.done(jobs), 120, "the jobs have run on a pilot")
    assert "dcgp: " in system.shows(SERVICE, "StatusText")

    second = chain.htcebridge("pressure", "once", expect=75)
    assert "another controller of this instance is at work" in second.stderr
    began = time.monotonic()
    system("stop", SERVICE)
    assert time.monotonic() - began < scaled(60)
    assert system.shows(SERVICE, "Result") == "success"
    assert system.shows(SERVICE, "ExecMainStatus") == "0"


def test_reload_cycles_at_once(system: Systemd) -> None:
    slow = CONFIGURATION.replace('interval = "4s"', 'interval = "10m"')
    system.chain.bed.write("edge", "/etc/htcebridge/htcebridge.toml", slow)
    system("start", SERVICE)
    wait_until(lambda: system.shows(SERVICE, "StatusText"), 60, "the first cycle is done")
    system.chain.bed.write(
        "edge", "/etc/htcebridge/htcebridge.toml", slow.replace("[resource.dcgp]", "[resource.renamed]")
    )
    system("reload", SERVICE)
    wait_until(lambda: "renamed: " in system.shows(SERVICE, "StatusText"), 30, "a cycle with the new configuration")


def test_a_controller_that_hangs_is_started_again(system: Systemd) -> None:
    system.drop_in(SERVICE, "[Service]\nWatchdogSec=8s\nRestartSec=1s\n")
    system("start", SERVICE)
    first = system.shows(SERVICE, "MainPID")

    def fed() -> bool:
        """For longer than the watchdog waits."""
        since, last = (int(system.shows(SERVICE, f"{each}TimestampMonotonic")) for each in ("ActiveEnter", "Watchdog"))
        return last - since > 2 * 8_000_000

    wait_until(fed, 60, "it has told systemd for 16 s that it lives")
    assert (system.shows(SERVICE, "MainPID"), system.shows(SERVICE, "NRestarts")) == (first, "0")
    system("kill", "--signal=STOP", SERVICE)
    wait_until(lambda: system.shows(SERVICE, "NRestarts") == "1", 60, "systemd has started it again")
    wait_until(lambda: system.shows(SERVICE, "ActiveState") == "active", 60, "it runs again")


def test_a_broken_configuration_is_not_tried_again_and_a_held_lock_is(system: Systemd) -> None:
    system.drop_in(SERVICE, "[Service]\nRestartSec=1s\n")
    chain = system.chain
    chain.bed.write("edge", "/etc/htcebridge/htcebridge.toml", "[tier1]\n")
    assert "failed" in system("start", SERVICE, check=False)
    assert system.shows(SERVICE, "ExecMainStatus") == "2"

    def tried_again() -> bool:
        return (system.shows(SERVICE, "ActiveState"), system.shows(SERVICE, "NRestarts")) != ("failed", "0")

    never(tried_again, 5, "systemd tries it again")

    chain.bed.write("edge", "/etc/htcebridge/htcebridge.toml", CONFIGURATION)
    holder = chain.bed.popen("edge", [HTCEBRIDGE, "pressure", "run"], user="leo", stderr=subprocess.PIPE)
    try:
        assert holder.stderr is not None
        assert b"controller leonardo runs" in holder.stderr.readline()
        system("reset-failed", SERVICE)
        system("start", "--no-block", SERVICE)
        wait_until(lambda: int(system.shows(SERVICE, "NRestarts")) >= 2, 60, "it tries again and again")
        wait_until(lambda: system.shows(SERVICE, "ExecMainStatus") == "75", 30, "the lock is why", every=0.2)
    finally:
        holder.terminate()
        holder.wait(timeout=scaled(90))
    wait_until(lambda: system.shows(SERVICE, "ActiveState") == "active", 60, "it has taken over")


def test_the_timer_cycles_again_and_again(system: Systemd) -> None:
    jobs = system.chain.submit()
    system.drop_in(TIMER, "[Timer]\nOnBootSec=\nOnActiveSec=1s\nOnUnitInactiveSec=1s\nRandomizedDelaySec=0\n")
    system("start", TIMER)
    wait_until(lambda: system.chain.done(jobs), 120, "the job has run on a pilot")
    assert system.shows(ONCE, "Result") == "success"
    first = system.shows(ONCE, "ExecMainStartTimestampMonotonic")
    wait_until(lambda: system.shows(ONCE, "ExecMainStartTimestampMonotonic") != first, 60, "another cycle")


def test_the_users_own_service_needs_no_root(own: Systemd) -> None:
    own("start", "htcebridge.service")
    assert own.shows("htcebridge.service", "ActiveState") == "active"
    jobs = own.chain.submit()
    wait_until(lambda: own.chain.done(jobs), 120, "the job has run on a pilot")
    own("stop", "htcebridge.service")
    assert own.shows("htcebridge.service", "Result") == "success"
    own("start", "htcebridge-once.service")
    assert own.shows("htcebridge-once.service", "Result") == "success"
