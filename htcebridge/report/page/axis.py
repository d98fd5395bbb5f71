"""Where an axis has its marks, and what stands there: local time below, round numbers at the side. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

HOUR_S = 3600
DAY_S = 86400
_MOST_TICKS = 8


@dataclass(frozen=True)
class Tick:
    """`at`: how far along the axis, in percent. `minor`: left out where there is little room."""

    at: float
    label: str
    minor: bool = False


def times(since: int, until: int) -> tuple[Tick, ...]:
    """Round local times between two, in seconds since the epoch; days of 23 and 25 hours are as long as they are."""
    length = max(1, until - since)
    found = [(at, label) for at, label in _round(since, length) if since <= at < until]
    return tuple(
        Tick(round(100 * (at - since) / length, 3), label, minor=len(found) > 5 and number % 2 == 1)
        for number, (at, label) in enumerate(found)
        # What would stand out over an end of the axis has no room there.
        if 0.02 < (at - since) / length < 0.98
    )


def _round(since: int, length: int) -> Iterator[tuple[int, str]]:
    day = datetime.fromtimestamp(since).replace(hour=0, minute=0, second=0)  # noqa: DTZ006  local, and clocks may change
    for minutes in (10, 30, 60, 180, 360, 720):
        if length <= minutes * 60 * _MOST_TICKS:
            for number in range(length // (minutes * 60) + 24 * 60 // minutes + 2):
                at = day + timedelta(minutes=minutes * number)
                yield _seconds(at), at.strftime("%a %d" if at.hour == at.minute == 0 else "%H:%M")
            return
    for days in (1, 2, 7, 14):
        if length <= days * DAY_S * _MOST_TICKS:
            begin = day - timedelta(days=day.weekday() if days >= 7 else 0)
            for number in range(length // (days * DAY_S) + 3):
                at = begin + timedelta(days=days * number)
                yield _seconds(at), at.strftime("%d %b")
            return
    months = next((step for step in (1, 2, 3, 6) if length <= step * 31 * DAY_S * _MOST_TICKS), 12)
    for number in range(0, length // (28 * DAY_S) + 2, months):
        year, month = divmod(day.year * 12 + day.month - 1 + number, 12)
        yield (
            _seconds(day.replace(year=year, month=month + 1, day=1)),
            day.replace(year, month + 1, 1).strftime("%b %y"),
        )


def _seconds(local: datetime) -> int:
    return int(local.timestamp())


def top(most: float) -> float:
    """The round number, 1, 2, 2.5, 4, 5 or 8 times a power of ten, at or above the largest value."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if most <= step * power * (1 + 1e-9))


def short(value: float) -> str:
    """A number of at most five characters: 950, 12.5k, 3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
