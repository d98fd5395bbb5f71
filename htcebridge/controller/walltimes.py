"""How long a new pilot lives: as configured, cut by what Slurm allows and by a maintenance. Pure.

The one number of demand ("runs on", "why not"), plan and --time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.model import Limits
from htcebridge.pilot import script
from htcebridge.slurm.limits import SlurmLimits, longest_walltime
from htcebridge.state.memory import ReadLimits
from htcebridge.units import format_duration

# A pilot that starts so long after it was submitted still ends before a maintenance. Where there is a min_walltime
# Slurm shortens it itself.
_STARTS_WITHIN_S = 600


@dataclass(frozen=True)
class NewPilot:
    """A pilot of a resource that is submitted now. `cut` says what makes it shorter than configured, "" if nothing
    does; `too_short`: no job could use it, or it would be shorter than min_walltime."""

    limits: Limits
    cut: str = ""
    too_short: bool = False


def new_pilot(name: str, resource: Resource, slurm: SlurmLimits | None, now: int) -> NewPilot:
    """`slurm` is None where nothing is known of Slurm's limits: nothing is cut then."""
    base = script.limits(name, resource)
    if slurm is None:
        return NewPilot(base)
    most_s, of = longest_walltime(slurm, now, _STARTS_WITHIN_S if resource.min_walltime is None else 0)
    if most_s is None or base.walltime_s <= most_s:
        return NewPilot(base)
    cut = replace(base, walltime_s=most_s, job_life_s=most_s - base.overhead_s)
    too_short = most_s < (base.min_walltime_s or 0) or cut.job_life_s <= 0
    why = f"walltime {format_duration(base.walltime_s)} cut to {format_duration(most_s)} by {of}"
    return NewPilot(cut, why + (", too short for a pilot" if too_short else ""), too_short)


def job_lives(config: Config, read: Mapping[str, ReadLimits], now: int) -> dict[str, int]:
    """Resource -> the longest walltime that a pilot submitted now can promise a job, seconds; 0: none."""
    found = {}
    for name, resource in config.resources.items():
        pilot = new_pilot(name, resource, read[name].limits if name in read else None, now)
        found[name] = 0 if pilot.too_short else pilot.limits.job_life_s
    return found
