"""From a CE through Slurm and back: what the README promises, on real HTCondor and Slurm."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

import pytest

from tests.e2e.chain import (
    CE_ENVIRONMENT,
    CONFIGURATION,
    GATES,
    HTCEBRIDGE,
    IDLE,
    RUNNING,
    STATE,
    Answer,
    Chain,
    GridJob,
    controller,
    let_pass,
    wait_until,
)
from tests.e2e.pilots import executing
from tests.e2e.test_history import asked
from tests.testbed.pace import scaled

pytestmark = [pytest.mark.testbed, pytest.mark.isolates]


def has_the_lock(chain: Chain) -> bool:
    return chain.bed.on("edge", ["test", "-s", f"{STATE}/leonardo.owner"], check=False).returncode == 0


def not_held(chain: Chain) -> Answer | None:
    """A cycle's answer, once no other controller has the lock."""
    answer = chain.htcebridge("pressure", "once", expect=None)
    return answer if answer.code != 75 else None


def routed(chain: Chain, jobs: list[GridJob]) -> bool:
    return None not in chain.states(jobs)


def test_granted_jobs_run_on_leonardo_and_no_others_do(chain: Chain) -> None:
    granted = chain.submit(user="cmspil001") + chain.submit(ce="ce02", user="atlpil001", cpus=8, wants=False)
    not_asking = chain.submit(user="cmspil002", wants=False)
    not_allowed = chain.submit(user="bob001", wants=False)
    forging = ['+OpportunisticSite = "leonardo"', '+OpportunisticVO = "cms"']
    forged = chain.submit(user="bob001", wants=False, extra=forging)
    forged += chain.submit(user="cmspil002", wants=False, extra=['+OpportunisticSite = "leonardo"'])
    others = not_asking + not_allowed + forged
    wait_until(lambda: routed(chain, granted + others), 60, "all jobs are in the Tier-1 schedds")

    assert chain.json("demand")["totals"]["idle_jobs"] == len(granted)
    chain.htcebridge("pressure", "once")
    wait_until(lambda: chain.done(granted), 120, "the granted jobs' output is back on the CEs")

    assert {chain.node_of(job) for job in granted} == {"lrdn0001"}
    assert chain.states(others) == [IDLE] * len(others)
    assert [chain.starts(job) for job in others] == [0] * len(others)
    tags = chain.pool_jobs("ce01", "OpportunisticSite")
    assert {tags[job.id][0] for job in others} == {"undefined"}


def test_busy_cpus_of_a_pilot_are_what_its_jobs_asked_for(chain: Chain) -> None:
    jobs = chain.submit(cpus=8, gate="never", count=3) + chain.submit(ce="ce02", cpus=1, gate="never")
    wait_until(lambda: routed(chain, jobs), 60, "all jobs are in the Tier-1 schedds")
    chain.htcebridge("pressure", "once")
    wait_until(lambda: chain.states(jobs) == [RUNNING] * 4, 120, "all jobs run")
    pilot = wait_until(lambda: [p for p in chain.json("pilots")["pilots"] if p["jobs"] == 4], 60, "the pilot says so")[
        0
    ]
    assert (pilot["cpus"], pilot["cpus_busy"], pilot["joined"]) == (112, 25, True)
    assert pilot["id"] in chain.slurm_jobs()


@pytest.mark.one_suite("trixie")
def test_first_job_runs_soon_and_pilots_leave_when_the_demand_ends(chain: Chain) -> None:
    started = time.monotonic()
    jobs = chain.submit(count=20, seconds=3) + chain.submit(ce="ce02", count=20, seconds=3)
    most = 0
    with controller(chain):
        wait_until(lambda: RUNNING in chain.states(jobs) or chain.done(jobs[:1]), 120, "a job runs")
        assert time.monotonic() - started < scaled(120)

        def all_done() -> bool:
            nonlocal most
            most = max(most, len(chain.slurm_jobs()))
            return chain.done(jobs)

        wait_until(all_done, 240, "all jobs are done")
        ended = time.monotonic()
        wait_until(lambda: not chain.slurm_jobs(), 60, "the idle pilot has left")
        assert time.monotonic() - ended < scaled(60)
    assert most == 1, "40 jobs of one core fit into one node"
    assert "code=0" in chain.pilot_logs()
    assert not chain.startds(), "the pilot took its ad out of the collector"


@pytest.mark.one_suite("trixie")
def test_pending_pilots_are_cancelled_when_the_demand_ends(chain: Chain) -> None:
    chain.occupy(2)
    jobs = chain.submit(cpus=100, count=3)
    wait_until(lambda: routed(chain, jobs), 60, "all jobs are in the Tier-1 schedds")
    chain.htcebridge("pressure", "once")
    assert list(chain.slurm_jobs().values()) == ["PENDING"] * 3
    plan = chain.json("pressure", "plan")["resources"]["dcgp"]
    assert (plan["needed"], plan["pending"], plan["submit"]) == (3, 3, 0)

    for job in jobs:
        chain.bed.on(job.ce, ["condor_rm", job.id], env=CE_ENVIRONMENT)
    wait_until(lambda: chain.json("demand")["totals"]["idle_jobs"] == 0, 60, "nothing waits any more")
    chain.htcebridge("pressure", "once")
    assert len(chain.slurm_jobs()) == 3, "one cycle of surplus cancels nothing"
    chain.htcebridge("pressure", "once")
    wait_until(lambda: not chain.slurm_jobs(), 30, "the surplus pilots are cancelled")


@pytest.mark.one_suite("trixie")
def test_jobs_that_fit_no_pilot_start_none_and_demand_says_why(chain: Chain) -> None:
    wide, long = chain.submit(cpus=200), chain.submit(ce="ce02", user="atlpil001", walltime="40h")
    wait_until(lambda: routed(chain, wide + long), 60, "both jobs are in the Tier-1 schedds")
    chain.htcebridge("pressure", "once")
    assert chain.slurm_jobs() == {}
    document = chain.json("demand")
    assert document["totals"]["unmatched_jobs"] == 2
    reasons = {group["owner"]: group["why_not"]["dcgp"] for group in document["groups"]}
    assert reasons["cmspil001"] == "asks 200 cpus, a pilot has 112"
    assert reasons["atlpil001"].startswith("runs 1d16h, a pilot gives a job 11h")
    assert "asks 200 cpus" in chain.htcebridge("demand").stdout
    said = chain.json("pressure", "plan")["resources"]["dcgp"]["reasons"]
    assert "1 job that no resource takes: asks 200 cpus, a pilot has 112" in said
    assert any(reason.startswith("1 job that no resource takes: runs 1d16h") for reason in said)


@pytest.mark.one_suite("forky")
def test_controller_killed_during_sbatch_submits_nothing_twice(chain: Chain) -> None:
    jobs = chain.submit(cpus=100, count=2, gate="never")
    wait_until(lambda: routed(chain, jobs), 60, "both jobs are in the Tier-1 schedds")
    # The real sbatch, which waits until its parent is killed and the next cycle has looked.
    slow = f'#!/bin/sh\nuntil [ -e {GATES}/sbatch ]; do sleep 0.1; done\nexec /usr/bin/sbatch "$@"\n'
    chain.bed.write("edge", "/leonardo/home/leo/slow/sbatch", slow, mode=0o755, owner="leo")
    path = "/leonardo/home/leo/slow:/usr/bin:/bin"
    process = chain.bed.popen("edge", [HTCEBRIDGE, "pressure", "once"], user="leo", env={"PATH": path})
    wait_until(lambda: chain.bed.on("edge", ["pgrep", "-f", "slow/sbatch"], check=False).stdout, 30, "sbatch runs", 0.1)
    chain.bed.on("edge", ["pkill", "-KILL", "-f", "pressure once"])
    process.wait(timeout=scaled(30))

    second = chain.htcebridge("pressure", "once", expect=75)
    assert "another controller of this instance is at work" in second.stderr
    chain.open("sbatch")
    wait_until(lambda: len(chain.slurm_jobs()) == 2, 30, "the orphaned sbatch has submitted its two pilots")
    third = wait_until(lambda: not_held(chain), 30, "the lock is free")
    assert third.code == 0, third.said
    assert len(chain.slurm_jobs()) == 2, "they are adopted, none is submitted again"
    wait_until(lambda: chain.states(jobs) == [RUNNING] * 2, 90, "both jobs run on them")


@pytest.mark.one_suite("trixie")
def test_slurm_down_holds_the_cycle(chain: Chain) -> None:
    jobs = chain.submit()
    wait_until(lambda: routed(chain, jobs), 60, "the job is in the Tier-1 schedd")
    chain.bed.stop("hpcctl", "slurmctld")
    try:
        held = chain.htcebridge("pressure", "once", expect=75)
        assert "squeue" in held.stderr
        assert "controller" in held.stderr
        plan = chain.json("pressure", "plan", expect=75)
        assert plan["held"]
        assert plan["resources"]["dcgp"]["submit"] == 0
    finally:
        chain.bed.start("hpcctl", "slurmctld")
    assert chain.slurm_jobs() == {}


@pytest.mark.one_suite("forky")
def test_collector_down_holds_the_cycle_and_run_recovers(chain: Chain) -> None:
    chain.occupy(2)
    first = chain.submit(cpus=100)
    wait_until(lambda: routed(chain, first), 60, "the job is in the Tier-1 schedd")
    chain.htcebridge("pressure", "once")
    before = chain.slurm_jobs()
    assert len(before) == 1
    second = chain.submit(cpus=100)
    wait_until(lambda: routed(chain, second), 60, "the second job is in the Tier-1 schedd")
    chain.bed.stop("tier1", "collector")
    try:
        held = chain.htcebridge("pressure", "once", expect=75)
        assert "collector tier1.cr.example.org:9618" in held.stderr
        with controller(chain):
            query = "SELECT count(*) FROM cycles WHERE held IS NOT NULL"
            known = int(asked(chain, query)[0])
            wait_until(lambda: int(asked(chain, query)[0]) >= known + 2, 60, "two cycles were held")
            assert chain.slurm_jobs() == before, "nothing is submitted or cancelled on what is not known"
            chain.bed.start("tier1", "collector")
            wait_until(lambda: len(chain.slurm_jobs()) == 2, 90, "run recovers by itself")
    finally:
        chain.bed.start("tier1", "collector")


@pytest.mark.one_suite("trixie")
def test_one_schedd_down_serves_the_other_and_cancels_nothing(chain: Chain) -> None:
    chain.occupy(2)
    lost = chain.submit(ce="ce02", cpus=100)
    wait_until(lambda: routed(chain, lost), 60, "the job is in ce02's schedd")
    chain.htcebridge("pressure", "once")
    waiting = chain.slurm_jobs()
    assert len(waiting) == 1
    chain.bed.stop("ce02", "condor")
    try:
        jobs = chain.submit(cpus=100, count=2)
        wait_until(lambda: routed(chain, jobs), 60, "two jobs are in ce01's schedd")
        partial = chain.htcebridge("pressure", "once", expect=1)
        assert "ce02.cr.example.org" in partial.stderr
        now = chain.slurm_jobs()
        assert len(now) == 2, "ce01's two jobs: one takes the waiting pilot, one gets a new one"
        chain.bed.on("ce01", ["condor_rm", "-all"], env=CE_ENVIRONMENT)
        wait_until(lambda: chain.json("demand", expect=1)["totals"]["idle_jobs"] == 0, 60, "nothing known waits")
        for _ in range(4):
            chain.htcebridge("pressure", "once", expect=1)
        assert chain.slurm_jobs() == now, "nothing is cancelled while a schedd is silent"
        document = chain.json("demand", expect=1)
        assert [schedd["ok"] for schedd in document["schedds"]] == [True, False]
    finally:
        chain.bed.start("ce02", "condor")


def test_preempted_jobs_are_idle_before_the_node_is_taken_and_end_well_elsewhere(chain: Chain) -> None:
    jobs = chain.submit(user="atlpil001", count=2, gate="second-pilot", seconds=1)
    wait_until(lambda: routed(chain, jobs), 60, "the jobs are in the Tier-1 schedd")
    chain.htcebridge("pressure", "once")
    # A starter that is told to leave in its first seconds may end without a word to its shadow (25.14).
    wait_until(lambda: executing(chain, jobs), 90, "their starters say that they execute")
    let_pass(5)
    (pilot,) = chain.slurm_jobs()

    paying = chain.occupy(2)
    wait_until(lambda: chain.states(jobs) == [IDLE] * 2, 60, "both jobs are idle again", every=0.3)
    vacated = [int(row[0]) for row in chain.pool_jobs("ce01", "LastVacateTime").values()]
    wait_until(lambda: pilot not in chain.slurm_jobs(), 60, "the pilot is gone")
    wait_until(lambda: list(chain.slurm_jobs("leo2").values()) == ["RUNNING"] * 2, 60, "the paying jobs have the nodes")
    taken = chain.bed.on("edge", ["squeue", "-h", "-j", ",".join(paying), "-o", "%S"], env={"SLURM_TIME_FORMAT": "%s"})
    assert max(vacated) <= max(int(start) for start in taken.stdout.split())
    accounting = ["sacct", "-X", "-n", "-P", "-j", pilot, "-o", "State"]
    wait_until(
        lambda: chain.bed.on("edge", accounting, user="leo").stdout.strip() == "PREEMPTED", 30, "sacct says PREEMPTED"
    )
    assert "Slurm announced the end" in chain.pilot_logs()

    chain.open("second-pilot")
    chain.bed.on("edge", ["scancel", paying[1]], user="leo2")
    chain.htcebridge("pressure", "once")
    wait_until(lambda: chain.done(jobs), 120, "both jobs have ended well on another pilot")
    assert [chain.output(job).count("done") for job in jobs] == [1, 1]


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        ("chmod 644 ~/.condor/tokens.d/*", 2, "open to others"),
        ("rm ~/.condor/tokens.d/*", 2, "no token in it"),
        ("chmod 644 ~/.config/htcebridge/pilot.idtoken", 2, "open to others"),
    ],
)
@pytest.mark.one_suite("forky")
def test_a_bad_token_is_refused(chain: Chain, break_it: str, code: int, says: str) -> None:
    home = PurePosixPath("/leonardo/home/leo")
    keep = f"cd {home} && tar cf keep.tar .condor/tokens.d .config/htcebridge/pilot.idtoken"
    chain.bed.on("edge", ["sh", "-c", f"{keep} && {break_it}"], user="leo")
    try:
        answer = chain.htcebridge("pressure", "once", expect=code)
        assert says in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1
    finally:
        chain.bed.on("edge", ["sh", "-c", f"cd {home} && tar xpf keep.tar && rm keep.tar"], user="leo")


@pytest.mark.one_suite("forky")
def test_bad_surroundings_are_named(chain: Chain) -> None:
    nowhere = chain.htcebridge("pressure", "once", expect=2, env={"PATH": "/nowhere"})
    assert "squeue: not on PATH" in nowhere.stderr
    chain.configure(CONFIGURATION.replace("tier1.cr.example.org:9618", "tier1.cr.example.org:9"))
    deaf = chain.htcebridge("demand", expect=75)
    assert "collector tier1.cr.example.org:9" in deaf.stderr
    chain.configure(CONFIGURATION.replace("tier1.cr.example.org:9618", "no-such-host.example.org"))
    assert "no-such-host.example.org" in chain.htcebridge("demand", expect=75).stderr


@pytest.mark.one_suite("forky")
def test_a_second_controller_is_kept_out(chain: Chain) -> None:
    with controller(chain):
        wait_until(lambda: has_the_lock(chain), 30, "the controller has the lock")
        assert "on edge" in chain.htcebridge("pressure", "once", expect=75).stderr
    assert chain.htcebridge("pressure", "once").code == 0, "run ended with SIGTERM and let go of the lock"
