"""The plots over time and the bars of core-hours, as numbers that the template puts into SVG. Pure.

A curve is a path in a box that is stretched to whatever width there is; all text stands outside of it and keeps its
size, so that one page fits a phone, a desk and a sheet of paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from htcebridge.report import text as report_text
from htcebridge.report.page import axis
from htcebridge.report.totals import Cores, Report, Values

HEIGHT = 1000
_MOST_VOS = 5


@dataclass(frozen=True)
class Layer:
    """One area of a plot. `style` is its class in page.css; `path` in steps across and thousandths down."""

    label: str
    style: str
    path: str
    edge: str


@dataclass(frozen=True)
class Plot:
    """`box`: the part of the paths that is shown, as SVG's viewBox. `summary`: the plot in words."""

    title: str
    unit: str
    box: str
    layers: tuple[Layer, ...]
    sides: tuple[axis.Tick, ...]
    below: tuple[axis.Tick, ...]
    summary: str


def series(report: Report) -> tuple[Plot, ...]:
    """Demand, pilots and cores over the period, drawn upon each other's time."""
    found = report.series
    waiting = [(vo or "no VO", f"vo{number}", values) for number, (vo, values) in enumerate(by_vo(found.waiting_cpus))]
    pilots = [("joined", "joined", found.joined), ("booting", "booting", found.booting)]
    pilots.append(("pending", "pending", found.pending))
    free = _sum([found.held_cpus, tuple(-value if value is not None else None for value in found.busy_cpus)])
    cores = [("busy", "busy", found.busy_cpus), ("held, not busy", "free", free)]
    return (
        _plot(report, "Demand", "cores that waiting jobs ask for", waiting),
        _plot(report, "Pilots", "in Slurm and in the pool", pilots),
        _plot(report, "Cores", "of joined and booting pilots", cores),
    )


def by_vo(waiting: Mapping[str, Values]) -> list[tuple[str, Values]]:
    """The VOs with the most demand, the others in one."""
    ranked = sorted(waiting.items(), key=lambda item: -sum(value or 0 for value in item[1]))
    rest = [values for _, values in ranked[_MOST_VOS:]]
    return [*ranked[:_MOST_VOS], *([(f"{len(rest)} others", _sum(rest))] if rest else [])]


def _plot(report: Report, title: str, unit: str, layers: Sequence[tuple[str, str, Values]]) -> Plot:
    found, period = report.series, report.period
    stacked, sums = [], tuple(None if value is None else 0.0 for value in found.joined)
    for label, style, values in layers:
        below, sums = sums, _sum([sums, values])
        stacked.append((label, style, below, sums))
    most = max((value for value in sums if value is not None), default=0.0)
    scale = axis.top(most)
    first, last = ((when - found.times[0]) / found.step_s for when in (period.since, period.until))
    seen = [value for value in sums if value is not None]
    mean = sum(seen) / len(seen) if seen else 0.0
    return Plot(
        title=title,
        unit=unit,
        box=f"{first:g} 0 {last - first:g} {HEIGHT}",
        layers=tuple(
            Layer(label, style, _area(below, above, scale), _edge(above, scale))
            for label, style, below, above in reversed(stacked)
        ),
        sides=tuple(axis.Tick(100 - 50 * part, axis.short(scale * part / 2)) for part in (0, 1, 2)),
        below=axis.times(period.since, period.until),
        summary=f"{mean:,.0f} {unit} on average, {most:,.0f} at most" if seen else "nothing was seen",
    )


def _sum(parts: Sequence[Values]) -> Values:
    return tuple(
        None if any(value is None for value in column) else sum(value or 0.0 for value in column)
        for column in zip(*parts, strict=True)
    )


def _runs(values: Values) -> Iterator[range]:
    """The stretches in which something was seen."""
    begin = None
    for number, value in enumerate((*values, None)):
        if value is not None and begin is None:
            begin = number
        elif value is None and begin is not None:
            yield range(begin, number)
            begin = None


def _y(value: float | None, scale: float) -> int:
    return round(HEIGHT - HEIGHT * max(0.0, value or 0.0) / scale)


def _steps(values: Values, run: range, scale: float, backwards: bool = False) -> str:
    """Across the run at each value's height: down or up at the border of a step, along it, and so on."""
    order = reversed(run) if backwards else run
    text, height = "", None
    for number in order:
        new = _y(values[number], scale)
        if new != height:
            text += f"H{number + 1 if backwards else number}V{new}" if height is not None else f"V{new}"
            height = new
    return text + f"H{run.start if backwards else run.stop}"


def _area(below: Values, above: Values, scale: float) -> str:
    return "".join(
        f"M{run.start} {_y(below[run.start], scale)}{_steps(above, run, scale)}{_steps(below, run, scale, True)}Z"
        for run in _runs(above)
    )


def _edge(above: Values, scale: float) -> str:
    return "".join(f"M{run.start} {_y(above[run.start], scale)}{_steps(above, run, scale)}" for run in _runs(above))


# --------------------------------------------------------------------------- core-hours


@dataclass(frozen=True)
class Part:
    """A piece of a bar, in percent of it."""

    use: str
    at: float
    width: float
    core_s: int


@dataclass(frozen=True)
class Hours:
    """One bar: a resource, or all of them."""

    name: str
    cores: Cores
    parts: tuple[Part, ...]


def core_hours(report: Report) -> tuple[Hours, ...]:
    """Where the core-hours of each resource went; of all together first, where there are several."""
    rows = [(row.resource, row.cores) for row in report.resources if row.cores.held]
    total = [("all", report.cores)] if len(rows) > 1 else []
    return tuple(Hours(name, cores, _parts(cores)) for name, cores in [*total, *rows])


def _parts(cores: Cores) -> tuple[Part, ...]:
    split = cores.split()
    edges = [0]
    for use in report_text.USES:
        edges.append(edges[-1] + split[use])
    return tuple(
        Part(use, round(100 * one / cores.held, 3), round(100 * (two - one) / cores.held, 3), two - one)
        for use, (one, two) in zip(report_text.USES, pairwise(edges), strict=True)
        if two > one
    )
