"""A report in words and numbers: sentences for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from htcebridge.model import Outcome
from htcebridge.report.totals import ALIVE, NodeRow, Pilots, Report, ResourceRow, Spread, VoRow
from htcebridge.units import format_duration

HOUR_S = 3600
DAY_S = 86400
USES = ("good", "lost", "boot", "unmatched", "fragmentation", "tail", "drained", "elsewhere")
"""The parts of `Cores.split`, in the order in which they are shown."""
MEANING = {
    "good": "runs a job, and its work is not lost",
    "lost": "ran a job that had to leave with its pilot",
    "boot": "the pilot has not joined yet",
    "unmatched": "joined, and the whole pilot has no job",
    "fragmentation": "jobs wait, and this core takes none",
    "tail": "nothing waits; other cores of the pilot are busy",
    "drained": "the pilot takes no new jobs",
    "elsewhere": "a manual glidein: known in its own pool",
}
OUTCOMES = (*map(str, Outcome), ALIVE)


def moment(seconds: float) -> str:
    """A time as this machine's zone has it: 2026-11-26 04:00."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def zone(seconds: float) -> str:
    """This machine's zone at that time: CET (UTC+01:00)."""
    there = datetime.fromtimestamp(seconds).astimezone()
    offset = there.strftime("%z")
    return there.strftime("%Z") + (f" (UTC{offset[:3]}:{offset[3:]})" if int(offset or 0) else "")


def span(report: Report) -> str:
    """The period, its length and its zone. Where the clocks change in it, both ends name theirs."""
    since, until = report.period.since, report.period.until
    first = "" if zone(since) == zone(until) else f" {zone(since)}"
    unit = 60 if report.period.seconds < 2 * DAY_S else HOUR_S
    length = format_duration(report.period.seconds // unit * unit)
    return f"{moment(since)}{first} to {moment(until)} {zone(until)}, {length}"


def watched(report: Report) -> str:
    """How much of the period the controller saw."""
    seen = report.watched
    held = f", {seen.held:,} of them held" if seen.held else ""
    cycles = f"{seen.cycles:,} {'cycle' if seen.cycles == 1 else 'cycles'}"
    young = report.kept and 0 <= report.kept[0] - report.period.since < HOUR_S
    begins = f"; the history begins at {moment(report.kept[0])}" if young and report.kept else ""
    return f"{cycles}{held}; a cycle looked in {percent(seen.part)} of the quarters of an hour{begins}"


def emptiness(report: Report) -> str:
    """The one sentence about a period in which nothing was recorded."""
    where = (
        f"; the history goes from {moment(report.kept[0])} to {moment(report.kept[1])}"
        if report.kept
        else "; there is none at any other time either"
    )
    period = f"{moment(report.period.since)} and {moment(report.period.until)} {zone(report.period.until)}"
    return f"No cycle, pilot or core-hour of {report.name} was recorded between {period}{where}."


def percent(part: float | None) -> str:
    """99.6 %; never rounded up to 100 % nor down to 0 %."""
    if part is None:
        return "-"
    if 0.995 <= part < 1 or 0 < part < 0.1:
        return f"{min(part * 100, 99.9):.1f} %"
    return f"{part:.0%}".replace("%", " %")


def hours(seconds: float) -> str:
    """Core- or node-seconds as hours: 1,234 or 12.3."""
    value = seconds / HOUR_S
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def took(seconds: int | None) -> str:
    """A duration, no finer than matters: 12s, 8m, 1h40m."""
    if seconds is None:
        return "-"
    return format_duration(seconds if seconds < 120 else seconds // 60 * 60)


# --------------------------------------------------------------------------- JSON


def as_document(report: Report, now: float) -> dict[str, Any]:
    """`report --json`, schema 1: docs/schema/report.json. Hours, seconds; times in seconds since the epoch."""
    seen = report.watched
    return {
        "schema": 1,
        "time": int(now),
        "instance": report.name,
        "since": report.period.since,
        "until": report.period.until,
        "empty": emptiness(report) if report.empty else None,
        "cycles": {"count": seen.cycles, "held": seen.held, "first": seen.first, "last": seen.last, "seen": seen.part},
        "totals": {**_pilot_numbers(report.pilots), "core_hours": _core_numbers(report)},
        "resources": [
            {
                "resource": row.resource,
                **_pilot_numbers(row.pilots),
                "core_hours": _core_numbers(row),
                "queued_s": _spread(row.queued),
                "booted_s": _spread(row.booted),
                "to_join_s": _spread(row.to_join),
            }
            for row in report.resources
        ],
        "vos": [
            {
                "vo": row.vo,
                "resource": row.resource,
                "good_core_hours": _hours(row.cores.good),
                "lost_core_hours": _hours(row.cores.lost),
            }
            for row in report.vos
        ],
        "waiting": [
            {
                "vo": row.vo,
                "idle_jobs_mean": round(row.idle_jobs, 2),
                "idle_cpus_mean": round(row.idle_cpus, 2),
                "oldest_s": row.oldest_s,
            }
            for row in report.waited
        ],
        "nodes": [
            {
                "node": row.node,
                "pilots": row.pilots,
                "failed": row.failed,
                "preempted": row.preempted,
                "lost_core_hours": _hours(row.lost_core_s),
                "said": row.said,
            }
            for row in report.nodes
        ],
        "series": {
            "step_s": report.series.step_s,
            "times": list(report.series.times),
            "waiting_cpus": {vo: list(values) for vo, values in report.series.waiting_cpus.items()},
            **{
                name: list(getattr(report.series, name))
                for name in ("pending", "booting", "joined", "held_cpus", "busy_cpus")
            },
        },
    }


def _pilot_numbers(pilots: Pilots) -> dict[str, Any]:
    return {
        "pilots": pilots.count,
        "started": pilots.started,
        "joined": pilots.joined,
        "preempted": pilots.preempted,
        "failed": pilots.failed,
        "outcomes": dict(pilots.outcomes),
        "node_hours": _hours(pilots.node_s),
        "jobs": pilots.jobs,
        "evicted": pilots.evicted,
    }


def _core_numbers(row: Report | ResourceRow) -> dict[str, float]:
    """Good and lost first, then what was held and idle and its parts."""
    cores = row.cores
    parts = {use: _hours(core_s) for use, core_s in cores.split().items() if use not in ("good", "lost")}
    four = {"held": cores.held, "good": cores.good, "lost": cores.lost, "idle": cores.idle}
    return {**{name: _hours(core_s) for name, core_s in four.items()}, **parts}


def _spread(times: Spread) -> dict[str, int | None]:
    return {"count": times.count, "p50": times.p50, "p90": times.p90}


def _hours(seconds: float) -> float:
    return round(seconds / HOUR_S, 3)


# --------------------------------------------------------------------------- CSV

BY = ("resource", "vo", "node")


def as_csv(report: Report, by: str) -> str:
    """One line for each resource, VO and resource, or node, with a header; times and zone as in the JSON."""
    rows = list({"resource": _resources, "vo": _vos, "node": _nodes}[by](report))
    period = {"since": report.period.since, "until": report.period.until}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*period, *_COLUMNS[by]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**period, **row} for row in rows)
    return text.getvalue()


_TIMES = ("queued", "booted", "to_join")
_CORES = ("held", "good", "lost", "idle", "boot", "fragmentation", "tail", "drained", "elsewhere", "unmatched")
_COUNTS = ("pilots", "started", "joined", "preempted", "failed", "node_hours", "jobs", "evicted")
_COLUMNS = {
    "resource": (
        "resource",
        *_COUNTS,
        *(f"{name}_core_hours" for name in _CORES),
        *(f"{name}_s_p{rank}" for name in _TIMES for rank in (50, 90)),
    ),
    "vo": ("vo", "resource", "good_core_hours", "lost_core_hours"),
    "node": ("node", "pilots", "failed", "preempted", "lost_core_hours", "said"),
}


def _resources(report: Report) -> Iterable[Mapping[str, object]]:
    for row in report.resources:
        numbers = _pilot_numbers(row.pilots)
        times = {f"{name}_s_p{rank}": getattr(getattr(row, name), f"p{rank}") for name in _TIMES for rank in (50, 90)}
        yield {
            "resource": _safe(row.resource),
            **{name: numbers[name] for name in _COUNTS},
            **{f"{name}_core_hours": value for name, value in _core_numbers(row).items()},
            **times,
        }


def _vos(report: Report) -> Iterable[Mapping[str, object]]:
    def line(row: VoRow) -> dict[str, object]:
        return {
            "vo": _safe(row.vo),
            "resource": _safe(row.resource),
            "good_core_hours": _hours(row.cores.good),
            "lost_core_hours": _hours(row.cores.lost),
        }

    return map(line, report.vos)


def _nodes(report: Report) -> Iterable[Mapping[str, object]]:
    def line(row: NodeRow) -> dict[str, object]:
        numbers = {"pilots": row.pilots, "failed": row.failed, "preempted": row.preempted}
        lost = {"lost_core_hours": _hours(row.lost_core_s)}
        return {"node": _safe(row.node), **numbers, **lost, "said": _safe(row.said)}

    return map(line, report.nodes)


def _safe(text: str) -> str:
    """What a spreadsheet would take for a formula gets an apostrophe in front (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
