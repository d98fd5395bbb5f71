"""Drain marks and last words of pilots: marks set by hand, pilots submitted by hand, real HTCondor and Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from htcebridge.pilot.logs import OutcomeLine
from tests.e2e.chain import CONFIGURATION, IDLE, Chain, never, wait_until
from tests.e2e.pilots import PATIENT, SHARED, accounted, advertised, left_on, outcome, ran_once, run, start
from tests.testbed.pace import scaled

pytestmark = pytest.mark.testbed

# A FUSE file system whose daemon never answers: what touches it hangs, as on a parallel file system without servers.
HANG = """
import ctypes, os, signal, sys
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"hang", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print("hangs", flush=True)
signal.pause()
"""


@pytest.fixture
def chain(chain: Chain) -> Chain:
    chain.configure(PATIENT)
    return chain


def mark(chain: Chain, name: str) -> None:
    chain.bed.on("edge", ["sh", "-c", 'mkdir -p "${1%/*}" && touch "$1"', "sh", f"{SHARED}/{name}"], user="leo")


def lift(chain: Chain, name: str) -> None:
    chain.bed.on("edge", ["rm", f"{SHARED}/{name}"], user="leo")


def drains(chain: Chain, reason: str) -> None:
    """Wait until the collector shows it."""
    look = lambda: advertised(chain, "PilotDraining", "PilotDrainReason") == ["true", reason]  # noqa: E731
    wait_until(look, 60, f"the pilot drains: {reason}", every=0.5)


def takes_jobs(chain: Chain) -> None:
    look = lambda: advertised(chain, "PilotDraining", "PilotDrainReason") == ["false", "undefined"]  # noqa: E731
    wait_until(look, 60, "the pilot is in the pool and does not drain", every=0.5)


@pytest.mark.one_suite("forky")
def test_each_mark_stops_new_jobs_and_lifting_it_takes_them_again(chain: Chain) -> None:
    first = chain.submit(gate="never")
    pilot = start(chain)
    run(chain, first)
    for name, reason in (
        ("drain/leonardo.dcgp", "resource"),
        (f"drain/{pilot}", "pilot"),
        (f"drain/{pilot}.tail", "tail"),
    ):
        mark(chain, name)
        drains(chain, reason)
        lift(chain, name)
        takes_jobs(chain)
    mark(chain, f"drain/{pilot}.tail")
    drains(chain, "tail")
    second = chain.submit(seconds=3)
    wait_until(lambda: chain.states(second) == [IDLE], 60, "the second job is in the Tier-1 schedd")
    never(lambda: chain.states(second) != [IDLE], 20, "a drained pilot takes a job")
    lift(chain, f"drain/{pilot}.tail")
    wait_until(lambda: chain.done(second), 90, "the second job has run")
    assert ran_once(chain, first[0]), "the first job ran on all the while"
    wait_until(lambda: advertised(chain, "JobStarts") == ["2"], 90, "the startd's next update tells of both")
    chain.bed.on("edge", ["scancel", "--batch", "--signal=USR1", pilot], user="leo")
    said = outcome(chain, pilot)
    assert (said.code, said.joined, said.jobs) == (0, True, 2)


@pytest.mark.one_suite("forky")
def test_other_pilots_marks_drain_nobody(chain: Chain) -> None:
    pilot = start(chain)
    takes_jobs(chain)
    job, task = pilot.split("_")
    for name in (f"{job}_{task}0", job, f"{job}_{task}0.tail", "leonardo.booster", "other.dcgp", f".{pilot}.1.new"):
        mark(chain, f"drain/{name}")
    never(lambda: advertised(chain, "PilotDraining") != ["false"], 25, "it drains")


@pytest.mark.one_suite("trixie")
def test_the_kill_switch_lets_jobs_finish_and_no_pilot_join(chain: Chain) -> None:
    jobs = chain.submit(gate="late", count=3, seconds=1)
    pilot = start(chain)
    run(chain, jobs)
    mark(chain, "STOP")
    drains(chain, "stop")
    waiting = chain.submit(seconds=1)
    wait_until(lambda: chain.states(waiting) == [IDLE], 60, "another job is in the Tier-1 schedd")
    late = start(chain)
    assert outcome(chain, late) == OutcomeLine(0, False, 0, "drained (stop) before it joined")
    assert pilot in chain.slurm_jobs(), "its jobs run on"
    assert all(ran_once(chain, job) for job in jobs)
    chain.open("late")
    wait_until(lambda: chain.done(jobs), 90, "the jobs ended well")
    said = outcome(chain, pilot)
    assert (said.code, said.jobs, said.evicted, said.reason) == (0, 3, 0, "drained (stop)")
    assert accounted(chain, pilot) == accounted(chain, late) == "COMPLETED|0:0"
    # The schedd tries to reuse the claim of a job that ended; the startd refuses, and 10 s later the job is idle again.
    wait_until(lambda: chain.states(waiting) == [IDLE], 30, "the other job still waits")
    assert not chain.startds()
    assert left_on(chain, "lrdn0001") + left_on(chain, "lrdn0002") == ""


@pytest.mark.one_suite("trixie")
def test_a_drained_pilot_without_jobs_leaves_its_node_at_once(chain: Chain) -> None:
    pilot = start(chain)
    takes_jobs(chain)
    mark(chain, f"drain/{pilot}")
    # 15 s between two looks at the marks, 5 s each to tell HTCondor and to see its startd gone, and some for its end.
    assert outcome(chain, pilot, seconds=40) == OutcomeLine(0, True, 0, "drained (pilot)")
    assert accounted(chain, pilot) == "COMPLETED|0:0"
    assert not chain.startds()
    assert left_on(chain, "lrdn0001") + left_on(chain, "lrdn0002") == ""


@pytest.mark.one_suite("forky")
def test_a_vanished_shared_directory_changes_nothing(chain: Chain) -> None:
    first = chain.submit(gate="never")
    pilot = start(chain)
    run(chain, first)
    chain.bed.on("edge", ["mv", SHARED, f"{SHARED}.gone"], user="leo")
    try:
        second = chain.submit(seconds=1)
        wait_until(lambda: chain.done(second), 90, "the pilot takes jobs as before")
        chain.bed.on("edge", ["mv", f"{SHARED}.gone", SHARED], user="leo")
        mark(chain, f"drain/{pilot}")
        drains(chain, "pilot")
        chain.bed.on("edge", ["mv", SHARED, f"{SHARED}.gone"], user="leo")
        never(lambda: advertised(chain, "PilotDraining") == ["false"], 25, "it does not drain any more")
    finally:
        chain.bed.on("edge", ["sh", "-c", f"[ ! -d {SHARED}.gone ] || mv {SHARED}.gone {SHARED}"], user="leo")
    assert pilot in chain.slurm_jobs()
    assert ran_once(chain, first[0])


@contextmanager
def hanging(chain: Chain, node: str, path: str) -> Iterator[None]:
    process = chain.bed.popen(node, ["python3", "-c", HANG, path], stdout=-1)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hangs\n"
        yield
    finally:
        chain.bed.on(node, ["umount", "-l", path], check=False)
        process.terminate()
        process.wait(timeout=scaled(20))


@pytest.mark.one_suite("forky")
def test_a_hanging_shared_directory_hangs_no_pilot(chain: Chain) -> None:
    pilot = start(chain)
    takes_jobs(chain)
    (machine,) = advertised(chain, "Machine")
    with hanging(chain, machine.partition(".")[0], SHARED):
        jobs = chain.submit(gate="seen", seconds=1)
        run(chain, jobs)
        chain.open("seen")
        wait_until(lambda: chain.done(jobs), 90, "the pilot works as before")
        chain.bed.on("edge", ["scancel", "--batch", "--signal=USR1", pilot], user="leo")
        assert outcome(chain, pilot, seconds=30).jobs == 1
    # What hung there ends once the directory does not hang any more: a moment after the mount is gone.
    wait_until(
        lambda: left_on(chain, "lrdn0001") + left_on(chain, "lrdn0002") == "", 20, "nothing is left on the nodes"
    )


@pytest.mark.one_suite("trixie")
def test_a_pilot_that_the_pool_refuses_says_that_it_never_joined(chain: Chain) -> None:
    # The controller's own token allows READ alone.
    token = chain.bed.on("edge", ["sh", "-c", "ls -d ~/.condor/tokens.d/*"], user="leo").stdout.split()[0]
    patience = CONFIGURATION.replace("[pilot]\n", f'[pilot]\ntoken_file = "{token}"\n')
    chain.configure(patience)
    pilot = start(chain)
    said = outcome(chain, pilot, seconds=120)
    assert (said.code, said.joined, said.jobs) == (31, False, 0)
    assert accounted(chain, pilot) == "FAILED|31:0"


def test_a_pilot_that_would_be_billed_to_another_qos_ends_at_once(chain: Chain) -> None:
    pilot = start(chain, "--hold")
    chain.bed.on("edge", ["scontrol", "update", f"JobId={pilot}", "QOS=normal"], user="leo")
    chain.bed.on("edge", ["scontrol", "release", pilot], user="leo")
    said = outcome(chain, pilot)
    assert (said.code, said.joined, said.jobs) == (16, False, 0)
    assert "QOS normal" in said.reason
    assert "instead of INF24_lhc_2, qos_lowprio, dcgp_usr_prod" in said.reason
    assert accounted(chain, pilot) == "FAILED|16:0"
