"""Jobs that bring Apptainer images: on real pilots, with and without user namespaces on the node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.chain import IDLE, ISOLATED, PLAIN, Chain, GridJob, wait_until
from tests.e2e.pilots import PATIENT, advertised, start

pytestmark = [pytest.mark.testbed, pytest.mark.isolates, pytest.mark.one_suite("forky")]

# A few programs of this Debian. What Apptainer builds has the /.singularity.d that HTCondor's test before the job runs.
BUILD = """
set -e
cd "$(mktemp -d)"
mkdir -p image/bin
for program in sh cat hostname ls; do
    cp "$(readlink -f "/usr/bin/$program")" "image/bin/$program"
    ldd "image/bin/$program"
done | grep -o '/[^ ]*' | sort -u | while read -r library; do install -D "$library" "image$library"; done
echo inside > image/marker
apptainer --quiet build "$@" image
"""
INSIDE = "arguments = \"-c 'hostname -s; cat /marker; ls /cvmfs/cms.cern.ch; cat /etc/debian_version; echo done'\""
SIF, SANDBOX = "/home/cmspil001/image.sif", "/leonardo/home/leo/image"
BROUGHT = [f"container_image = {SIF}", INSIDE]
FOUND = [f"container_image = {SANDBOX}/", "transfer_container = false", INSIDE]


@pytest.fixture
def chain(chain: Chain) -> Chain:
    if chain.bed.on("ce01", ["sh", "-c", "command -v apptainer"], check=False).returncode != 0:
        pytest.skip("Debian's unstable had no Apptainer that fits when this root directory was made")
    chain.configure(PATIENT.replace(PLAIN, ISOLATED.replace("]", f', "{SANDBOX}"]')))
    chain.bed.on("ce01", ["sh", "-c", BUILD, "sh", "--force", SIF], user="cmspil001")
    chain.bed.on("edge", ["sh", "-c", BUILD, "sh", "--force", "--sandbox", SANDBOX], user="leo")
    return chain


@contextmanager
def no_user_namespaces(chain: Chain, node: str) -> Iterator[None]:
    """Who is not at the root of the node's mounts may not make one (EPERM, user_namespaces(7)); the sysctl that is
    used for this on real nodes would be all beds'."""
    chained = "mount --rbind / /mnt && exec setsid --fork chroot /mnt slurmd -D > /dev/null 2>&1 < /dev/null"
    chain.bed.stop(node, "slurmd")
    try:
        chain.bed.on(node, ["sh", "-c", chained])
        # Before that `start` would start one of its own.
        wait_until(lambda: chain.bed.pids(node, "slurmd"), 30, "slurmd runs in its chroot", every=0.2)
        chain.bed.start(node, "slurmd")
        yield
    finally:
        chain.bed.on("edge", ["scancel", "-u", "leo"], user="leo")
        wait_until(lambda: not chain.slurm_jobs(), 60, "no pilot is left on the node")
        chain.bed.stop(node, "slurmd")
        chain.bed.on(node, ["umount", "-l", "/mnt"])
        chain.bed.start(node, "slurmd")


def never_started(chain: Chain, job: GridJob) -> bool:
    return chain.pool_jobs(job.ce, "JobStatus", "NumShadowStarts").get(job.id) == [str(IDLE), "undefined"]


def test_jobs_run_in_the_images_that_they_bring_or_find(chain: Chain) -> None:
    jobs = [*chain.submit(extra=BROUGHT), *chain.submit(extra=FOUND)]
    wait_until(lambda: chain.states(jobs) == [IDLE, IDLE], 60, "both are in the Tier-1 schedd")
    chain.htcebridge("pressure", "once")
    wait_until(lambda: chain.done(jobs), 60, "a pilot was started for them, and both have run")
    for job in jobs:
        node, *rest = chain.output(job).split()
        assert node in chain.bed.nodes
        assert rest == ["inside", "SITECONF", "cmsset_default.sh", "done"]


def test_a_node_without_user_namespaces_says_so_and_gets_plain_jobs_only(chain: Chain) -> None:
    with no_user_namespaces(chain, "lrdn0001"):
        start(chain, "-w", "lrdn0001")
        plain = chain.submit(seconds=1)
        waiting = [*chain.submit(extra=BROUGHT), *chain.submit(extra=FOUND)]
        wait_until(lambda: chain.done(plain), 60, "the plain job has run")
        assert advertised(chain, "PilotIsolation") == ["none"]
        assert re.search("jobs are not isolated: .*unshare", chain.pilot_logs())
        assert advertised(chain, "HasSingularity", "HasContainer", "HasSIF") == ["false", "undefined", "undefined"]
        assert "user namespace" in " ".join(advertised(chain, "SingularityOfflineReason"))
        wait_until(lambda: all(never_started(chain, job) for job in waiting), 30, "those with an image wait")
        start(chain, "-w", "lrdn0002")
        wait_until(lambda: chain.done(waiting), 60, "another node takes them")
        assert {chain.node_of(job) for job in waiting} == {"lrdn0002"}


def test_without_apptainer_nothing_is_advertised(chain: Chain) -> None:
    chain.configure(PATIENT.replace("[pilot]\n", '[pilot]\napptainer = "no-such-program"\n'))
    start(chain)
    what = ("HasSingularity", "HasContainer", "HasDockerURL")
    wait_until(lambda: advertised(chain, *what) == ["undefined", "undefined", "false"], 60, "it is in the pool")
