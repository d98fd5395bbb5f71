from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import observe, waiting
from htcebridge.controller.decide import silent_schedds
from htcebridge.controller.follow import follow
from htcebridge.controller.observation import Collector, Near, Observation, Source
from htcebridge.controller.pilots import join, pilots_of
from htcebridge.errors import UnknownState
from htcebridge.model import Demand, Group, Pilot, PilotPhase, ScheddAnswer, Shape, SlurmJob, Startd, Wait
from htcebridge.pilot import script
from htcebridge.plan.opening import open_nodes
from htcebridge.slurm.text import Queue
from htcebridge.state.memory import LastAnswer, Memory, Pilots, Schedds
from htcebridge.tier1 import pool

NOW = 1_800_000_000
HOUR = 3600
SHAPE = Shape(8, 16000, 0, 1000)


def slurm_job(state: str = "RUNNING", **changes: object) -> SlurmJob:
    job = SlurmJob(
        id="7_1",
        resource="dcgp",
        plan_id="p",
        state=state,
        reason="None",
        partition="dcgp_usr_prod",
        qos="qos_lowprio",
        account="inf24_lhc_2",
        node="lrdn0001",
        submitted=NOW - 1000,
        started=NOW - 100,
        ends=NOW - 100 + 12 * HOUR,
        time_limit_s=12 * HOUR,
    )
    return replace(job, **changes)


def startd(pilot_id: str = "7_1") -> Startd:
    return Startd(pilot_id, "slot1@x", "x", Shape(112, 490_000), Shape(112, 490_000), 0, NOW + HOUR, accepting=True)


def group(**changes: object) -> Group:
    return replace(Group(SHAPE, HOUR, "cmspil", "cms", 5, 1, 60, ("dcgp",)), **changes)


@pytest.fixture
def phase(config: Config) -> Callable[..., PilotPhase]:
    def of(job: SlurmJob, *startds: Startd) -> PilotPhase:
        (pilot,) = join([job], startds, NOW, config, {})
        return pilot.phase

    return of


# --------------------------------------------------------------------------- join


@pytest.mark.parametrize(
    ("state", "alone", "with_startd"),
    [
        ("PENDING", PilotPhase.PENDING, PilotPhase.JOINED),
        ("CONFIGURING", PilotPhase.BOOTING, PilotPhase.JOINED),
        ("POWER_UP_NODE", PilotPhase.BOOTING, PilotPhase.JOINED),
        ("REQUEUED", PilotPhase.PENDING, PilotPhase.JOINED),
        ("RUNNING", PilotPhase.BOOTING, PilotPhase.JOINED),
        ("COMPLETING", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("SUSPENDED", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("SOMETHING_NEW", PilotPhase.LEAVING, PilotPhase.LEAVING),
        ("PREEMPTED", PilotPhase.ENDED, PilotPhase.ENDED),
        ("COMPLETED", PilotPhase.ENDED, PilotPhase.ENDED),
        ("NODE_FAIL", PilotPhase.ENDED, PilotPhase.ENDED),
        ("TIMEOUT", PilotPhase.ENDED, PilotPhase.ENDED),
    ],
)
def test_slurms_state_and_the_collector_give_the_phase(
    phase: Callable[..., PilotPhase], state: str, alone: PilotPhase, with_startd: PilotPhase
) -> None:
    assert phase(slurm_job(state)) is alone
    assert phase(slurm_job(state), startd()) is with_startd


def test_a_pilot_that_has_not_joined_after_boot_timeout_is_lost(phase: Callable[..., PilotPhase]) -> None:
    assert phase(slurm_job(started=NOW - 900)) is PilotPhase.BOOTING
    assert phase(slurm_job(started=NOW - 901)) is PilotPhase.LOST
    assert phase(slurm_job(started=NOW - 901), startd()) is PilotPhase.JOINED


def test_a_node_that_boots_for_long_is_no_lost_pilot(phase: Callable[..., PilotPhase]) -> None:
    assert phase(slurm_job("CONFIGURING", started=NOW - 10**5)) is PilotPhase.BOOTING


def test_a_joined_pilot_that_the_collector_does_not_show_is_lost_only_after_a_while(config: Config) -> None:
    """faults A11: a collector that was restarted, and five nodes were opened."""
    memory, there = Pilots(), slurm_job(started=NOW - 2 * HOUR)

    def look(now: int, *startds: Startd, asked: bool = True) -> Pilot:
        nonlocal memory
        near = Near(now, 1000, Source(now), Source(now), Source(now, Queue((there,), ())), Source(now, ()))
        collector = Source(now, Collector(startds, frozenset()) if asked else None)
        observation = Observation(near, collector, Source(now), Source(now, ()))
        (pilot,) = pilots_of(config, observation, memory)
        memory, _ = follow(config, memory, (), [pilot], observation)
        return pilot

    assert look(NOW, startd()).phase is PilotPhase.JOINED
    for later in (60, 900, 960):
        missing = look(NOW + later)
        assert (missing.phase, missing.startd) == (PilotPhase.JOINED, startd()), later
    assert look(NOW + 961).phase is PilotPhase.LOST
    assert look(NOW + 1000, startd()).phase is PilotPhase.JOINED
    assert memory.seen["7_1"].missing is None
    # A collector that is not asked, or does not answer, says nothing of anybody.
    for later in (2000, 9000):
        assert look(NOW + later, asked=False).phase is PilotPhase.JOINED


def test_a_running_pilot_whose_start_is_unknown_is_booting(phase: Callable[..., PilotPhase]) -> None:
    assert phase(slurm_job(started=None)) is PilotPhase.BOOTING


def test_a_startd_belongs_to_the_pilot_of_its_job_id_alone(config: Config) -> None:
    jobs = [slurm_job(), slurm_job(id="7_2"), slurm_job(id="71")]
    joined = join(jobs, [startd("7_2"), startd("unknown")], NOW, config, {})
    assert [(each.job.id, each.startd is not None) for each in joined] == [("7_1", False), ("7_2", True), ("71", False)]


def test_a_dead_pilots_ad_that_lingers_is_not_shown_as_its_startd(config: Config) -> None:
    (pilot,) = join([slurm_job("PREEMPTED")], [startd()], NOW, config, {})
    assert pilot.startd is None


# --------------------------------------------------------------------------- merging


def test_groups_of_several_schedds_that_look_the_same_become_one() -> None:
    (merged,) = waiting.merged([group(idle=5, running=1, oldest_s=60), group(idle=7, running=2, oldest_s=90)])
    assert (merged.idle, merged.running, merged.oldest_s) == (12, 3, 90)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": Shape(9, 16000, 0, 1000)},
        {"walltime_s": HOUR + 1},
        {"owner": "other"},
        {"vo": "atlas"},
        {"resources": ()},
        {"why_not": {"dcgp": "too long"}},
        {"walltimes": {"dcgp": 60}},
    ],
)
def test_groups_that_differ_in_what_anybody_sees_stay_apart(change: dict[str, object]) -> None:
    assert len(waiting.merged([group(), group(**change)])) == 2


def test_demand_of_every_schedd_is_matched_and_added_up(config: Config) -> None:
    asks = 'OpportunisticSite = "leonardo"; RequestMemory = 1000; BatchRuntime = 3600; Requirements = true'
    ad = f"[ {asks}; RequestCpus = %d ]"
    rows = {
        "ce01": [
            pool.JobGroup(ad % 8, "cmspil", "cms", 3, 1, NOW - 50),
            pool.JobGroup(ad % 200, "x", "cms", 1, 0, NOW),
        ],
        "ce02": [pool.JobGroup(ad % 8, "cmspil", "cms", 4, 0, NOW - 70)],
    }
    answers = [pool.ScheddGroups(name, 0.1, tuple(groups)) for name, groups in rows.items()]
    answers.append(pool.ScheddGroups("ce03", 20.0, error="no answer in 20 s"))
    demand = waiting.demand_of(waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW), answers)
    fitting, too_big = demand.groups
    assert (fitting.idle, fitting.running, fitting.oldest_s, fitting.resources) == (7, 1, 70, ("dcgp",))
    assert (too_big.idle, too_big.resources) == (1, ())
    assert "200 cpus" in too_big.why_not["dcgp"]
    assert [answer.ok for answer in demand.schedds] == [True, True, False]
    assert not demand.complete


def test_demand_knows_how_short_a_new_pilot_is_now(config: Config) -> None:
    """faults A5: demand said "runs on dcgp", and the plan dropped the group."""
    asks = "RequestMemory = 1; RequestCpus = 8; BatchRuntime = 36000; Requirements = true"
    ad = f'[ OpportunisticSite = "leonardo"; {asks} ]'
    answers = [pool.ScheddGroups("ce01", 0.1, (pool.JobGroup(ad, "a", "cms", 40, 0, NOW),))]
    (free,) = waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW)
    (cut,) = waiting.matched(config, waiting.slot_ads(config, [], {}, {"dcgp": 8 * HOUR - 540}), answers, NOW)
    assert (free.resources, cut.resources) == (("dcgp",), ())
    assert cut.why_not["dcgp"] == "runs 10h, a pilot gives a job 7h51m at most"


def test_start_and_plan_have_one_idea_of_how_long_a_job_runs(
    load: Callable[[str], Config], design_example: str
) -> None:
    """A job that declares nothing runs for the resource's own default_walltime, in its START and in the plan."""
    table = design_example.partition("[resource.dcgp]")[2].replace('"12h"', '"4h"')
    short = f"[resource.short]{table}default_walltime = "
    ad = '[ OpportunisticSite = "leonardo"; RequestMemory = 1000; RequestCpus = 8; Requirements = true ]'
    declared = ad.replace("RequestCpus", "BatchRuntime = 7 * 3600; RequestCpus")
    for default, resources in (('"2h"', ("dcgp", "short")), ('"6h"', ("dcgp",))):
        config = load(f"{design_example}\n{short}{default}\n")
        answers = [pool.ScheddGroups("ce01", 0.1, (pool.JobGroup(ad, "a", "cms", 40, 0, NOW),))]
        (found,) = waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW)
        assert found.resources == resources
        assert (found.walltime_s, found.walltime_on("dcgp")) == (8 * HOUR, 8 * HOUR)
        assert found.walltime_on("short") == int(default.strip('"h')) * HOUR
        alone = replace(found, resources=("short",))
        opened = open_nodes([alone], {"short": script.limits("short", config.resources["short"])}, {"short": 9}, 0, 0)
        assert bool(opened) is (resources == ("dcgp", "short"))
    answers = [pool.ScheddGroups("ce01", 0.1, (pool.JobGroup(declared, "a", "", 1, 0, NOW),))]
    (same,) = waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW)
    assert same.walltimes == {}


# --------------------------------------------------------------------------- schedds that went away


def test_a_schedd_that_left_the_collector_lately_is_silent_not_empty(config: Config) -> None:
    there = (pool.Schedd("ce01", "<1.2.3.4:9618>", "v"),)
    known = {"ce01": NOW - 60, "ce02": NOW - 60, "old": NOW - 86_401}
    schedds = pool.with_absent(config, there, NOW, known)
    assert [(schedd.name, schedd.address) for schedd in schedds] == [("ce01", "<1.2.3.4:9618>"), ("ce02", "")]


# --------------------------------------------------------------------------- pending and manual pilots


@pytest.mark.parametrize(
    ("reason", "wait"),
    [("Resources", Wait.NORMAL), ("QOSMaxJobsPerUserLimit", Wait.LIMIT), ("BadConstraints", Wait.NEVER)],
)
def test_a_pending_pilot_carries_what_slurms_reason_means(config: Config, reason: str, wait: Wait) -> None:
    (pilot,) = join([slurm_job("PENDING", reason=reason, started=None)], (), NOW, config, {})
    assert pilot.wait is wait


def test_a_manual_glidein_counts_as_running_though_another_pool_has_it(config: Config) -> None:
    change = {"executor": "/shared/executor.sh", "mode": "constant"}
    manual = config.model_copy(update={"resources": {"dcgp": config.resources["dcgp"].model_copy(update=change)}})
    (pilot,) = join([slurm_job(started=NOW - 10**5)], (), NOW, manual, {})
    assert (pilot.phase, pilot.startd) == (PilotPhase.JOINED, None)


# --------------------------------------------------------------------------- a schedd that does not answer


CE01, GONE = pool.Schedd("ce01", "<1>", "v"), pool.Schedd("ce02", "", "")
JOBS = pool.JobGroup("[ RequestCpus = 8 ]", "cmspil", "cms", 5, 1, NOW - 60, "key", True, True, {1: 5})
SILENT = "no answer in 20 s"


def asked(
    config: Config, monkeypatch: pytest.MonkeyPatch, before: Schedds, now: int, *answers: pool.ScheddGroups
) -> list[pool.ScheddGroups]:
    monkeypatch.setattr(pool, "read_demand", lambda *_: list(answers))
    schedds = {"ce01": CE01, "ce02": GONE}
    return waiting.ask_schedds(config, [schedds[each.schedd] for each in answers], before, now)


def test_a_schedd_that_does_not_answer_is_counted_as_it_was(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three cycles; what is of one moment (autoclusters, refusals) is not kept."""
    kept = waiting.to_keep(config, [pool.ScheddGroups("ce01", 0.1, (JOBS,))], Schedds(), NOW)
    before, silent = Schedds(answers=kept), pool.ScheddGroups("ce01", 20.0, error=SILENT)
    (late,) = asked(config, monkeypatch, before, NOW + 180, silent)
    assert (late.error, late.age_s) == (SILENT, 180)
    assert late.groups == (replace(JOBS, refused=None, rejected=None, autoclusters={}),)
    (answer,) = waiting.demand_of([], [late]).schedds
    assert (answer.ok, answer.age_s) == (False, 180)
    assert asked(config, monkeypatch, before, NOW + 181, silent) == [silent]
    assert asked(config, monkeypatch, before, NOW - 1, silent) == [silent], "a clock that was set back"


def test_no_answer_stands_in_for_longer_than_ten_minutes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = config.model_copy(update={"pressure": config.pressure.model_copy(update={"interval": timedelta(minutes=5)})})
    before = Schedds(answers={"ce01": LastAnswer(NOW, (JOBS,))})
    silent = pool.ScheddGroups("ce01", 20.0, error=SILENT)
    assert asked(slow, monkeypatch, before, NOW + 600, silent)[0].age_s == 600
    assert asked(slow, monkeypatch, before, NOW + 601, silent)[0].age_s is None
    assert waiting.to_keep(slow, [silent], before, NOW + 600) == before.answers
    assert waiting.to_keep(slow, [silent], before, NOW + 601) == {}


def test_a_cycle_goes_on_with_last_answers_and_is_held_without(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "read_demand", lambda *_: [pool.ScheddGroups("ce01", 20.0, error=SILENT)])
    memory = Memory(schedds=Schedds(answers={"ce01": LastAnswer(NOW, (JOBS,))}))
    found = observe._waiting(config, pool.PoolView((CE01,), ()), memory, {}, NOW + 60)
    assert [(each.idle, each.running) for each in found.demand.groups] == [(5, 1)]
    assert (found.demand.complete, found.answers) == (False, memory.schedds.answers)
    with pytest.raises(UnknownState, match=SILENT):
        observe._waiting(config, pool.PoolView((CE01,), ()), memory, {}, NOW + 600)


def test_a_schedd_that_left_the_collector_is_not_busy(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Schedds(answers={"ce02": LastAnswer(NOW, (JOBS,))})
    gone = pool.ScheddGroups("ce02", 0.0, error="not in the collector: is it down?")
    assert asked(config, monkeypatch, before, NOW + 1, gone) == [gone]


def test_of_an_answer_the_largest_groups_are_kept(config: Config) -> None:
    groups = tuple(replace(JOBS, key=str(number), idle=number) for number in range(500))
    (kept,) = waiting.to_keep(config, [pool.ScheddGroups("ce01", 0.1, groups)], Schedds(), NOW).values()
    assert [each.idle for each in kept.groups] == list(range(499, 299, -1))


def test_what_is_said_of_a_schedd_that_does_not_answer() -> None:
    answers = (ScheddAnswer("ce01", 20.0, SILENT), ScheddAnswer("ce02", 20.0, SILENT, 75), ScheddAnswer("ce03", 0.1))
    assert silent_schedds(Demand((), answers)) == (
        "schedd ce01: no answer in 20 s; its jobs are not counted, so nothing is cancelled",
        "schedd ce02: no answer in 20 s; its jobs are counted as they were 1m15s ago, so nothing is cancelled",
    )
