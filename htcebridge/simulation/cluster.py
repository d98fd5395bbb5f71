"""Slurm's side: one partition whose nodes paying jobs take and give back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from htcebridge.model import Shape
from htcebridge.simulation.random_streams import stream
from htcebridge.simulation.workload import DAY_S, HOUR_S


@dataclass(frozen=True)
class Weather:
    """How a partition behaves towards low-priority pilots. Of no site in particular: docs/performance.md.

    `paid_share` is the part of the nodes that paying jobs ask for on average; `paid_nodes` and `paid_h` the mean
    size and length of one such job; `start_delay_s` the mean time (exponential) until Slurm looks at a new pilot;
    `bad_share` the part of the nodes on which pilots fail.
    """

    nodes: int = 60
    paid_share: float = 0.4
    paid_nodes: float = 2.0
    paid_h: float = 3.0
    start_delay_s: int = 900
    bad_share: float = 0.0


def paid_nodes(weather: Weather, until_s: int, seed: int) -> list[tuple[int, int]]:
    """(second, nodes that paying jobs hold from then on). The same whatever the pilots do: they yield.

    Paying jobs come as a Poisson process, more by day than by night, wait first-come for as many nodes as they
    want, and hold them for an exponential time.
    """
    draw = stream(seed, "paying jobs")
    rate = weather.paid_share * weather.nodes / (weather.paid_nodes * weather.paid_h * HOUR_S)
    arrivals: list[tuple[int, int, int]] = []
    moment = -2.0 * weather.paid_h * HOUR_S
    # Thinning: candidates at the day's highest rate, of which the night keeps fewer (4/3 and 2/3 of the mean).
    while rate and (moment := moment + draw.expovariate(4 / 3 * rate)) < until_s:
        by_day = 8 * HOUR_S <= moment % DAY_S < 20 * HOUR_S
        size = min(weather.nodes, 1 + int(draw.expovariate(1 / max(0.01, weather.paid_nodes - 0.5))))
        length = int(draw.expovariate(1 / (weather.paid_h * HOUR_S))) + 60
        if draw.random() < (1.0 if by_day else 1 / 2):
            arrivals.append((int(moment), size, length))
    return _held(arrivals, weather.nodes, until_s)


def _held(arrivals: Iterable[tuple[int, int, int]], nodes: int, until_s: int) -> list[tuple[int, int]]:
    ends: list[tuple[int, int]] = []
    changes: list[tuple[int, int]] = []
    begin = None
    for arrived, size, length in arrivals:
        begin = arrived if begin is None else max(begin, arrived)
        ends.sort()
        while sum(held for end, held in ends if end > begin) + size > nodes:
            begin = min(end for end, _ in ends if end > begin)
        ends = [(end, held) for end, held in ends if end > begin]
        ends.append((begin + length, size))
        changes += [(begin, size), (begin + length, -size)]
    held, steps = 0, {0: 0}
    for moment, change in sorted(changes):
        held += change
        steps[max(0, moment)] = held
    return [(moment, count) for moment, count in sorted(steps.items()) if moment < until_s]


class Partition:
    """Its nodes, who is on them, and which of them are bad."""

    def __init__(self, name: str, weather: Weather, node: Shape, seed: int) -> None:
        self.name = name
        self.node = node
        self.names = [f"{name}{number:04d}" for number in range(weather.nodes)]
        self.free = [node] * weather.nodes
        self.pilots: list[dict[str, Shape]] = [{} for _ in self.names]
        self.paid: set[int] = set()
        self._draw = stream(seed, f"{name} preemption")
        bad = round(weather.bad_share * weather.nodes)
        broken = stream(seed, f"{name} bad nodes").sample(range(weather.nodes), bad)
        # Half of them fail a check at once, on the others the startd never reaches the pool.
        self.failing = frozenset(broken[: bad // 2])
        self.mute = frozenset(broken[bad // 2 :])

    def place(self, pilot: str, size: Shape, exclude: frozenset[str]) -> int | None:
        """Put a pilot onto the first node that others share already and that has room, else the first empty one.

        None where there is none. Slurm takes nodes of equal weight in their order, so one that fails pilots at once
        is handed out again at once.
        """
        empty = None
        for number, free in enumerate(self.free):
            if number in self.paid or not size.times_in(free) or self.names[number] in exclude:
                continue
            if self.pilots[number]:
                return self._put(pilot, size, number)
            if empty is None:
                empty = number
        return self._put(pilot, size, empty) if empty is not None else None

    def leave(self, pilot: str, node: int) -> None:
        self.free[node] = Shape(
            *(a + b for a, b in zip(self.free[node].axes, self.pilots[node].pop(pilot).axes, strict=True))
        )

    def _put(self, pilot: str, size: Shape, number: int) -> int:
        self.pilots[number][pilot] = size
        self.free[number] = self.free[number].less(size)
        return number

    def hold(self, nodes: int) -> list[str]:
        """Let paying jobs hold so many nodes; the pilots that have to go for that.

        Paying jobs take empty nodes first, then any that only pilots hold, with every pilot on it.
        """
        while len(self.paid) > nodes:
            self.paid.remove(_any(sorted(self.paid), self._draw))
        preempted: list[str] = []
        while len(self.paid) < nodes:
            others = [number for number in range(len(self.names)) if number not in self.paid]
            empty = [number for number in others if not self.pilots[number]]
            taken = empty[0] if empty else _any(others, self._draw)
            self.paid.add(taken)
            preempted += self.pilots[taken]
        return preempted


def _any(numbers: list[int], draw: random.Random) -> int:
    return numbers[draw.randrange(len(numbers))]
