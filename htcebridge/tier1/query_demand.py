"""The question of `query` for what waits in one schedd: jobs in groups, all counts of one moment."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from htcebridge.tier1.advalues import number_or, text
from htcebridge.tier1.asking import quote, said, schedd_of

_IDLE, _RUNNING = 1, 2
_COUNTED = (_IDLE, _RUNNING)
RESOURCE_ATTRIBUTES = ("Requirements", "RequestCpus", "RequestMemory", "RequestDisk", "RequestGPUs")


def answer_demand(request: dict[str, Any]) -> dict[str, Any]:
    """The groups of one schedd, and when the first job of each was queued ({"cluster.proc": seconds})."""
    import classad2

    schedd = schedd_of(request)
    tagged = f"{request['attribute']} =?= {quote(request['value'])}"
    granted = classad2.ClassAd({request["attribute"]: request["value"]})
    if request.get("provenance"):
        tagged += f" && AuthTokenSubject =?= {quote(request['provenance'])}"
        granted["AuthTokenSubject"] = request["provenance"]
    rows = _rows(schedd, tagged, ["Owner", request["vo_attribute"]], request["walltime"])
    since = request.get("refused_since")
    refused = _refused(schedd, tagged, since) if since is not None else None
    groups: dict[str, dict[str, Any]] = {}
    first_jobs: dict[str, tuple[int, int]] = {}
    for row, asks, count in rows:
        ad, owner, vo = _readable(asks, row, granted), text(row, "Owner"), text(row, request["vo_attribute"])
        autocluster = _autocluster(row)
        key = hashlib.sha256(f"{ad}\n{owner}\n{vo}".encode()).hexdigest()[:16]
        verdict: dict[str, bool | None] = {"refused": None, "rejected": None}
        if refused is not None and autocluster is not None:
            verdict = {"refused": autocluster in refused, "rejected": refused.get(autocluster, False)}
        name = f"{key} {verdict}"
        group = groups.setdefault(
            name,
            {"key": key, "ad": ad, "owner": owner, "vo": vo, "idle": 0, "running": 0}
            | {"oldest_qdate": None, "autoclusters": {}, **verdict},
        )
        group["idle" if row["JobStatus"] == _IDLE else "running"] += count
        if row["JobStatus"] == _IDLE:
            if autocluster is not None:
                group["autoclusters"][autocluster] = group["autoclusters"].get(autocluster, 0) + count
            for first in _listed_jobs(row)[:1]:
                first_jobs[name] = min(first, first_jobs.get(name, first))
    qdates = _queued_at(schedd, set(first_jobs.values()), request["known"])
    for name, job in first_jobs.items():
        groups[name]["oldest_qdate"] = qdates.get(_id(job))
    return {"groups": list(groups.values()), "qdates": qdates}


# A row of GroupBy, what its jobs ask as an ad (None: they have left, and nobody knows it any more), how many they are.
_Row = tuple[Any, Any, int]
_LAST_CLUSTER = 2**31 - 1
# So many rows are looked up by one of their jobs. Each is compared with every job of the schedd.
_MOST_LOOKED_UP = 100


def _rows(schedd: Any, tagged: str, whose: list[str], walltime: list[str]) -> list[_Row]:
    """The jobs in rows of equal owner, VO, walltime and requests. All counts are of one moment, however busy it is.

    They come from one GroupBy: the schedd answers it from a fork, or without a pause (aggregateOn, schedd.cpp). What
    the jobs ask is read beside it: the schedd knows its autoclusters anyway, and of jobs that have none yet it is asked
    by itself. What moves meanwhile changes how a count is shared out, and never the count; only where nothing is left
    to go by is all of it read once more. Jobs have an autocluster since their first negotiation, and none while no
    startd is in the pool (measured: 23.9, 25.14).

    Each key costs the schedd 1 to 2 us a job, Requirements 30 to 60 (23.9). Where a startd's START refers to the
    walltime, as a pilot's does, it is part of the autocluster, and no key.
    """
    spared = _in_autocluster(_any_attributes(schedd, tagged), walltime)
    rows, strays = _read(schedd, tagged, whose, walltime, spared)
    if strays:
        rows, strays = _read(schedd, tagged, whose, walltime, spared=False)
    return rows + _looked_up(schedd, strays, [*whose, *walltime])


def _read(
    schedd: Any, tagged: str, whose: list[str], walltime: list[str], spared: bool
) -> tuple[list[_Row], list[Any]]:
    """The rows of one moment, and those of which it is not known what they ask. `spared`: walltime is no key."""
    before = _autoclusters(schedd)
    own = ["JobStatus", *whose, *walltime, *RESOURCE_ATTRIBUTES]
    if not before:
        return [(row, row, int(row["JobCount"])) for row in _grouped(schedd, tagged, own)], []
    keys = ["JobStatus", "AutoClusterId", *whose, *(["AutoClusterAttrs"] if spared else walltime)]
    rows = _grouped(schedd, tagged, keys)
    clusters = _same(before, _autoclusters(schedd))
    found, strays, new = [], [], []
    for row in rows:
        if "AutoClusterId" not in row:
            new.append(row)
        elif _autocluster(row) in clusters and (not spared or _in_autocluster(row, walltime)):
            found.append((row, clusters[_autocluster(row)], int(row["JobCount"])))
        else:
            strays.append(row)
    if new:
        # Those of higher ids have come since.
        last = max((cluster for row in new for cluster, _ in _listed_jobs(row)), default=_LAST_CLUSTER)
        constraint = f"{tagged} && AutoClusterId =?= undefined && ClusterId <= {last}"
        details = _grouped(schedd, constraint, list(dict.fromkeys([*keys, *own])))
        shared, unknown = _shared_out(new, details, keys)
        found += shared
        strays += unknown
    return found, strays


def _autocluster(row: Any) -> int | None:
    """The number of a row's autocluster; None for what an owner may have put there."""
    number = said(row, "AutoClusterId")
    return number if type(number) is int else None


def _any_attributes(schedd: Any, tagged: str) -> Any:
    """AutoClusterAttrs of any job that has them: what the schedd made its autocluster from."""
    ads = schedd.query(f"{tagged} && AutoClusterId =!= undefined", ["AutoClusterAttrs"], limit=1)
    return next(iter(ads), {})


def _in_autocluster(job: Any, names: list[str]) -> bool:
    """Whether jobs of an autocluster are equal in these, by AutoClusterAttrs of one of them."""
    attributes = text(job, "AutoClusterAttrs").lower().split(",")
    return all(name.lower() in attributes for name in names)


def _grouped(schedd: Any, constraint: str, keys: list[str]) -> list[Any]:
    """GroupBy, of the idle and the running jobs. `keys` has JobStatus: to sort the others out here is cheaper.

    It applies the constraint to its rows as well, which lack what is no key; a job always has an id. Of some hundred
    rows it now and then sends one twice (23.9: one answer in ten with 400): a job is in one row only.
    """
    import htcondor2

    rows = schedd.query(f"({constraint}) || ClusterId =?= undefined", keys, opts=htcondor2.QueryOpt.GroupBy)
    once = {tuple(_listed_jobs(row)) or number: row for number, row in enumerate(rows)}
    return [row for row in once.values() if row["JobStatus"] in _COUNTED]


def _autoclusters(schedd: Any) -> dict[int | None, Any]:
    import htcondor2

    return {ad["AutoClusterId"]: ad for ad in schedd.query("true", [], opts=htcondor2.QueryOpt.AutoCluster)}


def _same(before: dict[int | None, Any], after: dict[int | None, Any]) -> dict[int | None, Any]:
    """The autoclusters of two moments, without the numbers that mean another one by now: they begin at 1 again when
    a startd in the pool refers to an attribute that none did before."""
    moved = {number for number, ad in before.items() if number in after and _asks(ad) != _asks(after[number])}
    return {number: ad for number, ad in {**before, **after}.items() if number not in moved}


def _asks(cluster: Any) -> str:
    return _readable(cluster)


def _shared_out(rows: list[Any], details: list[Any], keys: list[str]) -> tuple[list[_Row], list[Any]]:
    """The jobs of `rows` as `details`, read a moment later, split them by what they ask; and the rows that are in no
    detail any more. Where the numbers differ the rows' count, and for its parts the details' proportion."""
    by_kind: dict[tuple[str, ...], list[Any]] = {}
    for detail in details:
        by_kind.setdefault(_kind(detail, keys), []).append(detail)
    found, unknown = [], []
    counts = Counter[tuple[str, ...]]()
    for row in rows:
        if _kind(row, keys) in by_kind:
            counts[_kind(row, keys)] += int(row["JobCount"])
        else:
            unknown.append(row)
    for kind, jobs in counts.items():
        parts = in_proportion(jobs, [int(detail["JobCount"]) for detail in by_kind[kind]])
        found += [(detail, detail, part) for detail, part in zip(by_kind[kind], parts, strict=True) if part]
    return found, unknown


def _kind(row: Any, keys: list[str]) -> tuple[str, ...]:
    return tuple(_spelt(row, key) for key in keys)


def _spelt(ad: Any, name: str) -> str:
    """An attribute as it is written; "" where it is missing or cannot be read."""
    try:
        return str(ad.lookup(name)) if name in ad else ""
    except Exception:  # the bindings raise what they like (`advalues.evaluated`)
        return ""


def in_proportion(whole: int, weights: list[int]) -> list[int]:
    """A number shared out by positive weights, in whole numbers that add up to it."""
    ends = [whole * reached // sum(weights) for reached in accumulate(weights)]
    return [end - begin for begin, end in pairwise([0, *ends])]


def _looked_up(schedd: Any, rows: list[Any], keys: list[str]) -> list[_Row]:
    """Rows of which nothing else is known, each by the first or last of its jobs that is still there."""
    largest = sorted(rows, key=lambda row: -int(row["JobCount"]))[:_MOST_LOOKED_UP]
    wanted = {job for row in largest for job in _listed_jobs(row)}
    found = {}
    if wanted:
        # As groups of one: GroupBy adds what Requirements refers to, a projection does not.
        for ad in _grouped(
            schedd, _any_of(sorted(wanted)), ["ClusterId", "ProcId", "JobStatus", *keys, *RESOURCE_ATTRIBUTES]
        ):
            found[int(ad.pop("ClusterId")), int(ad.pop("ProcId"))] = ad
    return [
        (row, next((found[job] for job in _listed_jobs(row) if job in found), None), int(row["JobCount"]))
        for row in rows
    ]


def _listed_jobs(row: Any) -> list[tuple[int, int]]:
    """The jobs of a row that the schedd names: its first and its last ("1.0 ... 2.39999")."""
    return [(int(cluster), int(proc)) for cluster, proc in re.findall(r"(\d+)\.(\d+)", text(row, "JobIds"))]


def _any_of(jobs: Sequence[tuple[int, int]]) -> str:
    """One of these jobs, which are in order, as a constraint.

    Halved again and again: the schedd compares each of its jobs with seven of 200. With 50,000 jobs the question for
    200 of them took 0.3 s, and 3.3 s as one long disjunction (23.9).
    """
    middle = jobs[len(jobs) // 2][0]
    lower = [job for job in jobs if job[0] < middle]
    if lower:
        return f"(ClusterId < {middle} ? {_any_of(lower)} : {_any_of(jobs[len(lower) :])})"
    upper = [job for job in jobs if job[0] > middle]
    if upper:
        return f"(ClusterId > {middle} ? {_any_of(upper)} : {_any_of(jobs[: -len(upper)])})"
    procs = " || ".join(f"ProcId == {proc}" for _, proc in jobs)
    return f"(ClusterId == {middle} && ({procs}))"


# What the negotiator says when nothing in the pool was free for a job. "submitter limit exceeded", "concurrency limit
# ... reached" and the network's reasons are not about nodes: more of them would not help (matchmaker.cpp).
_NOTHING_FREE = ("no match found", "insufficient priority", "PREEMPTION_REQUIREMENTS")


def _refused(schedd: Any, tagged: str, since: int) -> dict[int, bool]:
    """The autoclusters that the negotiator turned away since then (seconds since the epoch) -> was nothing free?

    The schedd marks one job of each: the one that stood for its autocluster, which may be running by now. So this is
    a small query of its own: as a key of GroupBy, LastRejMatchTime would make a row of nearly every running job.
    23.9 writes a blank behind the reason, 25.14 does not.
    """
    counted = f"{tagged} && (JobStatus == {_IDLE} || JobStatus == {_RUNNING})"
    ads = schedd.query(f"{counted} && LastRejMatchTime >= {int(since)}", ["AutoClusterId", "LastRejMatchReason"])
    refused: dict[int, bool] = {}
    for ad in ads:
        if "AutoClusterId" in ad:
            autocluster = int(ad["AutoClusterId"])
            nothing_free = text(ad, "LastRejMatchReason").startswith(_NOTHING_FREE)
            refused[autocluster] = refused.get(autocluster, False) or nothing_free
    return refused


_NOT_PART_OF_A_JOB = {"id", "jobids", "jobcount", "jobstatus", "autoclusterid", "autoclusterattrs", "servertime"}


def job_part(*ads: Any) -> str:
    """These as one job ad, in one spelling, so that equal jobs of different schedds are equal text; later ones win."""
    merged: dict[str, tuple[str, str]] = {}
    for ad in ads:
        for name in ad:
            if name.lower() not in _NOT_PART_OF_A_JOB:
                merged[name.lower()] = (name, str(ad.lookup(name)))
    lines = (f"{name} = {value};" for _, (name, value) in sorted(merged.items()))
    return "[ " + " ".join(lines) + " ]"


def _readable(*ads: Any) -> str:
    """`job_part`; where there is none, what is no ad: its group alone is then taken nowhere (`fit`)."""
    if None in ads:
        return "unreadable: left the queue"
    try:
        return job_part(*ads)
    except Exception as error:
        return f"unreadable: {type(error).__name__}"


def _queued_at(schedd: Any, jobs: set[tuple[int, int]], known: dict[str, int]) -> dict[str, int]:
    """When these jobs were queued, by id; only what is not known is asked. Job ids only grow, a QDate never changes."""
    qdates = {_id(job): known[_id(job)] for job in jobs if _id(job) in known}
    wanted = sorted(job for job in jobs if _id(job) not in qdates)
    for start in range(0, len(wanted), 200):
        some = wanted[start : start + 200]
        for ad in schedd.query(_any_of(some), ["ClusterId", "ProcId", "QDate"], limit=len(some)):
            queued = number_or(-1, ad, "QDate")  # its owner may edit it
            if queued >= 0:
                qdates[_id((ad["ClusterId"], ad["ProcId"]))] = queued
    return qdates


def _id(job: tuple[int, int]) -> str:
    return f"{job[0]}.{job[1]}"
