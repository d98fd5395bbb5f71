"""Usage records agree with what condor_history and sacct say of the same jobs and pilots."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from tests.e2e.chain import IDLE, Chain, let_pass, wait_until
from tests.e2e.pilots import PATIENT, run

# The attributes of the history that it reads are older than 23.9.
pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("forky")]


def test_the_records_agree_with_htcondor_and_slurm(chain: Chain) -> None:
    """Jobs of two VOs; one is preempted and runs again. Every second in the records is in the two others' books."""
    apel = "apel_specs = { HEPscore23 = 12.5 }\napel_scaling = 1.25\n"
    chain.configure(PATIENT.replace('idle_timeout = "10m"', 'idle_timeout = "5s"') + apel)
    begun = int(chain.bed.on("edge", ["date", "+%s"]).stdout)
    short = chain.submit(cpus=2, seconds=3, does="timeout 3 yes > /dev/null")
    short += chain.submit("ce02", user="atlpil001", count=2, seconds=3)
    long = chain.submit(cpus=3, gate="preempted", seconds=25)
    wait_until(lambda: chain.states(short + long) == [IDLE] * 4, 60, "the jobs wait")
    chain.htcebridge("pressure", "once")
    run(chain, long)
    wait_until(lambda: chain.done(short), 60, "the short jobs are done")
    # The pilot tells by whole seconds which jobs ended by themselves before Slurm's announcement.
    let_pass(4)
    paying = chain.occupy(2)
    wait_until(lambda: chain.states(long) == [IDLE], 60, "the long job was preempted")
    chain.open("preempted")
    chain.bed.on("edge", ["scancel", *paying], user="leo2")
    wait_until(lambda: not chain.slurm_jobs("leo2"), 60, "the nodes are free")

    def settled() -> bool:
        chain.htcebridge("pressure", "once", expect=None)
        return chain.done(long) and not chain.slurm_jobs() and "ran" in [each["outcome"] for each in pilots(chain)]

    wait_until(settled, 150, "the long job has run again, and all pilots are in the history")
    # A completed job leaves the queue with its schedd's next look at LeaveJobInQueue (PERIODIC_EXPR_INTERVAL, 60 s).
    wait_until(lambda: len(jobs(chain)) == 4, 150, "all jobs are in their schedds' histories")

    wanted = ("LastRemoteWallClockTime", "RemoteWallClockTime", "RemoteUserCpu", "CompletionDate", "MachineAttrCpus0")
    booked: dict[str, list[int]] = {}
    for ce in ("ce01", "ce02"):
        newer = ["condor_history", "-constraint", f"CompletionDate >= {begun}", "-af", "GlobalJobId", *wanted]
        for line in chain.bed.on(ce, newer).stdout.splitlines():
            key, *numbers = line.split()
            booked[key] = [int(float(number)) for number in numbers]
    records = jobs(chain)
    seen = ("wall_s", "wall_all_s", "cpu_user_s", "ended", "cores")
    assert {each["global_job_id"]: [each[name] for name in seen] for each in records} == booked
    assert sorted((each["vo"], each["cores"], each["starts"]) for each in records) == [
        *(("atlas", 1, 1), ("atlas", 1, 1), ("cms", 2, 1), ("cms", 3, 2))
    ]
    preempted = next(each for each in records if each["starts"] == 2)
    assert preempted["wall_all_s"] > preempted["wall_s"] >= 25
    assert {(each["site"], each["resource"], each["status"]) for each in records} == {("leonardo", "dcgp", "completed")}
    assert {each["ce_job_id"] for each in records} == {job.id for job in short + long}
    assert {(each["apel_specs"], each["apel_scaling"]) for each in records} == {("HEPscore23=12.5", "1.25")}

    sacct = ["sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", "JobID,ElapsedRaw,CPUTimeRAW,State"]
    accounted = {}
    for line in chain.bed.on("edge", sacct, user="leo").stdout.splitlines():
        id_, elapsed, core_s, state = line.split("|")
        accounted[id_] = (int(elapsed), int(core_s), state)
    for each in pilots(chain):
        assert (each["wall_s"], each["core_s"]) == accounted[each["slurm_job"]][:2]
    # Where the job is slow to come back, one leaves in between that got none.
    first, *idle, second = ended = pilots(chain)
    assert (first["outcome"], second["outcome"]) == ("preempted", "ran")
    assert {each["job_core_s"] for each in idle} <= {0}
    assert accounted[first["slurm_job"]][2] == "PREEMPTED"
    # Every second of every job's every run is in some pilot's own account of its jobs.
    assert (first["lost_core_s"], first["evicted"]) == (3 * (preempted["wall_all_s"] - preempted["wall_s"]), 1)
    total = sum(each["wall_all_s"] * each["cores"] for each in records)
    assert abs(first["job_core_s"] + second["job_core_s"] - total) <= sum(each["cores"] for each in records)

    text = chain.htcebridge("accounting", "jobs", "--since", "1h", "--format", "csv").stdout
    assert [row["global_job_id"] for row in csv.DictReader(io.StringIO(text))] == [
        each["global_job_id"] for each in records
    ]
    chain.bed.stop("ce02", "condor")
    try:
        answer = chain.htcebridge("accounting", "jobs", "--since", "1h", "--output", "jobs.jsonl", expect=1)
        assert "ce02" in answer.stderr
        assert chain.bed.on("edge", ["ls", "/leonardo/home/leo/jobs.jsonl"], check=False).returncode
    finally:
        chain.bed.start("ce02", "condor")
    done = chain.htcebridge("accounting", "pilots", "--since", "1h", "--output", "/leonardo/home/leo/pilots.jsonl")
    assert f"{len(ended)} records" in done.stderr


def jobs(chain: Chain) -> list[dict[str, Any]]:
    return _lines(chain, "jobs")


def pilots(chain: Chain) -> list[dict[str, Any]]:
    return _lines(chain, "pilots")


def _lines(chain: Chain, kind: str) -> list[dict[str, Any]]:
    text = chain.htcebridge("accounting", kind, "--since", "1h").stdout
    return [json.loads(line) for line in text.splitlines()]
