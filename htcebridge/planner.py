"""Decides how many pilots each resource gets. Pure: no clock, no I/O, no configuration file.

The demand is packed first-fit decreasing by dominant share into what is there already (joined startds with their
free part and remaining life, then booting, then pending pilots) and then into new nodes. First-fit decreasing
needs at most 11/9 of the optimal number of bins + 6/9 in one dimension (Dósa 2007). Groups are packed with their
counts, never job by job, so the work grows with groups and pilots, not with jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge.model import Demand, Group, Limits, Pilot, PilotPhase, Plan, Policy, ResourcePlan, Shape
from htcebridge.units import format_duration, plural


def plan(
    demand: Demand,
    pilots: Sequence[Pilot],
    limits: Mapping[str, Limits],
    policy: Policy,
    now: int,
    surplus: Mapping[str, int] | None = None,
) -> Plan:
    """Decide one cycle: what to submit and what to cancel for each resource, and why.

    `surplus` is the previous plan's. Where a schedd did not answer the demand is a lower bound: the plan may
    grow, and cancels nothing.
    """
    bins = _supply(pilots, limits, now)
    bins = _pack(_by_size(demand.groups, limits), bins, limits)
    before = surplus or {}
    plans: dict[str, ResourcePlan] = {}
    counts: dict[str, int] = {}
    for name, limit in limits.items():
        own = [pilot for pilot in pilots if pilot.job.resource == name]
        if limit.constant:
            decision, excess = _constant(own, limit)
        else:
            decision, excess = _on_demand([bin_ for bin_ in bins if bin_.resource == name], own, limit, policy)
        plans[name], counts[name] = _cancel_surplus(
            decision, own, excess, demand.complete or limit.constant, before.get(name, 0), policy
        )
    return Plan(resources=plans, surplus=counts)


def hold(why: str, limits: Iterable[str]) -> Plan:
    """The plan of a cycle that could not see enough to decide."""
    nothing = ResourcePlan(needed=0, running=0, booting=0, pending=0, reasons=(f"held: {why}",))
    return Plan(resources=dict.fromkeys(limits, nothing), surplus={}, held=why)


@dataclass(frozen=True)
class _Bin:
    """`count` nodes of equal content. `phase` is None for nodes that would have to be opened."""

    resource: str
    phase: PilotPhase | None
    free: Shape
    life_s: int
    count: int = 1
    jobs: int = 0
    oldest_s: int = 0
    longest_s: int = 0

    def taking(self, group: Group, jobs: int, count: int) -> _Bin:
        return replace(
            self,
            free=self.free.less(group.shape, jobs),
            count=count,
            jobs=self.jobs + jobs,
            oldest_s=max(self.oldest_s, group.oldest_s),
            longest_s=max(self.longest_s, group.walltime_s),
        )


def _supply(pilots: Sequence[Pilot], limits: Mapping[str, Limits], now: int) -> list[_Bin]:
    """What is there or on its way: joined pilots first, pending ones last, so that those stay empty if any does."""
    joined, booting, pending = [], [], []
    for pilot in pilots:
        limit = limits.get(pilot.job.resource)
        if limit is None:
            continue
        if pilot.phase is PilotPhase.JOINED and pilot.startd and pilot.startd.accepting:
            joined.append(_Bin(limit.name, pilot.phase, pilot.startd.free, pilot.startd.to_die - now))
        elif pilot.phase is PilotPhase.BOOTING:
            ends = pilot.job.ends if pilot.job.ends is not None else now + limit.walltime_s
            booting.append(_Bin(limit.name, pilot.phase, limit.node, ends - now - limit.overhead_s))
        elif pilot.phase is PilotPhase.PENDING:
            asked = pilot.job.time_limit_s if pilot.job.time_limit_s is not None else limit.walltime_s
            pending.append(_Bin(limit.name, pilot.phase, limit.node, asked - limit.overhead_s))
    return joined + booting + pending


def _by_size(groups: Iterable[Group], limits: Mapping[str, Limits]) -> list[Group]:
    """Largest dominant share first; of equals the longest job first, then the one that has waited longest."""

    def size(group: Group) -> tuple[float, int, int]:
        share = max((group.shape.dominant_share(limits[name].node) for name in group.resources), default=0.0)
        return (share, group.walltime_s, group.oldest_s)

    fitting = [
        replace(group, resources=tuple(name for name in group.resources if name in limits))
        for group in groups
        if group.idle > 0
    ]
    return sorted((group for group in fitting if group.resources), key=size, reverse=True)


def _pack(groups: Iterable[Group], bins: list[_Bin], limits: Mapping[str, Limits]) -> list[_Bin]:
    """Put every idle job somewhere; bins of phase None are nodes that would have to be opened."""
    for group in groups:
        left = group.idle
        packed: list[_Bin] = []
        for bin_ in bins:
            left, parts = _fill(bin_, group, left)
            packed += parts
        bins = packed + (_open(group, left, limits) if left else [])
    return bins


def _fill(bin_: _Bin, group: Group, left: int) -> tuple[int, list[_Bin]]:
    """Put up to `left` jobs into equal nodes: what is left over, and the nodes by content."""
    fit = group.shape.times_in(bin_.free)
    if not left or not fit or bin_.resource not in group.resources or group.walltime_s > bin_.life_s:
        return left, [bin_]
    full = min(bin_.count, left // fit)
    left -= full * fit
    parts = [bin_.taking(group, fit, full)] if full else []
    untouched = bin_.count - full
    if left and untouched:
        parts.append(bin_.taking(group, left, 1))
        left, untouched = 0, untouched - 1
    if untouched:
        parts.append(replace(bin_, count=untouched))
    return left, parts


def _open(group: Group, left: int, limits: Mapping[str, Limits]) -> list[_Bin]:
    """New nodes for `left` jobs, of the first resource of the group that can hold one."""
    for name in group.resources:
        limit = limits[name]
        if limit.constant or group.walltime_s > limit.job_life_s:
            continue
        fit = group.shape.times_in(limit.node)
        if fit:
            empty = _Bin(name, None, limit.node, limit.job_life_s, count=-(-left // fit))
            return _fill(empty, group, left)[1]
    return []


def _on_demand(
    bins: Sequence[_Bin], pilots: Sequence[Pilot], limit: Limits, policy: Policy
) -> tuple[ResourcePlan, int]:
    """As many pilots as the packed demand needs, cut by the limits; and how many pending ones it doesn't need."""
    reasons: list[str] = []
    booting, pending = (_used(bins, phase) for phase in (PilotPhase.BOOTING, PilotPhase.PENDING))
    in_joined = _jobs(bins, PilotPhase.JOINED)
    if in_joined:
        reasons.append(f"{plural(in_joined, 'waiting job')} fit into joined pilots")
    if booting or pending:
        jobs = _jobs(bins, PilotPhase.BOOTING) + _jobs(bins, PilotPhase.PENDING)
        reasons.append(
            f"{booting} booting and {plural(pending, 'pending pilot')} are on their way for {plural(jobs, 'job')}"
        )
    opened = [bin_ for bin_ in bins if bin_.phase is None]
    worth = [bin_ for bin_ in opened if _worth_a_node(bin_, limit, policy)]
    wanted = sum(bin_.count for bin_ in worth)
    if wanted:
        reasons.append(f"{plural(wanted, 'new node')} for {plural(_jobs(worth, None), 'more job')}")
    reasons += [_too_empty(bin_, limit, policy) for bin_ in opened if bin_ not in worth]
    submit = _cut(wanted, pilots, limit, reasons)
    if not reasons:
        reasons.append("nothing waits for this resource")
    decision = replace(
        _counted(pilots, booting + pending + wanted, reasons),
        submit=submit,
        time_min_s=_time_min(worth, limit) if submit else None,
    )
    return decision, max(decision.pending - pending, _over_the_cap(pilots, limit))


def _constant(pilots: Sequence[Pilot], limit: Limits) -> tuple[ResourcePlan, int]:
    """Keep max_running and max_pending whatever the demand: what a manual glidein needs."""
    reasons = [f"constant mode: keeps {limit.max_running} pilots, at most {limit.max_pending} of them pending"]
    wanted = max(0, limit.max_running - _alive(pilots))
    submit = _cut(wanted, pilots, limit, reasons)
    in_flight = sum(pilot.phase in (PilotPhase.PENDING, PilotPhase.BOOTING) for pilot in pilots)
    decision = _counted(pilots, in_flight + wanted, reasons)
    decision = replace(decision, submit=submit, time_min_s=limit.min_walltime_s if submit else None)
    return decision, _over_the_cap(pilots, limit)


def _alive(pilots: Iterable[Pilot]) -> int:
    return sum(pilot.phase is not PilotPhase.ENDED for pilot in pilots)


def _over_the_cap(pilots: Sequence[Pilot], limit: Limits) -> int:
    """Pilots too many since an admin lowered max_running."""
    return max(0, _alive(pilots) - limit.max_running)


def _jobs(bins: Iterable[_Bin], phase: PilotPhase | None) -> int:
    return sum(bin_.jobs * bin_.count for bin_ in bins if bin_.phase is phase)


def _too_empty(bin_: _Bin, limit: Limits, policy: Policy) -> str:
    return (
        f"{plural(bin_.jobs * bin_.count, 'job')} would fill {_fill_of(bin_, limit):.0%} of a node, under min_fill "
        f"{policy.min_fill:.0%}, and the oldest has waited {format_duration(bin_.oldest_s)} of max_wait "
        f"{format_duration(policy.max_wait_s)}: no node for them yet"
    )


def _used(bins: Iterable[_Bin], phase: PilotPhase) -> int:
    return sum(bin_.count for bin_ in bins if bin_.phase is phase and bin_.jobs)


def _fill_of(bin_: _Bin, limit: Limits) -> float:
    return limit.node.less(bin_.free).dominant_share(limit.node)


def _worth_a_node(bin_: _Bin, limit: Limits, policy: Policy) -> bool:
    return _fill_of(bin_, limit) >= policy.min_fill or bin_.oldest_s >= policy.max_wait_s


def _time_min(opened: Iterable[_Bin], limit: Limits) -> int | None:
    """What --time-min may be, so that Slurm cannot shrink a pilot below the jobs that it is started for."""
    if limit.min_walltime_s is None:
        return None
    longest = max((bin_.longest_s for bin_ in opened), default=0)
    return min(limit.walltime_s, max(limit.min_walltime_s, longest + limit.overhead_s))


def _cut(wanted: int, pilots: Sequence[Pilot], limit: Limits, reasons: list[str]) -> int:
    """What the limits leave of `wanted`; each limit that cuts adds its reason."""
    alive = _alive(pilots)
    pending = sum(pilot.phase is PilotPhase.PENDING for pilot in pilots)
    caps = [
        (max(0, limit.max_running - alive), f"max_running {limit.max_running} ({alive} there)"),
        (max(0, limit.max_pending - pending), f"max_pending {limit.max_pending} ({pending} there)"),
        (limit.max_new_per_cycle, f"max_new_per_cycle {limit.max_new_per_cycle}"),
    ]
    if limit.node_hours_left is not None:
        hours = limit.walltime_s / 3600
        affordable = max(0, int(limit.node_hours_left // hours))
        left = max(0.0, limit.node_hours_left)
        caps.append((affordable, f"max_node_hours ({left:.1f} left, a pilot may take {hours:g})"))
    for cap, name in caps:
        if wanted > cap:
            reasons.append(f"cut from {wanted} to {cap} by {name}")
            wanted = cap
    return wanted


def _counted(pilots: Sequence[Pilot], needed: int, reasons: Sequence[str]) -> ResourcePlan:
    phases = [pilot.phase for pilot in pilots]
    lost, leaving = phases.count(PilotPhase.LOST), phases.count(PilotPhase.LEAVING)
    notes = list(reasons)
    if lost:
        notes.append(f"{plural(lost, 'pilot')} running, not joined within boot_timeout: not supply")
    if leaving:
        notes.append(f"{plural(leaving, 'pilot')} leaving their node: not supply")
    return ResourcePlan(
        needed=needed,
        running=phases.count(PilotPhase.JOINED),
        booting=phases.count(PilotPhase.BOOTING),
        pending=phases.count(PilotPhase.PENDING),
        reasons=tuple(notes),
    )


def _cancel_surplus(
    decision: ResourcePlan, pilots: Sequence[Pilot], excess: int, complete: bool, before: int, policy: Policy
) -> tuple[ResourcePlan, int]:
    """Cancel `excess` pending pilots once that has lasted, newest first. Returns the new count of cycles.

    Which pending pilot serves which job is nobody's business: their number decides, not the packing's choice.
    """
    pending = [pilot for pilot in pilots if pilot.phase is PilotPhase.PENDING]
    excess = min(len(pending), excess)
    if excess <= 0 or decision.submit:
        return decision, 0
    if not complete:
        note = f"{plural(excess, 'pending pilot')} too many, but a schedd did not answer: nothing is cancelled"
        return replace(decision, reasons=(*decision.reasons, note)), before
    cycles = before + 1
    if cycles < policy.surplus_cycles:
        note = f"{plural(excess, 'pending pilot')} too many for {cycles} of surplus_cycles {policy.surplus_cycles}"
        return replace(decision, reasons=(*decision.reasons, note)), cycles
    newest = sorted(pending, key=lambda pilot: (pilot.job.submitted or 0, _numbers(pilot.job.id)), reverse=True)
    cancel = tuple(pilot.job.id for pilot in newest[:excess])
    note = f"{plural(excess, 'pending pilot')} too many for {plural(cycles, 'cycle')}: cancelled, newest first"
    return replace(decision, cancel=cancel, reasons=(*decision.reasons, note)), 0


def _numbers(job_id: str) -> tuple[int, ...]:
    """ "12_3" sorts after "9" and after "12_2"."""
    return tuple(int(part) for part in job_id.split("_") if part.isdigit())
