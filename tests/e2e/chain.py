"""The whole chain on a testbed: grid jobs go into the CEs, htcebridge runs on the edge node."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests import schema
from tests.testbed import Testbed, TestbedError
from tests.testbed.pace import Patience, scaled
from tests.testbed.wheels import wheelhouse

PROJECT = Path(__file__).parents[2]
CE_ENVIRONMENT = {"CONDOR_CONFIG": "/etc/condor-ce/condor_config"}
HTCEBRIDGE = "/leonardo/home/leo/htcebridge-venv/bin/htcebridge"
CONFIG = "/leonardo/home/leo/.config/htcebridge/htcebridge.toml"
STATE = "/leonardo/home/leo/.local/state/htcebridge"
GATES = "/leonardo/work/leo/gates"
IDLE, RUNNING, COMPLETED = 1, 2, 4

# Jobs are isolated, and Apptainer is tried, where a test is about jobs and pilots (`Chain.isolates`): both cost time of
# the processors, of which a run of all tests has none to spare.
PLAIN = 'isolation = "none"\napptainer = ""'
ISOLATED = f'bind = ["/cvmfs", "{GATES}"]'

CONFIGURATION = """
[tier1]
collector = "tier1.cr.example.org:9618"
timeout = "60s"

[[vo]]
name = "cms"
issuers = ["https://cms-auth.cern.ch/"]
owners = ["cmspil*"]
request = "flag"
placement = "either"

[[vo]]
name = "atlas"
owners = ["atlpil*"]
request = "always"
placement = "only"

[pressure]
interval = "4s"
min_interval = "1s"
max_wait = "0s"
either_min_age = "0s"
surplus_cycles = 2

[pilot]
shared_dir = "$HOME/pilots"
idle_timeout = "20s"
min_scratch = "50M"
isolation = "none"
apptainer = ""

[resource.dcgp]
partition = "dcgp_usr_prod"
account = "INF24_lhc_2"
qos = "qos_lowprio"
cpus = 112
memory = "494000M"
gres = ["tmpfs:3t"]
walltime = "12h"
job_name = "GP_CMS_CVMFS_STARTD"
template = "leonardo-dcgp"
cvmfs = ["cms.cern.ch"]
setup = ["source /cvmfs/datacloud.infn.it/repo/wn-leonardo/v1/etc/profile.d/wn-leonardo-setup.sh"]
"""

T = TypeVar("T")


@dataclass(frozen=True)
class GridJob:
    """A job as its owner knows it: where it was submitted, and its id on the CE."""

    ce: str
    user: str
    id: str

    @property
    def cluster(self) -> int:
        return int(self.id.split(".")[0])


class Chain:
    """A testbed with htcebridge installed on its edge node and its routes in both CEs.

    `isolates`: whether the pilots of its configurations do, as any site's.
    """

    def __init__(self, bed: Testbed, isolates: bool = False) -> None:
        self.bed = bed
        self.isolates = isolates

    def install(self) -> None:
        """Install as a user would: a venv in leo's home, wheels, a configuration; the routes on both CEs."""
        wheels = wheelhouse(PROJECT, self.bed.suite)
        self.bed.install_wheels("edge", wheels, "/leonardo/home/leo/htcebridge-venv", "leo", "htcebridge")
        self.configure(CONFIGURATION)
        self.install_routes()

    def install_routes(self) -> None:
        """Put the routes of the configuration in force on both CEs, and into the schedds beside them."""
        for side, directory in (("ce", "/etc/condor-ce"), ("pool", "/etc/condor")):
            text = self.htcebridge("routes", "show", "--side", side).stdout
            for ce in ("ce01", "ce02"):
                self.bed.write(ce, f"{directory}/config.d/60-htcebridge.conf", text)
                self.bed.on(ce, ["condor_reconfig"], env={"CONDOR_CONFIG": f"{directory}/condor_config"})

    def configure(self, text: str) -> None:
        """Put a configuration where htcebridge looks for it."""
        self.bed.on("edge", ["mkdir", "-p", str(Path(CONFIG).parent), GATES], user="leo")
        self.bed.write("edge", CONFIG, text.replace(PLAIN, ISOLATED) if self.isolates else text, owner="leo")

    def htcebridge(
        self, *arguments: str, expect: int | None = 0, env: Mapping[str, str] | None = None, timeout: float = 90
    ) -> Answer:
        """Run a command on the edge node as leo. `expect` is its exit code; None takes any."""
        done = self.bed.on(
            "edge", [HTCEBRIDGE, *arguments], user="leo", env=dict(env or {}), check=False, timeout=timeout
        )
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in answer.said, answer.said
        assert expect is None or answer.code == expect, (
            f"htcebridge {' '.join(arguments)}: {answer.code}\n{answer.said}"
        )
        return answer

    def json(self, *arguments: str, expect: int | None = 0) -> Any:
        """What a command says with --json; it must be what docs/schema says."""
        document = json.loads(self.htcebridge(*arguments, "--json", expect=expect).stdout)
        schema.check_command(arguments, document)
        return document

    def submit(
        self,
        ce: str = "ce01",
        user: str = "cmspil001",
        seconds: int = 5,
        count: int = 1,
        cpus: int = 1,
        walltime: str = "30m",
        wants: bool = True,
        extra: Iterable[str] = (),
        does: str = "",
        gate: str = "",
    ) -> list[GridJob]:
        """Submit grid jobs to a CE; each says where it runs, and after `seconds` that it is done.

        `does`: shell commands before that, without quotes. `gate`: on the HPC it waits before that until the gate of
        this name is opened, so that it runs as long as the test needs it to, however slow the machine is.
        """
        if gate:
            does = f"until [ -e {GATES}/{gate} ]; do sleep 1; done{'; ' if does else ''}{does}"
        script = f"hostname -s; echo started $(date +%s); {does + '; ' if does else ''}sleep {seconds}; echo done"
        lines = [
            "universe = vanilla",
            "executable = /bin/sh",
            f"arguments = \"-c '{script}'\"",
            "output = out.$(ClusterId).$(ProcId)",
            "error = err.$(ClusterId).$(ProcId)",
            "should_transfer_files = YES",
            "when_to_transfer_output = ON_EXIT",
            # condor_submit 25 asks for 1 GB by itself; a node's scratch here is a piece of this machine's memory.
            "request_disk = 10M",
            f"+xcount = {cpus}",
            f"+maxWallTime = {_minutes(walltime)}",
            *(["+WantOpportunistic = True"] if wants else []),
            *extra,
            f"queue {count}",
            "",
        ]
        command = ["condor_submit", "-terse", "-"]
        done = _patiently(lambda: self.bed.on(ce, command, user=user, env=CE_ENVIRONMENT, input="\n".join(lines)))
        first, last = (part.strip() for part in done.stdout.strip().split("-"))
        cluster, low = first.split(".")
        return [GridJob(ce, user, f"{cluster}.{proc}") for proc in range(int(low), int(last.split(".")[1]) + 1)]

    def open(self, gate: str) -> None:
        """Let the jobs go on that wait at this gate, and those that come to it later."""
        self.bed.on("edge", ["touch", f"{GATES}/{gate}"], user="leo")

    def ce_queue(self, ce: str, *attributes: str) -> dict[str, list[str]]:
        """CE job id -> these attributes, as text."""
        return self._queue(ce, CE_ENVIRONMENT, "ClusterId,ProcId", attributes)

    def pool_jobs(self, ce: str, *attributes: str) -> dict[str, list[str]]:
        """CE job id -> these attributes of its routed copy in the Tier-1 schedd."""
        rows = [line.split(" ", len(attributes)) for line in self._condor_q(ce, {}, "RoutedFromJobId", *attributes)]
        return {row[0]: row[1:] for row in rows}

    def _queue(self, ce: str, env: Mapping[str, str], key: str, attributes: Sequence[str]) -> dict[str, list[str]]:
        rows = [line.split(" ", len(attributes) + 1) for line in self._condor_q(ce, env, *key.split(","), *attributes)]
        return {f"{row[0]}.{row[1]}": row[2:] for row in rows}

    def _condor_q(self, ce: str, env: Mapping[str, str], *attributes: str) -> list[str]:
        return _patiently(
            lambda: self.bed.on(ce, ["condor_q", "-all", "-af", *attributes], env=dict(env)).stdout.splitlines()
        )

    def states(self, jobs: Iterable[GridJob]) -> list[int | None]:
        """The JobStatus of each job's routed copy; None where it has none (not routed yet, or done and gone)."""
        jobs = list(jobs)
        queues = {ce: self.pool_jobs(ce, "JobStatus") for ce in {job.ce for job in jobs}}
        rows = [queues[job.ce].get(job.id) for job in jobs]
        return [int(row[0]) if row else None for row in rows]

    def starts(self, job: GridJob) -> int:
        """How many times a job's routed copy has been started."""
        text = self.pool_jobs(job.ce, "NumJobStarts").get(job.id, ["0"])[0]
        return int(text) if text.isdigit() else 0

    def output(self, job: GridJob) -> str:
        """What came back to the CE from a job."""
        # Read from this machine's side: waiting for many jobs costs no process.
        path = self.bed.door(job.ce).root / "home" / job.user / f"out.{job.id}"
        try:
            return path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def node_of(self, job: GridJob) -> str:
        """The node on which a finished job ran, from its own output."""
        return self.output(job).partition("\n")[0]

    def done(self, jobs: Iterable[GridJob]) -> bool:
        """Whether every job's whole output is back on its CE."""
        return all(self.output(job).endswith("done\n") for job in jobs)

    def slurm_jobs(self, user: str = "leo") -> dict[str, str]:
        """Slurm job id -> state, arrays expanded, ended ones left out."""
        return self._slurm_jobs(user)

    def _slurm_jobs(self, users: str) -> dict[str, str]:
        found = self.bed.on("edge", ["squeue", "-h", "-r", "-u", users, "-o", "%i %T"], user="leo").stdout
        return dict(line.split() for line in found.splitlines())

    def occupy(self, nodes: int, seconds: int = 600, node: str = "") -> list[str]:
        """Paying jobs of another user that fill whole DCGP nodes, or this one; their Slurm ids."""
        submit = ["sbatch", "--parsable", "-A", "PAYING", "-q", "normal", "-p", "dcgp_usr_prod", "-N1", "-n1"]
        submit += ["-c112", "-o", "/dev/null", "-t", str(seconds // 60 + 1), "--wrap", f"sleep {seconds}"]
        submit += ["-w", node] if node else []
        return [self.bed.on("edge", submit, user="leo2").stdout.strip() for _ in range(nodes)]

    def clean(self) -> None:
        """No job, no pilot, no memory of the last test; every daemon runs."""
        with ThreadPoolExecutor(max_workers=3) as pool:
            for done in [pool.submit(self._clean_slurm), *(pool.submit(self._clean_ce, ce) for ce in ("ce01", "ce02"))]:
                done.result()
        try:
            wait_until(lambda: not self.startds(), 60, "the pool has no startd")
        except AssertionError:
            # On a slow machine Slurm kills a pilot before it has said goodbye: its ads stay for a quarter of an hour.
            print("pilots have left their ads in the collector:", *self.startds())
            forget = 'MyType = "Query"\nTargetType = "Machine"\nRequirements = PilotJobId =!= undefined\n'
            self.bed.on("tier1", ["condor_advertise", "INVALIDATE_STARTD_ADS", "-"], input=forget)
            wait_until(lambda: not self.startds(), 30, "the pool has no startd")
        # A collector that was restarted hears of them with their next updates only.
        look = ["condor_status", "-schedd", "-af", "Name"]
        wait_until(lambda: len(self.bed.on("tier1", look).stdout.split()) == 2, 90, "the collector knows both schedds")
        self.bed.on("edge", ["rm", "-rf", STATE, GATES, "/leonardo/home/leo/pilots"], user="leo")
        self.configure(CONFIGURATION)

    def _clean_slurm(self) -> None:
        self.bed.on("edge", ["sh", "-c", "scancel -u leo; scancel -u leo2"], check=False)
        wait_until(lambda: not self._slurm_jobs("leo,leo2"), 90, "Slurm is empty")

    def _clean_ce(self, ce: str) -> None:
        if self.ce_queue(ce):
            self.bed.on(ce, ["condor_rm", "-all"], env=CE_ENVIRONMENT, check=False)
            wait_until(lambda: not self.ce_queue(ce), 60, f"the CE queue of {ce} is empty")
        if self._condor_q(ce, {}, "ClusterId"):
            self.bed.on(ce, ["sh", "-c", "condor_rm -all; condor_rm -all -forcex"], check=False)
        self.bed.on(ce, ["sh", "-c", "rm -f /home/*/out.* /home/*/err.*"])

    def startds(self) -> list[str]:
        """The names of the partitionable slots in the collector."""
        found = self.bed.on("tier1", ["condor_status", "-constraint", "PartitionableSlot =?= True", "-af", "Name"])
        return found.stdout.split()

    def busy_slots(self) -> int:
        """Dynamic slots whose job is really executing, as the collector shows them."""
        found = self.bed.on(
            "tier1", ["condor_status", "-constraint", 'DynamicSlot && Activity == "Busy"', "-af", "Name"]
        )
        return len(found.stdout.split())

    def pilot_logs(self) -> str:
        """What all pilots have written."""
        return self.bed.on("edge", ["sh", "-c", "cat pilots/logs/*.out 2>/dev/null || true"], user="leo").stdout


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


@contextmanager
def controller(chain: Chain) -> Iterator[subprocess.Popen[bytes]]:
    """`htcebridge pressure run` on the edge node, ended with SIGTERM."""
    process = chain.bed.popen("edge", [HTCEBRIDGE, "pressure", "run"], user="leo", stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        chain.bed.on("edge", ["pkill", "-TERM", "-f", "pressure run"], user="leo", check=False)
        process.wait(timeout=scaled(60))


def _patiently(ask: Callable[[], T]) -> T:
    """Ask a schedd, and twice more if it is late for the handshake: nothing is done by then. In the logs of both its
    authentication with the negotiator (RESCHEDULE) fails then, as if each had waited for the other (23.9, 25.14)."""
    attempts = 3
    while True:
        attempts -= 1
        try:
            return ask()
        except TestbedError as error:
            late = "AUTHENTICATE" in str(error) or "Failed to" in str(error)
            if not (late and attempts):
                raise


def wait_until(look: Callable[[], T | None], seconds: float, what: str, every: float = 1.0) -> T:
    """What `look` returns as soon as it is true. Raises AssertionError after `seconds` of a calm machine.

    A look that costs little is repeated soon, any other after `every`; no more than a quarter of the time is spent on
    looking.
    """
    patience = Patience(seconds)
    while True:
        began = time.monotonic()
        found = look()
        if found:
            return found
        cost = time.monotonic() - began
        if patience.over():
            raise AssertionError(f"not so after {patience}: {what}; the last look gave {found!r}")
        time.sleep(_pause(cost, every))


def never(look: Callable[[], object], seconds: float, what: str) -> None:
    """Watch for `seconds` of a calm machine that something does not happen. Raises AssertionError if it does."""
    patience, watching = Patience(seconds), True
    while watching:
        watching = not patience.over()
        began = time.monotonic()
        found = look()
        assert not found, f"this must not be: {what}; the look gave {found!r}"
        time.sleep(_pause(time.monotonic() - began, 1.0) if watching else 0)


def _pause(cost: float, every: float) -> float:
    return min(max(0.05, 8 * cost), max(every, 3 * cost))


def let_pass(seconds: float) -> None:
    """So much time passes by the clock, because a test is about time: nothing is waited for, and more does no harm."""
    time.sleep(seconds)


def _minutes(walltime: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([mh])", walltime).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "h" else 1)
