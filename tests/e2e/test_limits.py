"""Slurm's limits and maintenances as numbers of pilots, and who counts as there: on real HTCondor and Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.chain import CONFIGURATION, STATE, Chain, wait_until
from tests.e2e.pilots import PATIENT, start
from tests.e2e.test_doctor import lines
from tests.e2e.test_pilot_checks import GPUS
from tests.e2e.test_pressure import once, plan, sacctmgr, waiting

pytestmark = pytest.mark.testbed


@contextmanager
def a_user_has(chain: Chain, tres: str, most: int) -> Iterator[None]:
    """At most so much of a resource for a user in the low-priority QOS, for as long as the block."""
    try:
        sacctmgr(chain, "modify", "qos", "qos_lowprio", "set", f"MaxTRESPerUser={tres}={most}")
        yield
    finally:
        sacctmgr(chain, "modify", "qos", "qos_lowprio", "set", f"MaxTRESPerUser={tres}=-1")


@contextmanager
def maintenance(chain: Chain, minutes: int) -> Iterator[None]:
    """All nodes reserved for a maintenance that begins in so many minutes."""
    when = [f"StartTime=now+{minutes}minutes", "Duration=60", "Users=root", "Nodes=ALL", "Flags=MAINT,IGNORE_JOBS"]
    chain.bed.on("hpcctl", ["scontrol", "create", "reservation", "ReservationName=maint", *when])
    try:
        yield
    finally:
        chain.bed.on("hpcctl", ["scontrol", "delete", "ReservationName=maint"])
        chain.bed.on("edge", ["rm", "-rf", STATE], user="leo")


def says(decision: Any, *words: str) -> bool:
    return any(all(word in reason for word in words) for reason in decision["reasons"])


def reserved(chain: Chain, pilot: str) -> bool:
    """Whether Slurm says that nodes are not to be had for it; with a free node it starts at once."""
    why = chain.bed.on("edge", ["squeue", "-h", "-j", pilot, "-o", "%r"], user="leo").stdout
    return "ReqNodeNotAvail" in why or "Nodes required" in why


@pytest.mark.one_suite("forky")
def test_a_users_gpus_bound_pilots_of_four(chain: Chain) -> None:
    chain.configure(CONFIGURATION + GPUS)
    waiting(chain, count=12, extra=["request_gpus = 1"])
    for most, pilots in ((4, 1), (2, 0)):
        with a_user_has(chain, "gres/gpu", most):
            found = chain.json("pressure", "plan")["resources"]["booster"]
            assert found["submit"] == pilots
            assert says(found, f"cut from 3 to {pilots} by QOS qos_lowprio allows {most} GPUs a user (0 there)")
            line = lines(chain.json("doctor", expect=None))["limits", "booster"]
            assert line.status == ("ok" if pilots else "fail")
            assert ("Slurm takes 1 pilot" if pilots else "no pilot would fit") in line.said


@pytest.mark.one_suite("forky")
def test_what_others_hold_counts_in_cores(chain: Chain) -> None:
    waiting(chain, cpus=100, count=3)
    own = ["sbatch", "-A", "INF24_lhc_2", "-q", "qos_lowprio", "-p", "dcgp_usr_prod", "-c", "70", "-o", "/dev/null"]
    chain.bed.on("edge", [*own, "--wrap", "sleep 600"], user="leo")
    with a_user_has(chain, "cpu", 300):
        found = plan(chain)
        assert found["submit"] == 2
        assert says(found, "cut from 3 to 2 by", "allows 300 cores a user (70 there, 70 of them others')")


@pytest.mark.one_suite("forky")
def test_pilots_end_before_a_maintenance_and_old_long_ones_stop_nothing(chain: Chain) -> None:
    chain.configure(PATIENT)
    waiting(chain, cpus=100, walltime="20m", seconds=1)
    with maintenance(chain, 15):
        found = plan(chain)
        assert found["submit"] == 0
        assert says(found, "walltime 12h cut to ", "maintenance maint", "too short for a pilot")
    with maintenance(chain, 60):
        long = start(chain)
        short = waiting(chain, cpus=100, walltime="25m", seconds=1)
        waiting(chain, cpus=100, walltime="2h", seconds=1)
        wait_until(lambda: reserved(chain, long), 90, "Slurm says why it waits")
        groups = {each["walltime_s"]: each for each in chain.json("demand")["groups"]}
        assert [groups[minutes * 60]["resources"] for minutes in (20, 25, 120)] == [["dcgp"], ["dcgp"], []]
        assert "a pilot gives a job" in groups[7200]["why_not"]["dcgp"]
        found = plan(chain)
        assert found["submit"] == 2
        assert says(found, "walltime 12h cut to ", "maintenance maint")
        assert says(found, "1 pending pilot not counted as supply", "shorter ones are submitted")
        once(chain)
        wait_until(lambda: chain.done(short), 180, "a job has run on a pilot that ends before the maintenance")
        assert long in chain.slurm_jobs()


@pytest.mark.one_suite("trixie")
def test_a_pilot_that_the_collector_has_forgotten_is_still_there(chain: Chain) -> None:
    """As after a restart of the collector: the next update brings its ad back."""
    chain.configure(PATIENT)
    pilot = start(chain)
    wait_until(chain.startds, 60, "it has joined")

    def seen() -> Any:
        return {each["id"]: each for each in chain.json("pilots")["pilots"]}[pilot]

    wait_until(lambda: time.time() - seen()["started"] > 31, 60, "it has run for longer than boot_timeout")
    once(chain)
    forget = ["condor_advertise", "INVALIDATE_STARTD_ADS", "-"]
    query = 'MyType = "Query"\nTargetType = "Machine"\nRequirements = PilotJobId =!= undefined\n'

    def forgotten() -> bool:
        chain.bed.on("tier1", forget, input=query)
        return not chain.startds()

    wait_until(forgotten, 60, "the collector does not show it")
    now = seen()
    assert (now["phase"], now["joined"], now["cpus"]) == ("joined", True, 112)


# --------------------------------------------------------------------------- the negotiator's own


@contextmanager
def concurrency_limit(chain: Chain, name: str, most: int) -> Iterator[None]:
    """A concurrency limit in the Tier-1's negotiator, for as long as the block."""
    path = "/etc/condor/config.d/60-concurrency.conf"
    chain.bed.write("tier1", path, f"{name.upper()}_LIMIT = {most}\n")
    chain.bed.on("tier1", ["condor_reconfig"])
    try:
        yield
    finally:
        chain.bed.on("tier1", ["rm", path])
        chain.bed.on("tier1", ["condor_reconfig"])


@pytest.mark.one_suite("forky")
def test_what_the_negotiator_does_not_give_is_no_supply_and_a_person_is_told(chain: Chain) -> None:
    """Jobs that fit a free pilot and wait for a limit that htcebridge cannot see."""
    chain.configure(PATIENT)
    jobs = waiting(chain, cpus=8, count=3, seconds=1)
    ids = [row[0] for row in chain.pool_jobs("ce01", "ClusterId").values()]
    chain.bed.on("ce01", ["condor_qedit", *ids, "ConcurrencyLimits", '"licence"'])
    with concurrency_limit(chain, "licence", 0):
        start(chain)
        wait_until(chain.startds, 60, "a pilot has joined")
        wait_until(lambda: says(plan(chain), "3 waiting jobs fit into joined pilots"), 30, "they fit there")

        def told() -> str:
            once(chain, expect=None)
            decision = plan(chain, expect=None)
            assert decision["submit"] == 0
            named = says(
                decision, "1 joined pilot (", "could take 3 waiting jobs, but the negotiator", "no supply for them"
            )
            stopped = says(decision, "3 jobs that fit into joined pilots", "names a limit of its own")
            return once(chain, expect=None).stderr if named and stopped else ""

        wait_until(lambda: "it turned them away for a limit" in told(), 120, "the alarm names the suspects")
        assert len(chain.slurm_jobs()) == 1
    wait_until(lambda: chain.done(jobs), 120, "without the limit they run")
    once(chain)
    assert not says(plan(chain), "no supply for them")
