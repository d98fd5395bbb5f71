"""Puts waiting jobs into pilots: those that are there, then those on their way, then new ones. Pure.

First-fit decreasing by dominant share, on cpus, memory, GPUs, disk and remaining life; in one dimension it needs at
most 11/9 of the optimal number of bins + 6/9 (Dósa 2007). Groups are packed with their counts and equal nodes as one
bin, never job by job, so the work grows with groups and pilots, not with jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Shape, Wait

# What a GPU is worth in cores when nodes of different kinds are compared: CINECA bills 8 cores for one.
GPU_IN_CORES = 8
# Remaining lives are rounded down to this, so that pilots that started together are one bin.
_LIFE_STEP_S = 60


class Stage(Enum):
    """Where a node stands, in the order in which nodes are filled."""

    JOINED = auto()
    DRAINED = auto()
    """Joined, and drained by this controller: it can be had back at once."""
    BOOTING = auto()
    PENDING = auto()
    NEW = auto()


@dataclass(frozen=True)
class Bin:
    """`count` nodes of equal content. `jobs` were put into each; `whole` is what an empty one has."""

    resource: str
    stage: Stage
    free: Shape
    life_s: int
    whole: Shape
    count: int = 1
    jobs: int = 0
    oldest_s: int = 0
    longest_s: int = 0
    pilot: str = ""
    """The pilot's id, where it matters which one it is."""

    def taking(self, group: Group, jobs: int, count: int) -> Bin:
        return replace(
            self,
            free=self.free.less(group.shape, jobs),
            count=count,
            jobs=self.jobs + jobs,
            oldest_s=max(self.oldest_s, group.oldest_s),
            longest_s=max(self.longest_s, group.walltime_on(self.resource)),
        )

    @property
    def fill(self) -> float:
        return self.whole.less(self.free).dominant_share(self.whole)


@dataclass(frozen=True)
class Packed:
    """`bins` with what was put into them; `left` holds each group with the jobs that found no place."""

    bins: tuple[Bin, ...]
    left: tuple[Group, ...]
    placed: tuple[Group, ...]
    """Each group with the jobs that found one."""


def by_size(groups: Iterable[Group], limits: Mapping[str, Limits]) -> list[Group]:
    """What can be packed at all, largest dominant share first; of equals the longest job, then the oldest."""

    def size(group: Group) -> tuple[float, int, int]:
        share = max(group.shape.dominant_share(limits[name].node) for name in group.resources)
        return (share, group.walltime_s, group.oldest_s)

    fitting = [
        replace(group, resources=tuple(name for name in group.resources if name in limits))
        for group in groups
        if group.idle > 0
    ]
    return sorted((group for group in fitting if group.resources), key=size, reverse=True)


def supply(pilots: Sequence[Pilot], limits: Mapping[str, Limits], now: int) -> list[Bin]:
    """What is there or on its way, in the order of `Stage`, so that pending pilots stay empty if any does."""
    bins: list[Bin] = []
    pending: dict[str, list[Pilot]] = {}
    for pilot in pilots:
        limit = limits.get(pilot.job.resource)
        if limit is None:
            continue
        if pilot.phase is PilotPhase.JOINED and pilot.startd and (pilot.startd.accepting or pilot.tail_drained):
            stage = Stage.DRAINED if pilot.tail_drained else Stage.JOINED
            life_s = pilot.startd.to_die - now
            bins.append(Bin(limit.name, stage, pilot.startd.free, life_s, pilot.startd.total, pilot=pilot.job.id))
        elif pilot.phase is PilotPhase.BOOTING:
            ends = pilot.job.ends if pilot.job.ends is not None else now + limit.walltime_s
            bins.append(_whole(limit, Stage.BOOTING, ends - now))
        elif pilot.phase is PilotPhase.PENDING and pilot.wait is Wait.NORMAL:
            pending.setdefault(limit.name, []).append(pilot)
    for name, waiting in pending.items():
        likely = _luckiest_first(waiting)[: expected(waiting)]
        bins += [_whole(limits[name], Stage.PENDING, _promised_s(pilot, limits[name])) for pilot in likely]
    return _merged(sorted(bins, key=lambda bin_: bin_.stage.value))


def expected(pending: Sequence[Pilot]) -> int:
    """How many of these pending pilots are expected to start within the horizon."""
    return int(sum(pilot.chance for pilot in pending if pilot.wait is Wait.NORMAL) + 0.5)


def _luckiest_first(pending: Sequence[Pilot]) -> list[Pilot]:
    return sorted((pilot for pilot in pending if pilot.wait is Wait.NORMAL), key=lambda pilot: -pilot.chance)


def stood_for(opened: Iterable[Bin], pending: Sequence[Pilot], limit: Limits) -> int:
    """How many of these new nodes are there as pending pilots that are not expected to start: a new one would queue
    behind them. Where their walltime is too short for the jobs they stand for none."""
    lives = sorted(_life_s(limit, _promised_s(pilot, limit)) for pilot in _luckiest_first(pending)[expected(pending) :])
    asked = sorted(bin_.longest_s for bin_ in opened for _ in range(bin_.count))
    found = 0
    for life_s in lives:
        found += found < len(asked) and asked[found] <= life_s
    return found


def of_use(groups: Iterable[Group], pending: Sequence[Pilot], limit: Limits) -> int:
    """How many of these pending pilots of one resource such jobs would fill if all of them started."""
    bins = [_whole(limit, Stage.PENDING, _promised_s(pilot, limit)) for pilot in _luckiest_first(pending)]
    return sum(bin_.count for bin_ in fill(groups, _merged(bins)).bins if bin_.jobs)


def _promised_s(pilot: Pilot, limit: Limits) -> int:
    """The walltime that a pending pilot gets at least: Slurm may shrink it to --time-min."""
    asked = pilot.job.time_limit_s if pilot.job.time_limit_s is not None else limit.walltime_s
    least = pilot.job.time_min_s if pilot.job.time_min_s is not None else limit.min_walltime_s
    return min(asked, least) if least is not None else asked


def _whole(limit: Limits, stage: Stage, walltime_s: int) -> Bin:
    return Bin(limit.name, stage, limit.node, _life_s(limit, walltime_s), limit.node)


def _life_s(limit: Limits, walltime_s: int) -> int:
    life_s = walltime_s - limit.overhead_s
    return life_s - life_s % _LIFE_STEP_S


def _merged(bins: Iterable[Bin]) -> list[Bin]:
    counts: dict[Bin, int] = {}
    for bin_ in bins:
        counts[bin_] = counts.get(bin_, 0) + bin_.count
    return [replace(bin_, count=count) for bin_, count in counts.items()]


def fill(groups: Iterable[Group], bins: Iterable[Bin]) -> Packed:
    """Put as many jobs as fit into these nodes."""
    nodes = list(bins)
    left, placed = [], []
    for group in groups:
        nodes, jobs = _put(group, group.idle, nodes)
        left.append(replace(group, idle=jobs))
        placed.append(replace(group, idle=group.idle - jobs))
    return Packed(tuple(nodes), tuple(left), tuple(placed))


def _put(group: Group, jobs: int, bins: list[Bin]) -> tuple[list[Bin], int]:
    """These nodes with up to `jobs` of the group in them, first fit; and how many are left."""
    cpus = group.shape.cpus
    wall = {name: group.walltime_on(name) for name in group.resources}
    packed: list[Bin] = []
    for bin_ in bins:
        if not jobs or bin_.free.cpus < cpus or bin_.resource not in wall or bin_.life_s < wall[bin_.resource]:
            packed.append(bin_)
        else:
            jobs, parts = _fill(bin_, group, jobs)
            packed += parts
    return packed, jobs


def _fill(bin_: Bin, group: Group, left: int) -> tuple[int, list[Bin]]:
    """Put up to `left` jobs into equal nodes: what is left over, and the nodes by content."""
    fit = group.shape.times_in(bin_.free)
    if not fit:
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


def open_nodes(
    groups: Sequence[Group],
    limits: Mapping[str, Limits],
    room: Mapping[str, int],
    min_fill: float,
    max_wait_s: int,
    slow: Collection[str] = (),
) -> tuple[Bin, ...]:
    """New nodes for these jobs, of the resources that waste least.

    Each resource in turn is preferred, and once each group's own best; of these packings the one that serves most,
    then wastes least, then needs fewest pilots is taken. `room` is how many nodes a resource may have: what does not
    fit there goes to the next. Where there is no room at all the node is opened all the same, for the limits to cut
    with their reason. `slow` are resources none of whose pending pilots is expected to start: they come last.
    """
    names = [name for name in limits if any(name in group.resources for group in groups)]
    plans = [_opened(groups, limits, room, first, slow) for first in ("", *(names if len(names) > 1 else ()))]

    def price(bins: tuple[Bin, ...]) -> tuple[float, float, int]:
        worth = [bin_ for bin_ in bins if worth_a_node(bin_, min_fill, max_wait_s)]
        allowed = _within(worth, room)
        return (
            -sum(value(bin_.whole.less(bin_.free)) * count for bin_, count in allowed),
            sum(_waste(bin_) * count for bin_, count in allowed),
            sum(count for _, count in allowed),
        )

    return min(plans, key=price)


def worth_a_node(bin_: Bin, min_fill: float, max_wait_s: int) -> bool:
    return bin_.fill >= min_fill or bin_.oldest_s >= max_wait_s


def value(shape: Shape) -> float:
    """Cores, with GPUs as the cores that they are billed as."""
    return shape.cpus + GPU_IN_CORES * shape.gpus


def lower_bound(bins: Iterable[Bin], node: Shape) -> int:
    """How few nodes any packing of what is in these bins could do with: the volume of the fullest axis."""
    used = [0, 0, 0, 0]
    for bin_ in bins:
        for axis, amount in enumerate(bin_.whole.less(bin_.free).axes):
            used[axis] += amount * bin_.count
    return max((-(-amount // have) for amount, have in zip(used, node.axes, strict=True) if have > 0), default=0)


def _opened(
    groups: Sequence[Group],
    limits: Mapping[str, Limits],
    room: Mapping[str, int],
    first: str,
    slow: Collection[str],
) -> tuple[Bin, ...]:
    bins: list[Bin] = []
    opened: dict[str, int] = dict.fromkeys(limits, 0)
    for group in groups:
        bins, left = _put(group, group.idle, bins)
        choice = _ranked(group, left, limits, first, slow)
        for name in choice:
            if not left:
                break
            fit = group.shape.times_in(limits[name].node)
            there = max(0, room.get(name, 0) - opened[name])
            # The last choice takes the rest, so that what the limits cut is seen.
            count = -(-left // fit) if name == choice[-1] else min(there, -(-left // fit))
            if count:
                fresh = Bin(name, Stage.NEW, limits[name].node, limits[name].job_life_s, limits[name].node, count)
                left, parts = _fill(fresh, group, left)
                bins += parts
                opened[name] += count
    return tuple(bins)


def _ranked(group: Group, jobs: int, limits: Mapping[str, Limits], first: str, slow: Collection[str]) -> list[str]:
    """The resources that can hold such a job: the preferred one, then by what `jobs` alone would waste there."""

    def waste(name: str) -> float:
        node = limits[name].node
        fit = group.shape.times_in(node)
        full, rest = divmod(jobs, fit)
        empty = Bin(name, Stage.NEW, node, limits[name].job_life_s, node)
        return full * _waste(empty.taking(group, fit, 1)) + (_waste(empty.taking(group, rest, 1)) if rest else 0.0)

    able = [
        name
        for name in group.resources
        if not limits[name].constant
        and group.walltime_on(name) <= limits[name].job_life_s
        and group.shape.times_in(limits[name].node)
    ]
    if len(able) < 2 or not jobs:
        return able
    return sorted(able, key=lambda name: (name in slow, name != first, waste(name), _preference(limits[name])))


def _preference(limit: Limits) -> int:
    """Of equals the one that loses less where pilots are preempted more than once in two walltimes."""
    return limit.walltime_s if limit.preemptions_per_hour * limit.walltime_s / 3600 > 0.5 else 0


def _waste(bin_: Bin) -> float:
    """Cores of one such node that are expected to be held for nothing, relative to its jobs' time.

    What stays empty, and the tail: a node is held until its last job ends. The last of k jobs whose lengths are
    uniform takes k/(k+1) of the longest, the mean job half of it: (k-1)/2k of what is used is lost.
    """
    used = value(bin_.whole.less(bin_.free))
    tail = (bin_.jobs - 1) / (2 * bin_.jobs) if bin_.jobs else 0.0
    return value(bin_.whole) - used + used * tail


def _within(bins: Iterable[Bin], room: Mapping[str, int]) -> list[tuple[Bin, int]]:
    """The bins, fullest first, as far as each resource has room."""
    left = dict(room)
    allowed = []
    for bin_ in sorted(bins, key=lambda bin_: -bin_.fill):
        count = min(bin_.count, max(0, left.get(bin_.resource, 0)))
        if count:
            left[bin_.resource] -= count
            allowed.append((bin_, count))
    return allowed
