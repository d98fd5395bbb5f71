from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from htcebridge.cli import cli, main
from htcebridge.config.example import example
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.model import Outcome, PilotPhase, Plan, ResourcePlan, Shape
from htcebridge.simulation import plot, recorded, workload
from htcebridge.simulation.cluster import Partition, Weather, paid_nodes
from htcebridge.simulation.interface import Seen
from htcebridge.simulation.metrics import Result, Use
from htcebridge.simulation.ours import Ours
from htcebridge.simulation.pool import Pool, SimPilot
from htcebridge.simulation.scenario import Scenario, built_in, from_config
from htcebridge.simulation.workload import HOUR_S, Job
from htcebridge.simulation.world import BEGIN, World, simulate
from tests import schema

HOUR = HOUR_S
CALM = Weather(nodes=4, paid_share=0.0, start_delay_s=1)
BUSY = Weather(nodes=12, paid_share=0.7)
EIGHT = Shape(8, 16_000)


def job(submitted_s: int = 0, cpus: int = 8, runtime_s: int = HOUR, walltime_s: int = 2 * HOUR) -> Job:
    return Job(submitted_s, Shape(cpus, cpus * 2000), runtime_s, walltime_s, "cmspil001", "cms")


class Orders:
    """Submits so many whole nodes in its first cycle; `then` may order more in each later one."""

    def __init__(self, pilots: int, resource: str = "dcgp", **order: object) -> None:
        self._first = ResourcePlan(0, 0, 0, 0, submit=pilots)
        self._first = replace(self._first, **order)  # type: ignore[arg-type]
        self._resource = resource
        self.seen: list[Seen] = []

    def decide(self, seen: Seen) -> Plan:
        self.seen.append(seen)
        order = self._first if len(self.seen) == 1 else self.then(seen)
        return Plan({self._resource: order})

    def then(self, seen: Seen) -> ResourcePlan:
        return ResourcePlan(0, 0, 0, 0)


def whole(weather: Weather = CALM) -> Scenario:
    return built_in(["dcgp"], weather)


def coarse(scenario: Scenario) -> Scenario:
    """With a cycle every five minutes: a day takes a fifth of the time."""
    return replace(scenario, interval_s=300)


def run(scenario: Scenario, jobs: Sequence[Job], controller: object, seed: int = 1) -> Result:
    return simulate(scenario, jobs, 1, controller, seed)[0]  # type: ignore[arg-type]


def numbers(outcome: Result) -> dict[str, object]:
    return asdict(replace(outcome, cpu_s=0.0))


# --- the world ------------------------------------------------------------------------------------------------


def test_equal_arguments_give_an_equal_run() -> None:
    jobs = workload.bursty(1, 3)
    scenario = coarse(whole(BUSY))
    first, again = (run(scenario, jobs, Ours(scenario), seed=3) for _ in range(2))
    assert numbers(first) == numbers(again)
    other = run(scenario, jobs, Ours(scenario), seed=4)
    assert numbers(first) != numbers(other)


def test_every_held_core_second_has_exactly_one_use() -> None:
    scenario = coarse(whole(replace(BUSY, bad_share=0.3)))
    world = World(scenario, workload.bursty(1, 5), 1, Ours(scenario), seed=5)
    held = 0
    end = world._end

    def counting(pilot: SimPilot, outcome: Outcome, now: int, exit_code: int = 0) -> None:
        nonlocal held
        if pilot.id in world._pilots and pilot.started is not None:
            held += pilot.size.cpus * (now - pilot.started)
        end(pilot, outcome, now, exit_code)

    world._end = counting  # type: ignore[method-assign]
    meter = world.run()
    held += sum(pilot.size.cpus * (world._until - pilot.started) for pilot in world._pilots.values() if pilot.started)
    assert meter.preempted > 0
    assert meter.failed > 0
    assert sum(meter.used.values()) == held
    assert meter.used[Use.GOOD] > 0


def test_one_job_on_one_pilot_costs_what_can_be_counted_by_hand() -> None:
    scenario = whole()
    outcome = run(scenario, [job(cpus=112, runtime_s=2 * HOUR, walltime_s=3 * HOUR)], Orders(1))
    assert outcome.good == outcome.work == 112 * 2
    assert outcome.never_used == outcome.preempted == outcome.killed_runs == 0
    # It left 20 min (idle_timeout) after its job, and had booted for 5 min, give or take half of that.
    assert outcome.idle["tail"] == pytest.approx(112 / 3)
    assert 112 * 2.5 / 60 <= outcome.idle["boot"] <= 112 * 7.5 / 60
    # 112 cores: the boot, at most a negotiation cycle for the match, the job, the idle_timeout.
    assert outcome.held == pytest.approx(outcome.good + sum(outcome.idle.values()))


def test_a_job_starts_only_where_its_walltime_fits_the_remaining_life() -> None:
    scenario = whole()
    long = job(runtime_s=HOUR, walltime_s=11 * HOUR)
    # The pilot lives 12 h; after an hour of other work its life is too short for the long one.
    other = job(runtime_s=2 * HOUR)
    late = replace(long, submitted_s=HOUR)
    outcome = run(scenario, [other, late], Orders(1))
    assert outcome.good == 8 * 2
    assert outcome.unserved == 8 * 1


def test_paying_jobs_preempt_pilots_and_their_jobs_start_from_zero() -> None:
    scenario = whole(Weather(nodes=6, paid_share=0.9, paid_nodes=2.0, paid_h=2.0, start_delay_s=1))
    outcome = run(scenario, [job(runtime_s=6 * HOUR, walltime_s=7 * HOUR) for _ in range(60)], Ours(scenario), seed=2)
    assert outcome.preempted > 0
    assert outcome.lost > 0
    assert outcome.killed_runs > 0


def test_the_paying_jobs_are_the_same_whatever_the_controller_does() -> None:
    jobs = workload.bursty(1, 7)
    scenario = coarse(whole(BUSY))
    seen = [simulate(scenario, jobs, 1, who, 7)[1] for who in (Ours(scenario), Orders(0), Orders(9))]
    paid = [[sample.paid_nodes for sample in samples] for samples in seen]
    assert paid[0] == paid[1] == paid[2]
    assert len(set(paid[0])) > 3


def test_an_idle_pilot_leaves_after_idle_timeout() -> None:
    controller = Orders(1)
    outcome = run(whole(), [], controller)
    (ended,) = controller.seen[60].ended
    assert ended.outcome is Outcome.NEVER_MATCHED
    assert ended.joined is not None
    assert ended.ended == ended.joined + 20 * 60
    assert outcome.never_used == 1


class Drains(Orders):
    """Drains every joined pilot from the second hour on, and takes that back in the third."""

    def then(self, seen: Seen) -> ResourcePlan:
        hour = (seen.now - BEGIN) // HOUR
        joined = tuple(pilot.job.id for pilot in seen.pilots if pilot.phase is PilotPhase.JOINED)
        nothing = ResourcePlan(0, 0, 0, 0)
        if hour == 1:
            return replace(nothing, drain=joined)
        return replace(nothing, undrain=joined) if hour == 2 else nothing


def test_a_drained_pilot_takes_no_job_until_it_is_undrained() -> None:
    first, second = job(runtime_s=3 * HOUR, walltime_s=4 * HOUR), job(submitted_s=HOUR + 600, runtime_s=600)
    controller = Drains(1)
    outcome = run(whole(), [first, second], controller)
    longest_s = max(group.oldest_s for each in controller.seen for group in each.demand.groups)
    assert outcome.unserved == 0
    # The second job waits from 1 h 10 min until the pilot is had back at 2 h.
    assert longest_s in range(49 * 60, 52 * 60)
    drained = [each for each in controller.seen if any(pilot.tail_drained for pilot in each.pilots)]
    assert (drained[0].now - BEGIN) // HOUR == 1
    assert all(not pilot.startd.accepting for each in drained for pilot in each.pilots if pilot.startd)


def test_a_drained_and_empty_pilot_leaves_at_once() -> None:
    controller = Drains(1)
    run(whole(), [job(runtime_s=int(1.2 * HOUR))], controller)
    (ended,) = controller.seen[3 * 60].ended
    assert ended.outcome is Outcome.RAN
    started = next(each.pilots[0].job.started for each in controller.seen if each.pilots and each.pilots[0].job.started)
    # Its job ended at some 1.3 h, while it was drained; 20 min later it would have been 1.6 h.
    assert started is not None
    assert ended.ended - BEGIN < 1.5 * HOUR


def test_a_pending_pilot_can_be_cancelled_and_a_running_one_not() -> None:
    class Cancels(Orders):
        def then(self, seen: Seen) -> ResourcePlan:
            return ResourcePlan(0, 0, 0, 0, cancel=tuple(pilot.job.id for pilot in seen.pilots))

    never = Weather(nodes=1, paid_share=0.0, start_delay_s=1)
    outcome = run(whole(never), [job(runtime_s=HOUR)], Cancels(3))
    assert (outcome.submitted, outcome.started, outcome.cancelled) == (3, 1, 2)
    assert outcome.good == 8


# --- Slurm ----------------------------------------------------------------------------------------------------


def test_slurm_hands_out_a_bad_node_again_unless_it_is_excluded() -> None:
    partition = Partition("p", Weather(nodes=3), EIGHT, seed=1)
    assert partition.place("1", EIGHT, frozenset()) == 0
    partition.leave("1", 0)
    assert partition.place("2", EIGHT, frozenset()) == 0
    partition.leave("2", 0)
    assert partition.place("3", EIGHT, frozenset({"p0000"})) == 1


def test_parts_of_a_node_fill_it_before_another_is_opened() -> None:
    node = Shape(112, 400_000)
    partition = Partition("p", Weather(nodes=3), node, seed=1)
    half = Shape(56, 200_000)
    assert [partition.place(str(number), half, frozenset()) for number in range(4)] == [0, 0, 1, 1]
    partition.leave("0", 0)
    assert partition.place("5", node, frozenset()) == 2
    assert partition.place("6", node, frozenset()) is None


@pytest.mark.parametrize("seed", range(8))
def test_paying_jobs_take_empty_nodes_first_and_preempt_all_pilots_of_a_node(seed: int) -> None:
    partition = Partition("p", Weather(nodes=2), Shape(112, 400_000), seed)
    half = Shape(56, 200_000)
    assert {partition.place("a", half, frozenset()), partition.place("b", half, frozenset())} == {0}
    assert partition.hold(1) == []
    assert sorted(partition.hold(2)) == ["a", "b"]
    assert partition.place("c", half, frozenset()) is None


def test_paying_jobs_never_hold_more_nodes_than_there_are() -> None:
    for seed in range(5):
        steps = paid_nodes(Weather(nodes=20, paid_share=0.9), 5 * 24 * HOUR, seed)
        held = [count for _, count in steps]
        assert min(held) >= 0
        assert max(held) <= 20
        assert max(held) - min(held) > 5


def test_pilots_on_bad_nodes_fail_and_waste_is_counted() -> None:
    scenario = whole(replace(CALM, bad_share=1.0))
    controller = Orders(4)
    outcome = run(scenario, [job()], controller)
    ended = controller.seen[60].ended
    assert {each.outcome for each in ended} == {Outcome.NEVER_JOINED}
    assert {each.exit_code for each in ended} == {0, 11}
    assert outcome.failed_pilots == 4
    # Two fail their check after a minute, on two the startd gives up after 20 min.
    assert outcome.failed == outcome.held == pytest.approx(2 * 112 * (1 + 20) / 60)


# --- the pool -------------------------------------------------------------------------------------------------


def joined(pilot_id: str, free: Shape) -> SimPilot:
    pilot = SimPilot(pilot_id, "dcgp", free, submitted=0, walltime_s=12 * HOUR)
    pilot.joined, pilot.to_die = 0, 12 * HOUR
    return pilot


def matched(pool: Pool, *pilots: SimPilot) -> list[tuple[int, str]]:
    started: list[tuple[int, str]] = []

    def start(number: int, started_job: Job, pilot: SimPilot) -> None:
        pilot.free = pilot.free.less(started_job.shape)
        started.append((number, pilot.id))

    pool.negotiate(pilots, 0, start)
    return started


def test_the_negotiator_fills_the_fullest_pilot_first_with_the_oldest_job() -> None:
    pool = Pool(whole().limits, {"dcgp": True}, begin=0)
    pool.submit(1, job(submitted_s=5))
    pool.submit(2, job(submitted_s=1))
    pool.submit(3, job(submitted_s=9, cpus=4))
    assert matched(pool, joined("wide", Shape(112, 400_000)), joined("narrow", Shape(16, 40_000))) == [
        (2, "narrow"),
        (1, "narrow"),
        (3, "wide"),
    ]


def test_a_job_that_fits_nowhere_does_not_block_the_others() -> None:
    pool = Pool(whole().limits, {"dcgp": True}, begin=0)
    pool.submit(1, job(submitted_s=0, cpus=64))
    pool.submit(2, job(submitted_s=5))
    assert matched(pool, joined("a", Shape(16, 40_000))) == [(2, "a")]
    assert pool.waiting_cpus() == 64


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (job(cpus=113), "larger than a pilot"),
        (job(walltime_s=12 * HOUR), "longer than a pilot lives"),
    ],
)
def test_a_group_that_no_pilot_takes_says_why(wanted: Job, why: str) -> None:
    pool = Pool(whole().limits, {"dcgp": True}, begin=0)
    pool.submit(1, wanted)
    (group,) = pool.groups(now=60)
    assert group.resources == ()
    assert group.why_not == {"dcgp": why}
    assert (pool.waiting_cpus(), pool.waiting_cpus(fitting=False)) == (0, wanted.shape.cpus)


def test_gpu_nodes_are_kept_for_gpu_jobs() -> None:
    pool = Pool(whole().limits, {"dcgp": False}, begin=0)
    assert pool.cluster(job()).why_not == {"dcgp": "kept for GPU jobs"}


# --- our own controller in it ---------------------------------------------------------------------------------


def test_ours_starts_no_pilot_for_jobs_that_cannot_match() -> None:
    scenario = coarse(whole())
    jobs = workload.bursty(1, 1)
    extra = sorted([*jobs, *workload.unmatchable(400, 1, 1)], key=lambda each: each.submitted_s)
    without, with_them = (run(scenario, each, Ours(scenario)) for each in (jobs, extra))
    assert without.submitted > 0
    assert numbers(without) == numbers(with_them)
    alone = run(scenario, workload.unmatchable(400, 1, 1), Ours(scenario))
    assert alone.submitted == 0


def test_ours_serves_all_the_work_of_a_day() -> None:
    scenario = coarse(built_in(["dcgp", "dcgp_56"], Weather(paid_share=0.2)))
    outcome = run(scenario, workload.bursty(1, 2), Ours(scenario))
    assert outcome.unserved == 0
    assert outcome.efficiency > 0.3


def test_quarantine_excludes_bad_nodes_and_wastes_less() -> None:
    weather = Weather(paid_share=0.1, bad_share=0.4)
    kept = coarse(built_in(["dcgp"], weather))
    without = coarse(built_in(["dcgp"], weather, {"quarantine": "0s"}))
    jobs = workload.steady(1, 3)
    assert run(kept, jobs, Ours(kept)).failed < run(without, jobs, Ours(without)).failed


def test_the_hard_cap_per_hour_holds() -> None:
    scenario = built_in(["dcgp_16"], CALM, {"max_new_per_hour": 7})
    samples: list[tuple[int, int]] = []

    class Counting(Ours):
        def decide(self, seen: Seen) -> Plan:
            plan = super().decide(seen)
            samples.append((seen.now, sum(each.submit for each in plan.resources.values())))
            return plan

    run(scenario, [job(submitted_s=60 * minute) for minute in range(600)], Counting(scenario))
    assert sum(count for _, count in samples) > 7
    for now, _ in samples:
        assert sum(count for when, count in samples if now - HOUR < when <= now) <= 7


def test_a_configuration_makes_a_scenario() -> None:
    import tomllib

    config = Config.model_validate(tomllib.loads(example()))
    scenario = from_config(config, CALM, pilots_per_node=2)
    assert scenario.limits["dcgp"].max_running == 10
    assert scenario.nodes["dcgp_usr_prod"].cpus == 224
    assert run(scenario, [job()], Ours(scenario)).unserved == 0


def test_a_configuration_without_resources_cannot_be_simulated() -> None:
    with pytest.raises(ConfigError, match="no resource"):
        from_config(Config.model_validate({"tier1": {"collector": "cm"}}), CALM)


# --- workloads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", workload.WORKLOADS)
def test_a_made_up_workload_is_the_same_for_the_same_seed_and_keeps_its_promises(name: str) -> None:
    make = workload.WORKLOADS[name]
    jobs = make(3, 11)
    assert jobs == make(3, 11)
    assert jobs != make(3, 12)
    assert [each.submitted_s for each in jobs] == sorted(each.submitted_s for each in jobs)
    assert all(0 < each.runtime_s <= each.walltime_s for each in jobs)
    assert all(0 <= each.submitted_s < 3 * workload.DAY_S for each in jobs)


CSV = "submitted,cpus,memory_mb,runtime_s,walltime_s,owner\n1700000100,8,16000,3600,7200,ada\n1700000000,1,2000,60,,\n"


def test_a_recorded_workload_keeps_its_times_of_day(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(CSV)
    first, second = recorded.read(path)
    assert first.submitted_s == 1_700_000_000 % workload.DAY_S
    assert (first.walltime_s, first.owner) == (60, "unknown")
    assert second == Job(first.submitted_s + 100, Shape(8, 16_000), 3600, 7200, "ada", "")
    assert recorded.days([first, second]) == 1


def test_csv_and_json_lines_are_read_alike(tmp_path: Path) -> None:
    table, lines = tmp_path / "jobs.csv", tmp_path / "jobs.jsonl"
    table.write_text(CSV)
    rows = [
        {
            "submitted": 1_700_000_100,
            "cpus": 8,
            "memory_mb": 16000,
            "runtime_s": 3600,
            "walltime_s": 7200,
            "owner": "ada",
        },
        {"submitted": 1_700_000_000, "cpus": 1, "memory_mb": 2000, "runtime_s": 60},
    ]
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert recorded.read(table) == recorded.read(lines)


def test_what_condor_history_prints_is_read(tmp_path: Path) -> None:
    # As `condor_q -af:,` of 23.9.6 writes its lines.
    path = tmp_path / "jobs.csv"
    path.write_text(
        "submitted,cpus,memory_mb,runtime_s,walltime_s,owner\n"
        "1795380781, 1, 50, 2713.0, 3600, cmspil001\n"
        "1795380781, 8, 16000, 60.0, undefined, cmspil001\n"
    )
    first, second = recorded.read(path)
    assert (first.shape, first.runtime_s, first.walltime_s, first.owner) == (Shape(1, 50), 2713, 3600, "cmspil001")
    assert second.walltime_s == 60


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cpus,memory_mb\n1,2\n", ":1: the header lacks submitted, runtime_s"),
        (CSV + "12,x,1,1,1,\n", ":4: cpus is 'x', not a number"),
        (CSV + "12,0,1,1,1,\n", ":4: cpus is 0, under 1"),
        (CSV + "12,1,1,,1,\n", ":4: runtime_s is missing"),
        (CSV + "12,inf,1,1,1,\n", ":4: cpus is 'inf', not a number"),
        ('{"submitted": 1}\n', ":1: runtime_s is missing"),
        ('{"submitted": 1\n', ":1: not JSON"),
        ("", ":1: the header lacks"),
        ("submitted,cpus,memory_mb,runtime_s\n", "no job in it"),
    ],
)
def test_a_damaged_recording_of_jobs_is_one_error_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "jobs"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        recorded.read(path)
    assert complaint in str(error.value)


# --- the command ----------------------------------------------------------------------------------------------


def invoke(*arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(cli, ["simulate", *arguments], standalone_mode=False)
    assert answer.exception is None, answer.output
    return answer.return_value, answer.output


def test_the_command_ends_in_a_table_of_at_most_100_columns() -> None:
    code, output = invoke("--built-in", "dcgp", "--built-in", "dcgp_56", "--days", "1", "--seed", "4")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 100
    for word in ("good", "lost", "waited", "never used", "held in all"):
        assert word in output


def test_json_has_what_the_table_has_and_the_curve() -> None:
    code, output = invoke("--built-in", "dcgp", "--days", "1", "--json")
    document = json.loads(output)
    schema.check("simulate", document)
    assert code == 0
    assert document["schema"] == 1
    held = document["good"] + document["lost"] + document["failed"] + sum(document["idle"].values())
    assert held == pytest.approx(document["held"], abs=0.01)
    assert {"second", "waiting_cores", "held_cores", "busy_cores"} <= document["samples"][0].keys()


def test_a_configuration_is_simulated_where_there_is_one(tmp_path: Path) -> None:
    config = tmp_path / "htcebridge.toml"
    config.write_text(example().replace("[resource.dcgp]", "[resource.mine]"))
    answer = CliRunner().invoke(cli, ["--config", str(config), "simulate", "--days", "1"], standalone_mode=False)
    assert answer.return_value == 0
    assert "on mine" in answer.output


@pytest.mark.parametrize("name", ["run.png", "run.svg"])
def test_a_plot_is_written(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    invoke("--built-in", "dcgp", "--days", "1", "--plot", str(path))
    head = path.read_bytes()[:100]
    assert head.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in head
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workload", "no-such"], "no workload"),
        (["--plot", "run.txt"], "ends in .png"),
        (["--plot", "/no/such/directory/run.png"], "no such directory"),
        (["--days", "0"], "0 is not in the range"),
        (["--built-in", "no-such"], "no-such"),
    ],
)
def test_bad_input_is_one_error_and_exit_code_2(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["htcebridge", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"htcebridge\[plots\]"):
        plot.check(tmp_path / "run.png")
