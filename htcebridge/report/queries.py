"""Fills a report from the history. Sums, counts and ranks are SQLite's; only what they come to gets into Python."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from htcebridge.history import store
from htcebridge.history.usage import GAP_S, Use
from htcebridge.model import Outcome
from htcebridge.report.totals import (
    ALIVE,
    FAILED,
    Bar,
    Cores,
    NodeRow,
    Period,
    Pilots,
    Report,
    ResourceRow,
    Series,
    Spread,
    Timeline,
    Values,
    VoRow,
    Waited,
    Watched,
    spread,
    step_for,
)

HOUR_S = 3600
WORST_NODES = 20
TIMELINE_S = 24 * HOUR_S
TIMELINE_NODES = 60
# A black hole of a node can end a pilot a minute.
TIMELINE_PILOTS = 1500
# Slurm lets nothing run for longer; a pilot without an end that is older than this was lost with the controller's
# memory, and is no longer counted as alive.
_FORGOTTEN_S = 8 * 86400

# Pilots that were there at some time of the period. Those that live have no end.
_THERE = """
  FROM pilots INDEXED BY {index} WHERE coalesce(submitted, started) < :until
  AND (ended >= :since OR (ended IS NULL AND coalesce(started, submitted) >= :forgotten))"""
# A period that is a larger part of the history is read along the index that has all columns, in order.
_SHORT = 0.1
_FAILED = ", ".join(f"'{outcome}'" for outcome in FAILED)


def read(path: Path, name: str, period: Period, all_nodes: bool = False) -> Report:
    """The report on a period, or what of it the history reaches back to, of one state of it. Raises HistoryError."""
    with store.reading(path) as database:
        return _Reader(database, period).report(name, all_nodes)


class _Reader:
    """One open history, and the parameters that all queries share."""

    def __init__(self, database: sqlite3.Connection, period: Period) -> None:
        self.database = database
        self.period = period
        first, last = self._rows("SELECT min(at), max(at) FROM cycles")[0]
        if first is not None and period.since < first < period.until:
            # Nothing is known of what was before: it would only make the plots narrow.
            self.period = period = Period(max(period.since, first // HOUR_S * HOUR_S), period.until)
        self.kept = (first, last) if first is not None else None
        self.seen_until = min(period.until, last) if last is not None else period.until
        short = self.kept is not None and period.seconds < _SHORT * (self.kept[1] - self.kept[0])
        self.there = _THERE.format(index="pilots_by_end" if short else "pilots_by_resource")

    def _rows(self, query: str, **more: object) -> list[Any]:
        base = {"since": self.period.since, "until": self.period.until}
        return self.database.execute(query, {**base, **more}).fetchall()

    def _there(self, query: str, **more: object) -> list[Any]:
        """A query that ends in `{there}`."""
        seen, forgotten = self.seen_until, self.seen_until - _FORGOTTEN_S
        return self._rows(query.format(there=self.there), seen=seen, forgotten=forgotten, **more)

    def report(self, name: str, all_nodes: bool) -> Report:
        pilots, cores, times = self._pilots(), self._cores(), self._times()
        names = sorted({*pilots, *(resource for resource, _ in cores)})
        none = (Spread(), Spread(), Spread())
        rows = [
            ResourceRow(
                each,
                pilots.get(each, Pilots()),
                Cores.total(part for (resource, _), part in cores.items() if resource == each),
                *times.get(each, none),
            )
            for each in names
        ]
        # Whose job it was is not known for all: "" is a VO here only where it ran something.
        vos = [VoRow(vo, resource, part) for (resource, vo), part in cores.items() if Use.BUSY in part.by_use]
        return Report(
            name=name,
            period=self.period,
            watched=self._watched(),
            kept=self.kept,
            resources=tuple(rows),
            vos=tuple(sorted(vos, key=lambda row: (row.vo, row.resource))),
            waited=self._waited(),
            nodes=self._nodes(-1 if all_nodes else WORST_NODES),
            series=self._series(),
            timeline=self._timeline(),
        )

    def _watched(self) -> Watched:
        found = self._rows(
            "SELECT count(*) AS cycles, count(held) AS held, min(at) AS first, max(at) AS last,"
            " count(DISTINCT CASE WHEN held IS NULL THEN at / :gap END) AS quarters"
            " FROM cycles WHERE at >= :since AND at < :until",
            gap=GAP_S,
        )[0]
        begin = max(self.period.since, self.kept[0]) if self.kept else self.period.since
        quarters = max(1, -(-(self.period.until - begin) // GAP_S))
        return Watched(
            found["cycles"], found["held"], found["first"], found["last"], min(1.0, found["quarters"] / quarters)
        )

    def _pilots(self) -> dict[str, Pilots]:
        found: dict[str, list[Pilots]] = defaultdict(list)
        query = """
            SELECT resource, outcome, count(*) FILTER (WHERE ended < :until) AS ended, count(*) AS pilots,
              total(started < :until) AS started, total(joined < :until) AS joined,
              total(max(0, min(coalesce(ended, :seen), :until) - max(started, :since))) AS node_s,
              total(jobs) FILTER (WHERE ended < :until) AS jobs,
              total(evicted) FILTER (WHERE ended < :until) AS evicted
            {there} GROUP BY resource, outcome"""
        for row in self._there(query):
            numbers = (int(row[key]) for key in ("started", "joined", "node_s", "jobs", "evicted"))
            became = {row["outcome"]: row["ended"], ALIVE: row["pilots"] - row["ended"]}
            outcomes = {outcome: pilots for outcome, pilots in became.items() if pilots}
            found[row["resource"]].append(Pilots(outcomes, *numbers))
        return {resource: Pilots.total(parts) for resource, parts in found.items()}

    def _cores(self) -> dict[tuple[str, str], Cores]:
        """(resource, VO) -> what its cores did."""
        found: dict[tuple[str, str], dict[Use, int]] = defaultdict(dict)
        for row in self._rows(
            "SELECT resource, vo, use, sum(core_s) AS core_s FROM used WHERE hour >= :since AND hour < :until"
            " GROUP BY resource, vo, use"
        ):
            found[row["resource"], row["vo"]][Use(row["use"])] = row["core_s"]
        return {key: Cores(by_use) for key, by_use in found.items()}

    def _times(self) -> dict[str, tuple[Spread, Spread, Spread]]:
        """Resource -> queued, booted, both; of what started, or joined, in the period.

        One pass without a sort; counting the numbers is quicker here than a GROUP BY for each (measured: 5 times).
        """
        started, joined = (f"FILTER (WHERE {end} >= :since AND {end} < :until)" for end in ("started", "joined"))
        query = f"""
            SELECT resource, group_concat(max(0, started - submitted)) {started} AS queued,
              group_concat(max(0, joined - started)) {joined} AS booted,
              group_concat(max(0, joined - submitted)) {joined} AS both
            {{there}} GROUP BY resource"""
        return {
            row["resource"]: (_spread(row["queued"]), _spread(row["booted"]), _spread(row["both"]))
            for row in self._there(query)
        }

    def _waited(self) -> tuple[Waited, ...]:
        """Means over the cycles that looked: one without a row for a VO saw none of its jobs."""
        return tuple(
            Waited(row["vo"], row["jobs"] / row["cycles"], row["cpus"] / row["cycles"], row["oldest_s"])
            for row in self._rows(
                "SELECT vo, total(idle_jobs) AS jobs, total(idle_cpus) AS cpus, max(oldest_s) AS oldest_s,"
                " (SELECT count(*) FROM cycles WHERE held IS NULL AND at >= :since AND at < :until) AS cycles"
                " FROM demand WHERE at >= :since AND at < :until GROUP BY vo"
            )
        )

    def _nodes(self, most: int) -> tuple[NodeRow, ...]:
        rows = self._rows(
            f"SELECT node, count(*) AS pilots, total(outcome IN ({_FAILED})) AS failed,"  # noqa: S608  literals
            f" total(outcome = '{Outcome.PREEMPTED}') AS preempted, total(lost_core_s) AS lost"
            " FROM pilots INDEXED BY pilots_by_node WHERE ended >= :since AND ended < :until AND node != ''"
            " GROUP BY node HAVING failed OR lost ORDER BY failed DESC, lost DESC, node LIMIT :most",
            most=most,
        )
        return tuple(
            NodeRow(
                row["node"],
                row["pilots"],
                int(row["failed"]),
                int(row["preempted"]),
                int(row["lost"]),
                self._said(row["node"]) if row["failed"] else "",
            )
            for row in rows
        )

    def _said(self, node: str) -> str:
        found = self._rows(
            f"SELECT said, outcome FROM pilots WHERE node = :node AND outcome IN ({_FAILED})"  # noqa: S608  literals
            " AND ended >= :since AND ended < :until ORDER BY ended DESC LIMIT 1",
            node=node,
        )
        return str(found[0]["said"] or found[0]["outcome"]) if found else ""

    def _series(self) -> Series:
        step = step_for(self.period)
        origin = self.period.since // step * step
        steps = -(-(self.period.until - origin) // step)
        within = "WHERE at >= :since AND at < :until"
        at = {"origin": origin, "step": step}
        looked = {
            row["bin"]: row["cycles"]
            for row in self._rows(
                f"SELECT (at - :origin) / :step AS bin, count(*) AS cycles FROM cycles {within}"  # noqa: S608
                " AND held IS NULL GROUP BY bin",
                **at,
            )
        }
        waiting: dict[str, dict[int, float]] = defaultdict(dict)
        for row in self._rows(
            f"SELECT (at - :origin) / :step AS bin, vo, total(idle_cpus) AS cpus FROM demand {within} GROUP BY bin, vo",  # noqa: S608
            **at,
        ):
            waiting[row["vo"]][row["bin"]] = row["cpus"]
        kinds = ("pending", "booting", "running", "held_cpus", "busy_cpus")
        sums = ", ".join(f"total({kind}) AS {kind}" for kind in kinds)
        plans = {
            row["bin"]: row
            for row in self._rows(
                f"SELECT (at - :origin) / :step AS bin, {sums} FROM plans {within} GROUP BY bin",  # noqa: S608
                **at,
            )
        }

        def means(found: Mapping[int, float]) -> Values:
            return _carried(looked, found, steps, step)

        return Series(
            step,
            tuple(origin + number * step for number in range(steps)),
            {vo: means(cpus) for vo, cpus in sorted(waiting.items())},
            *(means({number: row[kind] for number, row in plans.items()}) for kind in kinds),
        )

    def _timeline(self) -> Timeline:
        until = self.seen_until
        since = max(self.period.since, until - TIMELINE_S)  # what is older would be a blur
        when = {"from_": since, "to": until, "forgotten": self.seen_until - _FORGOTTEN_S}
        there = """FROM pilots INDEXED BY pilots_by_end WHERE node != '' AND started < :to AND started IS NOT NULL
            AND (ended >= :from_ OR (ended IS NULL AND started >= :forgotten))"""
        nodes = self._rows(
            f"SELECT node, total(outcome IN ({_FAILED}) AND ended < :until) AS failed, count(*) AS pilots,"
            f" total(outcome = '{Outcome.PREEMPTED}' AND ended < :until) AS preempted {there}"
            " GROUP BY node ORDER BY failed DESC, preempted DESC, pilots DESC, node",
            **when,
        )
        chosen = [row["node"] for row in nodes[:TIMELINE_NODES]]
        levels: dict[str, list[tuple[int, int]]] = defaultdict(list)
        bars: dict[str, list[Bar]] = {node: [] for node in sorted(chosen)}
        rows = self._rows(
            f"SELECT * {there} AND node IN (SELECT value FROM json_each(:nodes)) ORDER BY started DESC LIMIT :most",  # noqa: S608
            nodes=_json(chosen),
            most=TIMELINE_PILOTS,
            **when,
        )
        for row in self._rows(
            "SELECT pilot, at, cpus FROM busy WHERE pilot IN (SELECT value FROM json_each(:pilots)) AND at < :to"
            " ORDER BY pilot, at",
            pilots=_json(row["id"] for row in rows),
            to=until,
        ):
            levels[row["pilot"]].append((row["at"], row["cpus"]))
        for row in reversed(rows):
            bars[row["node"]].append(_bar(row, self.period.until, levels[row["id"]]))
        return Timeline(since, until, len(nodes), int(sum(row["pilots"] for row in nodes)), bars)


def _bar(row: sqlite3.Row, until: int, levels: Iterable[tuple[int, int]]) -> Bar:
    """A pilot as it was at the end of the period. Its end may be later than the beginning of the cycle that saw it."""
    over = row["ended"] is not None and row["ended"] < until
    joined = row["joined"] if row["joined"] is not None and row["joined"] < until else None
    return Bar(
        *(row["id"], row["resource"], row["node"], row["cpus"], row["started"], joined),
        ended=row["ended"] if over else None,
        outcome=row["outcome"] if over else ALIVE,
        said=(row["said"] or "") if over else "",
        jobs=row["jobs"] if over else None,
        evicted=(row["evicted"] or 0) if over else 0,
        core_s=(row["core_s"] or 0) if over else 0,
        lost_core_s=(row["lost_core_s"] or 0) if over else 0,
        levels=tuple(levels),
    )


def _carried(looked: Mapping[int, int], found: Mapping[int, float], steps: int, step_s: int) -> Values:
    """The mean of each step. One in which no cycle looked is like the one before, unless that is too long ago."""
    values: list[float | None] = []
    last, age_s = None, 0
    for number in range(steps):
        if number in looked:
            last, age_s = round(found.get(number, 0.0) / looked[number], 2), 0
        else:
            age_s += step_s
        values.append(last if age_s <= 2 * GAP_S else None)
    return tuple(values)


def _spread(numbers: str | None) -> Spread:
    """Of whole numbers with commas between them."""
    return spread(Counter(map(int, numbers.split(",")))) if numbers else Spread()


def _json(names: Iterable[str]) -> str:
    return json.dumps(list(names))
