"""What reaches a job on a node that takes no connection: files, condor_tail, condor_ssh_to_job. All of it by CCB."""

from __future__ import annotations

import re
from subprocess import CompletedProcess

import pytest

from tests.e2e.chain import CE_ENVIRONMENT, RUNNING, Chain, GridJob, wait_until
from tests.e2e.pilots import PATIENT, advertised, start

pytestmark = [pytest.mark.testbed, pytest.mark.isolates, pytest.mark.one_suite("forky")]

OWNER = "cmspil001"
HOME = f"/home/{OWNER}"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"
# It runs until somebody makes a file in its directory, or for a minute.
WORK = (
    "arguments = \"-c 'cat sent | tee back; for i in `seq 60`; do [ -e stop ] || sleep 1; done; ls stop; echo done'\""
)
FILES = ["transfer_input_files = sent", "transfer_output_files = back"]


@pytest.fixture
def chain(chain: Chain) -> Chain:
    """The owner of the jobs has what a CCB server asks of those who want to be called back: READ at the collector."""
    create = ["condor_token_create", "-identity", f"{OWNER}@cr.example.org", "-authz", "READ", "-lifetime", "3600"]
    token = chain.bed.on("tier1", create).stdout
    chain.bed.write("ce01", f"{HOME}/.condor/tokens.d/tier1", token, mode=0o600, owner=OWNER)
    chain.bed.on("ce01", ["sh", "-c", "seq 20000 > sent; rm -f back"], user=OWNER)
    return chain


def running(chain: Chain, ssh_to_job: bool) -> tuple[GridJob, str]:
    """A job that runs in a pilot: as the CE knows it, and its id in the Tier-1 schedd."""
    allowed = str(ssh_to_job).lower()
    chain.configure(PATIENT.replace("[pilot]\n", f"[pilot]\nssh_to_job = {allowed}\n"))
    (job,) = chain.submit(user=OWNER, extra=[*FILES, WORK])
    start(chain)
    wait_until(lambda: chain.states([job]) == [RUNNING], 60, "the job runs")
    cluster, proc = chain.pool_jobs(job.ce, "ClusterId", "ProcId")[job.id]
    return job, f"{cluster}.{proc}"


def tool(chain: Chain, user: str, *command: str) -> CompletedProcess[str]:
    """Run one of HTCondor's tools on the schedd's host."""
    return chain.bed.on("ce01", list(command), user=user, check=False, timeout=60)


def tails(chain: Chain, user: str, job: str) -> None:
    """Wait until condor_tail shows the end of what the job has written so far: it sends 1 kB."""
    look = lambda: tool(chain, user, "condor_tail", job).stdout.endswith("\n19999\n20000\n")  # noqa: E731
    wait_until(look, 30, f"{user} sees the job's output")


def test_files_tail_and_ssh_reach_a_job_behind_the_firewall(chain: Chain) -> None:
    job, routed = running(chain, ssh_to_job=True)
    (address,) = advertised(chain, "MyAddress")
    found = re.match(r"<([\d.]+):(\d+)\?.*CCBID=", address)
    assert found, address
    refused = chain.bed.on("ce01", ["python3", "-c", CONNECT, *found.groups()], check=False)
    assert "TimeoutError" in refused.stderr
    tails(chain, OWNER, routed)
    tails(chain, "root", routed)
    said = tool(chain, OWNER, "condor_ssh_to_job", routed, "tail -n 1 back; touch stop; id -un; pwd")
    # In 25.14 a job's files are one directory further down.
    assert re.fullmatch(r"20000\nleo\n/scratch_local/.*/execute/dir_\d+(/scratch)?\n", said.stdout), said
    wait_until(lambda: chain.done([job]), 60, "the job has found the file")
    chain.bed.on("ce01", ["cmp", "sent", "back"], user=OWNER)


def test_ssh_to_job_is_refused_unless_the_configuration_allows_it(chain: Chain) -> None:
    job, routed = running(chain, ssh_to_job=False)
    tails(chain, OWNER, routed)
    for user in (OWNER, "root"):
        said = tool(chain, user, "condor_ssh_to_job", routed, "touch stop")
        assert said.returncode != 0
        assert "ENABLE_SSH_TO_JOB=false" in said.stdout + said.stderr, said
    chain.bed.on("ce01", ["condor_rm", job.id], env=CE_ENVIRONMENT)
