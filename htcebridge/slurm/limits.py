"""Slurm's own limits for one account, partition and QOS, and how many more pilots they leave room for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from htcebridge.model import Cap, Cut, Pilot, Shape
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.slurm.text import OtherJob


class Unit(StrEnum):
    """What a limit counts."""

    SUBMITTED = "submitted jobs"
    RUNNING = "running jobs"
    CPUS = "cores"
    NODES = "nodes"


@dataclass(frozen=True)
class Bound:
    """A limit on many jobs together: `most` of `unit`. Which jobs count: this user's alone (`own`), those of `account`,
    those of `qos` or in `partition`; an empty one does not matter."""

    name: str
    holder: str
    unit: Unit
    most: int
    own: bool
    account: str = ""
    qos: str = ""
    partition: str = ""


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
    limited by it then.
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


def room(limits: SlurmLimits, pilots: Iterable[Pilot], others: Iterable[OtherJob], shape: Shape) -> list[Cap]:
    """How many more pilots of `shape` Slurm would take and start, by limit. Each cap says what is there already.

    Slurm is not asked for other jobs' cores (it would look up the details of all): each node of theirs counts as one.
    """
    caps = [Cap(f"slurm {why}", 0, why, kind=Cut.SLURM_LIMIT) for why in limits.refusals]
    caps += [cap for size in limits.sizes if (cap := _too_big(size, shape))]
    ours = [each.job for each in pilots if stage_of(each.job.state) is not Stage.ENDED]
    others = list(others)
    for bound in limits.bounds:
        mine = sum(_concerns(bound, job.account, job.qos, job.partition) for job in ours)
        theirs = [
            job
            for job in others
            if _concerns(bound, job.account, job.qos, job.partition) and (job.user == limits.user or not bound.own)
        ]
        foreign = len(theirs) if bound.unit in (Unit.SUBMITTED, Unit.RUNNING) else sum(job.nodes or 1 for job in theirs)
        each = shape.cpus if bound.unit is Unit.CPUS else 1
        used = mine * each + foreign
        said = f"{used} there, {foreign} of them others'" if foreign else f"{used} there"
        why = f"{bound.holder} allows {bound.most} {bound.unit}{' a user' if bound.own and bound.qos else ''} ({said})"
        key = f"slurm {bound.holder} {bound.name}" + (f" {each}" if bound.unit is Unit.CPUS else "")
        caps.append(Cap(key, max(0, (bound.most - used) // each), why, kind=Cut.SLURM_LIMIT))
    return caps


def _concerns(bound: Bound, account: str, qos: str, partition: str) -> bool:
    if bound.account and account.lower() != bound.account:
        return False
    if not bound.qos and not bound.partition:
        return True
    return (bound.qos != "" and qos == bound.qos) or bound.partition in partition.split(",")


def _too_big(size: Size, shape: Shape) -> Cap | None:
    has = {"cpu": shape.cpus, "node": 1, "mem": shape.memory_mb, "gres/gpu": shape.gpus}.get(size.tres)
    if has is None or (has >= size.amount if size.least else has <= size.amount):
        return None
    how = "asks for at least" if size.least else "allows at most"
    unit = f"{size.tres}={size.amount:g}{'M' if size.tres == 'mem' else ''}"
    why = f"{size.holder} {how} {unit} a job, a pilot has {has}"
    return Cap(f"slurm {size.holder} {size.name} {has}", 0, why, kind=Cut.SLURM_LIMIT)
