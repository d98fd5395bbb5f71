"""Which new nodes to open for jobs that have no place: of the resources that waste least. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from htcebridge.model import Group, Limits, Shape
from htcebridge.plan.packing import Bin, Filling, fits, new_node

# What a GPU is worth in cores when nodes of different kinds are compared: CINECA bills 8 cores for one.
GPU_IN_CORES = 8


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
            -sum(_used(bin_) * count for bin_, count in allowed),
            sum(_waste(value(bin_.whole), _used(bin_), bin_.jobs) * count for bin_, count in allowed),
            sum(count for _, count in allowed),
        )

    return min(plans, key=price)


def able(group: Group, limits: Mapping[str, Limits]) -> list[str]:
    """The resources of which a new node would take such a job."""
    return [name for name in group.resources if not limits[name].constant and fits(group, new_node(limits[name]))]


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
    nodes = Filling(groups)
    opened: dict[str, int] = dict.fromkeys(limits, 0)
    for group in groups:
        left, _ = nodes.put(group, group.idle)
        choice = _ranked(group, left, limits, first, slow) if left else []
        for name in choice:
            if not left:
                break
            fit = fits(group, new_node(limits[name]))
            there = max(0, room.get(name, 0) - opened[name])
            # The last choice takes the rest, so that what the limits cut is seen.
            count = -(-left // fit) if name == choice[-1] else min(there, -(-left // fit))
            if count:
                left = nodes.add(new_node(limits[name], count), group, left)
                opened[name] += count
    return nodes.bins


def _ranked(group: Group, jobs: int, limits: Mapping[str, Limits], first: str, slow: Collection[str]) -> list[str]:
    """The resources that can hold such a job: the preferred one, then by what `jobs` alone would waste there."""

    def waste(name: str) -> float:
        node = new_node(limits[name])
        fit = fits(group, node)
        full, rest = divmod(jobs, fit)
        whole, one = value(node.whole), value(group.shape_on(name))
        return full * _waste(whole, fit * one, fit) + (_waste(whole, rest * one, rest) if rest else 0.0)

    names = able(group, limits)
    if len(names) < 2:
        return names
    return sorted(names, key=lambda name: (name in slow, name != first, waste(name), _preference(limits[name])))


def _preference(limit: Limits) -> int:
    """Of equals the one that loses less where pilots are preempted more than once in two walltimes."""
    return limit.walltime_s if limit.preemptions_per_hour * limit.walltime_s / 3600 > 0.5 else 0


def _waste(whole: float, used: float, jobs: int) -> float:
    """Cores of a node that are expected to be held for nothing, relative to its jobs' time.

    What stays empty, and the tail: a node is held until its last job ends. The last of k jobs whose lengths are
    uniform takes k/(k+1) of the longest, the mean job half of it: (k-1)/2k of what is used is lost.
    """
    tail = (jobs - 1) / (2 * jobs) if jobs else 0.0
    return whole - used + used * tail


def _used(bin_: Bin) -> float:
    return value(bin_.whole.less(bin_.free))


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
