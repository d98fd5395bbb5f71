"""Decides how many pilots each resource gets. Pure: no clock, no I/O, no configuration file.

`packing` puts the demand into what is there and into new nodes; here that becomes a decision for each resource, cut
by the limits, each of which leaves its reason. `tail` says which joined pilots could be spared when nothing waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
from htcebridge.plan import tail
from htcebridge.plan.packing import (
    Bin,
    Stage,
    by_size,
    expected,
    fill,
    lower_bound,
    of_use,
    open_nodes,
    stood_for,
    supply,
    worth_a_node,
)
from htcebridge.units import format_duration, plural


def plan(situation: Situation) -> Plan:
    """Decide one cycle: what to submit, cancel and drain for each resource, and why.

    Where a schedd did not answer the demand is a lower bound: the plan may grow, and neither cancels nor drains.
    """
    if situation.stop is not None:
        return _stopped(situation, situation.stop)
    limits, policy = situation.limits, situation.policy
    own = {name: [pilot for pilot in situation.pilots if pilot.job.resource == name] for name in limits}
    groups = by_size(situation.demand.groups, limits)
    nodes = supply(situation.pilots, limits, situation.now)
    filled = fill(groups, nodes)
    soon = fill(groups, (bin_ for bin_ in nodes if bin_.stage is not Stage.PENDING))
    waiting, notes = _may_open(filled.left, filled.placed, situation)
    room = {name: _room(own[name], limit) for name, limit in limits.items()}
    slow = {name for name in limits if _unlikely(own[name]) and not expected(_normal(own[name]))}
    opened = open_nodes(waiting, limits, room, policy.min_fill, policy.max_wait_s, slow) if waiting else ()
    shared: dict[str, int] = {}
    for cap in (cap for limit in limits.values() for cap in limit.caps):
        shared[cap.key] = min(cap.room, shared.get(cap.key, cap.room))
    plans: dict[str, ResourcePlan] = {}
    streaks = _Streaks({}, {}, {})
    for name, limit in limits.items():
        case = _Case(
            limit=limit,
            pilots=own[name],
            there=[bin_ for bin_ in filled.bins if bin_.resource == name],
            opened=[bin_ for bin_ in opened if bin_.resource == name],
            unplaced=soon.left,
            notes=notes.get(name, ()),
            situation=situation,
        )
        plans[name] = _constant(case, shared, streaks) if limit.constant else _on_demand(case, shared, streaks)
    return Plan(resources=plans, streaks=Streaks(streaks.surplus, streaks.wanted, streaks.sparse))


def hold(why: str, limits: Iterable[str], pilots: Sequence[Pilot] = ()) -> Plan:
    """The plan of a cycle that could not see enough to decide. The counts are those of the pilots that were seen."""
    resources = {
        name: _counted([pilot for pilot in pilots if pilot.job.resource == name], 0, [f"held: {why}"])
        for name in limits
    }
    return Plan(resources=resources, held=why)


@dataclass(frozen=True)
class _Case:
    """One resource's part of the situation."""

    limit: Limits
    pilots: Sequence[Pilot]
    there: Sequence[Bin]
    opened: Sequence[Bin]
    unplaced: Sequence[Group]
    """The jobs that no joined or booting pilot takes."""
    notes: tuple[str, ...]
    situation: Situation

    @property
    def policy(self) -> Policy:
        return self.situation.policy

    @property
    def pending(self) -> list[Pilot]:
        return [pilot for pilot in self.pilots if pilot.phase is PilotPhase.PENDING]


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


def _may_open(
    left: Sequence[Group], placed: Sequence[Group], situation: Situation
) -> tuple[list[Group], dict[str, tuple[str, ...]]]:
    """The jobs without a place that may open nodes, and the reasons for the others, by resource."""
    policy = situation.policy
    reasons: dict[str, list[str]] = {}
    cpus = Counter[str]()
    for pilot in situation.pilots:
        if pilot.startd:
            for vo, busy in pilot.startd.busy_by_vo.items():
                cpus[vo.lower()] += busy
    for group in placed:
        cpus[group.vo.lower()] += group.idle * group.shape.cpus
    may: list[Group] = []
    refused: Counter[tuple[str, str]] = Counter()
    for group in left:
        jobs = group.idle
        if jobs and group.either and group.oldest_s < policy.either_min_age_s:
            why = (
                "that the Tier-1 may take too: the oldest has waited "
                f"{format_duration(group.oldest_s)} of either_min_age {format_duration(policy.either_min_age_s)}"
            )
            refused.update({(name, why): jobs for name in group.resources})
            continue
        if jobs and group.either and policy.either_only_rejected and not group.rejected:
            why = "that the Tier-1 may take too: the negotiator has not rejected them lately (either_only_rejected)"
            refused.update({(name, why): jobs for name in group.resources})
            continue
        vo = group.vo.lower()
        cap = policy.vo_cpus.get(vo)
        if jobs and cap is not None:
            allowed = min(jobs, max(0, cap - cpus[vo]) // max(1, group.shape.cpus))
            if allowed < jobs:
                why = f"of {group.vo} open no node: it has {cpus[vo]} of max_total_cpus {cap}"
                refused.update({(name, why): jobs - allowed for name in group.resources})
            jobs = allowed
            cpus[vo] += jobs * group.shape.cpus
        if jobs:
            may.append(replace(group, idle=jobs))
    for (name, why), jobs in refused.items():
        reasons.setdefault(name, []).append(f"{plural(jobs, 'job')} {why}")
    return may, {name: tuple(whys) for name, whys in reasons.items()}


def _on_demand(case: _Case, shared: dict[str, int], streaks: _Streaks) -> ResourcePlan:
    """As many pilots as the packed demand needs, cut by the limits; what is pending too much; who may be drained."""
    limit, policy, name = case.limit, case.policy, case.limit.name
    reasons = [*limit.notes, *_about_supply(case), *case.notes]
    coming = sum(_used(case.there, stage) for stage in (Stage.BOOTING, Stage.PENDING))
    worth = [bin_ for bin_ in case.opened if worth_a_node(bin_, policy.min_fill, policy.max_wait_s)]
    reasons += [_too_empty(bin_, policy) for bin_ in case.opened if bin_ not in worth]
    wanted = sum(bin_.count for bin_ in worth)
    fewest = lower_bound(worth, limit.node)
    if wanted:
        reasons.append(
            f"{plural(wanted, 'new node')} for {plural(_jobs(worth), 'more job')}"
            + (f", {fewest} at the least" if fewest < wanted else "")
        )
        streaks.wanted[name] = case.situation.streaks.wanted.get(name, 0) + 1
    cycles = streaks.wanted.get(name, 0)
    cuts: dict[Cut, int] = {}
    if wanted and cycles < policy.demand_cycles:
        reasons.append(f"wanted for {cycles} of demand_cycles {policy.demand_cycles}: not yet")
        submit = 0
    else:
        submit, cuts = _cut(_without_stood_for(worth, case, reasons), case, shared, reasons)
    if not (coming or wanted or case.opened or case.notes) and not _jobs(case.there):
        reasons.append("nothing waits for this resource")
    decision = replace(_counted(case.pilots, coming + wanted, reasons), lower_bound=fewest, cuts=cuts)
    if submit:
        decision = _with_walltime(replace(decision, submit=submit, exclude=limit.exclude), worth, limit)
        decision = _making_way(decision, case)
    useful = _used(case.there, Stage.PENDING) + wanted
    if _unlikely(case.pilots):
        # Its jobs may have gone to another resource's queue: until they run somewhere it stays in this one.
        useful = max(useful, of_use([g for g in case.unplaced if name in g.resources], case.pending, limit))
    excess = max(len(case.pending) - useful, _over_the_cap(case))
    decision = _cancel(decision, case, excess, case.situation.demand.complete, streaks)
    return _with_drains(decision, case, quiet=not (coming or case.opened), streaks=streaks)


def _without_stood_for(worth: Sequence[Bin], case: _Case, reasons: list[str]) -> int:
    """The new nodes that are to be submitted: not those for which equal pilots pend that hardly start in time."""
    wanted = sum(bin_.count for bin_ in worth)
    there = stood_for(worth, case.pending, case.limit)
    if there:
        reasons.append(
            f"{there} of {plural(wanted, 'new node')} not submitted: as many pending pilots are not expected to start "
            "in time, and a new one would be no luckier"
        )
    return wanted - there


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
    decision = replace(_counted(case.pilots, in_flight + wanted, reasons), cuts=cuts)
    if submit:
        decision = replace(
            decision,
            submit=submit,
            walltime_s=limit.walltime_s,
            time_min_s=limit.min_walltime_s,
            exclude=limit.exclude,
        )
        decision = _making_way(decision, case)
    return _cancel(decision, case, _over_the_cap(case), True, streaks)


def _about_supply(case: _Case) -> Iterable[str]:
    """What is there and on its way, and which pending pilots are no supply."""
    in_joined = _jobs(bin_ for bin_ in case.there if bin_.stage in (Stage.JOINED, Stage.DRAINED))
    if in_joined:
        yield f"{plural(in_joined, 'waiting job')} fit into joined pilots"
    booting, pending = (_used(case.there, stage) for stage in (Stage.BOOTING, Stage.PENDING))
    if booting or pending:
        jobs = _jobs(bin_ for bin_ in case.there if bin_.stage in (Stage.BOOTING, Stage.PENDING))
        yield f"{booting} booting and {plural(pending, 'pending pilot')} are on their way for {plural(jobs, 'job')}"
    stuck = Counter((pilot.wait, pilot.job.reason) for pilot in case.pending if pilot.wait is not Wait.NORMAL)
    for (wait, reason), count in stuck.items():
        yield f"{plural(count, 'pending pilot')} not counted as supply: {reason} ({_MEANS[wait]})"
    unlikely = _unlikely(case.pilots)
    if unlikely:
        waiting = plural(len(_normal(case.pilots)), "pending pilot")
        yield f"{unlikely} of {waiting} not expected to start within start_horizon"


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


def _cancel(decision: ResourcePlan, case: _Case, excess: int, complete: bool, streaks: _Streaks) -> ResourcePlan:
    """Cancel what Slurm will never start, and `excess` pending pilots once that has lasted, newest first.

    Which pending pilot serves which job is nobody's business: their number decides, not the packing's choice.
    """
    name, policy = case.limit.name, case.policy
    hopeless = [pilot for pilot in case.pending if pilot.wait in (Wait.NEVER, Wait.BUDGET)]
    if hopeless:
        return replace(decision, cancel=(*decision.cancel, *(pilot.job.id for pilot in hopeless)))
    excess = min(len(case.pending), excess)
    if excess <= 0 or decision.submit:
        return decision
    before = case.situation.streaks.surplus.get(name, 0)
    if not complete:
        streaks.surplus[name] = before
        note = f"{plural(excess, 'pending pilot')} too many, but a schedd did not answer: nothing is cancelled"
        return replace(decision, reasons=(*decision.reasons, note))
    cycles = before + 1
    if cycles < policy.surplus_cycles:
        streaks.surplus[name] = cycles
        note = f"{plural(excess, 'pending pilot')} too many for {cycles} of surplus_cycles {policy.surplus_cycles}"
        return replace(decision, reasons=(*decision.reasons, note))
    newest = sorted(case.pending, key=_worth_least, reverse=True)
    cancel = tuple(pilot.job.id for pilot in newest[:excess])
    note = f"{plural(excess, 'pending pilot')} too many for {plural(cycles, 'cycle')}: cancelled, newest first"
    return replace(decision, cancel=cancel, reasons=(*decision.reasons, note))


def _with_drains(decision: ResourcePlan, case: _Case, quiet: bool, streaks: _Streaks) -> ResourcePlan:
    """Take the drain mark off pilots that the demand needs again; mark those that could be spared, once that lasts."""
    name, policy = case.limit.name, case.policy
    back = tuple(bin_.pilot for bin_ in case.there if bin_.stage is Stage.DRAINED and bin_.jobs)
    if back:
        note = f"{plural(len(back), 'drained pilot')} taken back for jobs that wait"
        return replace(decision, undrain=back, reasons=(*decision.reasons, note))
    if not quiet or not case.situation.demand.complete:
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


def _over_the_cap(case: _Case) -> int:
    """Pilots too many since an admin lowered max_running."""
    return max(0, _alive(case.pilots) - case.limit.max_running)


def _used(bins: Iterable[Bin], stage: Stage) -> int:
    return sum(bin_.count for bin_ in bins if bin_.stage is stage and bin_.jobs)


def _jobs(bins: Iterable[Bin]) -> int:
    return sum(bin_.jobs * bin_.count for bin_ in bins)


def _worth_least(pilot: Pilot) -> tuple[bool, int, tuple[int, ...]]:
    """Sorts those that a maintenance keeps waiting last, and of the others the newest."""
    return (pilot.wait is Wait.MAINTENANCE, pilot.job.submitted or 0, _numbers(pilot.job.id))


def _numbers(job_id: str) -> tuple[int, ...]:
    """ "12_3" sorts after "9" and after "12_2"."""
    return tuple(int(part) for part in job_id.split("_") if part.isdigit())
