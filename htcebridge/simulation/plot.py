"""A picture of a run: what waited, what was held, what was used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from htcebridge.errors import ConfigError
from htcebridge.simulation.metrics import Result, Sample
from htcebridge.simulation.workload import HOUR_S

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raises ConfigError where `draw` could not write such a file, before a long run rather than after it."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a plot is a file that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such directory for the plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'htcebridge[plots]'") from None


def draw(samples: Sequence[Sample], outcome: Result, path: Path) -> None:
    """Write the picture; `check` says whether that can be. Raises ConfigError where the file cannot be written."""
    from matplotlib.figure import Figure

    hours = [sample.second / HOUR_S for sample in samples]
    busy = [sample.busy_cores for sample in samples]
    held = [sample.held_cores for sample in samples]
    figure = Figure(figsize=(12, 7), layout="constrained")
    cores, pilots = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    cores.fill_between(hours, busy, step="post", color="tab:green", alpha=0.75, linewidth=0, label="busy cores")
    cores.fill_between(hours, busy, held, step="post", color="tab:orange", alpha=0.6, linewidth=0, label="idle cores")
    waiting = [sample.waiting_cores for sample in samples]
    cores.step(hours, waiting, where="post", color="tab:red", linewidth=1.4, label="demand: cores that jobs wait for")
    cores.set_ylabel("cores")
    figure.suptitle(
        f"{outcome.workload}, seed {outcome.seed}, {outcome.controller}: {outcome.efficiency:.0%} of "
        f"{outcome.held:,.0f} held core-hours did work that counts; mean wait {outcome.wait_mean_min:.0f} min"
    )
    running = [sample.running_pilots for sample in samples]
    pending = [sample.pending_pilots for sample in samples]
    pilots.step(hours, running, where="post", color="tab:blue", label="running pilots")
    pilots.step(hours, pending, where="post", color="tab:purple", label="pending pilots")
    paid = [sample.paid_nodes for sample in samples]
    pilots.step(hours, paid, where="post", color="tab:gray", linewidth=0.9, label="nodes that paying jobs hold")
    pilots.set_ylabel("pilots, nodes")
    pilots.set_xlabel("hours since the first midnight")
    # Six ticks a day while that is legible, then one.
    step = 4 if hours[-1] <= 6 * 24 else 24
    pilots.set_xticks(range(0, int(hours[-1]) + 1, step))
    for axes in (cores, pilots):
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.grid(alpha=0.3)
        # Above the axes: there is no corner that no curve ever reaches.
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path}: the plot cannot be written: {error.strerror}") from None
