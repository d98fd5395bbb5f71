"""`routes install` on a CE that runs: it ends with the old set or the new one, whole, and no job is lost."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests import schema
from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, PROJECT, Answer, Chain, never, wait_until
from tests.testbed import Testbed
from tests.testbed.wheels import wheelhouse

pytestmark = pytest.mark.testbed

VENV = "/opt/htcebridge"
CONFIG = "/etc/htcebridge/htcebridge.toml"
CE_D = "/etc/condor-ce/config.d"
POOL_D = "/etc/condor/config.d"
FILE = f"{CE_D}/60-htcebridge.conf"
STATE = "/etc/condor-ce/htcebridge"
LOG = "/var/log/condor-ce/JobRouterLog"
ORDER = "Routes will be matched in this order: "
# A second set, and both with a file on the pool's side.
WITH_POOL = """
import sys
from htcebridge import cli, routes
from htcebridge.routes import RouteFile
render, text = routes.render_files, {text!r}
def files(config):
    rendered = [RouteFile(file.side, file.name.replace("60-", {prefix!r}), file.text) for file in render(config)]
    return (*rendered, RouteFile("pool", {prefix!r} + "htcebridge.conf", "HTCEBRIDGE_TEST = " + text + "\\n"))
routes.render_files = files
"""
# kill -9 before the n-th rename or removal.
KILLED = """
import os, signal
calls = 0
def deadly(real):
    def call(*arguments, **more):
        global calls
        if "htcebridge" in str(arguments[0]) and "/tmp/" not in str(arguments[0]):
            calls += 1
            if calls == {number}:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    return call
os.replace, os.unlink = deadly(os.replace), deadly(os.unlink)
"""
# Another file arrives between the check and the reconfig.
DISTURBED = """
from pathlib import Path
from htcebridge.routes import install
real = install.disk.carry_out
def carry_out(change):
    real(change)
    Path("/etc/condor-ce/config.d/99-late.conf").write_text({text!r})
install.disk.carry_out = carry_out
"""
# A mistake that the check would not know.
BLIND = """
from htcebridge.routes import lint
lint.check_ce = lambda *_: lint.Report(())
"""
RUN = """
import sys
from htcebridge.cli import main
sys.argv = ["htcebridge", "routes", *sys.argv[1:]]
main()
"""


@dataclass(frozen=True)
class CEHost:
    """ce01 with htcebridge for its admin."""

    bed: Testbed

    def routes(
        self, *arguments: str, expect: int | None = 0, patch: str = "", user: str = "root", timeout: float = 120
    ) -> Answer:
        """`htcebridge routes ...`, in a process of its own that `patch` (Python) has changed."""
        done = self.bed.on(
            "ce01", [f"{VENV}/bin/python", "-c", patch + RUN, *arguments], user=user, check=False, timeout=timeout
        )
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in answer.said, answer.said
        assert expect is None or answer.code == expect, f"{arguments}: {answer.code}\n{answer.said}"
        return answer

    def status(self, expect: int | None = 0) -> Any:
        document = json.loads(self.routes("status", "--json", expect=expect).stdout)
        schema.check("routes-status", document)
        return document

    def configure(self, text: str) -> None:
        self.bed.write("ce01", CONFIG, text)

    def sh(self, command: str, check: bool = True) -> str:
        return self.bed.on("ce01", ["sh", "-c", command], check=check).stdout

    def files(self) -> dict[str, str]:
        """Every file in the two configuration directories, hidden ones too -> inode, time of change, checksum."""
        show = "stat -c '%n %i %y' {} && sha256sum < {}"
        said = self.sh(f"find {CE_D} {POOL_D} -type f | sort | while read f; do {show.format('$f', '$f')}; done")
        lines = said.splitlines()
        return {line.split()[0]: f"{line} {digest}" for line, digest in zip(lines[::2], lines[1::2], strict=True)}

    def digests(self) -> dict[str, str]:
        """Every file in the two configuration directories -> checksum."""
        return {name: text.split()[-2] for name, text in self.files().items()}

    def tables(self) -> list[str]:
        """The orders of routes in the log, oldest first."""
        return [line.partition(ORDER)[2] for line in self.sh(f"grep '{ORDER}' {LOG}").splitlines()]

    def reconfigure(self) -> str:
        """What condor_reconfig makes the router take."""
        before = len(self.tables())
        self.bed.on("ce01", ["condor_reconfig"], env=CE_ENVIRONMENT)
        return wait_until(lambda: self.tables()[before:], 30, "the router has a table", every=0.2)[-1]

    def submit(self, count: int = 1) -> int:
        """Jobs that ask for the grant; their cluster."""
        text = f"executable = /bin/true\n+WantOpportunistic = True\n+maxWallTime = 30\nqueue {count}\n"
        done = self.bed.on("ce01", ["condor_submit", "-terse", "-"], user="cmspil001", env=CE_ENVIRONMENT, input=text)
        return int(done.stdout.split(".")[0])

    def routed(self, cluster: int) -> list[tuple[str, str]]:
        """CE job id and grant of each routed copy in the Tier-1's schedd."""
        rows = self.sh("condor_q -all -af RoutedFromJobId OpportunisticSite").splitlines()
        return [(job, grant) for job, grant in map(str.split, rows) if job.startswith(f"{cluster}.")]

    def gets_the_grant(self, cluster: int) -> None:
        """Wait until the cluster's one job is routed, with the grant."""
        copies = wait_until(lambda: self.routed(cluster), 30, "the job is routed", every=0.3)
        assert copies == [(f"{cluster}.0", "leonardo")]

    def remove_jobs(self) -> None:
        self.bed.on("ce01", ["condor_rm", "-all"], env=CE_ENVIRONMENT, check=False)
        self.sh("condor_rm -all; condor_rm -all -forcex", check=False)
        wait_until(self._no_jobs, 60, "no job is left on ce01", every=0.5)

    def _no_jobs(self) -> bool:
        self.sh("condor_rm -all -forcex", check=False)
        left = self.bed.on("ce01", ["condor_q", "-all", "-af", "ClusterId"], env=CE_ENVIRONMENT, check=False)
        return left.returncode == 0 and not left.stdout.strip() and not self.sh("condor_q -all -af ClusterId").strip()


@pytest.fixture(scope="module")
def prepared(installed: Chain) -> Iterator[CEHost]:
    """htcebridge on ce01; the file that the other tests' chain has there is put back at the end."""
    bed = installed.bed
    bed.install_wheels("ce01", wheelhouse(PROJECT, bed.suite), VENV, "root", "htcebridge")
    host = CEHost(bed)
    files = (FILE, f"{POOL_D}/60-htcebridge.conf")
    theirs = {path: bed.read("ce01", path) for path in files if host.sh(f"ls {path}", check=False)}
    host.sh(f"rm -f {' '.join(files)}; condor_reconfig")
    host.reconfigure()
    yield host
    bed.start("ce01", "condor-ce")
    host.remove_jobs()
    for path, text in theirs.items():
        bed.write("ce01", path, text)
    host.sh("condor_reconfig")
    host.reconfigure()


@pytest.fixture
def ce(prepared: CEHost) -> Iterator[CEHost]:
    """The CE as its admin had it: without our files, running."""
    prepared.configure(CONFIGURATION)
    yield prepared
    prepared.sh(f"rm -rf {CE_D}/*htcebridge* {POOL_D}/*htcebridge* {CE_D}/99-* {STATE}")
    prepared.bed.start("ce01", "condor-ce")
    prepared.reconfigure()


def test_it_installs_once_and_uninstalls_to_what_was_there(ce: CEHost) -> None:
    before = ce.files()
    assert ce.status(expect=1)["installed"] is False
    dry = ce.routes("install", "--dry-run")
    assert "+JOB_ROUTER_ROUTE_HTCEBridge_leonardo_cms @=" in dry.stdout
    assert ce.files() == before

    said = ce.routes("install").stdout
    assert f"Wrote {FILE}." in said
    status = ce.status()
    assert status["loaded"] is True
    ours = [(route["name"], route["jobs"]) for route in status["routes"] if "HTCEBridge" in route["name"]]
    assert ours == [("HTCEBridge_leonardo_cms", 0), ("HTCEBridge_leonardo_atlas", 0)]
    assert ce.tables()[-1] == "HTCEBridge_leonardo_cms, HTCEBridge_leonardo_atlas, Condor_Pool"
    cluster = ce.submit()
    ce.gets_the_grant(cluster)
    wait_until(lambda: ce.status()["routes"][0]["jobs"] == 1, 20, "the status counts the job")

    with_ours, tables = ce.files(), len(ce.tables())
    assert "nothing is changed" in ce.routes("install").stdout
    assert (ce.files(), len(ce.tables())) == (with_ours, tables), "not one file, and no reconfig"

    ce.configure(CONFIGURATION.replace('placement = "only"', 'placement = "only"\nmax_idle = 7'))
    assert "+  MaxIdleJobs = 7" in ce.routes("status", "-v", expect=1).stdout
    ce.routes("install")
    assert "/      7" in ce.sh(f"tail -n 5 {LOG}")
    assert ce.status()["in_step"] is True

    assert "Removed" in ce.routes("uninstall").stdout
    assert ce.files() == before
    assert ce.tables()[-1] == "Condor_Pool"
    assert "nothing to remove" in ce.routes("uninstall").stdout


@pytest.mark.one_suite("forky")
def test_the_doctor_on_the_ce_compares_its_routes(ce: CEHost) -> None:
    def routes_line(expect: int) -> tuple[str, str]:
        done = ce.bed.on("ce01", [f"{VENV}/bin/htcebridge", "doctor", "--json"], check=False)
        document = json.loads(done.stdout)
        schema.check("doctor", document)
        assert (done.returncode, document["exit_code"]) == (expect, expect)
        assert {each["check"] for each in document["checks"]} == {"config", "versions", "routes", "edge"}
        (line,) = [each for each in document["checks"] if each["check"] == "routes"]
        return line["status"], line["said"]

    assert routes_line(1) == ("fail", "not installed; `htcebridge routes install` does it")
    ce.routes("install")
    names = "HTCEBridge_leonardo_cms, HTCEBridge_leonardo_atlas, Condor_Pool"
    assert routes_line(0) == ("ok", f"{names}: installed, loaded, as the configuration says")
    ce.configure(CONFIGURATION.replace('placement = "only"', 'placement = "only"\nmax_idle = 7'))
    status, said = routes_line(1)
    assert status == "fail"
    assert "the files differ from the configuration" in said


@pytest.mark.one_suite("forky")
def test_what_it_did_not_write_is_not_touched(ce: CEHost) -> None:
    ce.bed.write("ce01", FILE, "# by hand\n")
    before = ce.files()
    assert "not written by" in ce.routes("install", expect=2).stderr
    assert "not written by" in ce.routes("status", expect=1).stdout
    assert "so it is left alone" in ce.routes("uninstall", expect=2).stderr
    assert ce.files() == before

    ce.sh(f"rm {FILE}")
    ce.routes("install")
    ce.sh(f"sed -i 's/MaxIdleJobs = .*/MaxIdleJobs = 3/' {FILE}")
    before = ce.files()
    for command in ("install", "uninstall"):
        answer = ce.routes(command, expect=2)
        assert "edited by hand" in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1
    assert ce.files() == before


@pytest.mark.one_suite("forky")
def test_only_root_installs(ce: CEHost) -> None:
    answer = ce.routes("install", expect=2, user="cmspil001")
    assert "run this as root" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        ("JOB_ROUTER_ROUTE_Mine @=jrt\n  TargetUniverse = 5\n", "99-bad.conf"),
        ("JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = Nope $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES)\n", "Nope"),
    ],
    ids=["a here-document without an end", "a transform that is not there"],
)
def test_a_configuration_that_breaks_routing_is_refused(ce: CEHost, planted: str, says: str) -> None:
    ce.bed.write("ce01", f"{CE_D}/99-bad.conf", planted)
    before, tables = ce.files(), len(ce.tables())
    answer = ce.routes("install", expect=None)
    assert answer.code in (1, 2)
    assert says in answer.stderr
    assert (ce.files(), len(ce.tables())) == (before, tables)


def test_a_set_that_the_router_would_drop_is_refused(ce: CEHost) -> None:
    broken = WITH_POOL.format(text="1", prefix="60-").replace("file.text)", "file.text.replace('  SET ', '  SETT '))")
    before = ce.files()
    assert "SETT" in ce.routes("install", expect=1, patch=broken).stderr
    assert "route HTCEBridge_leonardo_cms" in ce.routes("install", expect=1, patch=broken + BLIND).stderr
    unreadable = WITH_POOL.format(text="1\nX @=end", prefix="60-")
    assert "pool" in ce.routes("install", expect=2, patch=unreadable).stderr
    assert ce.files() == before


@pytest.mark.one_suite("forky")
def test_a_stopped_ce_gets_the_files_and_has_them_at_its_start(ce: CEHost) -> None:
    ce.bed.stop("ce01", "condor-ce")
    assert "The CE is stopped" in ce.routes("install").stdout
    assert ce.status(expect=1)["loaded"] is not True
    assert "The CE is stopped" in ce.routes("install").stdout
    ce.bed.start("ce01", "condor-ce")
    assert ce.status()["in_step"] is True
    cluster = ce.submit()
    ce.gets_the_grant(cluster)
    ce.bed.stop("ce01", "condor-ce")
    assert "The CE is stopped" in ce.routes("uninstall").stdout
    ce.bed.start("ce01", "condor-ce")
    assert ce.tables()[-1] == "Condor_Pool"


@pytest.mark.one_suite("forky")
def test_kill_9_at_any_step_leaves_the_old_set_or_the_new_one(ce: CEHost) -> None:
    old, new = WITH_POOL.format(text="old", prefix="60-"), WITH_POOL.format(text="new", prefix="61-")
    small = CONFIGURATION.replace('placement = "only"', 'placement = "only"\nmax_idle = 7')
    atlas = (
        "CONDOR_CONFIG=/etc/condor-ce/condor_config condor_config_val -raw JOB_ROUTER_ROUTE_HTCEBridge_leonardo_atlas"
    )
    states = set()
    for number in range(1, 20):
        ce.configure(CONFIGURATION)
        ce.routes("install", "--no-reconfig", patch=old)
        assert not ce.sh(f"find {CE_D} {POOL_D} {STATE} -name '*new*'"), "what a killed run has left is tidied up"
        ce.configure(small)
        killed = ce.routes("install", "--no-reconfig", patch=new + KILLED.format(number=number), expect=None)
        for directory in (CE_D, POOL_D):
            marks = ce.sh(f"cat {directory}/6[01]-htcebridge.conf | grep -c 'Installed by htcebridge'")
            assert marks == "1\n", "one file that HTCondor reads, never two, never none"
        state = (
            "new" if "MaxIdleJobs = 7\n" in ce.sh(atlas) else "old",
            ce.sh("condor_config_val HTCEBRIDGE_TEST").strip(),
        )
        assert ce.reconfigure() == "HTCEBridge_leonardo_cms, HTCEBridge_leonardo_atlas, Condor_Pool"
        if state not in states:
            ce.gets_the_grant(ce.submit())
        states.add(state)
        if killed.code == 0:
            break
        assert killed.code in (-9, 137), killed.said
    assert number > 4
    assert states == {("old", "old"), ("old", "new"), ("new", "new")}


@pytest.mark.one_suite("forky")
def test_kill_9_while_uninstalling_leaves_a_whole_set_or_none(ce: CEHost) -> None:
    patch = WITH_POOL.format(text="old", prefix="60-")
    for number in range(1, 10):
        ce.routes("install", "--no-reconfig", patch=patch)
        killed = ce.routes("uninstall", "--no-reconfig", patch=KILLED.format(number=number), expect=None)
        left = ce.sh(f"grep -l . {CE_D}/*htcebridge* {POOL_D}/*htcebridge*", check=False).split()
        assert left in ([FILE, f"{POOL_D}/60-htcebridge.conf"], [f"{POOL_D}/60-htcebridge.conf"], [])
        if killed.code == 0:
            break
        assert killed.code in (-9, 137), killed.said
    assert number > 2
    assert ce.reconfigure() == "Condor_Pool"


@pytest.mark.parametrize("installed_before", [True, False])
def test_what_the_running_router_does_not_take_is_taken_back(ce: CEHost, installed_before: bool) -> None:
    if installed_before:
        ce.routes("install")
    before, had = ce.digests(), ce.tables()[-1]
    ce.configure(CONFIGURATION.replace('placement = "only"', 'placement = "only"\nmax_idle = 7'))
    patch = DISTURBED.format(text="JOB_ROUTER.JOB_ROUTER_ROUTE_NAMES = Condor_Pool\n")
    answer = ce.routes("install", "--timeout", "20", expect=1, patch=patch)
    assert "did not take the new table" in answer.stderr
    assert "JobRouterLog: " in answer.stderr
    assert "Routes will be matched in this order: Condor_Pool" in answer.stderr
    ce.sh(f"rm {CE_D}/99-late.conf")
    assert ce.digests() == before
    assert ce.reconfigure() == had


@pytest.mark.one_suite("trixie")
def test_a_configuration_that_breaks_meanwhile_takes_ours_back_too(ce: CEHost) -> None:
    before = ce.digests()
    answer = ce.routes("install", expect=1, patch=DISTURBED.format(text="X @=end\n"))
    assert "did not take the new table" in answer.stderr
    assert "99-late.conf" in answer.stderr
    ce.sh(f"rm {CE_D}/99-late.conf")
    assert ce.digests() == before
    assert ce.reconfigure() == "Condor_Pool"


@pytest.mark.one_suite("forky")
def test_a_second_install_is_kept_out(ce: CEHost) -> None:
    with holding(ce):
        assert "at work" in ce.routes("install", expect=75).stderr
    assert "Wrote" in ce.routes("install", "--no-reconfig").stdout


@contextmanager
def holding(ce: CEHost) -> Iterator[None]:
    """Another process that has the lock."""
    hold = f"import fcntl, signal; file = open('{STATE}/lock', 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
    hold += "print('held', flush=True); signal.pause()"
    ce.sh(f"mkdir -p {STATE}")
    process = ce.bed.popen("ce01", ["python3", "-c", hold], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.one_suite("forky")
def test_installing_under_a_thousand_jobs_loses_none_and_routes_none_twice(ce: CEHost) -> None:
    ce.configure(CONFIGURATION.replace('placement = "only"', 'placement = "only"\nmax_idle = 7'))
    cluster = ce.submit(1000)
    done = threading.Event()
    states = []

    def watch() -> None:
        while not done.is_set():
            states.append(len(ce.routed(cluster)))
            done.wait(0.7)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ce.routes("install")
    ce.configure(CONFIGURATION)
    ce.routes("install")
    ce.routes("uninstall")
    ce.routes("install")
    wait_until(lambda: len(ce.routed(cluster)) >= 1000, 100, "all jobs are routed")
    never(lambda: len(ce.routed(cluster)) != 1000, 5, "a job is routed twice, or lost")
    done.set()
    watcher.join()
    copies = [job for job, _ in ce.routed(cluster)]
    assert len(copies) == 1000
    assert set(copies) == {f"{cluster}.{proc}" for proc in range(1000)}
    assert any(0 < state < 1000 for state in states), "the changes happened while jobs were being routed"
