"""What the controller does when things go wrong, or end: on real HTCondor and Slurm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.chain import (
    CE_ENVIRONMENT,
    CONFIGURATION,
    RUNNING,
    STATE,
    Answer,
    Chain,
    GridJob,
    controller,
    wait_until,
)
from tests.e2e.pilots import advertised
from tests.e2e.test_chain import has_the_lock, routed

pytestmark = pytest.mark.testbed

SHARED = "/leonardo/home/leo/pilots"
SBATCH = "/usr/bin/sbatch"
# It looks at its own name (24.11): under another one it refuses --signal=B:...
REAL_SBATCH = "/usr/lib/real/sbatch"


def waiting(chain: Chain, **jobs: object) -> list[GridJob]:
    """Jobs that are in the Tier-1 schedd and wait."""
    submitted = chain.submit(**jobs)  # type: ignore[arg-type]
    wait_until(lambda: routed(chain, submitted), 60, "the jobs are in the Tier-1 schedd")
    return submitted


def configure(chain: Chain, old: str, new: str) -> None:
    assert old in CONFIGURATION
    chain.configure(CONFIGURATION.replace(old, new))


def once(chain: Chain, expect: int | None = 0) -> Answer:
    return chain.htcebridge("pressure", "once", expect=expect)


def plan(chain: Chain, expect: int | None = 0) -> Any:
    return chain.json("pressure", "plan", expect=expect)["resources"]["dcgp"]


def sacctmgr(chain: Chain, *arguments: str) -> None:
    chain.bed.on("hpcctl", ["sacctmgr", "-i", *arguments])


@contextmanager
def limited(chain: Chain, **limits: int) -> Iterator[None]:
    """The low-priority QOS with these limits for as long as the block."""
    try:
        sacctmgr(chain, "modify", "qos", "qos_lowprio", "set", *(f"{name}={most}" for name, most in limits.items()))
        yield
    finally:
        sacctmgr(chain, "modify", "qos", "qos_lowprio", "set", *(f"{name}=-1" for name in limits))


@contextmanager
def sbatch_is(chain: Chain, script: str) -> Iterator[None]:
    """A site's own sbatch in front of the real one."""
    chain.bed.on("edge", ["mkdir", "-p", "/usr/lib/real"])
    chain.bed.on("edge", ["mv", SBATCH, REAL_SBATCH])
    try:
        chain.bed.write("edge", SBATCH, f"#!/bin/bash\n{script}\n")
        chain.bed.on("edge", ["chmod", "755", SBATCH])
        yield
    finally:
        chain.bed.on("edge", ["mv", REAL_SBATCH, SBATCH])


def outcomes(chain: Chain) -> dict[str, str]:
    """Pilot id -> what the controller says became of it."""
    text = chain.bed.on("edge", ["cat", f"{STATE}/leonardo.json"], user="leo").stdout
    return {each["id"]: each["outcome"] for each in json.loads(text)["memory"]["pilots"]["ended"]}


def outcome_of(chain: Chain, pilot: str) -> str:
    """What became of a pilot, once a cycle has found out."""

    def look() -> str | None:
        once(chain, expect=None)
        return outcomes(chain).get(pilot)

    return wait_until(look, 60, f"the outcome of {pilot} is known")


# --------------------------------------------------------------------------- the kill switch


@pytest.mark.one_suite("trixie")
def test_the_kill_switch_cancels_what_is_pending_drains_what_runs_and_holds_until_lifted(chain: Chain) -> None:
    chain.occupy(1)
    jobs = waiting(chain, cpus=100, count=2, gate="stopped", seconds=1)
    with controller(chain):
        wait_until(lambda: sorted(chain.slurm_jobs().values()) == ["PENDING", "RUNNING"], 60, "one runs, one waits")
        wait_until(lambda: RUNNING in chain.states(jobs), 90, "a job runs")
        said = chain.htcebridge("pressure", "stop", "--reason", "the HPC's admins ask for it").stdout
        assert f"{SHARED}/STOP" in said
        wait_until(lambda: list(chain.slurm_jobs().values()) == ["RUNNING"], 30, "nothing is pending")
        # It looks for the mark every 15 s: a job that ends before that would make room for the other.
        wait_until(lambda: advertised(chain, "PilotDraining") == ["true"], 60, "what runs drains")
        chain.open("stopped")
        wait_until(lambda: not chain.slurm_jobs(), 90, "the pilot has left when its job was done")
        (finished,) = [job for job in jobs if chain.done([job])]
        assert chain.starts(finished) <= 1, "it was not evicted"
        assert plan(chain, expect=1)["reasons"][0].endswith("the HPC's admins ask for it")
        assert not chain.slurm_jobs(), "jobs wait, and nothing is submitted"
        chain.htcebridge("pressure", "resume")
        wait_until(lambda: chain.slurm_jobs(), 30, "pilots are submitted again")


@pytest.mark.one_suite("trixie")
def test_one_touched_file_is_a_kill_switch_even_while_the_tier1_is_down(chain: Chain) -> None:
    chain.occupy(2)
    waiting(chain, cpus=100)
    once(chain)
    assert list(chain.slurm_jobs().values()) == ["PENDING"]
    chain.bed.on("edge", ["touch", f"{SHARED}/STOP"], user="leo")
    chain.bed.stop("tier1", "collector")
    try:
        once(chain, expect=1)
        wait_until(lambda: not chain.slurm_jobs(), 30, "the pending pilot is cancelled")
    finally:
        chain.bed.start("tier1", "collector")


# --------------------------------------------------------------------------- Slurm says no


@pytest.mark.one_suite("trixie")
def test_a_wrong_configuration_disables_the_resource_until_it_is_mended(chain: Chain) -> None:
    waiting(chain)
    configure(chain, 'qos = "qos_lowprio"', 'qos = "qos_gone"')
    assert "qos_gone" in once(chain, expect=1).said
    again = once(chain, expect=1)
    assert "qos_gone" in again.said
    assert not chain.slurm_jobs()
    chain.configure(CONFIGURATION)
    once(chain)
    assert len(chain.slurm_jobs()) == 1


def test_slurms_own_limits_cut_the_plan_and_are_named(chain: Chain) -> None:
    waiting(chain, cpus=100, count=3)
    with limited(chain, MaxSubmitJobsPerUser=2, MaxWall=600):
        cut = plan(chain)
        assert cut["submit"] == 2
        assert any("submitted jobs" in reason and "qos_lowprio" in reason for reason in cut["reasons"])
        assert any("MaxWall" in reason for reason in cut["reasons"])
        chain.bed.on("edge", ["rm", "-rf", STATE], user="leo")
    assert plan(chain)["submit"] == 3


def test_pilots_that_wait_for_a_limit_are_no_supply_and_no_more_are_submitted(chain: Chain) -> None:
    chain.occupy(1)
    waiting(chain, cpus=100, count=3, gate="never")
    once(chain)
    wait_until(lambda: sorted(chain.slurm_jobs().values())[0:2] == ["PENDING"] * 2, 30, "two wait")
    waiting(chain, cpus=100)
    with limited(chain, MaxJobsPerUser=1):
        wait_until(lambda: "QOSMaxJobsPerUserLimit" in str(chain.json("pilots")), 90, "Slurm says why they wait")
        found = plan(chain)
        assert found["submit"] == 0
        assert any("not counted as supply: QOSMaxJobsPerUserLimit" in reason for reason in found["reasons"])


@pytest.mark.one_suite("trixie")
def test_when_the_walltime_was_raised_the_old_pilot_that_serves_nobody_is_cancelled_and_the_new_one_stays(
    chain: Chain,
) -> None:
    chain.occupy(2)
    configure(chain, 'walltime = "12h"', 'walltime = "2h"')
    short = waiting(chain, cpus=100, walltime="1h")
    once(chain)
    (old,) = chain.slurm_jobs()
    chain.configure(CONFIGURATION)
    waiting(chain, cpus=100, walltime="4h")
    for job in short:
        chain.bed.on(job.ce, ["condor_rm", job.id], env=CE_ENVIRONMENT)
    wait_until(lambda: chain.json("demand")["totals"]["idle_jobs"] == 1, 60, "the long job alone waits")
    once(chain)
    assert len(chain.slurm_jobs()) == 2, "the old one is too short for it"
    once(chain)
    wait_until(lambda: len(chain.slurm_jobs()) == 1, 30, "one is cancelled")
    assert old not in chain.slurm_jobs()


@pytest.mark.one_suite("trixie")
def test_a_submission_of_unknown_outcome_is_found_again_and_not_repeated(chain: Chain) -> None:
    waiting(chain, cpus=100, count=2)
    lost = f'{REAL_SBATCH} "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1'
    with sbatch_is(chain, lost):
        said = once(chain, expect=1).said
    assert "Socket timed out" in said
    assert len(chain.slurm_jobs()) == 2, "Slurm had taken them"
    once(chain)
    assert len(chain.slurm_jobs()) == 2


@pytest.mark.one_suite("trixie")
def test_a_submission_that_never_arrived_is_made_again_after_a_minute(chain: Chain) -> None:
    waiting(chain)
    with sbatch_is(chain, 'echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1'):
        once(chain, expect=1)
    once(chain)
    assert not chain.slurm_jobs(), "nobody knows yet"

    def submitted() -> bool:
        once(chain, expect=None)
        return bool(chain.slurm_jobs())

    wait_until(submitted, 100, "it is made again", every=5)
    assert len(chain.slurm_jobs()) == 1


def test_pilots_that_would_be_billed_to_another_qos_are_cancelled(chain: Chain) -> None:
    waiting(chain)
    with sbatch_is(chain, f'sed s/--qos=qos_lowprio/--qos=normal/ | {REAL_SBATCH} "$@"'):
        once(chain)
    # Either it is still there and cancelled, or it has noticed itself.
    wait_until(lambda: "disabled" in once(chain, expect=None).said, 60, "the resource is disabled", every=2)
    wait_until(lambda: not chain.slurm_jobs(), 30, "the pilot is gone")
    said = once(chain, expect=1).said
    assert "normal" in said
    assert "instead of" in said
    assert not chain.slurm_jobs(), "jobs wait, and nothing is submitted"
    chain.htcebridge("pressure", "reset", "dcgp")
    once(chain)
    assert len(chain.slurm_jobs()) == 1


# --------------------------------------------------------------------------- outcomes


@pytest.mark.one_suite("trixie")
def test_a_node_on_which_pilots_fail_is_excluded_and_the_others_serve(chain: Chain) -> None:
    configure(chain, 'setup.sh"]', 'setup.sh", "[ $(hostname -s) != lrdn0001 ]"]')
    # Until then the good node holds one of them, and the other waits for a second node.
    jobs = waiting(chain, cpus=100, count=2, seconds=1, gate="quarantined")
    found: dict[str, Any] = {}

    def excluded() -> bool:
        found.update(plan(chain, expect=None))
        once(chain, expect=None)
        return "lrdn0001" in str(found["reasons"])

    wait_until(excluded, 120, "the bad node is in quarantine")
    chain.open("quarantined")
    assert any("in a row failed there (the last of the setup lines failed" in reason for reason in found["reasons"])
    wait_until(lambda: once(chain, expect=None) and chain.done(jobs), 120, "the good node has done the work", every=3)
    assert {chain.node_of(job) for job in jobs} == {"lrdn0002"}


def test_preempted_pilots_are_their_own_outcome(chain: Chain) -> None:
    jobs = waiting(chain, cpus=100, gate="never")
    once(chain)
    wait_until(lambda: chain.states(jobs) == [RUNNING], 90, "the job runs")
    once(chain)
    (pilot,) = chain.slurm_jobs()
    chain.occupy(2)
    wait_until(lambda: pilot not in chain.slurm_jobs(), 90, "the pilot was preempted")
    assert outcome_of(chain, pilot) == "preempted"


@pytest.mark.one_suite("trixie")
def test_pilots_cancelled_by_hand_and_pilots_without_work_are_told_apart(chain: Chain) -> None:
    jobs = waiting(chain, cpus=100)
    once(chain)
    (worked,) = chain.slurm_jobs()
    wait_until(lambda: chain.done(jobs), 90, "the job is done")
    once(chain)
    wait_until(lambda: not chain.slurm_jobs(), 60, "it left when it was idle")
    assert outcome_of(chain, worked) == "ran"

    waiting(chain, cpus=100)
    once(chain)
    (cancelled,) = chain.slurm_jobs()
    wait_until(lambda: chain.slurm_jobs().get(cancelled) == "RUNNING", 60, "it runs")
    once(chain)
    chain.bed.on("edge", ["scancel", cancelled], user="leo")
    assert outcome_of(chain, cancelled) == "cancelled by others"


# --------------------------------------------------------------------------- the tail


@pytest.mark.one_suite("trixie")
def test_when_nothing_waits_the_emptier_pilot_drains_and_comes_back_with_the_demand(chain: Chain) -> None:
    long = waiting(chain, cpus=8, count=14, gate="never") + waiting(chain, cpus=8, count=3, gate="never")
    once(chain)
    wait_until(lambda: once(chain, expect=None) and chain.states(long) == [RUNNING] * 17, 120, "all run", every=3)
    for job in long[:7]:
        chain.bed.on(job.ce, ["condor_rm", job.id], env=CE_ENVIRONMENT)

    def draining() -> list[str]:
        once(chain, expect=None)
        return [pilot["id"] for pilot in chain.json("pilots")["pilots"] if pilot["draining"]]

    (drained,) = wait_until(draining, 90, "the emptier pilot drains", every=3)
    busy = {pilot["id"]: pilot["jobs"] for pilot in chain.json("pilots")["pilots"]}
    assert busy[drained] == min(busy.values()) <= 5

    back = waiting(chain, cpus=8, count=12, seconds=5)
    wait_until(lambda: once(chain, expect=None) and not draining(), 60, "it is taken back", every=3)
    wait_until(lambda: chain.done(back), 90, "its jobs are done")
    assert len(chain.slurm_jobs()) == 2, "no third pilot was opened"


# --------------------------------------------------------------------------- two controllers


@pytest.mark.one_suite("trixie")
def test_two_instances_share_an_account_and_see_each_others_pilots_as_others(chain: Chain) -> None:
    chain.occupy(2)
    waiting(chain, cpus=100, count=2)
    once(chain)
    assert list(chain.slurm_jobs().values()) == ["PENDING"] * 2
    text = CONFIGURATION.replace("[pressure]", '[pressure]\ninstance = "second"')
    chain.bed.write("edge", "/leonardo/home/leo/second.toml", text, owner="leo")
    second = ["--config", "/leonardo/home/leo/second.toml"]
    assert json.loads(chain.htcebridge(*second, "pilots", "--json").stdout)["pilots"] == []
    with limited(chain, MaxSubmitJobsPerUser=2):
        document = json.loads(chain.htcebridge(*second, "pressure", "plan", "--json").stdout)
        reasons = document["resources"]["dcgp"]["reasons"]
        assert any("2 of them others" in reason for reason in reasons), reasons


# --------------------------------------------------------------------------- the negotiator's view


def ghosts(chain: Chain) -> list[str]:
    return chain.bed.on("tier1", ["condor_status", "-constraint", "IsGhost", "-af", "Name"]).stdout.split()


def test_the_negotiator_can_be_asked_and_is_left_alone_again(chain: Chain) -> None:
    configure(chain, "[pressure]", '[pressure]\ndemand_source = "negotiator"')
    jobs = waiting(chain, cpus=100, seconds=1)
    once(chain)
    assert len(ghosts(chain)) == 1
    wait_until(lambda: chain.done(jobs), 120, "the job has run on a pilot, not on the ghost")
    chain.configure(CONFIGURATION)
    once(chain)
    assert ghosts(chain) == []


# --------------------------------------------------------------------------- recorded


@pytest.mark.one_suite("trixie")
def test_what_a_cycle_saw_and_decided_can_be_decided_again(chain: Chain) -> None:
    waiting(chain, cpus=100, count=2)
    record = "/leonardo/home/leo/cycles.jsonl"
    for _ in range(3):
        chain.htcebridge("pressure", "once", "--record", record)
    said = chain.htcebridge("simulate", "--replay", record).stdout
    assert "3" in said
    lines = chain.bed.on("edge", ["cat", record], user="leo").stdout.splitlines()
    changed = json.loads(lines[0])
    changed["plan"]["resources"]["dcgp"]["submit"] = 17
    chain.bed.write("edge", record, "\n".join([json.dumps(changed), *lines[1:]]) + "\n", owner="leo")
    chain.htcebridge("simulate", "--replay", record, expect=1)


@pytest.mark.one_suite("trixie")
def test_a_controller_on_another_host_is_told_who_has_the_lock(chain: Chain) -> None:
    with controller(chain):
        wait_until(lambda: has_the_lock(chain), 30, "the controller has the lock")
        done = chain.bed.on(
            "lrdn0002",
            ["/leonardo/home/leo/htcebridge-venv/bin/htcebridge", "pressure", "once"],
            user="leo",
            check=False,
        )
        assert done.returncode == 75
        assert "on edge" in done.stderr
