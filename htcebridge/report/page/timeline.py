"""The timeline of pilots by node, as numbers that the template puts into SVG. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from htcebridge.model import Outcome
from htcebridge.report.page import axis
from htcebridge.report.text import hours, moment, took
from htcebridge.report.totals import ALIVE, Bar, Timeline
from htcebridge.units import plural


@dataclass(frozen=True)
class Mark:
    """How an end is shown, in colour (a class of page.css) and without."""

    letter: str
    style: str
    label: str


MARKS: Mapping[str, Mark] = {
    ALIVE: Mark("", "alive", "runs at the end of the period"),
    Outcome.RAN: Mark("E", "ran", "ended by itself"),
    Outcome.TIMED_OUT: Mark("T", "timed", "timed out"),
    Outcome.PREEMPTED: Mark("P", "preempted", "preempted"),
    Outcome.NEVER_MATCHED: Mark("M", "matchless", "joined, never matched"),
    Outcome.NEVER_JOINED: Mark("J", "failed", "failed: never joined"),
    Outcome.NODE_FAILED: Mark("F", "failed", "failed: node failed"),
    Outcome.CANCELLED_BY_US: Mark("C", "cancelled", "cancelled by us"),
    Outcome.CANCELLED_BY_OTHERS: Mark("X", "cancelled", "cancelled by others"),
    Outcome.UNKNOWN: Mark("?", "cancelled", "end unknown"),
}
# Percent of the width: a letter, a number of jobs, the shortest bar that can be seen.
_LETTER, _NUMBER, _SHORTEST = 1.6, 6.0, 0.4
_HEIGHT = 100


@dataclass(frozen=True)
class Letter:
    """Where the letter of a mark stands, in percent, as SVG's text-anchor and dx; `right`: how far it reaches."""

    at: float
    anchor: str
    dx: int
    right: float


@dataclass(frozen=True)
class Drawn:
    """One pilot's bar. Across in percent of the line; `busy` is a path in a box of `width_s` by 100."""

    bar: Bar
    mark: Mark
    at: float
    boot: float
    width: float
    width_s: int
    busy: str
    letter: Letter | None
    jobs_at: float | None
    title: str


@dataclass(frozen=True)
class Line:
    node: str
    drawn: tuple[Drawn, ...]


def ticks(timeline: Timeline) -> tuple[axis.Tick, ...]:
    return axis.times(timeline.since, timeline.until)


def lines(timeline: Timeline) -> tuple[Line, ...]:
    """One for each node, its pilots from left to right."""
    return tuple(Line(node, _drawn(timeline, tuple(bars))) for node, bars in timeline.lines.items())


def _drawn(timeline: Timeline, bars: tuple[Bar, ...]) -> tuple[Drawn, ...]:
    spans = [_span(timeline, bar) for bar in bars]
    free, made = 0.0, []
    for number, (bar, (at, boot, width)) in enumerate(zip(bars, spans, strict=True)):
        mark = MARKS.get(bar.outcome, MARKS[Outcome.UNKNOWN])
        next_at = spans[number + 1][0] if number + 1 < len(spans) else 100.0
        letter = _letter(free, at, at + boot + width, next_at) if mark.letter else None
        free = max(at + boot + width, letter.right if letter else 0.0)
        joined = round(timeline.since + (at + boot) * (timeline.until - timeline.since) / 100)
        made.append(
            Drawn(
                bar,
                mark,
                at,
                boot,
                width,
                max(1, _end(timeline, bar) - joined),
                _busy(bar, joined, _end(timeline, bar)),
                letter,
                round(at + boot + width / 2, 2) if bar.jobs and width > _NUMBER else None,
                _title(bar, mark),
            )
        )
    return tuple(made)


def _span(timeline: Timeline, bar: Bar) -> tuple[float, float, float]:
    """Where a bar begins, how long it boots and how long it is held then; never too short to be seen. In percent."""
    length = max(1, timeline.until - timeline.since)
    begin, end = max(bar.started, timeline.since), _end(timeline, bar)
    joined = min(max(bar.joined if bar.joined is not None else end, begin), end)
    at, boot, width = (100 * part / length for part in (begin - timeline.since, joined - begin, end - joined))
    short = max(0.0, _SHORTEST - boot - width)
    boot, width = (boot + short, width) if bar.joined is None else (boot, width + short)
    return round(min(at, 100 - boot - width), 2), round(boot, 2), round(width, 2)


def _end(timeline: Timeline, bar: Bar) -> int:
    return min(bar.ended if bar.ended is not None else timeline.until, timeline.until)


def _letter(free: float, begin: float, end: float, next_at: float) -> Letter | None:
    """Inside a bar at its end; else behind it, else before it; nowhere if there is no room up to the next ones."""
    if end - begin >= _LETTER:
        return Letter(round(end, 2), "end", -3, end)
    if end + _LETTER <= next_at:
        return Letter(round(end, 2), "start", 2, end + _LETTER)
    if begin - _LETTER >= free:
        return Letter(round(begin, 2), "end", -2, end)
    return None


def _busy(bar: Bar, begin: int, end: int) -> str:
    """How full it was: as it was seen, or where that is no longer kept, its mean."""
    if not bar.cpus or bar.joined is None or end <= begin:
        return ""
    levels = list(bar.levels)
    if not levels and bar.core_s and bar.ended:
        levels = [(bar.joined, round(bar.core_s / max(1, bar.ended - bar.joined)))]
    text, height = f"M0 {_HEIGHT}", _HEIGHT
    for when, cpus in levels:
        across, new = min(max(when, begin), end) - begin, round(_HEIGHT * (1 - min(1.0, cpus / bar.cpus)))
        if new != height:
            text += f"H{across}V{new}"
            height = new
    return f"{text}H{end - begin}V{_HEIGHT}Z" if levels else ""


def _title(bar: Bar, mark: Mark) -> str:
    """The bar in words."""
    said = f" ({bar.said})" if bar.said else ""
    parts = [f"{bar.node}, pilot {bar.id}, {bar.resource}: {mark.label}{said}", f"started {moment(bar.started)}"]
    if bar.joined is not None:
        parts.append(f"joined after {took(max(0, bar.joined - bar.started))}")
    if bar.ended is not None:
        parts.append(f"ended {moment(bar.ended)}")
        parts.append(f"{plural(bar.jobs or 0, 'job')}, {bar.evicted} evicted, {hours(bar.core_s)} core-hours")
    elif bar.levels:
        parts.append(f"{bar.levels[-1][1]} of {bar.cpus} cores busy")
    if bar.lost_core_s:
        parts.append(f"{hours(bar.lost_core_s)} core-hours lost")
    return ", ".join(parts)
