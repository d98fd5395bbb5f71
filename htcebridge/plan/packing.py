"""Puts waiting jobs into pilots: those that are there, then those on their way. Pure.

First-fit decreasing by dominant share, on cpus, memory, GPUs, disk and remaining life; in one dimension it needs at
most 11/9 of the optimal number of bins + 6/9 (Dósa 2007). Groups are packed with their counts and equal nodes as one
bin, never job by job, so the work grows with groups and pilots, not with jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Shape, Wait

# The negotiator does not give a slot to a job that both have stood still for so many of its cycles. One may have begun
# before they were there, and a schedd's turn may be cut short; nobody has it so three times.
A_FEW_CYCLES = 3

# Remaining lives are rounded down to this, so that pilots that started together are one bin.
_LIFE_STEP_S = 60


class Stage(Enum):
    """Where a node stands."""

    JOINED = auto()
    DRAINED = auto()
    """Joined, and drained by this controller: it can be had back at once."""
    BOOTING = auto()
    PENDING = auto()
    NEW = auto()


@dataclass(frozen=True)
class Bin:
    """`count` nodes of equal content. `jobs` were put into each; `whole` is what an empty one has.

    `pilots` are their ids, in the order in which they are filled; none for new nodes. `kind` is that of a joined slot
    (`Startd.kind`), `moment` names it as it was (`Startd.moment`), `kept` is how many cores a job without a GPU leaves
    free for each free GPU, `untouched` as in `Pilot`.
    """

    resource: str
    stage: Stage
    free: Shape
    life_s: int
    whole: Shape
    count: int = 1
    jobs: int = 0
    oldest_s: int = 0
    longest_s: int = 0
    pilots: tuple[str, ...] = ()
    kind: str = ""
    kept: int = 0
    untouched: int = 0
    moment: str = ""

    def shape_of(self, group: Group) -> Shape:
        """What a job of the group takes here."""
        return group.shape_on(self.kind or self.resource, self.moment)

    def taking(self, group: Group, jobs: int, count: int, first: int = 0) -> Bin:
        """`count` of these nodes from the `first` on, with so many more jobs in each."""
        return Bin(
            self.resource,
            self.stage,
            self.free.less(self.shape_of(group), jobs),
            self.life_s,
            self.whole,
            count,
            self.jobs + jobs,
            max(self.oldest_s, group.oldest_s),
            max(self.longest_s, group.walltime_on(self.resource)),
            self.pilots[first : first + count],
            self.kind,
            self.kept,
            self.untouched,
            self.moment,
        )

    @property
    def fill(self) -> float:
        return self.whole.less(self.free).dominant_share(self.whole)


@dataclass(frozen=True)
class Placed:
    """So many jobs of a group found a place in nodes of this kind."""

    group: Group
    jobs: int
    resource: str
    stage: Stage


@dataclass(frozen=True)
class Packed:
    """`bins` with what was put into them, and where the jobs of each group went; `left` are those without a place."""

    bins: tuple[Bin, ...]
    placed: tuple[Placed, ...]
    left: tuple[Group, ...]


def fits(group: Group, bin_: Bin) -> int:
    """How many jobs of the group one such node takes as it is. Nothing else in the plan answers that."""
    return 0 if withheld(group, bin_) else would_fit(group, bin_)


def withheld(group: Group, bin_: Bin) -> bool:
    """Whether the negotiator has had a few cycles to start such a job there and has not, for whatever reason."""
    return bin_.untouched >= A_FEW_CYCLES and group.waited >= A_FEW_CYCLES


def would_fit(group: Group, bin_: Bin) -> int:
    """How many jobs of the group one such node would take by requests and START alone."""
    refused = group.refused_by
    if bin_.kind in refused or bin_.moment in refused:
        return 0
    if bin_.resource not in (group.standing if bin_.kind and group.standing else group.resources):
        return 0
    shape, free = bin_.shape_of(group), bin_.free
    if free.cpus <= 0 and bin_.moment in group.shapes:
        return 0  # a part of nothing
    if free.cpus < shape.cpus or free.memory_mb < shape.memory_mb or group.walltime_on(bin_.resource) > bin_.life_s:
        return 0  # most of all questions: without the arithmetic
    if bin_.kept and not shape.gpus:
        free = replace(free, cpus=max(0, free.cpus - bin_.kept * free.gpus))
    return shape.times_in(free)


def new_node(limit: Limits, count: int = 1) -> Bin:
    """What a pilot that is submitted now will have."""
    kept = limit.cpus_kept_per_gpu
    return Bin(limit.name, Stage.NEW, limit.node, limit.job_life_s, limit.node, count, kept=kept)


def by_size(groups: Iterable[Group], limits: Mapping[str, Limits]) -> list[Group]:
    """What can be packed at all, largest dominant share first; of equals the longest job, then the oldest.

    Some may have a place in pilots that are there alone (`Group.standing`).
    """

    def size(group: Group) -> tuple[float, int, int]:
        names = group.resources or group.standing
        share = max(group.shape_on(name).dominant_share(limits[name].node) for name in names)
        return (share, group.walltime_s, group.oldest_s)

    known = [_with_known(group, limits) for group in groups if group.idle > 0]
    return sorted((group for group in known if group.resources or group.standing), key=size, reverse=True)


def _with_known(group: Group, limits: Mapping[str, Limits]) -> Group:
    names, standing = (tuple(name for name in each if name in limits) for each in (group.resources, group.standing))
    same = (names, standing) == (group.resources, group.standing)
    return group if same else replace(group, resources=names, standing=standing)


# --------------------------------------------------------------------------- nodes that are there or on their way


def supply(pilots: Sequence[Pilot], limits: Mapping[str, Limits], now: int) -> list[Bin]:
    """The nodes that run, in the order in which they are filled: joined, drained, booting."""
    bins: dict[Stage, list[Bin]] = {Stage.JOINED: [], Stage.DRAINED: [], Stage.BOOTING: []}
    for pilot in pilots:
        limit = limits.get(pilot.job.resource)
        if limit is None:
            continue
        if pilot.phase is PilotPhase.JOINED and pilot.startd and (pilot.startd.accepting or pilot.tail_drained):
            stage = Stage.DRAINED if pilot.tail_drained else Stage.JOINED
            startd, life_s = pilot.startd, pilot.startd.to_die - now
            joined = Bin(limit.name, stage, startd.free, life_s, startd.total, pilots=(pilot.job.id,))
            kept = limit.cpus_kept_per_gpu
            joined = replace(joined, kind=startd.kind, kept=kept, untouched=pilot.untouched, moment=startd.moment)
            bins[stage].append(joined)
        elif pilot.phase is PilotPhase.BOOTING:
            ends = pilot.job.ends if pilot.job.ends is not None else now + limit.walltime_s
            bins[Stage.BOOTING].append(_whole(pilot, limit, Stage.BOOTING, ends - now))
    return [*bins[Stage.JOINED], *bins[Stage.DRAINED], *_merged(bins[Stage.BOOTING])]


def queued(pilots: Iterable[Pilot], limits: Mapping[str, Limits]) -> list[Bin]:
    """The pending pilots that Slurm will start in their turn, in the order in which they are filled.

    Of each resource the shortest come first, because the others can do their work too; of equals those that are
    expected to start, then the oldest. What stays empty is what can be done without.
    """
    pending: dict[str, list[Pilot]] = {}
    for pilot in pilots:
        if pilot.phase is PilotPhase.PENDING and pilot.wait is Wait.NORMAL and pilot.job.resource in limits:
            pending.setdefault(pilot.job.resource, []).append(pilot)
    return [bin_ for name in limits if name in pending for bin_ in _in_turn(pending[name], limits[name])]


def expected(pending: Iterable[Pilot]) -> int:
    """How many of these pending pilots are expected to start within the horizon."""
    return int(sum(pilot.chance for pilot in pending if pilot.wait is Wait.NORMAL) + 0.5)


def of_use(groups: Iterable[Group], pending: Iterable[Pilot], limit: Limits) -> set[str]:
    """The ids of those of one resource's pending pilots that such jobs would fill if all of them started."""
    turn = [pilot for pilot in pending if pilot.wait is Wait.NORMAL]
    stuck = [pilot for pilot in pending if pilot.wait is not Wait.NORMAL]
    packed = fill(
        [group for group in groups if limit.name in group.resources], _in_turn(turn, limit) + _in_turn(stuck, limit)
    )
    return {pilot for bin_ in packed.bins if bin_.jobs for pilot in bin_.pilots}


def age(pilot: Pilot) -> tuple[int, tuple[int, ...]]:
    """Sorts the oldest first; "12_3" after "9" and after "12_2"."""
    numbers = tuple(int(part) for part in pilot.job.id.split("_") if part.isdigit())
    return (pilot.job.submitted or 0, numbers)


def _in_turn(pending: Sequence[Pilot], limit: Limits) -> list[Bin]:
    luckiest = sorted(sorted(pending, key=age), key=lambda pilot: -pilot.chance)
    likely = {pilot.job.id for pilot in luckiest[: expected(pending)]}
    likely_first = sorted(sorted(pending, key=age), key=lambda pilot: pilot.job.id not in likely)
    nodes = [_whole(pilot, limit, Stage.PENDING, _promised_s(pilot, limit)) for pilot in likely_first]
    return _merged(sorted(nodes, key=lambda node: node.life_s))


def _promised_s(pilot: Pilot, limit: Limits) -> int:
    """The walltime that a pending pilot gets at least: Slurm may shrink it to --time-min."""
    asked = pilot.job.time_limit_s if pilot.job.time_limit_s is not None else limit.walltime_s
    least = pilot.job.time_min_s if pilot.job.time_min_s is not None else limit.min_walltime_s
    return min(asked, least) if least is not None else asked


def _whole(pilot: Pilot, limit: Limits, stage: Stage, walltime_s: int) -> Bin:
    life_s = walltime_s - limit.overhead_s
    life_s -= life_s % _LIFE_STEP_S
    kept = limit.cpus_kept_per_gpu
    return Bin(limit.name, stage, limit.node, life_s, limit.node, pilots=(pilot.job.id,), kept=kept)


def _merged(nodes: Iterable[Bin]) -> list[Bin]:
    """Empty nodes of one resource, equal ones as one bin."""
    equal: dict[tuple[str, Stage, int], list[Bin]] = {}
    for node in nodes:
        equal.setdefault((node.resource, node.stage, node.life_s), []).append(node)
    return [
        replace(each[0], count=len(each), pilots=tuple(pilot for node in each for pilot in node.pilots))
        for each in equal.values()
    ]


# --------------------------------------------------------------------------- filling them


def fill(groups: Sequence[Group], bins: Iterable[Bin]) -> Packed:
    """Put as many jobs as fit into these nodes, first fit."""
    filling = Filling(groups, bins)
    placed: list[Placed] = []
    left: list[Group] = []
    for group in groups:
        jobs, into = filling.put(group, group.idle)
        placed += into
        if jobs:
            left.append(group if jobs == group.idle else replace(group, idle=jobs))
    return Packed(filling.bins, tuple(placed), tuple(left))


class Filling:
    """Nodes while they are filled by these groups. One that is too full for the least of their jobs is put aside."""

    def __init__(self, groups: Iterable[Group], bins: Iterable[Bin] = ()) -> None:
        self._least = _least(groups)
        self._open: list[Bin] = []
        self._full: list[Bin] = []
        for bin_ in bins:
            self._keep(bin_, self._open)

    @property
    def bins(self) -> tuple[Bin, ...]:
        return (*self._full, *self._open)

    def put(self, group: Group, jobs: int) -> tuple[int, list[Placed]]:
        """Put up to so many jobs into the first nodes that take them: what is left over, and where the others went."""
        now_open: list[Bin] = []
        placed: dict[tuple[str, Stage], int] = {}
        for at, bin_ in enumerate(self._open):
            if not jobs:
                now_open += self._open[at:]
                break
            fit = fits(group, bin_)
            if not fit:
                now_open.append(bin_)
                continue
            before = jobs
            jobs = self._fill(bin_, group, jobs, fit, now_open)
            kind = (bin_.resource, bin_.stage)
            placed[kind] = placed.get(kind, 0) + before - jobs
        self._open = now_open
        return jobs, [Placed(group, count, *kind) for kind, count in placed.items()]

    def add(self, bin_: Bin, group: Group, jobs: int) -> int:
        """Put up to so many jobs into more nodes: what is left over."""
        return self._fill(bin_, group, jobs, fits(group, bin_), self._open)

    def _fill(self, bin_: Bin, group: Group, jobs: int, fit: int, now_open: list[Bin]) -> int:
        full = min(bin_.count, jobs // fit)
        jobs -= full * fit
        touched = full
        if full:
            self._keep(bin_.taking(group, fit, full), now_open)
        if jobs and touched < bin_.count:
            self._keep(bin_.taking(group, jobs, 1, touched), now_open)
            jobs, touched = 0, touched + 1
        if touched < bin_.count:
            now_open.append(replace(bin_, count=bin_.count - touched, pilots=bin_.pilots[touched:]))
        return jobs

    def _keep(self, bin_: Bin, now_open: list[Bin]) -> None:
        least = self._least.get(bin_.resource)
        enough = least is not None and all(have >= ask for have, ask in zip(bin_.free.axes, least, strict=True))
        (now_open if enough else self._full).append(bin_)


def _least(groups: Iterable[Group]) -> dict[str, tuple[int, ...]]:
    """Resource -> the least on each axis that any of these jobs asks there."""
    least: dict[str, tuple[int, ...]] = {}
    for group in groups:
        for name in {*group.resources, *group.standing}:
            for shape in (group.shape_on(name), *group.shapes.values()):
                least[name] = tuple(map(min, shape.axes, least.get(name, shape.axes)))
    return least
