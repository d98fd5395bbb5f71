"""A history as a controller would have left it after months: real rows in the real schema, made in seconds.

Two resources, two VOs, some fifty pilots an hour on 360 nodes, three of which are bad. Cycles once a minute for as long
as `history.detail` keeps them, then one in a quarter of an hour. Equal arguments give equal rows.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from htcebridge.history import store
from htcebridge.history.usage import Use
from htcebridge.model import Outcome, Plan

HOUR_S = 3600
MINUTE_S = 60
DETAIL_S = 35 * 86400
BUSY_S = 3 * 86400
_CPUS = {"dcgp": 112, "booster": 32}
_VOS = (("cms", 0.7), ("atlas", 0.3))
_BAD = {"lrdn0007": "cvmfs: cms.cern.ch is not mounted", "lrdn0101": "scratch: 3 MB free", "lrdn0222": ""}
_REASONS = json.dumps(["3 new nodes for 214 more jobs", "max_pending 5: 2 fewer", "node lrdn0007 excluded: 4 failures"])


@dataclass(frozen=True)
class Made:
    """One pilot; times in seconds since the epoch, `share` the part of its cores that is busy while it is joined."""

    id: str
    resource: str
    submitted: int
    started: int
    joined: int | None
    ended: int
    node: str
    outcome: Outcome
    said: str
    jobs: int
    evicted: int
    share: float
    lost_core_s: int

    @property
    def core_s(self) -> int:
        return int((self.ended - self.joined) * _CPUS[self.resource] * self.share) if self.joined else 0


def make(path: Path, days: int, until: int, per_hour: int = 50, seed: int = 1) -> int:
    """Write it; `until` is its end in seconds since the epoch. Returns how many pilots are in it."""
    store.record(path, store.Cycle(until, "last", 0.5, Plan({}, held="made")))
    pilots = list(_pilots(until - days * 86400, until, per_hour, random.Random(seed)))  # noqa: S311  no secret
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM cycles")
        _insert(database, "pilots", (_pilot_row(each, until) for each in pilots))
        _insert(database, "used", _used_rows(pilots, until))
        _insert(database, "busy", _busy_rows(pilots, until))
        _write_cycles(database, pilots, until - days * 86400, until)
    return len(pilots)


def _insert(database: sqlite3.Connection, table: str, rows: Iterator[tuple[object, ...]]) -> None:
    first = next(rows)
    marks = ", ".join("?" * len(first))
    database.execute(f"INSERT INTO {table} VALUES ({marks})", first)  # noqa: S608  a literal
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608  a literal


def _pilots(since: int, until: int, per_hour: int, dice: random.Random) -> Iterator[Made]:
    """Each takes the node that has been free for longest, as a quiet partition gives them out."""
    free = [(since - dice.randrange(8 * HOUR_S), f"lrdn{number:04}") for number in range(1, 361)]
    heapq.heapify(free)
    for number in range((until - since) * per_hour // HOUR_S):
        submitted = since + number * HOUR_S // per_hour
        resource = "dcgp" if dice.random() < 0.8 else "booster"
        since_free, node = heapq.heappop(free)
        started = max(submitted + int(dice.lognormvariate(6.2, 1.0)), since_free + 5)
        made = _life(f"{1000 + number}_1", resource, submitted, started, node, dice)
        heapq.heappush(free, (made.ended, node))
        yield made


def _life(id_: str, resource: str, submitted: int, started: int, node: str, dice: random.Random) -> Made:
    luck, boot = dice.random(), int(dice.lognormvariate(5.2, 0.4))
    if node in _BAD and luck < 0.8:
        end, said = started + 40 + dice.randrange(300), _BAD[node]
        return Made(id_, resource, submitted, started, None, end, node, Outcome.NEVER_JOINED, said, 0, 0, 0.0, 0)
    outcome, hours = next(kind for kind in _ENDS if luck < kind[0])[1:]
    joined = started + boot
    ended = joined + 300 + int(hours * HOUR_S * dice.uniform(0.3, 1.0))
    share = 0.0 if outcome is Outcome.NEVER_MATCHED else dice.uniform(0.7, 1.0)
    jobs = int((ended - joined) / HOUR_S * share * _CPUS[resource] / 12)
    evicted = min(jobs, 1 + dice.randrange(10)) if outcome in (Outcome.PREEMPTED, Outcome.NODE_FAILED) else 0
    lost = int(evicted * dice.uniform(0.2, 0.9) * HOUR_S * 8)
    return Made(id_, resource, submitted, started, joined, ended, node, outcome, "", jobs, evicted, share, lost)


# Up to which throw of the dice, what becomes of it, and hours at most.
_ENDS = (
    (0.55, Outcome.RAN, 9.0),
    (0.80, Outcome.PREEMPTED, 7.0),
    (0.92, Outcome.TIMED_OUT, 11.7),
    (0.96, Outcome.NEVER_MATCHED, 0.4),
    (0.975, Outcome.CANCELLED_BY_OTHERS, 5.0),
    (0.985, Outcome.NODE_FAILED, 6.0),
    (1.01, Outcome.RAN, 2.0),
)


def _pilot_row(each: Made, until: int) -> tuple[object, ...]:
    over = each.ended <= until
    started = each.started if each.started <= until else None
    joined = each.joined if each.joined and each.joined <= until else None
    end = (each.ended, each.node, _CPUS[each.resource], str(each.outcome), 17 if each.said else 0, each.said)
    live = (None, each.node if started else "", _CPUS[each.resource], None, None, None)
    numbers = (each.jobs, each.evicted, each.core_s, each.lost_core_s) if over else (None,) * 4
    identity = (each.id, each.resource, f"plan{each.submitted // MINUTE_S}", each.submitted, started, joined)
    return (*identity, *(end if over else live), *numbers)


def _used_rows(pilots: list[Made], until: int) -> Iterator[tuple[object, ...]]:
    found: dict[tuple[int, str, str, str], int] = {}

    def add(begin: int, end: int, resource: str, vo: str, use: Use, cores: float) -> None:
        begin, end = begin, min(end, until)
        edges = [begin, *range((begin // HOUR_S + 1) * HOUR_S, end, HOUR_S), end]
        for one, two in pairwise(edges):
            key = (one // HOUR_S * HOUR_S, resource, vo, str(use))
            found[key] = found.get(key, 0) + int((two - one) * cores)

    for each in pilots:
        if each.started >= until:
            continue
        cpus = _CPUS[each.resource]
        add(each.started, each.joined or each.ended, each.resource, "", Use.BOOT, cpus)
        if each.joined is None or each.joined >= until:
            continue
        for vo, part in _VOS:
            add(each.joined, each.ended, each.resource, vo, Use.BUSY, cpus * each.share * part)
            if each.lost_core_s and each.ended <= until:
                key = (each.ended // HOUR_S * HOUR_S, each.resource, vo, str(Use.LOST))
                found[key] = found.get(key, 0) + int(each.lost_core_s * part)
        idle = cpus * (1 - each.share)
        if each.share:
            for use, part in ((Use.FRAGMENTATION, 0.5), (Use.TAIL, 0.35), (Use.DRAINED, 0.15)):
                add(each.joined, each.ended, each.resource, "", use, idle * part)
        else:
            add(each.joined, each.ended, each.resource, "", Use.IDLE, idle)
    yield from ((*key, core_s) for key, core_s in found.items() if core_s)


def _busy_rows(pilots: list[Made], until: int) -> Iterator[tuple[object, ...]]:
    for each in pilots:
        if each.joined is None or min(each.ended, until) < until - BUSY_S:
            continue
        cpus = _CPUS[each.resource]
        for number, at in enumerate(range(each.joined, min(each.ended, until), 600)):
            part = each.share * min(1.0, 0.3 + 0.35 * number) * (0.9 + 0.1 * math.sin(number))
            yield each.id, at, int(cpus * part), int(cpus * part / 8)


def _write_cycles(database: sqlite3.Connection, pilots: list[Made], since: int, until: int) -> None:
    thinned = range(since, max(since, until - DETAIL_S), 900)
    times = [*thinned, *range(max(since, until - DETAIL_S), until, MINUTE_S)]
    _insert(database, "cycles", ((at, f"plan{at // MINUTE_S}", 1.2, _held(at), 0) for at in times))
    seen = [at for at in times if not _held(at)]
    _insert(
        database,
        "demand",
        (
            (at, vo, int(jobs), int(jobs) * cpus, 900, 600 + int(jobs))
            for at in seen
            for vo, jobs, cpus in (("cms", 400 * _tide(at), 8), ("atlas", 250 * _tide(at + 20000), 1))
        ),
    )
    for resource, cpus in _CPUS.items():
        own = [each for each in pilots if each.resource == resource]
        pending, booting, joined, busy = (
            _levels(spans, since, until)
            for spans in (
                [(each.submitted, each.started, 1.0) for each in own],
                [(each.started, each.joined or each.ended, 1.0) for each in own],
                [(each.joined, each.ended, 1.0) for each in own if each.joined],
                [(each.joined, each.ended, cpus * each.share) for each in own if each.joined],
            )
        )
        minutes = [(at, (at - since) // MINUTE_S) for at in seen]
        _insert(
            database,
            "plans",
            (
                (
                    *(at, resource, round(booting[i] + pending[i]), round(joined[i]), round(booting[i])),
                    *(round(pending[i]), 1, 0, 0, 0, round(busy[i]), round(joined[i] + booting[i]) * cpus, _REASONS),
                )
                for at, i in minutes
            ),
        )


def _levels(spans: list[tuple[int, int, float]], since: int, until: int) -> list[float]:
    """The sum of what spans this minute, for each."""
    steps = [0.0] * ((until - since) // MINUTE_S + 2)
    for begin, end, height in spans:
        if begin < until:
            steps[(begin - since) // MINUTE_S] += height
            steps[(min(end, until) - since) // MINUTE_S] -= height
    return list(accumulate(steps))


def _tide(at: int) -> float:
    """More by day, and a weekly low."""
    return max(0.0, 1 + math.sin(at / 86400 * math.tau) + 0.4 * math.sin(at / 604800 * math.tau))


def _held(at: int) -> str | None:
    """Slurm is silent for an hour every ten days."""
    return "squeue: no answer after 60 s" if at % (10 * 86400) < HOUR_S else None
