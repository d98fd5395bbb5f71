"""Which of Slurm's limits hold for one account, partition and QOS, from what scontrol and sacctmgr print. Pure.

Where several levels have the same limit: https://slurm.schedmd.com/resource_limits.html and acct_policy.c. The
partition's QOS comes first, then the job's (the other way round with OverPartQOS), then the association: a level is
asked only if none before it has that limit. The partition's MaxTime holds beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from htcebridge.errors import UnknownState
from htcebridge.slurm.limits import Bound, Size, SlurmLimits, Unit
from htcebridge.slurm.text import parse_time_limit
from htcebridge.slurm.tres import Tres, parse_tres

QOS_FIELDS = (
    "Name,MaxWall,MaxJobsPU,MaxSubmitPU,MaxJobsPA,MaxSubmitPA,GrpJobs,GrpSubmit,GrpTRES,MaxTRES,MaxTRESPU,MaxTRESPA,"
    "MinTRES,UsageFactor,GraceTime,Flags"
)
ASSOC_FIELDS = "Account,User,Partition,ParentName,QOS,MaxWall,MaxJobs,MaxSubmit,MaxTRES,GrpJobs,GrpSubmit,GrpTRES"
Row = Mapping[str, str]
_COUNTS = ("MaxJobsPU", "MaxSubmitPU", "MaxJobsPA", "MaxSubmitPA", "GrpJobs", "GrpSubmit", "MaxJobs", "MaxSubmit")
_TRES_FIELDS = ("GrpTRES", "MaxTRES", "MaxTRESPU", "MaxTRESPA", "MinTRES")


@dataclass(frozen=True)
class Settings:
    """What of slurm.conf decides which limits count (`scontrol show config`)."""

    cluster: str
    enforced: frozenset[str]
    preempt_by_qos: bool


@dataclass(frozen=True)
class Asked:
    """For whom the limits are asked; Slurm keeps account names in small letters."""

    user: int
    account: str
    partition: str
    qos: str


def limits_of(
    asked: Asked,
    settings: Settings,
    partition: Row | None,
    qos_table: Mapping[str, Row],
    own: Sequence[Row],
    above: Sequence[Row],
) -> SlurmLimits:
    """The limits that hold. `partition` None: there is none of that name. `own` are this user's associations in all
    accounts, `above` those of its account and of the account's parents, upwards."""
    found = partition_limits(asked, partition)
    mine = _association(asked, own)
    enforced = settings.enforced
    refusals = list(found.refusals)
    if "associations" in enforced and mine is None:
        refusals.append(f"there is no association of this user with account {asked.account}")
    if "qos" in enforced and asked.qos not in qos_table:
        refusals.append(f"there is no QOS {asked.qos}")
    elif "qos" in enforced and mine is not None and asked.qos not in mine["QOS"].split(","):
        refusals.append(f"account {asked.account} does not allow QOS {asked.qos}")
    qos = qos_table.get(asked.qos)
    grace = qos["GraceTime"] if qos and settings.preempt_by_qos else (partition or {}).get("GraceTime", "")
    factor = _factor(qos["UsageFactor"]) if qos else None
    found = replace(found, refusals=tuple(refusals), usage_factor=factor, grace_s=_seconds(grace))
    if "limits" not in enforced:
        return found
    levels = list(_levels(asked, partition, qos_table, mine, above))
    bounds = tuple(_bounds(asked, levels))
    whole_account = any(bound.account and not bound.own for bound in bounds)
    return replace(
        _with_max_wall(found, levels),
        bounds=bounds,
        sizes=tuple(_sizes(levels)),
        unread=(*found.unread, *_unread(levels)),
        watch=tuple(sorted({row["Account"] for row in own})) if whole_account else (),
    )


def partition_limits(asked: Asked, partition: Row | None) -> SlurmLimits:
    """What the partition alone says: all that is known without slurmdbd."""
    name = f"partition {asked.partition}"
    if partition is None:
        return SlurmLimits(asked.user, refusals=(f"there is no {name}",))
    refusals = []
    state = partition.get("State", "UP")
    if state != "UP":
        refusals.append(f"{name} is {state}")
    for what, value in (("Accounts", asked.account), ("Qos", asked.qos)):
        allowed, denied = _names(partition.get(f"Allow{what}", "ALL")), _names(partition.get(f"Deny{what}", ""))
        if ("all" not in allowed and value.lower() not in allowed) or value.lower() in denied:
            refusals.append(f"{name} does not allow {'account' if what == 'Accounts' else 'QOS'} {value}")
    limit = partition.get("MaxTime", "UNLIMITED")
    wall = parse_time_limit(limit)
    return SlurmLimits(
        asked.user,
        refusals=tuple(refusals),
        max_wall_s=wall,
        max_wall_of=f"MaxTime of {name}" if wall is not None else "",
        unread=() if wall is not None or limit == "UNLIMITED" else (f"MaxTime {limit[:60]!r} of {name}",),
    )


@dataclass(frozen=True)
class _Level:
    """One holder of limits. `scope` says which jobs its group limits count."""

    row: Row
    scope: Bound
    is_qos: bool

    def bounds(self, name: str, unit: Unit, **scope: Any) -> Iterator[Bound]:
        """The limit `name` that counts jobs, if this level has it."""
        if self.row[name].isdecimal():
            yield replace(self.scope, name=name, unit=unit, most=int(self.row[name]), **scope)

    def tres_bounds(self, name: str, **scope: Any) -> Iterator[Bound]:
        """The limit `name` that counts trackable resources, for those that bound how many pilots there may be."""
        for tres, amount in _readable(self.row[name]).items():
            kind, _, gpu_type = tres.partition(":")
            found = replace(self.scope, name=f"{name} {tres}", unit=_TRES_UNITS[kind], most=int(amount), **scope)
            yield replace(found, gpu_type=gpu_type)


_TRES_UNITS = {"cpu": Unit.CPUS, "node": Unit.NODES, "mem": Unit.MEMORY, "gres/gpu": Unit.GPUS}
# An association's limit holds only where no QOS has one of these.
_SHADOWED_BY = {"MaxJobs": {"MaxJobsPU", "MaxJobsPA"}, "MaxSubmit": {"MaxSubmitPU", "MaxSubmitPA"}}


def _levels(
    asked: Asked, partition: Row | None, qos_table: Mapping[str, Row], mine: Row | None, above: Sequence[Row]
) -> Iterator[_Level]:
    """The levels in the order in which they are asked."""

    def qos_level(name: str, where: str = "") -> _Level:
        holder = f"QOS {name}" + (f" of partition {where}" if where else "")
        scope = Bound("", holder, Unit.SUBMITTED, 0, own=False, qos=name, partition=where)
        return _Level(qos_table[name], scope, is_qos=True)

    part_qos = (partition or {}).get("QoS", "N/A")
    of_job = [qos_level(asked.qos)] if asked.qos in qos_table else []
    of_partition = [qos_level(part_qos, asked.partition)] if part_qos in qos_table and part_qos != asked.qos else []
    over = bool(of_job) and "overpartqos" in _names(of_job[0].row["Flags"])
    yield from (of_job + of_partition) if over else (of_partition + of_job)
    for row in ([mine] if mine else []) + list(above):
        holder = f"account {row['Account']}"
        if row["User"]:
            holder = f"this user's association with {holder}"
        where = row["Partition"]
        holder += f" in partition {where}" if where else ""
        scope = Bound("", holder, Unit.SUBMITTED, 0, own=bool(row["User"]), account=asked.account.lower())
        yield _Level(row, replace(scope, partition=where), is_qos=False)


def _bounds(asked: Asked, levels: Sequence[_Level]) -> Iterator[Bound]:
    taken: set[str] = set()
    for level in levels:
        found = [
            bound
            for bound in (_qos_bounds(level, asked.account.lower()) if level.is_qos else _association_bounds(level))
            if not taken & _SHADOWED_BY.get(bound.name, {bound.name})
        ]
        yield from found
        if level.is_qos:
            taken |= {bound.name for bound in found}


def _qos_bounds(level: _Level, account: str) -> Iterator[Bound]:
    yield from level.bounds("MaxJobsPU", Unit.RUNNING, own=True)
    yield from level.bounds("MaxSubmitPU", Unit.SUBMITTED, own=True)
    yield from level.tres_bounds("MaxTRESPU", own=True)
    yield from level.bounds("MaxJobsPA", Unit.RUNNING, account=account)
    yield from level.bounds("MaxSubmitPA", Unit.SUBMITTED, account=account)
    yield from level.tres_bounds("MaxTRESPA", account=account)
    yield from _group_bounds(level)


def _association_bounds(level: _Level) -> Iterator[Bound]:
    if level.row["User"]:  # an account's are handed down to its users
        yield from level.bounds("MaxJobs", Unit.RUNNING)
        yield from level.bounds("MaxSubmit", Unit.SUBMITTED)
    yield from _group_bounds(level)


def _group_bounds(level: _Level) -> Iterator[Bound]:
    yield from level.bounds("GrpJobs", Unit.RUNNING)
    yield from level.bounds("GrpSubmit", Unit.SUBMITTED)
    yield from level.tres_bounds("GrpTRES")


def _sizes(levels: Sequence[_Level]) -> Iterator[Size]:
    taken: set[str] = set()
    for level in levels:
        if not level.is_qos and not level.row["User"]:
            continue
        for tres, amount in _readable(level.row["MaxTRES"]).items():
            if tres not in taken:
                taken.add(tres)
                yield Size("MaxTRES", level.scope.holder, tres, amount)
        for tres, amount in _readable(level.row.get("MinTRES", "")).items():
            yield Size("MinTRES", level.scope.holder, tres, amount, least=True)


def _readable(text: str) -> Tres:
    """The limits in this text that can be counted here. `_unread` names the others."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        try:
            (tres, amount), *_ = parse_tres(part).items()
        except UnknownState:
            continue
        if tres.partition(":")[0] in _TRES_UNITS:
            found[tres] = amount
    return found


def _unread(levels: Sequence[_Level]) -> Iterator[str]:
    """The limits that cannot be read, or not be counted."""
    for level in levels:
        row, of = level.row, f"of {level.scope.holder}"
        for name in _COUNTS:
            if (value := row.get(name, "")) and not value.isdecimal():
                yield f"{name} {value[:60]!r} {of}"
        for name in _TRES_FIELDS:
            for part in filter(None, row.get(name, "").split(",")):
                if not _readable(part):
                    yield f"{name} {part[:60]!r} {of}"
        if row["MaxWall"] and _seconds(row["MaxWall"]) is None:
            yield f"MaxWall {row['MaxWall'][:60]!r} {of}"


def _with_max_wall(found: SlurmLimits, levels: Sequence[_Level]) -> SlurmLimits:
    for level in levels:
        wall = _seconds(level.row["MaxWall"])
        if wall is not None:
            over = level.is_qos and "partitiontimelimit" in _names(level.row["Flags"])
            if over or found.max_wall_s is None or wall < found.max_wall_s:
                return replace(found, max_wall_s=wall, max_wall_of=f"MaxWall of {level.scope.holder}")
            return found
    return found


def _association(asked: Asked, own: Sequence[Row]) -> Row | None:
    """The one for this partition, or the one for all."""
    ours = [row for row in own if row["Account"].lower() == asked.account.lower()]
    for partition in (asked.partition, ""):
        for row in ours:
            if row["Partition"] == partition:
                return row
    return None


def parse_settings(output: str) -> Settings:
    """`scontrol show config`. Raises UnknownState."""
    found = dict(re.findall(r"^(\w+) *= (.*?) *$", output, re.MULTILINE))
    if "AccountingStorageEnforce" not in found or "ClusterName" not in found:
        raise UnknownState(f"scontrol show config said something else: {output.strip()[:120]!r}")
    enforced = _names(found["AccountingStorageEnforce"])
    return Settings(found["ClusterName"], enforced, found.get("PreemptType", "").endswith("qos"))


def parse_partition(output: str) -> Row:
    """`scontrol show partition -o NAME`. Raises UnknownState."""
    found = dict(word.partition("=")[::2] for word in output.split())
    if "PartitionName" not in found or "State" not in found or len(output.strip().splitlines()) != 1:
        raise UnknownState(f"scontrol show partition said something else: {output.strip()[:120]!r}")
    return found


def parse_rows(output: str, fields: str) -> list[Row]:
    """`sacctmgr -nP show ... format=FIELDS`. Raises UnknownState."""
    names, rows = fields.split(","), list[Row]()
    for line in output.splitlines():
        values = line.split("|")
        if len(values) != len(names):
            raise UnknownState(f"sacctmgr printed a line that is none of its own: {line[:120]!r}")
        rows.append(dict(zip(names, values, strict=True)))
    return rows


def _names(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.lower().split(",")))


def _seconds(text: str) -> int | None:
    """A time of sacctmgr's or scontrol's: [days-]HH:MM:SS, plain seconds; None for none and UNLIMITED."""
    return int(text) if text.isdecimal() else parse_time_limit(text)


def _factor(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
