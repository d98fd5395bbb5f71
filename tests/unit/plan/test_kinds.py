"""A joined pilot is room for what its own slot would take, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

from htcebridge.model import PilotPhase, Shape
from tests.unit.plan.made import EAGER, GPU_NODE, decide, jobs, limits, pilot, waiting

SICK = "START: NODE_IS_HEALTHY =!= false is false"


def test_a_pilot_that_would_refuse_is_no_supply_and_says_why() -> None:
    sick = pilot(1, PilotPhase.JOINED, kind="sick", jobs=1)
    refused = jobs(8, cpus=8, refused_by={"sick": SICK})
    decision = decide(waiting(refused), [sick])
    assert decision.submit == 1
    assert f"1 joined pilot would refuse 8 waiting jobs: {SICK}" in decision.reasons
    well = pilot(2, PilotPhase.JOINED, kind="well")
    assert decide(waiting(refused), [sick, well]).submit == 0


def test_what_jobs_take_there_is_what_counts() -> None:
    """A job that takes half of whatever machine it gets."""
    half = jobs(3, cpus=1, shapes={"dcgp": Shape(56, 1000), "older": Shape(28, 1000)})
    assert decide(waiting(half)).submit == 2
    older = pilot(1, PilotPhase.JOINED, kind="older", total=Shape(56, 490_000), free=Shape(56, 490_000))
    decision = decide(waiting(half), [older])
    assert decision.submit == 1
    assert any(reason.startswith("2 waiting jobs fit") for reason in decision.reasons)


def test_cores_that_are_kept_for_gpus_are_no_room_for_others() -> None:
    limit = limits(node=GPU_NODE, cpus_kept_per_gpu=6)
    one = jobs(9, cpus=1, shape=Shape(1, 2000))
    assert decide(waiting(one), limit=limit).submit == 2, "8 of 32 cores are left beside 4 GPUs"
    free = Shape(20, 400_000, gpus=2)
    there = pilot(1, PilotPhase.JOINED, total=GPU_NODE, free=free)
    decision = decide(waiting(one), [there], limit=limit)
    assert any(reason.startswith("8 waiting jobs fit") for reason in decision.reasons)
    with_gpu = jobs(2, shape=Shape(10, 2000, gpus=1))
    assert decide(waiting(with_gpu), [there], limit=limit).submit == 0


def test_a_vos_bound_counts_what_its_jobs_take_there() -> None:
    half = jobs(9, cpus=1, shapes={"dcgp": Shape(56, 1000)})
    decision = decide(waiting(half), policy=replace(EAGER, vo_cpus={"cms": 112}))
    assert decision.submit == 1
    assert "7 jobs of cms open no node: it has 0 of max_total_cpus 112" in decision.reasons


def test_pilots_that_are_there_take_what_no_new_one_would() -> None:
    """As when a maintenance leaves new ones too little time, or the configuration has changed."""
    left_over = jobs(20, resources=(), why_not={"dcgp": "runs 4h, a pilot gives a job 1h at most"}, standing=("dcgp",))
    there = pilot(1, PilotPhase.JOINED, kind="older")
    decision = decide(waiting(left_over), [there])
    assert decision.submit == 0
    assert "14 waiting jobs fit into joined pilots" in decision.reasons
    assert "6 jobs that no resource takes: runs 4h, a pilot gives a job 1h at most" in decision.reasons
    full = pilot(1, PilotPhase.JOINED, kind="older", free=Shape(0, 0), jobs=14)
    assert (
        "20 jobs that no resource takes: runs 4h, a pilot gives a job 1h at most"
        in decide(waiting(left_over), [full]).reasons
    )
