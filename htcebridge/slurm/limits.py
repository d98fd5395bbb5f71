"""Slurm's own limits for one account, partition and QOS, and how many more pilots they leave room for. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from htcebridge.model import Cap, Cut
from htcebridge.slurm.reservations import Maintenance
from htcebridge.slurm.tres import Tres
from htcebridge.units import plural


class Unit(StrEnum):
    """What a limit counts."""

    SUBMITTED = "submitted jobs"
    RUNNING = "running jobs"
    CPUS = "cores"
    NODES = "nodes"
    MEMORY = "MiB of memory"
    GPUS = "GPUs"


_TRES = {Unit.CPUS: "cpu", Unit.NODES: "node", Unit.MEMORY: "mem", Unit.GPUS: "gres/gpu"}


@dataclass(frozen=True)
class Bound:
    """A limit on many jobs together: `most` of `unit`. Which jobs count: this user's alone (`own`), those of `account`,
    those of `qos` or in `partition`; an empty one does not matter. `gpu_type`: only GPUs that are asked for by this
    type."""

    name: str
    holder: str
    unit: Unit
    most: int
    own: bool
    account: str = ""
    qos: str = ""
    partition: str = ""
    gpu_type: str = ""

    @property
    def tres(self) -> str:
        """Slurm's name of what it counts, "" where that is jobs."""
        return _TRES.get(self.unit, "") + (f":{self.gpu_type}" if self.gpu_type else "")

    @property
    def key(self) -> str:
        """The same for the same limit of Slurm, whichever partition or account it was read for."""
        return f"slurm {f'QOS {self.qos} {self.account}' if self.qos else self.holder} {self.name}"


@dataclass(frozen=True)
class Size:
    """A limit on one job: at most (or least) so many of a trackable resource; memory in MiB."""

    name: str
    holder: str
    tres: str
    amount: float
    least: bool = False


@dataclass(frozen=True)
class SlurmLimits:
    """What Slurm allows this user in one account, partition and QOS.

    `refusals`: why nothing would be taken, or started. `max_wall_s` is the longest walltime, `max_wall_of` who says so.
    `usage_factor` 0 means that nothing is charged. `watch`: the accounts for `Slurm.queue`, where a limit of a whole
    account is in force; empty: this user's own jobs are enough. `unknown`: why slurmdbd's part is not known; nothing is
    limited by it then. `unread`: limits that are there and that this version cannot read or count.
    """

    user: int
    refusals: tuple[str, ...] = ()
    max_wall_s: int | None = None
    max_wall_of: str = ""
    bounds: tuple[Bound, ...] = ()
    sizes: tuple[Size, ...] = ()
    usage_factor: float | None = None
    grace_s: int | None = None
    watch: tuple[str, ...] = ()
    unknown: str = ""
    unread: tuple[str, ...] = ()
    maintenances: tuple[Maintenance, ...] = ()


@dataclass(frozen=True)
class Live:
    """A live job as the limits count it. `ours`: it is a pilot of this instance.

    `tres` is what it holds, or asks for while it waits. Where not all of that is known (`known` is false), what is not
    in it is unknown; else it is none.
    """

    user: int
    account: str
    qos: str
    partition: str
    tres: Tres = field(default_factory=dict)
    known: bool = True
    ours: bool = False

    def holds(self, tres: str) -> float | None:
        """How much of a trackable resource, None where that is not known."""
        return self.tres.get(tres, 0 if self.known else None)


def longest_walltime(limits: SlurmLimits, now: int, slack_s: int) -> tuple[int | None, str]:
    """The longest walltime of a pilot that starts within `slack_s` from now, seconds, and who says so. None: no bound.

    A job that would run into a maintenance of all nodes is not started before its end.
    """
    most_s, of = limits.max_wall_s, limits.max_wall_of
    for each in limits.maintenances:
        left_s = max(0, each.begins - now - slack_s) // 60 * 60
        if each.whole and now < each.ends and (most_s is None or left_s < most_s):
            most_s = left_s
            of = f"maintenance {each.name}, {_clock(each.begins)} to {_clock(each.ends)}"
    return most_s, of


def _clock(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def counts_sizes(limits: Iterable[SlurmLimits]) -> bool:
    """Whether any limit counts more of a job than itself and its nodes."""
    return any(bound.tres not in ("", "node") for each in limits for bound in each.bounds)


def room(limits: SlurmLimits, jobs: Iterable[Live], asks: Tres, known: Iterable[SlurmLimits] = ()) -> list[Cap]:
    """How many more pilots that ask for `asks` Slurm would take and start, by limit. Each cap says what is there.

    `known` are the limits of all resources: where two of them are one limit of Slurm's, the jobs of both count.
    """
    caps = [Cap(f"slurm {why}", 0, why, kind=Cut.SLURM_LIMIT) for why in limits.refusals]
    caps += [cap for size in limits.sizes if (cap := _too_big(size, asks))]
    live = list(jobs)
    alike = [bound for each in known for bound in each.bounds]
    for bound in limits.bounds:
        each = int(asks.get(bound.tres, 0)) if bound.tres else 1
        if each:
            same = [bound, *(other for other in alike if other.key == bound.key)]
            concerned = [job for job in live if any(_concerns(one, job, limits.user) for one in same)]
            caps.append(_cap(bound, concerned, each))
    return caps


def _cap(bound: Bound, jobs: Iterable[Live], each: int) -> Cap:
    used, foreign, unknown = 0.0, 0.0, 0
    for job in jobs:
        amount = job.holds(bound.tres) if bound.tres else 1
        unknown += amount is None
        used += amount or 0
        foreign += 0 if job.ours else amount or 0
    said = f"{used:.0f} there" + (f", {foreign:.0f} of them others'" if foreign else "")
    if unknown:
        said += f", and what {plural(unknown, 'other job')} hold is not known"
    what = f"{bound.most} {bound.gpu_type}{' ' if bound.gpu_type else ''}{bound.unit}"
    why = f"{bound.holder} allows {what}{' a user' if bound.own and bound.qos else ''} ({said})"
    left = 0 if unknown else max(0, bound.most - int(used))
    return Cap(bound.key, left, why, each=each, kind=Cut.SLURM_LIMIT)


def _concerns(bound: Bound, job: Live, user: int) -> bool:
    if bound.own and not job.ours and job.user != user:
        return False
    if bound.account and job.account.lower() != bound.account:
        return False
    if not bound.qos and not bound.partition:
        return True
    return (bound.qos != "" and job.qos == bound.qos) or bound.partition in job.partition.split(",")


def _too_big(size: Size, asks: Tres) -> Cap | None:
    has = asks.get(size.tres, 0)
    if has >= size.amount if size.least else has <= size.amount:
        return None
    how = "asks for at least" if size.least else "allows at most"
    unit = f"{size.tres}={round(size.amount)}{'M' if size.tres == 'mem' else ''}"
    why = f"{size.holder} {how} {unit} a job, a pilot has {round(has)}"
    return Cap(f"slurm {size.holder} {size.name} {size.tres} {round(has)}", 0, why, kind=Cut.SLURM_LIMIT)
