"""What the CE's policy promises beside the route itself, with a Tier-1 worker in the pool as well."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, IDLE, RUNNING, Chain, GridJob, never, wait_until
from tests.e2e.pilots import EXECUTING, executing
from tests.testbed import TestbedError
from tests.testbed.pace import scaled

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("forky")]

WORKER = """
LOCAL_DIR = /var/lib/condor-worker
LOG = $(LOCAL_DIR)/log
RUN = $(LOCAL_DIR)/run
LOCK = $(LOCAL_DIR)/lock
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
include : /etc/condor/config.d/50-pool.conf
DAEMON_LIST = MASTER STARTD
RELEASE_DIR = /usr
LIBEXEC = /usr/libexec/condor
LIB = /usr/lib/condor
SHARED_PORT_PORT = 0
NUM_CPUS = 8
MEMORY = 16000
STARTD_NAME = worker
MASTER_NAME = worker
use feature:PartitionableSlot(1, 100%)
START = True
STARTD_DETECT_GPUS = False
RUNBENCHMARKS = False
"""


@contextmanager
def tier1_worker(chain: Chain) -> Iterator[None]:
    """A startd of the Tier-1's own, on the host tier1: it takes every job."""
    directories = [f"/var/lib/condor-worker/{name}" for name in ("log", "run", "lock", "spool", "execute")]
    chain.bed.on("tier1", ["install", "-d", "-o", "condor", "-g", "condor", *directories])
    chain.bed.write("tier1", "/etc/condor-worker/condor_config", WORKER)
    master = chain.bed.popen(
        "tier1",
        ["condor_master", "-f"],
        env={"CONDOR_CONFIG": "/etc/condor-worker/condor_config"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: "slot1@worker@tier1.cr.example.org" in chain.startds(), 60, "the Tier-1 worker is in the pool"
        )
        yield
    finally:
        master.terminate()
        master.wait(timeout=scaled(60))
        chain.bed.on("tier1", ["rm", "-rf", "/etc/condor-worker", "/var/lib/condor-worker"])


def with_routes(chain: Chain, configuration: str) -> None:
    chain.configure(configuration)
    chain.install_routes()


@pytest.fixture
def policy(chain: Chain) -> Iterator[Chain]:
    """The testbed, whose routes are put back at the end."""
    yield chain
    chain.clean()
    with_routes(chain, CONFIGURATION)


def evict(chain: Chain, job: GridJob) -> None:
    """Evict a job's routed copy while it executes, as a preempted pilot does, and wait until it starts again.

    Nothing is left to do where the CE removes the job meanwhile: it takes its time over what it has decided.
    """

    def shadows() -> int | None:
        """How many shadows it has had; None once it is removed."""
        row = chain.pool_jobs(job.ce, "NumShadowStarts").get(job.id)
        if row is None or is_gone(chain, job):
            return None
        return int(row[0]) if row[0].isdigit() else 0

    before = wait_until(lambda: _runs(chain, job) or is_gone(chain, job), 90, "the job runs") and shadows()

    def again() -> bool:
        now = shadows()
        if now is None or before is None or now > before:
            return True
        # The schedd itself looks whether it is still this run that executes: it can be told so as often as we like.
        this_run = f"NumShadowStarts == {before} && JobStatus == {RUNNING} && {EXECUTING}"
        mine = f'RoutedFromJobId == "{job.id}" && {this_run}'
        chain.bed.on(job.ce, ["condor_vacate_job", "-fast", "-constraint", mine], check=False)
        return False

    wait_until(again, 90, "the job starts again, or is removed")


def _runs(chain: Chain, job: GridJob) -> bool:
    return chain.states([job]) == [RUNNING] and executing(chain, [job])


def evict_until_gone(chain: Chain, job: GridJob, most: int) -> None:
    """Evict a job until the CE removes it, at most so many times."""
    for _ in range(most):
        if is_gone(chain, job):
            return
        evict(chain, job)
    wait_until(lambda: is_gone(chain, job), 60, f"the CE removes {job.id} after {most} evictions")


def is_gone(chain: Chain, job: GridJob) -> bool:
    return job.id not in chain.ce_queue(job.ce, "JobStatus")


def test_only_waits_for_its_route_and_either_uses_both(policy: Chain) -> None:
    with_routes(policy, CONFIGURATION.replace('owners = ["atlpil*"]', 'owners = ["atlpil*"]\nmax_idle = 1'))
    with tier1_worker(policy):
        either = policy.submit(user="cmspil001", count=2)
        only = policy.submit(user="atlpil001", count=3)
        wait_until(lambda: policy.done(either), 90, "the either jobs have run on the Tier-1's worker")
        assert {policy.node_of(job) for job in either} == {"tier1"}

        def one_waits() -> bool:
            return sorted(policy.states(only), key=str) == [IDLE, None, None]

        wait_until(one_waits, 60, "one is routed and waits, two wait on the CE")
        never(lambda: not one_waits(), 10, "another one is routed, or one runs")
        policy.htcebridge("pressure", "once")
        wait_until(lambda: policy.done(only), 150, "the only jobs have run, one after the other")
        assert {policy.node_of(job) for job in only} == {"lrdn0001"}
        leonardo = policy.submit(user="cmspil001", cpus=16)
        wait_until(lambda: policy.done(leonardo), 90, "an either job too wide for the worker runs on Leonardo")
        assert policy.node_of(leonardo[0]) == "lrdn0001"


def test_an_evicted_granted_job_runs_again_up_to_the_bound_and_others_as_the_ce_had_it(policy: Chain) -> None:
    with_routes(policy, CONFIGURATION + "\n[routes]\nmax_starts = 2\n")
    with tier1_worker(policy):
        (other,) = policy.submit(user="bob001", wants=False, seconds=3600)
        evict_until_gone(policy, other, 2)
        (granted,) = policy.submit(seconds=3600)
        evict(policy, granted)
        # The CE's schedd looks every 5 s.
        never(lambda: is_gone(policy, granted), 15, "the CE removes it, though one eviction is within the bound")
        # HTCondor 23 counts a start when it ends, 25 when it begins: the bound is reached an eviction sooner.
        evict_until_gone(policy, granted, 3)
    for job in (other, granted):
        look = ["condor_history", "-constraint", f"ClusterId == {job.cluster}", "-af", "RemoveReason"]
        reason = wait_until(
            lambda look=look: policy.bed.on("ce01", look, env=CE_ENVIRONMENT).stdout,  # type: ignore[misc]
            60,
            "it is in the CE's history",
        )
        assert "disabled job retries" in reason


def test_who_may_not_ask_is_refused_with_a_reason(chain: Chain) -> None:
    with pytest.raises(TestbedError, match="WantOpportunistic is for jobs of cms, atlas here"):
        chain.submit(user="bob001")


def test_request_and_grant_cannot_be_edited_afterwards(chain: Chain) -> None:
    (mine,) = chain.submit(user="cmspil002", wants=False)
    (others,) = chain.submit(user="bob001", wants=False)
    wait_until(lambda: None not in chain.states([mine, others]), 60, "both jobs are in the Tier-1 schedd")
    edits = [
        (CE_ENVIRONMENT, "cmspil002", mine.id, "WantOpportunistic", "true"),
        ({}, "bob001", chain.pool_jobs("ce01", "ClusterId")[others.id][0], "OpportunisticSite", '"leonardo"'),
        ({}, "root", chain.pool_jobs("ce01", "ClusterId")[others.id][0], "OpportunisticSite", '"leonardo"'),
    ]
    for env, user, job, name, value in edits:
        done = chain.bed.on("ce01", ["condor_qedit", job, name, value], user=user, env=dict(env), check=False)
        assert done.returncode != 0, f"{user} has set {name}"
    assert chain.json("demand")["totals"]["idle_jobs"] == 0


def test_a_granted_job_carries_a_short_lease_and_the_sigterm_guard(chain: Chain) -> None:
    (job,) = chain.submit()
    wait_until(lambda: chain.states([job]) == [IDLE], 60, "the job is in the Tier-1 schedd")
    lease, *guard = chain.pool_jobs("ce01", "JobLeaseDuration", "OnExitRemove")[job.id]
    assert lease == "600"
    expression = chain.bed.on("ce01", ["condor_q", "-all", "-af:r", "OnExitRemove"]).stdout
    assert "ExitSignal =!= 15" in expression or "ExitSignal isnt 15" in expression, (guard, expression)


def test_history_tells_where_a_job_really_ran(chain: Chain) -> None:
    jobs = chain.submit()
    wait_until(lambda: None not in chain.states(jobs), 60, "the job is in the Tier-1 schedd")
    chain.htcebridge("pressure", "once")
    wait_until(lambda: chain.done(jobs), 120, "the job has run")
    mine = ["-constraint", f'RoutedFromJobId == "{jobs[0].id}"']
    where = ["-af", "MachineAttrOpportunisticSite0", "MachineAttrPilotResource0"]

    def known() -> bool:
        # It is in the queue until the CE has taken its output, in the history after that.
        rows = [chain.bed.on("ce01", [tool, *mine, *where]).stdout.split() for tool in ("condor_q", "condor_history")]
        return ["leonardo", "dcgp"] in rows

    wait_until(known, 60, "the schedd knows where the job ran")


def test_with_provenance_a_grant_set_by_a_direct_submitter_is_worth_nothing(policy: Chain) -> None:
    grant = '[grant]\nvalue = "leonardo"\nprovenance = "condor@cr.example.org"\n'
    with_routes(policy, grant + CONFIGURATION)
    for service in ("condor-ce", "condor"):
        policy.bed.stop("ce01", service)
    for service in ("condor", "condor-ce"):
        policy.bed.start("ce01", service)
    direct = ["universe = vanilla", "executable = /bin/true", '+OpportunisticSite = "leonardo"', "queue", ""]
    wait_until(lambda: submits(policy, direct), 60, "bob submits straight to the Tier-1 schedd, with the grant")
    jobs = wait_until(lambda: submit_or_none(policy), 60, "a job enters the CE")
    wait_until(lambda: policy.states(jobs) == [IDLE], 90, "it is routed")
    assert policy.pool_jobs("ce01", "AuthTokenSubject")[jobs[0].id] == ["condor@cr.example.org"]
    wait_until(lambda: policy.json("demand", expect=None)["totals"]["idle_jobs"] == 1, 60, "one of the two is demand")
    policy.htcebridge("pressure", "once")
    wait_until(lambda: policy.done(jobs), 120, "the job that came through the CE runs")
    forged = policy.bed.on("ce01", ["condor_q", "-all", "-constraint", 'Owner == "bob001"', "-af", "JobStatus"]).stdout
    assert forged.split() == [str(IDLE)]


def submits(chain: Chain, lines: list[str]) -> bool:
    done = chain.bed.on("ce01", ["condor_submit", "-"], user="bob001", input="\n".join(lines), check=False)
    return done.returncode == 0


def submit_or_none(chain: Chain) -> list[GridJob] | None:
    try:
        return chain.submit()
    except TestbedError:
        return None
