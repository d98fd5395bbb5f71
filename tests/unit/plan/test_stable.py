"""What is submitted stays wanted, and only what serves nobody is cancelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Policy, Shape, Situation, Streaks, Wait
from htcebridge.plan import planner
from htcebridge.slurm.waits import chance, in_turn
from tests.unit.plan.made import EAGER, HOUR, NOW, decide, jobs, limits, pilot, pilots_of, plan, waiting

AT_ONCE = replace(EAGER, surplus_cycles=1)


def asked_for(each: Pilot, walltime_s: int, **changes: object) -> Pilot:
    return replace(each, job=replace(each.job, time_limit_s=walltime_s), **changes)


# --------------------------------------------------------------------------- which pilot is cancelled


def test_the_old_short_pilot_that_serves_nobody_goes_and_the_new_long_one_stays() -> None:
    short, long = asked_for(pilot(1, PilotPhase.PENDING), 2 * HOUR), pilot(2, PilotPhase.PENDING)
    assert decide(waiting(jobs(14)), [short, long], policy=AT_ONCE).cancel == ("1_1",)


def test_the_short_pilot_takes_the_short_jobs_so_that_the_long_one_is_free_for_the_long() -> None:
    short, long = asked_for(pilot(2, PilotPhase.PENDING), 2 * HOUR), pilot(1, PilotPhase.PENDING)
    demand = waiting(jobs(1, cpus=100, walltime_s=HOUR), jobs(1, cpus=90))
    decision = decide(demand, [short, long], policy=AT_ONCE)
    assert (decision.submit, decision.cancel) == (0, ())


def test_a_pilot_is_cancelled_after_it_was_empty_itself_for_surplus_cycles() -> None:
    there = [asked_for(pilot(1, PilotPhase.PENDING), 2 * HOUR), pilot(2, PilotPhase.PENDING)]
    long, short = waiting(jobs(14)), waiting(jobs(14, walltime_s=HOUR))
    cancelled, streaks = [], Streaks()
    for demand in (long, long, short, long, long, long):
        made = planner.plan(Situation(NOW, demand, tuple(there), {"dcgp": limits()}, EAGER, streaks))
        streaks = made.streaks
        cancelled.append(made.resources["dcgp"].cancel)
    assert cancelled == [(), (), (), (), (), ("1_1",)]


def test_a_count_by_resource_as_it_was_kept_before_cancels_nothing() -> None:
    made = plan(waiting(), pilots_of(PilotPhase.PENDING, 1), {"dcgp": limits()}, EAGER, NOW, {"dcgp": 99})
    assert made.resources["dcgp"].cancel == ()
    assert made.streaks.surplus == {"1_1": 1}


def test_a_useless_pilot_is_counted_while_others_are_submitted_and_cancelled_afterwards() -> None:
    there = [asked_for(pilot(1, PilotPhase.PENDING), 2 * HOUR)]
    made = plan(waiting(jobs(14)), there, {"dcgp": limits()}, AT_ONCE, NOW)
    assert (made.resources["dcgp"].submit, made.resources["dcgp"].cancel) == (1, ())
    assert made.streaks.surplus == {"1_1": 1}


def test_a_likely_pilot_is_kept_before_an_equal_one_that_hardly_starts() -> None:
    there = [replace(pilot(1, PilotPhase.PENDING), chance=0.0), pilot(2, PilotPhase.PENDING)]
    assert decide(waiting(jobs(14)), there, policy=AT_ONCE).cancel == ("1_1",)


def test_jobs_of_a_slow_queue_use_what_pends_elsewhere_before_a_node_is_opened_there() -> None:
    caps = {name: limits(name) for name in ("dcgp", "zweite")}
    demand = waiting(jobs(28, resources=("dcgp", "zweite")))
    slow = [replace(pilot(number, PilotPhase.PENDING), chance=0.0) for number in (1, 2)]
    moving = [replace(pilot(number, PilotPhase.PENDING, "zweite"), chance=0.5) for number in (3, 4)]
    decided = plan(demand, [*slow, *moving], caps, AT_ONCE, NOW).resources
    assert [(each.submit, each.cancel) for each in decided.values()] == [(0, ()), (0, ())]
    assert plan(demand, [*slow, *moving[:1]], caps, AT_ONCE, NOW).resources["zweite"].submit == 1


# --------------------------------------------------------------------------- a job more

# Of sizes that divide each other: with odd ones first-fit decreasing itself may need a node less for a job more.
one_size = st.builds(
    lambda cpus, idle, hours: jobs(idle, shape=Shape(cpus, 0), walltime_s=hours * HOUR),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 60),
    st.sampled_from([1, 4, 11]),
)
pending_pilots = st.lists(
    st.tuples(st.sampled_from([2, 5, 12]), st.floats(0, 1), st.sampled_from([Wait.NORMAL, Wait.NORMAL, Wait.LIMIT])),
    max_size=5,
).map(
    lambda drawn: [
        asked_for(pilot(number, PilotPhase.PENDING), hours * HOUR, chance=likely, wait=wait)
        for number, (hours, likely, wait) in enumerate(drawn, start=100)
    ]
)


@given(st.lists(one_size, max_size=5), one_size, st.integers(0, 2), st.integers(0, 2), pending_pilots)
def test_more_jobs_never_cancel_a_pilot_or_submit_fewer(
    some: list[Group], more: Group, joined: int, booting: int, pending: list[Pilot]
) -> None:
    there = pilots_of(PilotPhase.JOINED, joined) + pilots_of(PilotPhase.BOOTING, booting, first=50) + pending
    few, many = (decide(waiting(*groups), there, policy=AT_ONCE) for groups in (some, [*some, more]))
    assert set(many.cancel) <= set(few.cancel)
    assert many.submit >= few.submit


# --------------------------------------------------------------------------- a queue that stands


class Standing:
    """A Slurm that starts nothing, and a controller beside it that remembers."""

    def __init__(self, groups: Sequence[Group], caps: Mapping[str, Limits], policy: Policy, waits: Sequence[int]):
        self._groups, self._caps, self._policy, self._waits = groups, caps, policy, waits
        self._streaks = Streaks()
        self._pilots: list[Pilot] = []
        self.submitted, self.cancelled = Counter[str](), Counter[str]()
        self._number = 0

    def cycle(self, now: int) -> None:
        demand = waiting(*(replace(group, oldest_s=group.oldest_s + now - NOW) for group in self._groups))
        known = [
            replace(each, chance=chance(now - (each.job.submitted or 0), None, self._waits, HOUR))
            for each in self._pilots
        ]
        made = planner.plan(Situation(now, demand, in_turn(known, now, HOUR), self._caps, self._policy, self._streaks))
        self._streaks = made.streaks
        for name, decision in made.resources.items():
            self.cancelled[name] += len(decision.cancel)
            self.submitted[name] += decision.submit
            self._pilots = [each for each in self._pilots if each.job.id not in decision.cancel]
            for _ in range(decision.submit):
                self._number += 1
                each = pilot(self._number, PilotPhase.PENDING, name)
                self._pilots.append(replace(each, job=replace(each.job, submitted=now, time_min_s=decision.time_min_s)))


standing = st.lists(
    st.builds(
        lambda cpus, idle, hours, age: jobs(idle, cpus, walltime_s=hours * HOUR, oldest_s=age),
        st.integers(1, 112),
        st.integers(1, 60),
        st.sampled_from([1, 3, 6, 11]),
        st.sampled_from([0, 600, 3600]),
    ),
    min_size=1,
    max_size=4,
)


worlds = st.tuples(
    standing,
    st.sampled_from([0.0, 0.25]),
    st.sampled_from([None, 2 * HOUR]),
    st.sampled_from([3, 10**6]),
    st.lists(st.integers(60, 7200), max_size=30),
)


def a_day(names: tuple[str, ...], world: tuple) -> tuple[Standing, int, int]:
    """The day, the nodes that the demand needs, and what it would need if each group had nodes of its own."""
    some, min_fill, min_walltime_s, most, waits = world
    caps = {name: limits(name, min_walltime_s=min_walltime_s, max_new_per_cycle=most) for name in names}
    groups = [replace(group, resources=names) for group in some]
    day = Standing(groups, caps, replace(EAGER, min_fill=min_fill), waits)
    for now in range(NOW, NOW + 24 * HOUR, 1200):
        day.cycle(now)
    return day, decide(waiting(*some)).submit, sum(decide(waiting(group)).submit for group in some)


@settings(max_examples=15)
@given(worlds)
def test_a_day_in_which_slurm_starts_nothing_submits_what_is_needed_once_and_cancels_nothing(world: tuple) -> None:
    day, together, each_alone = a_day(("dcgp",), world)
    assert day.cancelled.total() == 0
    # A node that was opened for short jobs alone promises no more than --time-min to the long ones that follow.
    assert together <= day.submitted["dcgp"] <= (together if world[2] is None else each_alone)


@settings(max_examples=15)
@given(worlds)
def test_of_two_queues_that_stand_each_gets_what_is_needed_once_and_its_surplus_goes_once(world: tuple) -> None:
    day, together, each_alone = a_day(("dcgp", "zweite"), world)
    assert (day.submitted - day.cancelled).total() >= together
    assert all(count <= each_alone for count in (day.submitted - day.cancelled).values())
    assert all(count <= each_alone for count in day.cancelled.values())
