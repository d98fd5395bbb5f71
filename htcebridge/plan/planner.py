"""Decides how many pilots each resource gets. Pure: no clock, no I/O, no configuration file.

`places` puts the demand into what is there and into new nodes; here that becomes a decision for each resource, cut
by the limits, each of which leaves its reason. `tail` says which joined pilots could be spared when nothing waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from htcebridge.model import (
    Cap,
    Cut,
    Group,
    Limits,
    Pilot,
    PilotPhase,
    Plan,
    Policy,
    ResourcePlan,
    Situation,
    Streaks,
    Wait,
)
from htcebridge.plan import places, tail
from htcebridge.plan.opening import lower_bound, worth_a_node
from htcebridge.plan.packing import A_FEW_CYCLES, Bin, Stage, age, expected, of_use
from htcebridge.plan.places import Places, Withheld
from htcebridge.units import format_duration, plural


def plan(situation: Situation) -> Plan:
    """Decide one cycle: what to submit, cancel and drain for each resource, and why.

    Where a schedd did not answer the demand is a lower bound: the plan may grow, and neither cancels nor drains.
    """
    if situation.stop is not None:
        return _stopped(situation, situation.stop)
    limits = situation.limits
    own: dict[str, list[Pilot]] = {name: [] for name in limits}
    for pilot in situation.pilots:
        own.get(pilot.job.resource, []).append(pilot)
    found = places.find(situation, {name: _room(own[name], limit) for name, limit in limits.items()})
    shared: dict[str, int] = {}
    for cap in (cap for limit in limits.values() for cap in limit.caps):
        shared[cap.key] = min(cap.room, shared.get(cap.key, cap.room))
    plans: dict[str, ResourcePlan] = {}
    streaks = _Streaks({}, {}, {})
    for name, limit in limits.items():
        case = _Case(limit, own[name], found, situation)
        plans[name] = _constant(case, shared, streaks) if limit.constant else _on_demand(case, shared, streaks)
    promised = _jobs(bin_ for bin_ in found.there if bin_.stage is Stage.JOINED)
    return Plan(
        resources=plans,
        streaks=Streaks(streaks.surplus, streaks.wanted, streaks.sparse, promised),
        alarms=tuple(_alarms(found.withheld)),
    )


def hold(why: str, limits: Iterable[str], pilots: Sequence[Pilot] = ()) -> Plan:
    """The plan of a cycle that could not see enough to decide. The counts are those of the pilots that were seen."""
    resources = {
        name: _counted([pilot for pilot in pilots if pilot.job.resource == name], 0, [f"held: {why}"])
        for name in limits
    }
    return Plan(resources=resources, held=why)


@dataclass(frozen=True)
class _Case:
    """One resource's part of the situation, and of what became of the jobs."""

    limit: Limits
    pilots: Sequence[Pilot]
    places: Places
    situation: Situation

    @property
    def policy(self) -> Policy:
        return self.situation.policy

    @property
    def pending(self) -> list[Pilot]:
        return [pilot for pilot in self.pilots if pilot.phase is PilotPhase.PENDING]

    @cached_property
    def there(self) -> list[Bin]:
        return [bin_ for bin_ in self.places.there if bin_.resource == self.limit.name]

    @cached_property
    def opened(self) -> list[Bin]:
        return [bin_ for bin_ in self.places.opened if bin_.resource == self.limit.name]

    @cached_property
    def withheld(self) -> list[Withheld]:
        return [each for each in self.places.withheld if each.resource == self.limit.name]

    @cached_property
    def without_place(self) -> tuple[str, ...]:
        """Why jobs that name this resource, or none, get no place."""
        return places.sentences(self.places.left, self.limit.name)


@dataclass(frozen=True)
class _Streaks:
    """The next `Streaks`, while they are being counted."""

    surplus: dict[str, int]
    wanted: dict[str, int]
    sparse: dict[str, int]


def _stopped(situation: Situation, why: str) -> Plan:
    plans = {}
    # Those of resources that the configuration does not have any more, too.
    for name in dict.fromkeys([*situation.limits, *(pilot.job.resource for pilot in situation.pilots)]):
        own = [pilot for pilot in situation.pilots if pilot.job.resource == name]
        cancel = tuple(pilot.job.id for pilot in own if pilot.phase is PilotPhase.PENDING)
        reasons = [f"stopped: {why}"]
        if cancel:
            reasons.append(f"{plural(len(cancel), 'pending pilot')} cancelled; running ones drain")
        plans[name] = replace(_counted(own, 0, reasons), cancel=cancel)
    return Plan(resources=plans)


def _on_demand(case: _Case, shared: dict[str, int], streaks: _Streaks) -> ResourcePlan:
    """As many pilots as the packed demand needs, cut by the limits; what is pending too much; who may be drained."""
    limit, policy, name = case.limit, case.policy, case.limit.name
    reasons = [*limit.notes, *_about_supply(case), *case.without_place]
    coming = sum(_used(case.there, stage) for stage in _COMING)
    worth: list[Bin] = []
    for bin_ in case.opened:
        if worth_a_node(bin_, policy.min_fill, policy.max_wait_s):
            worth.append(bin_)
        else:
            reasons.append(_too_empty(bin_, policy))
    wanted = sum(bin_.count for bin_ in worth)
    fewest = lower_bound(worth, limit.node)
    submit, cuts = 0, dict[Cut, int]()
    if wanted:
        reasons.append(
            f"{plural(wanted, 'new node')} for {plural(_jobs(worth), 'more job')}"
            + (f", {fewest} at the least" if fewest < wanted else "")
        )
        streaks.wanted[name] = case.situation.streaks.wanted.get(name, 0) + 1
        not_yet = _not_yet(case, streaks.wanted[name], _jobs(worth))
        if not_yet:
            reasons.append(not_yet)
        else:
            submit, cuts = _cut(wanted, case, shared, reasons)
    if not (coming or case.opened or case.without_place) and not _jobs(case.there):
        reasons.append("nothing waits for this resource")
    decision = replace(_counted(case.pilots, coming + wanted, reasons), lower_bound=fewest, cuts=cuts)
    if submit:
        decision = _with_walltime(replace(decision, submit=submit, exclude=limit.exclude), worth, limit)
        decision = _making_way(decision, case)
    decision = _cancel(decision, case, _empty(case), case.situation.demand.complete, streaks)
    return _with_drains(decision, case, quiet=not (coming or case.opened or case.withheld), streaks=streaks)


def _not_yet(case: _Case, cycles: int, jobs: int) -> str:
    """Why the nodes that are wanted for so many cycles and jobs are not opened in this one; empty if they are.

    What a startd advertises and what its schedd counts are up to a minute apart: a pilot that is full may have been
    given these very jobs.
    """
    if cycles < case.policy.demand_cycles:
        return f"wanted for {cycles} of demand_cycles {case.policy.demand_cycles}: not yet"
    if cycles == 1 and jobs <= case.situation.streaks.promised:
        return "as many jobs fitted into joined pilots a cycle ago and may be starting there: not yet"
    return ""


def _constant(case: _Case, shared: dict[str, int], streaks: _Streaks) -> ResourcePlan:
    """Keep max_running and max_pending whatever the demand: what a manual glidein needs."""
    limit = case.limit
    reasons = [
        *limit.notes,
        f"constant mode: keeps {limit.max_running} pilots, at most {limit.max_pending} of them pending",
    ]
    wanted = max(0, limit.max_running - _alive(case.pilots))
    submit, cuts = _cut(wanted, case, shared, reasons)
    in_flight = sum(pilot.phase in (PilotPhase.PENDING, PilotPhase.BOOTING) for pilot in case.pilots)
    decision = replace(_counted(case.pilots, in_flight + wanted, [*reasons, *case.without_place]), cuts=cuts)
    if submit:
        decision = replace(
            decision,
            submit=submit,
            walltime_s=limit.walltime_s,
            time_min_s=limit.min_walltime_s,
            exclude=limit.exclude,
        )
        decision = _making_way(decision, case)
    return _cancel(decision, case, _with_those_over_the_cap([], case), True, streaks)


def _about_supply(case: _Case) -> Iterable[str]:
    """What is there and on its way, and which pending pilots are no supply."""
    in_joined = _jobs(bin_ for bin_ in case.there if bin_.stage in (Stage.JOINED, Stage.DRAINED))
    if in_joined:
        yield f"{plural(in_joined, 'waiting job')} fit into joined pilots"
    yield from _refused(case)
    yield from _not_given(case)
    booting = _used(case.there, Stage.BOOTING)
    pending = _used(case.there, Stage.PENDING)
    if booting or pending:
        jobs = _jobs(bin_ for bin_ in case.there if bin_.stage in _COMING)
        yield f"{booting} booting and {plural(pending, 'pending pilot')} are on their way for {plural(jobs, 'job')}"
    stuck = Counter((pilot.wait, pilot.job.reason) for pilot in case.pending if pilot.wait is not Wait.NORMAL)
    for (wait, reason), count in stuck.items():
        yield f"{plural(count, 'pending pilot')} not counted as supply: {reason} ({_MEANS[wait]})"
    unlikely = _unlikely(case.pilots)
    if unlikely:
        waiting = plural(len(_normal(case.pilots)), "pending pilot")
        yield f"{unlikely} of {waiting} not expected to start within start_horizon: a new one would be no luckier"


# So many reasons of pilots that would refuse has one resource's plan at most.
_MOST_REFUSALS = 3


def _refused(case: _Case) -> Iterable[str]:
    """Joined pilots that would not take what waits, though a new one would, and why."""
    pilots = Counter(pilot.startd.kind for pilot in case.pilots if pilot.startd and pilot.startd.kind)
    jobs: Counter[tuple[int, str]] = Counter()
    for group in case.situation.demand.groups:
        if group.idle and case.limit.name in group.resources:
            for kind, why in group.refused_by.items():
                if kind in pilots:
                    jobs[pilots[kind], why] += group.idle
    for (count, why), waiting in jobs.most_common(_MOST_REFUSALS):
        yield f"{plural(count, 'joined pilot')} would refuse {plural(waiting, 'waiting job')}: {why}"


def _not_given(case: _Case) -> Iterable[str]:
    """Joined pilots that are no supply because the negotiator gives them to nobody."""
    if case.withheld:
        pilots = sorted({pilot for each in case.withheld for pilot in each.pilots})
        jobs = sum(each.jobs for each in case.withheld)
        few = ", ".join(pilots[:3]) + (", ..." if len(pilots) > 3 else "")
        yield (
            f"{plural(len(pilots), 'joined pilot')} ({few}) could take {plural(jobs, 'waiting job')}, but the "
            f"negotiator has not started them there for {places.cycles(case.withheld)}: no supply for them"
        )


def _alarms(withheld: Iterable[Withheld]) -> Iterable[str]:
    """What has been so for as long again as it took to be believed."""
    lasting = [each for each in withheld if each.cycles >= 2 * A_FEW_CYCLES]
    # Nothing that changes from cycle to cycle: the log says each once.
    for each in sorted(lasting, key=lambda each: -each.jobs)[:_MOST_REFUSALS]:
        group = each.group
        yield (
            f"resource {each.resource}: jobs of {group.owner} ({group.vo}) would fit into joined pilots, and the "
            f"negotiator has not started them there for {2 * A_FEW_CYCLES} of its cycles or more; {_suspects(group)}"
        )


def _suspects(group: Group) -> str:
    """What is to be looked at, by what the schedds noted of the negotiator's answers."""
    if group.rejected:
        return (
            "it says that nothing free takes them: look at the pilots' START and the jobs' Requirements "
            "(htcebridge explain; condor_q -better-analyze)"
        )
    if group.refused:
        return (
            "it turned them away for a limit: look at the VO's quota, the jobs' concurrency limits, the owner's "
            "priority and ceiling (condor_userprio -all -allusers)"
        )
    return (
        "it has not said why: look at the pilots' START and the jobs' Requirements (htcebridge explain), the VO's "
        "quota, the jobs' concurrency limits, the owner's priority and ceiling (condor_userprio -all -allusers), and "
        "at MAX_JOBS_RUNNING of the schedd"
    )


_COMING = (Stage.BOOTING, Stage.PENDING)

# A pilot of exactly a job's length takes it in its first minute only, and a negotiation takes its time.
_SLACK_S = 900

_MEANS = {
    Wait.LIMIT: "a limit is reached: nothing more is submitted until one starts",
    Wait.BUDGET: "the budget is spent: cancelled",
    Wait.NEVER: "Slurm will never start it: cancelled",
    Wait.OUTAGE: "nodes or partition are not available: nothing more is submitted meanwhile",
    Wait.MAINTENANCE: "a maintenance begins before it would end: shorter ones are submitted",
    Wait.HELD: "somebody holds it: nothing more is submitted until it is released",
}


def _room(pilots: Sequence[Pilot], limit: Limits) -> int:
    """How many pilots may be added, shared caps not yet divided."""
    return min(cap.pilots for cap in _caps(pilots, limit))


def _caps(pilots: Sequence[Pilot], limit: Limits) -> list[Cap]:
    """Every limit on how many may be submitted now."""
    alive = _alive(pilots)
    pending = [pilot for pilot in pilots if pilot.phase is PilotPhase.PENDING]
    # Those that a maintenance keeps waiting make way for shorter ones (`_making_way`).
    lasting = [pilot for pilot in pending if pilot.wait is not Wait.MAINTENANCE]
    stuck = sorted({pilot.job.reason for pilot in lasting if pilot.wait is not Wait.NORMAL})
    caps = [
        Cap("", limit.max_running - alive, f"max_running {limit.max_running} ({alive} there)", kind=Cut.MAX_RUNNING),
        Cap(
            "",
            limit.max_pending - len(lasting),
            f"max_pending {limit.max_pending} ({len(lasting)} there)",
            kind=Cut.MAX_PENDING,
        ),
        Cap("", limit.max_new_per_cycle, f"max_new_per_cycle {limit.max_new_per_cycle}", kind=Cut.PER_CYCLE),
        *limit.caps,
    ]
    booting = sum(pilot.phase is PilotPhase.BOOTING for pilot in pilots)
    caps = [replace(cap, room=cap.room - len(lasting) - booting) if cap.in_flight else cap for cap in caps]
    if stuck:
        caps.append(Cap("", 0, f"pending pilots that wait for {', '.join(stuck)}", kind=Cut.STUCK))
    return caps


def _cut(wanted: int, case: _Case, shared: dict[str, int], reasons: list[str]) -> tuple[int, dict[Cut, int]]:
    """What the limits leave of `wanted`, and what each kind of them took; each that cuts adds its reason. Shared caps
    are used up."""
    cuts: dict[Cut, int] = {}
    for cap in _caps(case.pilots, case.limit):
        room = replace(cap, room=min(cap.room, shared[cap.key])).pilots if cap.key else cap.pilots
        if wanted > room:
            reasons.append(f"cut from {wanted} to {room} by {cap.why}")
            cuts[cap.kind] = cuts.get(cap.kind, 0) + wanted - room
            wanted = room
    for key, each in {cap.key: cap.each for cap in case.limit.caps if cap.key}.items():
        shared[key] -= wanted * each
    return wanted, cuts


def _with_walltime(decision: ResourcePlan, opened: Sequence[Bin], limit: Limits) -> ResourcePlan:
    """--time and --time-min. Slurm may shrink a pilot to fit a hole, but not below the jobs that it is started for.

    --time is not lowered where pilots are preempted often: a preemption loses as much work whatever walltime is left,
    and shorter pilots boot more often and fit fewer jobs (benchmarks/simulation.py: 1 to 5 points worse).
    """
    longest = max((bin_.longest_s for bin_ in opened), default=0)
    least = None
    if limit.min_walltime_s is not None:
        least = min(limit.walltime_s, max(limit.min_walltime_s, longest + limit.overhead_s + _SLACK_S))
    return replace(decision, walltime_s=limit.walltime_s, time_min_s=least)


def _making_way(decision: ResourcePlan, case: _Case) -> ResourcePlan:
    """Cancel pending pilots that a maintenance keeps waiting, as far as new, shorter ones need their places."""
    late = [pilot.job.id for pilot in case.pending if pilot.wait is Wait.MAINTENANCE]
    cancel = tuple(late[: max(0, len(case.pending) + decision.submit - case.limit.max_pending)])
    if not cancel:
        return decision
    note = f"{plural(len(cancel), 'pending pilot')} too long for the time before a maintenance: cancelled for new ones"
    return replace(decision, cancel=cancel, reasons=(*decision.reasons, note))


def _empty(case: _Case) -> list[Pilot]:
    """The pending pilots that the packing left empty, newest first; and so many more as are over max_running."""
    served = {pilot for bin_ in case.there if bin_.jobs for pilot in bin_.pilots}
    if expected(case.pending) < len(case.pending):
        # Its jobs may have gone to another resource's queue: until they run somewhere it stays in this one.
        served |= of_use(case.places.unplaced, case.pending, case.limit)
    return _with_those_over_the_cap([pilot for pilot in _newest_first(case) if pilot.job.id not in served], case)


def _with_those_over_the_cap(empty: Sequence[Pilot], case: _Case) -> list[Pilot]:
    """These, and as many others as there are pilots too many since an admin lowered max_running."""
    over = max(0, _alive(case.pilots) - case.limit.max_running - len(empty))
    ids = {pilot.job.id for pilot in empty}
    return [*empty, *[pilot for pilot in _newest_first(case) if pilot.job.id not in ids][:over]]


def _newest_first(case: _Case) -> list[Pilot]:
    """And those that a maintenance keeps waiting before all others."""
    return sorted(case.pending, key=lambda pilot: (pilot.wait is Wait.MAINTENANCE, age(pilot)), reverse=True)


def _cancel(
    decision: ResourcePlan, case: _Case, empty: Sequence[Pilot], complete: bool, streaks: _Streaks
) -> ResourcePlan:
    """Cancel what Slurm will never start, and each pending pilot that itself was not needed for surplus_cycles."""
    most, before = case.policy.surplus_cycles, case.situation.streaks.surplus
    cycles = {pilot.job.id: before.get(pilot.job.id, 0) + complete for pilot in empty}
    streaks.surplus.update({pilot: count for pilot, count in cycles.items() if count})
    hopeless = [pilot for pilot in case.pending if pilot.wait in (Wait.NEVER, Wait.BUDGET)]
    if hopeless:
        return replace(decision, cancel=(*decision.cancel, *(pilot.job.id for pilot in hopeless)))
    if not empty:
        return decision
    cancel: tuple[str, ...] = ()
    said = f"{plural(len(empty), 'pending pilot')} too many"
    if not complete:
        said += ", but a schedd did not answer: nothing is cancelled"
    elif decision.submit:
        said += " for these jobs: none is cancelled while others are submitted"
    else:
        cancel = tuple(pilot for pilot, count in cycles.items() if count >= most)
        longest = max(cycles.values())
        said += (
            f": {len(cancel)} for {most} cycles, cancelled" if cancel else f" for {longest} of surplus_cycles {most}"
        )
    return replace(decision, cancel=(*decision.cancel, *cancel), reasons=(*decision.reasons, said))


def _with_drains(decision: ResourcePlan, case: _Case, quiet: bool, streaks: _Streaks) -> ResourcePlan:
    """Take the drain mark off pilots that the demand needs again; mark those that could be spared, once that lasts."""
    name, policy = case.limit.name, case.policy
    back = tuple(pilot for bin_ in case.there if bin_.stage is Stage.DRAINED and bin_.jobs for pilot in bin_.pilots)
    if back:
        note = f"{plural(len(back), 'drained pilot')} taken back for jobs that wait"
        return replace(decision, undrain=back, reasons=(*decision.reasons, note))
    if not quiet or not policy.drain_fill or not case.situation.demand.complete:
        return decision
    spare = tail.spare(case.pilots, case.there, policy.drain_fill)
    if not spare:
        return decision
    cycles = case.situation.streaks.sparse.get(name, 0) + 1
    if cycles < policy.surplus_cycles:
        streaks.sparse[name] = cycles
        return decision
    note = f"{plural(len(spare), 'joined pilot')} less than {policy.drain_fill:.0%} used, work fits elsewhere: drained"
    return replace(decision, drain=spare, reasons=(*decision.reasons, note))


def _too_empty(bin_: Bin, policy: Policy) -> str:
    return (
        f"{plural(bin_.jobs * bin_.count, 'job')} would fill {bin_.fill:.0%} of a node, under min_fill "
        f"{policy.min_fill:.0%}, and the oldest has waited {format_duration(bin_.oldest_s)} of max_wait "
        f"{format_duration(policy.max_wait_s)}: no node for them yet"
    )


def _counted(pilots: Sequence[Pilot], needed: int, reasons: Sequence[str]) -> ResourcePlan:
    phases = Counter(pilot.phase for pilot in pilots)
    lost, leaving = phases[PilotPhase.LOST], phases[PilotPhase.LEAVING]
    notes = list(reasons)
    if lost:
        notes.append(f"{plural(lost, 'pilot')} running, not joined within boot_timeout: not supply")
    if leaving:
        notes.append(f"{plural(leaving, 'pilot')} leaving their node: not supply")
    return ResourcePlan(
        needed=needed,
        running=phases[PilotPhase.JOINED],
        booting=phases[PilotPhase.BOOTING],
        pending=phases[PilotPhase.PENDING],
        reasons=tuple(notes),
    )


def _alive(pilots: Iterable[Pilot]) -> int:
    return sum(pilot.phase is not PilotPhase.ENDED for pilot in pilots)


def _normal(pilots: Iterable[Pilot]) -> list[Pilot]:
    return [pilot for pilot in pilots if pilot.phase is PilotPhase.PENDING and pilot.wait is Wait.NORMAL]


def _unlikely(pilots: Iterable[Pilot]) -> int:
    """Pending pilots that are not expected to start within the horizon."""
    waiting = _normal(pilots)
    return len(waiting) - expected(waiting)


def _used(bins: Iterable[Bin], stage: Stage) -> int:
    return sum(bin_.count for bin_ in bins if bin_.stage is stage and bin_.jobs)


def _jobs(bins: Iterable[Bin]) -> int:
    return sum(bin_.jobs * bin_.count for bin_ in bins)
