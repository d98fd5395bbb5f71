from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htcebridge.model import (
    Cap,
    Demand,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Plan,
    Policy,
    ResourcePlan,
    ScheddAnswer,
    Shape,
    Situation,
    Streaks,
    Wait,
)
from htcebridge.plan import planner
from htcebridge.plan.planner import hold
from tests.unit.plan.made import (
    EAGER,
    GPU_NODE,
    HOUR,
    NODE,
    NOW,
    cycles,
    decide,
    groups,
    jobs,
    limits,
    pilot,
    pilots_of,
    plan,
    some_pilots,
    waiting,
)

# --------------------------------------------------------------------------- what any plan keeps to


def alive(pilots: Iterable[Pilot], name: str) -> int:
    return sum(each.job.resource == name and each.phase is not PilotPhase.ENDED for each in pilots)


def pending(pilots: Iterable[Pilot], name: str) -> int:
    return sum(each.job.resource == name and each.phase is PilotPhase.PENDING for each in pilots)


@given(cycles)
def test_no_cap_is_ever_exceeded(cycle: tuple) -> None:
    _, there, caps, _, _, _ = cycle
    for name, decision in plan(*cycle).resources.items():
        cap = caps[name]
        if decision.submit:
            assert alive(there, name) + decision.submit <= cap.max_running
            assert pending(there, name) - len(decision.cancel) + decision.submit <= cap.max_pending
            assert decision.submit <= cap.max_new_per_cycle
            assert all(decision.submit <= each.room for each in cap.caps)


@given(cycles, st.integers(0, 5))
def test_resources_share_a_cap_of_one_key(cycle: tuple, room: int) -> None:
    demand, there, caps, policy, now, surplus = cycle
    shared = {name: replace(cap, caps=(Cap("hour", room, "a cap"),)) for name, cap in caps.items()}
    decided = plan(demand, there, shared, policy, now, surplus)
    assert sum(decision.submit for decision in decided.resources.values()) <= room


@given(cycles, st.integers(0, 3000), st.integers(1, 200), st.integers(1, 200))
def test_resources_of_different_sizes_share_a_cap_in_what_it_counts(cycle: tuple, cores: int, a: int, b: int) -> None:
    demand, there, caps, policy, now, surplus = cycle
    each = {"dcgp": a, "booster": b}
    shared = {name: replace(cap, caps=(Cap("cores", cores, "a cap", each=each[name]),)) for name, cap in caps.items()}
    decided = plan(demand, there, shared, policy, now, surplus)
    assert sum(decision.submit * each[name] for name, decision in decided.resources.items()) <= cores


@given(cycles)
def test_a_resource_submits_and_cancels_at_once_only_what_makes_way_before_a_maintenance(cycle: tuple) -> None:
    _, there, _, _, _, _ = cycle
    late = {each.job.id for each in there if each.wait is Wait.MAINTENANCE}
    for decision in plan(*cycle).resources.values():
        assert not decision.submit or set(decision.cancel) <= late


@given(cycles)
def test_only_pending_pilots_of_the_same_resource_are_cancelled_and_each_once(cycle: tuple) -> None:
    _, there, _, _, _, _ = cycle
    for name, decision in plan(*cycle).resources.items():
        known = {p.job.id for p in there if p.job.resource == name and p.phase is PilotPhase.PENDING}
        assert set(decision.cancel) <= known
        assert len(set(decision.cancel)) == len(decision.cancel)


@given(cycles)
def test_a_silent_schedd_never_leads_to_a_cancel(cycle: tuple) -> None:
    demand, there, caps, policy, now, surplus = cycle
    silent = replace(demand, schedds=(ScheddAnswer("a", 0.1), ScheddAnswer("b", 20.0, "silent")))
    on_demand = {name: replace(cap, constant=False) for name, cap in caps.items()}
    hopeless = {each.job.id for each in there if each.wait in (Wait.NEVER, Wait.BUDGET, Wait.MAINTENANCE)}
    for decision in plan(silent, there, on_demand, policy, now, surplus).resources.values():
        assert set(decision.cancel) <= hopeless
        assert decision.drain == ()


@given(cycles)
def test_the_same_input_gives_the_same_plan_and_stays_as_it_was(cycle: tuple) -> None:
    before = copy.deepcopy(cycle)
    first = plan(*cycle)
    assert plan(*cycle) == first
    assert cycle == before


@given(cycles)
def test_every_resource_has_a_decision_with_a_reason(cycle: tuple) -> None:
    _, _, caps, _, _, _ = cycle
    decided = plan(*cycle)
    assert set(decided.resources) == set(caps)
    assert all(decision.reasons and all(decision.reasons) for decision in decided.resources.values())


@given(cycles)
def test_time_min_never_leaves_the_resources_own_bounds(cycle: tuple) -> None:
    _, _, caps, _, _, _ = cycle
    for name, decision in plan(*cycle).resources.items():
        if decision.time_min_s is not None:
            assert decision.submit
            assert caps[name].min_walltime_s <= decision.time_min_s <= caps[name].walltime_s


def decisions(made: Plan) -> dict[str, ResourcePlan]:
    """Without the words."""
    return {name: replace(decision, reasons=()) for name, decision in made.resources.items()}


@given(cycles)
def test_groups_that_fit_nowhere_or_have_nothing_idle_change_no_decision(cycle: tuple) -> None:
    demand, *rest = cycle
    idle_free = replace(jobs(0, oldest_s=10**6), running=50)
    nowhere = jobs(5000, resources=(), oldest_s=10**6)
    unknown = jobs(5000, resources=("gone",), oldest_s=10**6)
    more = replace(demand, groups=(idle_free, *demand.groups, nowhere, unknown))
    assert decisions(plan(more, *rest)) == decisions(plan(demand, *rest))


# --------------------------------------------------------------------------- packing


def one_by_one(demand: Demand, there: Sequence[Pilot], caps: Mapping[str, Limits]) -> Counter[str]:
    """First-fit decreasing, job by job, in plain arithmetic: new nodes per resource."""
    nodes: list[tuple[str, bool, list[int], int]] = []
    for phase in (PilotPhase.JOINED, PilotPhase.BOOTING, PilotPhase.PENDING):
        for each in there:
            cap = caps.get(each.job.resource)
            if cap is None or each.phase is not phase:
                continue
            if phase is PilotPhase.JOINED:
                if each.startd.accepting:
                    nodes.append((cap.name, False, list(each.startd.free.axes), each.startd.to_die - NOW))
            else:
                life = each.job.ends - NOW if phase is PilotPhase.BOOTING else each.job.time_limit_s
                nodes.append((cap.name, False, list(cap.node.axes), life - (cap.walltime_s - cap.job_life_s)))

    def largest_first(group: Group) -> tuple[float, int, int]:
        shares = [
            ask / have
            for name in group.resources
            if name in caps
            for ask, have in zip(group.shape.axes, caps[name].node.axes, strict=True)
            if have
        ]
        return (max(shares, default=0), group.walltime_s, group.oldest_s)

    opened: Counter[str] = Counter()
    for group in sorted(demand.groups, key=largest_first, reverse=True):
        asks = group.shape.axes
        for _ in range(group.idle):
            for name, _new, free, life in nodes:
                room = all(a <= f or a == 0 for a, f in zip(asks, free, strict=True))
                if room and name in group.resources and group.walltime_s <= life:
                    free[:] = [f - a for a, f in zip(asks, free, strict=True)]
                    break
            else:
                for name in group.resources:
                    cap = caps.get(name)
                    whole = cap and all(a <= h for a, h in zip(asks, cap.node.axes, strict=True))
                    if cap and whole and group.walltime_s <= cap.job_life_s:
                        free = [h - a for a, h in zip(asks, cap.node.axes, strict=True)]
                        nodes.append((name, True, free, cap.job_life_s))
                        opened[name] += 1
                        break
    return opened


# What the negotiator does not give, and what only pilots that are there take, is packed otherwise (test_withheld.py).
small_groups = groups.map(
    lambda group: replace(
        group,
        idle=group.idle % 40,
        shape=replace(group.shape, cpus=max(1, group.shape.cpus)),
        standing=(),
        waited=0,
    )
)


@settings(max_examples=60)
@given(st.lists(small_groups, max_size=4), some_pilots())
def test_packing_groups_asks_for_as_many_nodes_as_packing_every_job_would(
    some: list[Group], there: list[Pilot]
) -> None:
    caps = {"dcgp": limits()}
    demand = waiting(*some)
    there = [replace(each, wait=Wait.NORMAL, chance=1.0, tail_drained=False) for each in there]
    opened = one_by_one(demand, there, caps)
    decided = plan(demand, there, caps, EAGER, NOW)
    assert {name: decision.submit for name, decision in decided.resources.items()} == {
        name: opened[name] for name in caps
    }


@given(st.lists(st.builds(jobs, idle=st.integers(1, 300), cpus=st.integers(1, 112)), min_size=1, max_size=8))
def test_the_pilots_asked_for_have_room_for_every_job(some: list[Group]) -> None:
    submit = decide(waiting(*some)).submit
    for axis in range(4):
        asked = sum(group.idle * group.shape.axes[axis] for group in some)
        assert asked <= submit * NODE.axes[axis]


def only_cpus(cpus: int, idle: int) -> Group:
    return jobs(idle, shape=Shape(cpus=cpus, memory_mb=0))


@given(st.lists(st.builds(only_cpus, cpus=st.integers(1, 20), idle=st.integers(1, 500)), min_size=1, max_size=10))
def test_small_jobs_need_at_most_eleven_ninths_of_the_volume_bound(some: list[Group]) -> None:
    bound = math.ceil(sum(group.idle * group.shape.cpus for group in some) / NODE.cpus)
    assert bound <= decide(waiting(*some)).submit <= 11 / 9 * bound + 1


def fewest_nodes(sizes: Sequence[int], capacity: int) -> int:
    """The optimum, by trying everything."""
    best = len(sizes)

    def place(rest: tuple[int, ...], nodes: tuple[int, ...]) -> None:
        nonlocal best
        if len(nodes) >= best:
            return
        if not rest:
            best = len(nodes)
            return
        for free in set(nodes):
            if rest[0] <= free:
                left = list(nodes)
                left[left.index(free)] -= rest[0]
                place(rest[1:], tuple(left))
        place(rest[1:], (*nodes, capacity - rest[0]))

    place(tuple(sorted(sizes, reverse=True)), ())
    return best


@given(st.lists(st.integers(1, 112), min_size=1, max_size=8))
def test_jobs_of_any_size_need_at_most_eleven_ninths_of_the_optimum(sizes: list[int]) -> None:
    some = [only_cpus(cpus, count) for cpus, count in Counter(sizes).items()]
    best = fewest_nodes(sizes, NODE.cpus)
    assert best <= decide(waiting(*some)).submit <= 11 / 9 * best + 6 / 9


def test_jobs_of_different_axes_share_a_node() -> None:
    big_memory = jobs(1, shape=Shape(cpus=8, memory_mb=400_000))
    many_cpus = jobs(1, shape=Shape(cpus=100, memory_mb=50_000))
    assert decide(waiting(big_memory, many_cpus)).submit == 1


def test_a_thousand_groups_and_a_million_jobs_are_planned_at_once() -> None:
    some = [jobs(1000, cpus=1 + number % 8, walltime_s=HOUR + number) for number in range(1000)]
    cpus = sum(group.idle * group.shape.cpus for group in some)
    assert decide(waiting(*some), pilots_of(PilotPhase.JOINED, 50)).submit >= cpus // NODE.cpus - 50


# --------------------------------------------------------------------------- more demand, more pilots


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 60)), min_size=1, max_size=5),
    st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 60)),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_more_jobs_never_lower_what_is_needed(
    some: list[tuple[int, int]], more: tuple[int, int], joined: int, booting: int, waiting_pilots: int
) -> None:
    # Of sizes that divide each other: with odd ones first-fit decreasing itself may need a node less for a job more.
    there = (
        pilots_of(PilotPhase.JOINED, joined)
        + pilots_of(PilotPhase.BOOTING, booting, first=100)
        + pilots_of(PilotPhase.PENDING, waiting_pilots, first=200)
    )
    few = [only_cpus(cpus, idle) for cpus, idle in some]
    many = [*few, only_cpus(*more)]
    assert decide(waiting(*many), there).needed >= decide(waiting(*few), there).needed


@given(st.integers(1, 112), st.integers(0, 500), st.integers(1, 500), st.floats(0, 1), st.integers(0, 5))
def test_more_jobs_of_one_shape_never_lower_what_is_needed(
    cpus: int, idle: int, more: int, min_fill: float, there: int
) -> None:
    policy = replace(EAGER, min_fill=min_fill)
    pilots = pilots_of(PilotPhase.PENDING, there)
    few = decide(waiting(jobs(idle, cpus)), pilots, policy=policy).needed
    assert decide(waiting(jobs(idle + more, cpus)), pilots, policy=policy).needed >= few


# --------------------------------------------------------------------------- supply


def test_a_free_joined_pilot_is_supply() -> None:
    decision = decide(waiting(jobs(14)), pilots_of(PilotPhase.JOINED, 1))
    assert (decision.submit, decision.needed, decision.running) == (0, 0, 1)


def test_only_the_free_part_of_a_joined_pilot_is_supply() -> None:
    there = [pilot(1, PilotPhase.JOINED, free=Shape(16, 100_000, 0, 100_000), jobs=12)]
    assert decide(waiting(jobs(2)), there).submit == 0
    assert decide(waiting(jobs(3)), there).submit == 1


def test_a_joined_pilot_whose_life_is_too_short_is_no_supply() -> None:
    enough = [pilot(1, PilotPhase.JOINED, to_die=NOW + 4 * HOUR)]
    assert decide(waiting(jobs(1)), enough).submit == 0
    short = [pilot(1, PilotPhase.JOINED, to_die=NOW + 4 * HOUR - 1)]
    assert decide(waiting(jobs(1)), short).submit == 1


def test_a_joined_pilot_that_takes_no_jobs_is_no_supply() -> None:
    assert decide(waiting(jobs(1)), [pilot(1, PilotPhase.JOINED, accepting=False)]).submit == 1


@pytest.mark.parametrize("phase", [PilotPhase.BOOTING, PilotPhase.PENDING])
def test_pilots_on_their_way_count_as_whole_nodes(phase: PilotPhase) -> None:
    there = pilots_of(phase, 2)
    assert decide(waiting(jobs(28)), there).submit == 0
    assert decide(waiting(jobs(29)), there).submit == 1
    assert decide(waiting(jobs(29)), there).needed == 3


def test_a_booting_pilot_near_its_end_is_no_supply() -> None:
    short = pilot(1, PilotPhase.BOOTING)
    short = replace(short, job=replace(short.job, ends=NOW + 4 * HOUR + 539))
    assert decide(waiting(jobs(1)), [short]).submit == 1
    enough = replace(short, job=replace(short.job, ends=NOW + 4 * HOUR + 540))
    assert decide(waiting(jobs(1)), [enough]).submit == 0


def test_a_pending_pilot_that_was_asked_for_less_time_is_no_supply_for_long_jobs() -> None:
    short = pilot(1, PilotPhase.PENDING)
    short = replace(short, job=replace(short.job, time_limit_s=4 * HOUR))
    assert decide(waiting(jobs(1)), [short]).submit == 1


@pytest.mark.parametrize("phase", [PilotPhase.LOST, PilotPhase.LEAVING])
def test_lost_and_leaving_pilots_count_for_the_caps_alone(phase: PilotPhase) -> None:
    there = pilots_of(phase, 2)
    decision = decide(waiting(jobs(28)), there)
    assert (decision.submit, decision.needed, decision.running, decision.booting) == (2, 2, 0, 0)
    assert any("not supply" in reason for reason in decision.reasons)
    assert decide(waiting(jobs(28)), there, limits(max_running=3)).submit == 1


def test_ended_pilots_count_for_nothing() -> None:
    there = pilots_of(PilotPhase.ENDED, 5)
    assert decide(waiting(jobs(28)), there, limits(max_running=2)).submit == 2


def test_one_resources_pilots_are_no_supply_for_another() -> None:
    caps = {"dcgp": limits(), "booster": limits("booster", node=GPU_NODE)}
    gpu_jobs = jobs(4, shape=Shape(8, 16_000, 1, 1000), resources=("booster",))
    decided = plan(waiting(gpu_jobs), pilots_of(PilotPhase.PENDING, 3), caps, EAGER, NOW).resources
    assert (decided["dcgp"].submit, decided["booster"].submit) == (0, 1)


def test_a_job_longer_than_any_pilot_starts_none() -> None:
    assert decide(waiting(jobs(5, walltime_s=12 * HOUR - 539))).submit == 0
    assert decide(waiting(jobs(5, walltime_s=12 * HOUR - 540))).submit == 1


# --------------------------------------------------------------------------- min_fill, max_wait


def test_a_node_that_would_be_nearly_empty_waits() -> None:
    policy = replace(EAGER, min_fill=0.25)
    decision = decide(waiting(jobs(3)), policy=policy)
    assert (decision.submit, decision.needed) == (0, 0)
    assert any("min_fill 25%" in reason and "max_wait 15m" in reason for reason in decision.reasons)
    assert decide(waiting(jobs(4)), policy=policy).submit == 1


def test_a_job_that_has_waited_long_enough_gets_its_node() -> None:
    policy = replace(EAGER, min_fill=0.25)
    assert decide(waiting(jobs(1, oldest_s=899)), policy=policy).submit == 0
    assert decide(waiting(jobs(1, oldest_s=900)), policy=policy).submit == 1


def test_min_fill_holds_back_the_last_node_only() -> None:
    assert decide(waiting(jobs(29)), policy=replace(EAGER, min_fill=0.25)).submit == 2


def test_fill_is_measured_on_the_fullest_axis() -> None:
    memory_hog = jobs(1, shape=Shape(1, 245_000))
    assert decide(waiting(memory_hog), policy=replace(EAGER, min_fill=0.5)).submit == 1


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("change", "there", "left", "name"),
    [
        ({"max_running": 3}, [], 3, "max_running 3"),
        ({"max_running": 3}, pilots_of(PilotPhase.LOST, 2), 1, "max_running 3 (2 there)"),
        ({"max_pending": 2}, [], 2, "max_pending 2"),
        ({"max_pending": 2}, pilots_of(PilotPhase.PENDING, 1), 1, "max_pending 2 (1 there)"),
        ({"max_new_per_cycle": 4}, [], 4, "max_new_per_cycle 4"),
        ({"caps": (Cap("", 2, "max_node_hours 100 (35.0 left)"),)}, [], 2, "max_node_hours 100 (35.0 left)"),
        ({"caps": (Cap("", -1, "a QOS limit"),)}, [], 0, "a QOS limit"),
        ({"caps": (Cap("", 1, "a probe", in_flight=True),)}, pilots_of(PilotPhase.PENDING, 1), 0, "a probe"),
        ({"max_running": 0}, [], 0, "max_running 0"),
    ],
)
def test_each_limit_cuts_and_says_so(change: dict, there: list[Pilot], left: int, name: str) -> None:
    decision = decide(waiting(jobs(140)), there, limits(**change))
    assert decision.submit == left
    wanted = 10 - sum(each.phase is PilotPhase.PENDING for each in there)
    assert any(reason.startswith(f"cut from {wanted} to {left} by ") and name in reason for reason in decision.reasons)


def test_limits_that_cut_one_after_the_other_are_all_named() -> None:
    decision = decide(waiting(jobs(140)), limit=limits(max_running=8, max_pending=5, max_new_per_cycle=2))
    cuts = [reason.split(" (")[0] for reason in decision.reasons if reason.startswith("cut")]
    assert cuts == [
        "cut from 10 to 8 by max_running 8",
        "cut from 8 to 5 by max_pending 5",
        "cut from 5 to 2 by max_new_per_cycle 2",
    ]


@given(cycles)
def test_whatever_is_needed_and_not_there_is_submitted_or_cut_with_a_reason(cycle: tuple) -> None:
    _, there, caps, _, _, _ = cycle
    for name, decision in plan(*cycle).resources.items():
        on_their_way = sum(
            each.job.resource == name and each.phase in (PilotPhase.PENDING, PilotPhase.BOOTING) for each in there
        )
        if decision.needed > on_their_way + decision.submit and not caps[name].constant:
            assert any(reason.startswith("cut from") for reason in decision.reasons)


def test_nothing_to_do_says_so() -> None:
    assert decide(waiting()).reasons == ("nothing waits for this resource",)


# --------------------------------------------------------------------------- time_min


def test_time_min_covers_the_longest_packed_job_and_the_time_until_it_starts() -> None:
    limit = limits(min_walltime_s=2 * HOUR)
    assert decide(waiting(jobs(1, walltime_s=HOUR)), limit=limit).time_min_s == 2 * HOUR
    assert decide(waiting(jobs(1, walltime_s=4 * HOUR)), limit=limit).time_min_s == 4 * HOUR + 540 + 900
    longest = waiting(jobs(1, walltime_s=12 * HOUR - 540), jobs(50, walltime_s=HOUR))
    assert decide(longest, limit=limit).time_min_s == 12 * HOUR


def test_no_min_walltime_means_no_time_min() -> None:
    assert decide(waiting(jobs(1))).time_min_s is None


def test_nothing_submitted_means_no_time_min() -> None:
    assert decide(waiting(), limit=limits(min_walltime_s=2 * HOUR)).time_min_s is None


@given(st.lists(st.builds(jobs, idle=st.integers(1, 50), walltime_s=st.integers(0, 12 * HOUR - 540)), max_size=5))
def test_a_pilot_shrunk_to_time_min_still_holds_every_job_it_is_for(some: list[Group]) -> None:
    decision = decide(waiting(*some), limit=limits(min_walltime_s=2 * HOUR))
    for group in some:
        assert decision.time_min_s - 540 >= group.walltime_s


# --------------------------------------------------------------------------- surplus


def run_cycles(demands: Iterable[Demand], there: Sequence[Pilot], limit: Limits | None = None) -> list[Plan]:
    plans: list[Plan] = []
    surplus: Mapping[str, int] = {}
    for demand in demands:
        plans.append(plan(demand, there, {"dcgp": limit or limits()}, EAGER, NOW, surplus))
        surplus = plans[-1].streaks.surplus
    return plans


def test_surplus_is_cancelled_newest_first_only_after_surplus_cycles() -> None:
    there = pilots_of(PilotPhase.PENDING, 4)
    decisions = [made.resources["dcgp"] for made in run_cycles([waiting(jobs(20))] * 3, there)]
    assert [decision.cancel for decision in decisions] == [(), (), ("4_1", "3_1")]
    assert any("too many for 1 of surplus_cycles 3" in reason for reason in decisions[0].reasons)


def test_tasks_of_one_array_are_cancelled_from_the_last() -> None:
    there = [
        replace(each, job=replace(each.job, id=f"7_{number}", submitted=NOW))
        for number, each in enumerate(pilots_of(PilotPhase.PENDING, 11), start=1)
    ]
    decision = decide(waiting(jobs(14 * 9)), there, surplus={"7_10": 2, "7_11": 2})
    assert decision.cancel == ("7_11", "7_10")


def test_demand_that_comes_back_starts_the_count_again() -> None:
    there = pilots_of(PilotPhase.PENDING, 1)
    nothing, something = waiting(), waiting(jobs(1))
    plans = run_cycles([nothing, nothing, something, nothing, nothing, nothing], there)
    assert [len(made.resources["dcgp"].cancel) for made in plans] == [0, 0, 0, 0, 0, 1]


def test_a_silent_schedd_stops_the_count_without_losing_it() -> None:
    there = pilots_of(PilotPhase.PENDING, 1)
    silent = waiting(complete=False)
    plans = run_cycles([waiting(), waiting(), silent, silent, silent, waiting()], there)
    assert [len(made.resources["dcgp"].cancel) for made in plans] == [0, 0, 0, 0, 0, 1]
    assert any("did not answer" in reason for reason in plans[2].resources["dcgp"].reasons)


def test_a_silent_schedd_still_lets_known_demand_grow() -> None:
    assert decide(waiting(jobs(28), complete=False)).submit == 2


def test_running_pilots_are_never_cancelled() -> None:
    there = pilots_of(PilotPhase.JOINED, 3) + pilots_of(PilotPhase.BOOTING, 3, first=10)
    ids = [each.job.id for each in there]
    decision = decide(waiting(), there, limits(max_running=1), surplus=dict.fromkeys(ids, 99))
    assert decision.cancel == ()


def test_pending_pilots_over_a_lowered_max_running_are_cancelled_though_jobs_wait() -> None:
    there = pilots_of(PilotPhase.JOINED, 2) + pilots_of(PilotPhase.PENDING, 3, first=10)
    full = [replace(each, startd=replace(each.startd, free=Shape(0, 0))) if each.startd else each for each in there]
    decision = decide(waiting(jobs(500)), full, limits(max_running=3), surplus={"11_1": 2, "12_1": 2})
    assert (decision.submit, decision.cancel) == (0, ("12_1", "11_1"))


# --------------------------------------------------------------------------- constant mode


def test_constant_mode_keeps_its_number_whatever_the_demand() -> None:
    limit = limits(constant=True, max_running=10, max_pending=4)
    for demand in (waiting(), waiting(jobs(10_000)), waiting(complete=False)):
        assert decide(demand, limit=limit).submit == 4
        assert decide(demand, pilots_of(PilotPhase.JOINED, 9), limit).submit == 1
        assert decide(demand, pilots_of(PilotPhase.JOINED, 10), limit).submit == 0


def test_constant_mode_counts_pending_pilots_against_max_running() -> None:
    there = pilots_of(PilotPhase.JOINED, 8) + pilots_of(PilotPhase.PENDING, 1, first=20)
    assert decide(waiting(), there, limits(constant=True, max_running=10, max_pending=5)).submit == 1


def test_constant_mode_with_max_running_lowered_cancels_pending_ones_after_a_while() -> None:
    there = pilots_of(PilotPhase.JOINED, 2) + pilots_of(PilotPhase.PENDING, 3, first=10)
    limit = limits(constant=True, max_running=3, max_pending=5)
    plans = run_cycles([waiting(complete=False)] * 3, there, limit)
    assert [made.resources["dcgp"].cancel for made in plans] == [(), (), ("12_1", "11_1")]
    assert all(made.resources["dcgp"].submit == 0 for made in plans)


def test_constant_mode_does_not_open_nodes_for_demand() -> None:
    decision = decide(waiting(jobs(10_000)), limit=limits(constant=True, max_running=0))
    assert decision.submit == 0


def test_constant_mode_asks_for_the_resources_own_time_min() -> None:
    limit = limits(constant=True, max_running=1, min_walltime_s=2 * HOUR)
    assert decide(waiting(jobs(5)), limit=limit).time_min_s == 2 * HOUR


# --------------------------------------------------------------------------- held


def test_a_held_plan_does_nothing_and_says_why() -> None:
    held = hold("squeue: no answer", ["dcgp", "booster"])
    assert held.held == "squeue: no answer"
    for decision in held.resources.values():
        assert (decision.submit, decision.cancel) == (0, ())
        assert decision.reasons == ("held: squeue: no answer",)
    assert set(held.resources) == {"dcgp", "booster"}


# --------------------------------------------------------------------------- which resource

WHOLE, HALF = limits("dcgp"), limits("half", node=Shape(56, 245_000, 0, 1_500_000))


def for_both(idle: int, cpus: int = 8, **changes: object) -> Group:
    return jobs(idle, cpus, **{"resources": ("dcgp", "half"), **changes})


def submitted(demand: Demand, caps: Mapping[str, Limits], policy: Policy = EAGER) -> dict[str, int]:
    return {name: made.submit for name, made in plan(demand, [], caps, policy, NOW).resources.items() if made.submit}


@pytest.mark.parametrize("order", [("dcgp", "half"), ("half", "dcgp")])
def test_a_few_jobs_get_the_node_that_wastes_least_whatever_the_order_of_the_file(order: tuple[str, str]) -> None:
    caps = {name: {"dcgp": WHOLE, "half": HALF}[name] for name in order}
    assert submitted(waiting(for_both(3)), caps) == {"half": 1}


def test_jobs_too_big_for_the_small_node_get_the_big_one_and_the_rest_fills_it() -> None:
    assert submitted(waiting(for_both(1, cpus=100), for_both(1, cpus=8)), {"half": HALF, "dcgp": WHOLE}) == {"dcgp": 1}


def test_what_one_resource_has_no_room_for_goes_to_the_next() -> None:
    caps = {"half": replace(HALF, max_running=2), "dcgp": WHOLE}
    assert submitted(waiting(for_both(7 * 2 + 14 * 3)), caps) == {"half": 2, "dcgp": 3}


def test_cpu_jobs_leave_gpu_nodes_alone_where_another_node_takes_them() -> None:
    caps = {"booster": limits("booster", node=GPU_NODE), "half": HALF}
    assert submitted(waiting(jobs(4, resources=("booster", "half"), shape=Shape(8, 16_000))), caps) == {"half": 1}


def test_where_pilots_are_preempted_often_the_shorter_of_equals_is_taken() -> None:
    short = limits("short", walltime_s=4 * HOUR, job_life_s=4 * HOUR - 540)
    group = jobs(14, resources=("dcgp", "short"), walltime_s=HOUR)
    assert submitted(waiting(group), {"dcgp": WHOLE, "short": short}) == {"dcgp": 1}
    often = {name: replace(cap, preemptions_per_hour=0.2) for name, cap in (("dcgp", WHOLE), ("short", short))}
    assert submitted(waiting(group), often) == {"short": 1}


# --------------------------------------------------------------------------- who may open a node


def test_jobs_that_the_tier1_may_take_open_no_node_before_their_age() -> None:
    policy = replace(EAGER, either_min_age_s=300)
    young, old = jobs(14, either=True, oldest_s=299), jobs(14, either=True, oldest_s=300)
    decision = decide(waiting(young), policy=policy)
    assert decision.submit == 0
    assert any("either_min_age 5m" in reason for reason in decision.reasons)
    assert decide(waiting(old), policy=policy).submit == 1
    assert decide(waiting(replace(young, either=False)), policy=policy).submit == 1


def test_jobs_that_the_tier1_may_take_still_use_the_pilots_that_are_there() -> None:
    there = pilots_of(PilotPhase.PENDING, 1)
    young = waiting(jobs(14, either=True, oldest_s=0))
    decision = decide(young, there, policy=replace(EAGER, either_min_age_s=300, surplus_cycles=1))
    assert decision.cancel == ()


def test_a_vo_at_its_cap_opens_no_node_and_others_do() -> None:
    policy = replace(EAGER, vo_cpus={"cms": 224})
    busy = [pilot(1, PilotPhase.JOINED, free=Shape(0, 0), jobs=14, busy_by_vo={"cms": 112})]
    decision = decide(waiting(jobs(100)), busy, policy=policy)
    assert decision.submit == 1
    assert any("cms" in reason and "max_total_cpus 224" in reason for reason in decision.reasons)
    assert decide(waiting(jobs(100, vo="atlas")), busy, policy=policy).submit == 8


def test_a_vos_cap_holds_however_its_name_is_written() -> None:
    policy = replace(EAGER, vo_cpus={"cms": 224})
    busy = [pilot(1, PilotPhase.JOINED, free=Shape(0, 0), jobs=14, busy_by_vo={"CMS": 112})]
    assert decide(waiting(jobs(100, vo="Cms")), busy, policy=policy).submit == 1


def test_a_node_is_opened_once_it_was_wanted_long_enough() -> None:
    policy = replace(EAGER, demand_cycles=2)
    first = planner.plan(Situation(NOW, waiting(jobs(14)), (), {"dcgp": limits()}, policy))
    assert first.resources["dcgp"].submit == 0
    second = planner.plan(Situation(NOW, waiting(jobs(14)), (), {"dcgp": limits()}, policy, first.streaks))
    assert second.resources["dcgp"].submit == 1


@given(
    st.lists(st.tuples(st.integers(1, 112), st.integers(1, 60)), min_size=1, max_size=6),
    st.integers(1, 112),
)
def test_one_more_job_never_lowers_what_is_needed_by_more_than_rounding(
    some: list[tuple[int, int]], one_more: int
) -> None:
    few = [only_cpus(cpus, idle) for cpus, idle in some]
    before, after = (decide(waiting(*all_)).needed for all_ in (few, [*few, only_cpus(one_more, 1)]))
    assert after >= before - 1


# --------------------------------------------------------------------------- pending pilots


def stuck(wait: Wait, count: int = 2, reason: str = "QOSMaxJobsPerUserLimit") -> list[Pilot]:
    return [
        replace(each, wait=wait, job=replace(each.job, reason=reason)) for each in pilots_of(PilotPhase.PENDING, count)
    ]


@pytest.mark.parametrize("wait", [Wait.LIMIT, Wait.OUTAGE, Wait.HELD])
def test_pilots_that_will_not_start_are_no_supply_are_kept_and_stop_submission(wait: Wait) -> None:
    policy = replace(EAGER, surplus_cycles=1)
    decision = decide(waiting(jobs(14 * 4)), stuck(wait), policy=policy)
    assert (decision.submit, decision.cancel, decision.needed) == (0, (), 4)
    assert any("QOSMaxJobsPerUserLimit" in reason for reason in decision.reasons)


def test_pilots_that_a_maintenance_keeps_waiting_stop_no_shorter_ones_and_make_way() -> None:
    """faults A12: one ReqNodeNotAvail stopped all."""
    late = stuck(Wait.MAINTENANCE, 3, reason="ReqNodeNotAvail, Reserved for maintenance")
    short = limits(walltime_s=6 * HOUR, job_life_s=6 * HOUR - 540, max_pending=4)
    decision = decide(waiting(jobs(14 * 2)), late, short)
    assert (decision.submit, decision.walltime_s, len(decision.cancel)) == (2, 6 * HOUR, 1)
    assert any("too long for the time before a maintenance: cancelled for new ones" in why for why in decision.reasons)
    none_left = decide(waiting(jobs(14 * 4)), [*late, *stuck(Wait.LIMIT, 1)], short)
    assert (none_left.submit, none_left.cancel) == (0, ())


def test_pilots_that_a_maintenance_keeps_waiting_make_way_in_constant_mode_too() -> None:
    late = stuck(Wait.MAINTENANCE, 1)
    kept = decide(waiting(), late, limits(constant=True, max_running=3, max_pending=1))
    assert (kept.submit, kept.cancel) == (1, (late[0].job.id,))


def test_of_surplus_pilots_those_that_a_maintenance_keeps_waiting_go_first() -> None:
    late = stuck(Wait.MAINTENANCE, 1)
    there = [*late, *pilots_of(PilotPhase.PENDING, 1, first=50)]
    decision = decide(waiting(jobs(14)), there, policy=replace(EAGER, surplus_cycles=1))
    assert (decision.submit, decision.cancel) == (0, (late[0].job.id,))


@pytest.mark.parametrize("wait", [Wait.NEVER, Wait.BUDGET])
def test_pilots_that_slurm_will_never_start_are_cancelled_at_once(wait: Wait) -> None:
    decision = decide(waiting(jobs(14 * 4)), stuck(wait, reason="BadConstraints"))
    assert (decision.submit, set(decision.cancel)) == (0, {"1_1", "2_1"})
    assert any("BadConstraints" in reason for reason in decision.reasons)


def test_stuck_pilots_that_nobody_needs_are_cancelled_as_surplus() -> None:
    assert len(decide(waiting(), stuck(Wait.LIMIT), policy=replace(EAGER, surplus_cycles=1)).cancel) == 2


def unlikely(count: int, chance: float = 0.0, resource: str = "dcgp") -> list[Pilot]:
    return [replace(pilot(number, PilotPhase.PENDING, resource), chance=chance) for number in range(100, 100 + count)]


def test_nothing_new_is_opened_while_enough_pilots_pend_that_are_no_unluckier() -> None:
    there = unlikely(4, 0.5)
    decision = decide(waiting(jobs(14 * 4)), there, policy=replace(EAGER, surplus_cycles=1))
    assert (decision.submit, decision.needed, decision.cancel) == (0, 4, ())
    assert any("2 of 4 pending pilots not expected to start" in reason for reason in decision.reasons)
    assert any("a new one would be no luckier" in reason for reason in decision.reasons)
    assert decide(waiting(jobs(14 * 6)), there).submit == 2
    assert decide(waiting(jobs(14 * 6)), there, limits(max_pending=5)).submit == 1


def test_unlikely_pilots_that_are_too_short_for_the_jobs_stand_for_no_new_one() -> None:
    short = [replace(each, job=replace(each.job, time_limit_s=2 * HOUR)) for each in unlikely(1)]
    assert decide(waiting(jobs(1)), short).submit == 1
    assert decide(waiting(jobs(1, walltime_s=HOUR)), short).submit == 0


def test_unlikely_pilots_that_nobody_needs_are_cancelled() -> None:
    assert len(decide(waiting(jobs(1)), unlikely(3), policy=replace(EAGER, surplus_cycles=1)).cancel) == 2


def test_jobs_of_a_queue_that_stands_go_to_another_one_too_and_wait_in_both() -> None:
    both = {name: limits(name) for name in ("dcgp", "zweite")}
    demand = waiting(jobs(14, resources=("dcgp", "zweite")))
    policy = replace(EAGER, surplus_cycles=1)
    decided = plan(demand, unlikely(1), both, policy, NOW).resources
    assert [(each.submit, each.cancel) for each in decided.values()] == [(0, ()), (1, ())]
    there = [*unlikely(1), replace(pilot(7, PilotPhase.PENDING, "zweite"), chance=0.0)]
    decided = plan(demand, there, both, policy, NOW).resources
    assert [(each.submit, each.cancel) for each in decided.values()] == [(0, ()), (0, ())]
    there = [*unlikely(1), pilot(7, PilotPhase.BOOTING, "zweite")]
    assert len(plan(demand, there, both, policy, NOW).resources["dcgp"].cancel) == 1


def test_a_pending_pilot_promises_no_more_than_slurm_may_shrink_it_to() -> None:
    there = pilots_of(PilotPhase.PENDING, 1)
    shrinkable = [replace(each, job=replace(each.job, time_min_s=2 * HOUR)) for each in there]
    assert decide(waiting(jobs(1)), shrinkable).submit == 1
    assert decide(waiting(jobs(1, walltime_s=HOUR)), shrinkable).submit == 0


# --------------------------------------------------------------------------- walltime


def test_nodes_in_quarantine_are_excluded_from_what_is_submitted() -> None:
    assert decide(waiting(jobs(14)), limit=limits(exclude=("lrdn0007",))).exclude == ("lrdn0007",)


# --------------------------------------------------------------------------- the tail

TAIL = replace(EAGER, drain_fill=0.5, surplus_cycles=2)


def working(number: int, busy: int, **changes: object) -> Pilot:
    free = Shape(112 - 8 * busy, 490_000 - 16_000 * busy, 0, 3_000_000)
    return pilot(number, PilotPhase.JOINED, free=free, jobs=busy, **changes)


def tail(there: Sequence[Pilot], demand: Demand | None = None, cycles: int = 2, policy: Policy = TAIL) -> Plan:
    made, streaks = Plan({}), Streaks()
    for _ in range(cycles):
        caps = {"dcgp": limits()}
        made = planner.plan(Situation(NOW, demand or waiting(), tuple(there), caps, policy, streaks))
        streaks = made.streaks
    return made


def test_the_emptiest_pilots_drain_as_far_as_their_work_fits_elsewhere() -> None:
    there = [working(1, busy=3), working(2, busy=2), working(3, busy=12), working(4, busy=13)]
    assert tail(there).resources["dcgp"].drain == ("2_1",)
    assert tail(there, cycles=1).resources["dcgp"].drain == ()


def test_nothing_drains_while_jobs_wait_for_a_node_or_a_schedd_is_silent() -> None:
    there = [working(1, busy=1), working(2, busy=1)]
    assert tail(there).resources["dcgp"].drain == ("1_1",)
    assert tail(there, waiting(jobs(1, cpus=110))).resources["dcgp"].drain == ()
    assert tail(there, waiting(complete=False)).resources["dcgp"].drain == ()
    assert tail(there, policy=replace(TAIL, drain_fill=0)).resources["dcgp"].drain == ()


def test_the_last_pilot_never_drains_and_busy_ones_neither() -> None:
    assert tail([working(1, busy=1)]).resources["dcgp"].drain == ()
    assert tail([working(1, busy=8), working(2, busy=4, to_die=NOW)]).resources["dcgp"].drain == ("2_1",)
    assert tail([working(1, busy=8), working(2, busy=8)]).resources["dcgp"].drain == ()


def test_of_empty_pilots_one_stays_where_no_job_runs_and_none_where_a_working_one_has_room() -> None:
    empty = [working(number, busy=0, to_die=NOW + number * HOUR) for number in (3, 1, 2)]
    assert tail(empty).resources["dcgp"].drain == ("1_1", "2_1")
    assert tail([*empty, working(4, busy=8)]).resources["dcgp"].drain == ("1_1", "2_1", "3_1")
    assert tail([*empty, working(4, busy=14)]).resources["dcgp"].drain == ("1_1", "2_1")
    assert tail(empty[:1]).resources["dcgp"].drain == ()
    assert tail(empty, policy=replace(TAIL, drain_fill=0)).resources["dcgp"].drain == ()


def test_work_does_not_move_to_pilots_that_end_sooner() -> None:
    there = [working(1, busy=2), working(2, busy=8, to_die=NOW + HOUR)]
    assert tail(there).resources["dcgp"].drain == ()


def test_demand_that_returns_takes_drained_pilots_back_before_it_opens_nodes() -> None:
    there = [replace(working(1, busy=4), tail_drained=True), working(2, busy=14)]
    there[0] = replace(there[0], startd=replace(there[0].startd, accepting=False, draining=True))
    decision = tail(there, waiting(jobs(10))).resources["dcgp"]
    assert (decision.undrain, decision.submit) == (("1_1",), 0)
    more = tail(there, waiting(jobs(11))).resources["dcgp"]
    assert (more.undrain, more.submit) == (("1_1",), 1)


def test_what_an_admin_drains_stays_drained() -> None:
    there = [replace(working(1, busy=4), startd=replace(working(1, busy=4).startd, accepting=False, draining=True))]
    decision = tail(there, waiting(jobs(1))).resources["dcgp"]
    assert (decision.undrain, decision.submit) == ((), 1)


@given(cycles)
def test_nobody_is_drained_and_undrained_at_once_and_somebody_stays(cycle: tuple) -> None:
    demand, there, caps, policy, now, _ = cycle
    streaks = Streaks(sparse=dict.fromkeys(caps, 99))
    decided = planner.plan(Situation(now, demand, tuple(there), caps, policy, streaks))
    for name, decision in decided.resources.items():
        assert not set(decision.drain) & set(decision.undrain)
        assert not (decision.drain and decision.submit)
        joined = {
            p.job.id for p in there if p.job.resource == name and p.phase is PilotPhase.JOINED and not p.tail_drained
        }
        assert not decision.drain or set(decision.drain) < joined


# --------------------------------------------------------------------------- the kill switch


@given(cycles)
def test_the_kill_switch_submits_nothing_and_cancels_all_that_is_pending(cycle: tuple) -> None:
    demand, there, caps, policy, now, _ = cycle
    decided = planner.plan(Situation(now, demand, tuple(there), caps, policy, stop="an admin's mail"))
    for name, decision in decided.resources.items():
        assert decision.submit == 0
        assert set(decision.cancel) == {
            p.job.id for p in there if p.job.resource == name and p.phase is PilotPhase.PENDING
        }
        assert decision.reasons[0] == "stopped: an admin's mail"
