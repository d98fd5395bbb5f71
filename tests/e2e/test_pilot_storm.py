"""Many jobs on eight nodes that paying jobs take at random: each job ends once, and well.

$HTCEBRIDGE_STORM is for how many minutes, 2 unless given; 20 jobs a minute.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, Chain, GridJob, controller, wait_until
from tests.testbed import Testbed

# 23.9 is the one with a race at the end of a claim; two minutes of storm on each suite are for `make test-all`.
pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("trixie")]

MINUTES = float(os.environ.get("HTCEBRIDGE_STORM", "2"))
JOBS = max(20, int(20 * MINUTES))
EVERY_S = 20
NODES = 8
CPUS, MEMORY_MB = 112, 494000 - 4096


@pytest.fixture(scope="module")
def storm(suite: str) -> Iterator[Chain]:
    if os.geteuid() != 0:
        pytest.skip("the testbed needs root: it makes network namespaces and mounts")
    with Testbed.up(suite, nodes=NODES, gpu_nodes=0, name=f"storm-{suite}-{os.getpid()}") as bed:
        chain = Chain(bed)
        chain.install()
        yield chain


class Weather(threading.Thread):
    """Every 20 s a paying job takes a node, for a quarter of a minute: first one with a pilot, then whichever."""

    def __init__(self, chain: Chain, seed: int) -> None:
        super().__init__(daemon=True)
        self.chain, self.random, self.over = chain, random.Random(seed), threading.Event()  # noqa: S311
        self.taken: list[str] = []

    def run(self) -> None:
        while not self.over.wait(EVERY_S):
            nodes = self.chain.bed.nodes
            if not self.taken:
                rows = self.chain.bed.on("hpcctl", ["squeue", "-h", "-u", "leo", "-t", "R", "-o", "%N"]).stdout.split()
                nodes = rows or nodes
            self.taken += self.chain.occupy(1, seconds=15, node=self.random.choice(nodes))


def submit(chain: Chain, number: int, chance: random.Random) -> dict[GridJob, int]:
    """Ten jobs of one shape through one of the CEs -> the number that each is to print."""
    cpus = chance.choice([1, 2, 4, 8, 16, 16, 32, 32])
    jobs = chain.submit(
        ce=chance.choice(["ce01", "ce02"]),
        user=chance.choice(["cmspil001", "cmspil002", "atlpil001"]),
        seconds=chance.randint(10, 60),
        count=10,
        cpus=cpus,
        extra=[f"+maxMemory = {cpus * chance.choice([500, 2000, 4000])}"],
        does=f"echo number $(({number} * 7))",
    )
    return dict.fromkeys(jobs, number * 7)


def oversubscribed(chain: Chain) -> list[str]:
    """Pilots whose dynamic slots hold more than their node has."""
    columns = ["PilotJobId", "Cpus", "Memory"]
    rows = chain.bed.on("tier1", ["condor_status", "-constraint", "DynamicSlot", "-af", *columns]).stdout.splitlines()
    cpus: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for pilot, its_cpus, its_memory in (row.split() for row in rows):
        cpus[pilot] += int(its_cpus)
        memory[pilot] += int(its_memory)
    return [pilot for pilot in cpus if cpus[pilot] > CPUS or memory[pilot] > MEMORY_MB]


def unfinished(chain: Chain, jobs: dict[GridJob, int]) -> str:
    """What the CE, its schedd and Slurm say of those whose output is not there."""
    late = [job for job in jobs if not chain.done([job])]
    lines = [str(late), str(chain.slurm_jobs()), chain.htcebridge("demand", expect=None).said]
    for ce in ("ce01", "ce02"):
        columns = ("JobStatus", "NumShadowStarts", "NumJobStarts", "RemoteHost", "HoldReason", "RequestCpus")
        lines += [str(chain.ce_queue(ce, *columns)), str(chain.pool_jobs(ce, *columns))]
        mine = " || ".join(f"ClusterId == {job.cluster}" for job in late if job.ce == ce) or "false"
        history = ["condor_history", "-constraint", mine, "-af", "ClusterId", "JobStatus", "RemoveReason"]
        lines.append(chain.bed.on(ce, history, env=CE_ENVIRONMENT).stdout)
    return "\n".join(lines)


def test_every_job_of_a_storm_ends_once_and_well(storm: Chain, suite: str) -> None:
    seed = int(time.time())
    print(f"storm of {MINUTES:g} min on {suite}, {JOBS} jobs, seed {seed}")
    # A job whose starter was only just starting when its pilot had to leave waits for its lease (23.9).
    short_lease = '\n[routes]\njob_lease = "60s"\n'
    storm.configure(CONFIGURATION.replace("max_wait", "max_new_per_cycle = 4\nmax_wait") + short_lease)
    storm.install_routes()
    chance = random.Random(seed)  # noqa: S311
    jobs = submit(storm, 0, chance)
    weather = Weather(storm, seed)
    weather.start()
    began = time.monotonic()
    with controller(storm):
        while (passed := time.monotonic() - began) < MINUTES * 60:
            assert oversubscribed(storm) == []
            if len(jobs) < JOBS * (passed / (MINUTES * 60) + 0.2):
                jobs |= submit(storm, len(jobs) // 10, chance)
            weather.over.wait(3)
        weather.over.set()
        weather.join()
        try:
            wait_until(lambda: storm.done(jobs), 300, "all jobs have ended", every=3)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{unfinished(storm, jobs)}") from None
    assert not any(job in storm.slurm_jobs("leo2") for job in weather.taken[:-2]), "the paying jobs got their nodes"
    for job, number in jobs.items():
        output = storm.output(job).splitlines()
        assert (output.count("done"), output.count(f"number {number}")) == (1, 1), output
    wait_until(lambda: not storm.ce_queue("ce01") and not storm.ce_queue("ce02"), 60, "they have left the CEs' queues")
    for ce in ("ce01", "ce02"):
        mine = [job.id for job in jobs if job.ce == ce]
        history = ["condor_history", "-af", "ClusterId", "ProcId", "JobStatus", "ExitCode"]
        rows = [line.split() for line in storm.bed.on(ce, history, env=CE_ENVIRONMENT).stdout.splitlines()]
        assert sorted(f"{row[0]}.{row[1]}" for row in rows) == sorted(mine), "each is in the CE's history once"
        assert {(row[2], row[3]) for row in rows} <= {("4", "0")}
    logs = storm.pilot_logs()
    print(f"{len(weather.taken)} nodes taken, {logs.count('Slurm announced the end')} pilots preempted")
    assert "Slurm announced the end" in logs
