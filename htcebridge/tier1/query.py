"""Asks one daemon one question with HTCondor's bindings: the child process that `pool` starts for it.

The question is a JSON document on standard input, the answer one on standard output: {"error": ...} if there is none.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from htcebridge.tier1 import slots
from htcebridge.tier1.advalues import MOST, MOST_UNITS, BadValue, evaluated, number_or, text, whole

RESOURCE_ATTRIBUTES = ("Requirements", "RequestCpus", "RequestMemory", "RequestDisk", "RequestGPUs")


def answer_pool(request: dict[str, Any]) -> dict[str, Any]:
    """All that a cycle wants of the collector, in one question.

    With 30,000 slots in the pool one pass over all its ads took 78 to 101 ms, two typed queries 62 to 88 ms (23.9);
    104 to 225 and 163 to 184 ms (25.14). What is saved is a second connection and its authentication.
    """
    import htcondor2

    schedds = f'MyType == "Scheduler" && ({request["constraint"]})'
    if request["schedds"]:
        schedds += " && (" + " || ".join(f"Name == {quote(name)}" for name in request["schedds"]) + ")"
    ours = f"PilotInstance =?= {quote(request['instance'])} && PartitionableSlot =?= true"
    vo_list = f"Child{request['vo_attribute']}"
    ads = htcondor2.Collector(request["collector"]).query(
        htcondor2.AdType.Any, f'({schedds}) || ({ours}) || MyType == "Negotiator"', []
    )
    by_type: dict[str, list[Any]] = {"Scheduler": [], "Negotiator": [], "ghost": [], "slot": []}
    for ad in sorted(ads, key=lambda ad: text(ad, "Name")):
        by_type.get(text(ad, "MyType"), by_type["ghost" if _said(ad, "IsGhost") is True else "slot"]).append(ad)
    kinds: dict[str, dict[str, str]] = {}
    return {
        "schedds": [_schedd_row(ad) for ad in by_type["Scheduler"]],
        "startds": [_startd_row(ad, vo_list, kinds) for ad in by_type["slot"]],
        "kinds": kinds,
        "ghosts": [_ghost_row(ad) for ad in by_type["ghost"]],
        "negotiators": [_negotiator_row(ad) for ad in by_type["Negotiator"]],
    }


def _schedd_row(ad: Any) -> dict[str, Any]:
    return {"name": text(ad, "Name"), "address": text(ad, "MyAddress"), "version": text(ad, "CondorVersion")}


def _negotiator_row(ad: Any) -> dict[str, Any]:
    return {
        "ended": _count(ad, "LastNegotiationCycleEnd0"),
        "period_s": _count(ad, "LastNegotiationCyclePeriod0"),
        "version": text(ad, "CondorVersion"),
    }


def _startd_row(ad: Any, vo_list: str, kinds: dict[str, dict[str, str]]) -> dict[str, Any]:
    """A pilot's slot. What it has in common with others is put into `kinds`, once."""
    try:
        kind = slots.lasting(ad)
    except Exception:  # whatever one pilot's ad makes the bindings raise: it is a kind of its own, that takes no job
        kind = {"Requirements": "false"}
    name = slots.kind(kind)
    kinds[name] = kind

    def shape(prefix: str) -> dict[str, int]:
        return {
            "cpus": _count(ad, f"{prefix}Cpus", MOST_UNITS),
            "memory_mb": _count(ad, f"{prefix}Memory"),
            "gpus": _count(ad, f"{prefix}GPUs", MOST_UNITS),
            "disk_mb": _count(ad, f"{prefix}Disk") // 1024,
        }

    draining = _said(ad, "PilotDraining") is True
    return {
        "pilot_id": text(ad, "PilotJobId"),
        "name": text(ad, "Name"),
        "machine": text(ad, "Machine"),
        "total": shape("TotalSlot"),
        "free": shape(""),
        "jobs": _count(ad, "NumDynamicSlots", MOST_UNITS),
        "to_die": _count(ad, "GLIDEIN_ToDie"),
        "accepting": not draining and _count(ad, "GLIDEIN_ToRetire") > _count(ad, "MyCurrentTime"),
        "draining": draining,
        "busy_by_vo": _busy_by_vo(ad, vo_list),
        "healthy": _said(ad, "NODE_IS_HEALTHY") is not False,
        "kind": name,
        "made": text(ad, "PilotConfig"),
    }


def _busy_by_vo(ad: Any, vo_list: str) -> dict[str, int]:
    """Cores by VO, from the lists that the partitionable slot keeps of its dynamic ones; a slot without job has no VO.

    The startd makes all its Child lists of one set of slots, in one order (Resource::publishDynamicChildSummaries).
    """
    vos, cpus = (_said(ad, name) for name in (vo_list, "ChildCpus"))
    busy: Counter[str] = Counter()
    if isinstance(vos, list) and isinstance(cpus, list):
        for vo, cores in zip(vos, cpus, strict=False):
            if isinstance(vo, str):
                with suppress(BadValue):
                    busy[vo] += whole(cores, "ChildCpus", MOST_UNITS)
    return dict(busy)


def _ghost_row(ad: Any) -> dict[str, Any]:
    """An offline slot and what the negotiator has written into it (RegisterAttemptedOfflineMatch, matchmaker.cpp)."""
    records = _said(ad, "OfflineMatches")
    matches = (_match(record) for record in (records if isinstance(records, list) else []))
    return {
        "resource": text(ad, "PilotResource"),
        "digest": text(ad, "GhostDigest"),
        "sent": _count(ad, "GhostSent"),
        "matched": _count(ad, "MachineLastMatchTime"),
        "matches": [match for match in matches if match is not None],
    }


def _match(record: Any) -> dict[str, Any] | None:
    """What the negotiator wrote down; None for what it never writes: whoever may advertise may write such a list."""
    import classad2

    if not isinstance(record, classad2.ClassAd):
        return None
    autocluster, jobs = (number_or(-1, record, name) for name in ("AutoclusterID", "RequestCount"))
    address = text(record, "Scheduler")
    return {"address": address, "autocluster": autocluster, "jobs": jobs} if min(autocluster, jobs) >= 0 else None


def _count(ad: Any, name: str, most: int = MOST) -> int:
    """A number of a daemon's ad; 0 where there is none that can be believed."""
    return number_or(0, ad, name, most)


def _said(ad: Any, name: str) -> Any:
    """What an attribute evaluates to; None where it does not."""
    try:
        return evaluated(ad, name)
    except BadValue:
        return None


def _schedd(request: dict[str, Any]) -> Any:
    """The schedd that a question is for. Its address is known: the collector need not be asked again."""
    import classad2
    import htcondor2

    return htcondor2.Schedd(classad2.ClassAd({"MyAddress": request["address"], "CondorVersion": request["version"]}))


def answer_demand(request: dict[str, Any]) -> dict[str, Any]:
    """The groups of one schedd, and when the first job of each was queued ({"cluster.proc": seconds})."""
    schedd = _schedd(request)
    tagged = f"{request['attribute']} =?= {quote(request['value'])} && (JobStatus == 1 || JobStatus == 2)"
    # GroupBy applies the constraint to its rows as well: an attribute that is no key makes it return nothing.
    keys = ["JobStatus", "AutoClusterId", "Owner", request["attribute"], request["vo_attribute"], *request["walltime"]]
    if request.get("provenance"):
        tagged += f" && AuthTokenSubject =?= {quote(request['provenance'])}"
        keys.append("AuthTokenSubject")
    rows = _rows(schedd, tagged, keys)
    since = request.get("refused_since")
    refused = _refused(schedd, tagged, since) if since is not None else None
    groups: dict[str, dict[str, Any]] = {}
    first_jobs: dict[str, tuple[int, int]] = {}
    for row, cluster in rows:
        ad, owner, vo = _readable(row, cluster), text(row, "Owner"), text(row, request["vo_attribute"])
        autocluster, count = row.get("AutoClusterId"), int(row["JobCount"])
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
        group["idle" if row["JobStatus"] == 1 else "running"] += count
        if row["JobStatus"] == 1:
            if autocluster is not None:
                group["autoclusters"][autocluster] = group["autoclusters"].get(autocluster, 0) + count
            first = _first_job(text(row, "JobIds"))
            if first:
                first_jobs[name] = min(first, first_jobs.get(name, first))
    qdates = _queued_at(schedd, set(first_jobs.values()), request["known"])
    for name, job in first_jobs.items():
        groups[name]["oldest_qdate"] = qdates.get(_id(job))
    return {"groups": list(groups.values()), "qdates": qdates}


def _rows(schedd: Any, tagged: str, keys: list[str]) -> list[tuple[Any, Any]]:
    """Each row of GroupBy (exact counts) with its row of AutoCluster (Requirements and requests).

    GroupBy costs a quarter of a plain query of 50,000 jobs as long as Requirements is no key; the schedd knows the
    autoclusters anyway. Jobs have one since their first negotiation, and none while no startd is in the pool
    (measured: 23.9, 25.14): those are grouped by Requirements after all. Autocluster ids are renumbered now and then,
    so both are read together, again if need be.
    """
    import htcondor2

    options = htcondor2.QueryOpt
    for _ in range(3):
        clusters = {ad["AutoClusterId"]: ad for ad in schedd.query("true", [], opts=options.AutoCluster)}
        rows = schedd.query(tagged, keys, opts=options.GroupBy) if clusters else []
        known = [row for row in rows if "AutoClusterId" in row]
        unknown = sum(int(row["JobCount"]) for row in rows if "AutoClusterId" not in row)
        loose = []
        if unknown or not clusters:
            constraint = f"{tagged} && AutoClusterId =?= undefined" if clusters else tagged
            loose = schedd.query(constraint, keys + list(RESOURCE_ATTRIBUTES), opts=options.GroupBy)
        # A negotiation in between gives jobs an autocluster or renumbers them: then they would be counted nowhere.
        missed = bool(clusters) and unknown != sum(int(row["JobCount"]) for row in loose)
        if not missed and all(row["AutoClusterId"] in clusters for row in known):
            return [(row, clusters[row["AutoClusterId"]]) for row in known] + [(row, row) for row in loose]
    raise RuntimeError("the autoclusters changed during each of three reads")


# What the negotiator says when nothing in the pool was free for a job. "submitter limit exceeded", "concurrency limit
# ... reached" and the network's reasons are not about nodes: more of them would not help (matchmaker.cpp).
_NOTHING_FREE = ("no match found", "insufficient priority", "PREEMPTION_REQUIREMENTS")


def _refused(schedd: Any, tagged: str, since: int) -> dict[int, bool]:
    """The autoclusters that the negotiator turned away since then (seconds since the epoch) -> was nothing free?

    The schedd marks one job of each: the one that stood for its autocluster, which may be running by now. So this is
    a small query of its own: as a key of GroupBy, LastRejMatchTime would make a row of nearly every running job.
    23.9 writes a blank behind the reason, 25.14 does not.
    """
    ads = schedd.query(f"{tagged} && LastRejMatchTime >= {int(since)}", ["AutoClusterId", "LastRejMatchReason"])
    refused: dict[int, bool] = {}
    for ad in ads:
        if "AutoClusterId" in ad:
            autocluster = int(ad["AutoClusterId"])
            nothing_free = text(ad, "LastRejMatchReason").startswith(_NOTHING_FREE)
            refused[autocluster] = refused.get(autocluster, False) or nothing_free
    return refused


_NOT_PART_OF_A_JOB = {"id", "jobids", "jobcount", "jobstatus", "autoclusterid", "autoclusterattrs", "servertime"}


def job_part(row: Any, cluster: Any) -> str:
    """The two rows as one job ad, in one spelling, so that equal jobs of different schedds are equal text."""
    merged: dict[str, tuple[str, str]] = {}
    for ad in (cluster, row):
        for name in ad:
            if name.lower() not in _NOT_PART_OF_A_JOB:
                merged[name.lower()] = (name, str(ad.lookup(name)))
    lines = (f"{name} = {value};" for _, (name, value) in sorted(merged.items()))
    return "[ " + " ".join(lines) + " ]"


def _readable(row: Any, cluster: Any) -> str:
    """`job_part`; where the bindings raise, what is no ad: its group alone is then taken nowhere (`matching`)."""
    try:
        return job_part(row, cluster)
    except Exception as error:
        return f"unreadable: {type(error).__name__}"


def _first_job(ids: str) -> tuple[int, int] | None:
    """The lowest job id of a group: the schedd lists its first and its last ("1.0 ... 2.39999")."""
    found = re.match(r"(\d+)\.(\d+)", ids)
    return (int(found[1]), int(found[2])) if found else None


def _queued_at(schedd: Any, jobs: set[tuple[int, int]], known: dict[str, int]) -> dict[str, int]:
    """When these jobs were queued, by id; only what is not known is asked. Job ids only grow, a QDate never changes."""
    qdates = {_id(job): known[_id(job)] for job in jobs if _id(job) in known}
    wanted = sorted(job for job in jobs if _id(job) not in qdates)
    for start in range(0, len(wanted), 200):
        constraint = " || ".join(f"(ClusterId == {c} && ProcId == {p})" for c, p in wanted[start : start + 200])
        for ad in schedd.query(constraint, ["ClusterId", "ProcId", "QDate"]):
            queued = number_or(-1, ad, "QDate")  # its owner may edit it
            if queued >= 0:
                qdates[_id((ad["ClusterId"], ad["ProcId"]))] = queued
    return qdates


def _id(job: tuple[int, int]) -> str:
    return f"{job[0]}.{job[1]}"


# HTCondor's JobStatus of a job that has left the queue.
_STATUS = {3: "removed", 4: "completed"}
# Jobs stand in the history in the order in which they left the queue; a completed one may have stayed in it this long.
_LINGERS_S = 10 * 86400


def answer_history(request: dict[str, Any]) -> dict[str, Any]:
    """Jobs that ended in [since, until) and whose last run was in one of our pilots, as rows for `accounting`.

    LastRemoteWallClockTime is the last run's alone, RemoteWallClockTime that of all runs (23.9, 25.14).
    """
    since, until = int(request["since"]), int(request["until"])
    ended = "(CompletionDate > 0 ? CompletionDate : EnteredCurrentStatus)"
    constraint = (
        f"MachineAttr{request['attribute']}0 =?= {quote(request['value'])} && {ended} >= {since} && {ended} < {until}"
    )
    projection = [*_HISTORY_PROJECTION, request["vo_attribute"]]
    older = f"CompletionDate > 0 && CompletionDate < {since - _LINGERS_S}"
    ads = _schedd(request).history(constraint, projection, since=older)
    return {"jobs": [_job_row(request, ad) for ad in ads]}


_HISTORY_PROJECTION = [
    *("ClusterId", "ProcId", "GlobalJobId", "RoutedFromJobId", "Owner", "AcctGroup", "JobStatus", "ExitCode"),
    # The router's own token is in AuthToken*; the user's was set aside by the CE.
    *("orig_AuthTokenIssuer", "orig_AuthTokenSubject", "x509UserProxySubject"),
    *("MachineAttrGLIDEIN_Site0", "MachineAttrPilotResource0", "MachineAttrPilotJobId0", "MachineAttrCpus0"),
    *("MachineAttrApelSpecs0", "MachineAttrApelScaling0", "LastRemoteHost", "CpusProvisioned", "RequestCpus"),
    *("MemoryUsage", "ResidentSetSize", "QDate", "JobStartDate", "JobCurrentStartDate", "CompletionDate"),
    *("EnteredCurrentStatus", "LastRemoteWallClockTime", "RemoteWallClockTime", "RemoteUserCpu", "RemoteSysCpu"),
    "NumShadowStarts",
]


def _job_row(request: dict[str, Any], ad: Any) -> dict[str, Any]:
    import classad2

    def words(*names: str) -> str:
        values = (_said(ad, name) for name in names)
        return next((str(value) for value in values if isinstance(value, (str, float))), "")

    def specs(name: str) -> str:
        found = _said(ad, name)
        if not isinstance(found, classad2.ClassAd):
            return ""
        values = ((key, _said(found, key)) for key in sorted(found))
        return ",".join(f"{key}={value:g}" for key, value in values if type(value) in (int, float))

    def positive(*names: str) -> int:
        return next((count for name in names if (count := _count(ad, name)) > 0), 0)

    exit_code = _said(ad, "ExitCode")
    return {
        "site": words("MachineAttrGLIDEIN_Site0") or request["value"],
        "resource": words("MachineAttrPilotResource0"),
        "vo": words(request["vo_attribute"]),
        "schedd": request["name"],
        "job_id": f"{ad['ClusterId']}.{ad['ProcId']}",
        "global_job_id": words("GlobalJobId"),
        "ce_job_id": words("RoutedFromJobId"),
        "owner": words("Owner"),
        "token_issuer": words("orig_AuthTokenIssuer"),
        "token_subject": words("orig_AuthTokenSubject", "x509UserProxySubject"),
        "accounting_group": words("AcctGroup"),
        "pilot": words("MachineAttrPilotJobId0"),
        "host": words("LastRemoteHost").rpartition("@")[2],
        "cores": positive("MachineAttrCpus0", "CpusProvisioned", "RequestCpus"),
        "memory_mb": positive("MemoryUsage"),
        "submitted": positive("QDate"),
        "started": positive("JobCurrentStartDate", "JobStartDate"),
        "ended": positive("CompletionDate", "EnteredCurrentStatus"),
        "wall_s": positive("LastRemoteWallClockTime", "RemoteWallClockTime"),
        "wall_all_s": positive("RemoteWallClockTime"),
        "cpu_user_s": positive("RemoteUserCpu"),
        "cpu_system_s": positive("RemoteSysCpu"),
        "starts": positive("NumShadowStarts"),
        "status": _STATUS.get(_count(ad, "JobStatus"), text(ad, "JobStatus")),
        "exit_code": exit_code if type(exit_code) is int else None,
        "apel_specs": specs("MachineAttrApelSpecs0"),
        "apel_scaling": words("MachineAttrApelScaling0"),
    }


def answer_advertise(request: dict[str, Any]) -> dict[str, Any]:
    """Take away the ads that `gone` (a ClassAd constraint) means, then send these. Needs ADVERTISE_STARTD, _MASTER."""
    import classad2
    import htcondor2

    collector = htcondor2.Collector(request["collector"])
    kinds = [("Machine", "STARTD")]
    if request["masters_too"]:
        kinds += [("StartD", "STARTD"), ("DaemonMaster", "MASTER")]
    for target, command in kinds if request["gone"] else ():
        query = classad2.ClassAd({"MyType": "Query", "TargetType": target})
        query["Requirements"] = classad2.ExprTree(request["gone"])
        collector.advertise([query], f"INVALIDATE_{command}_ADS")
    if request["ads"]:
        collector.advertise([classad2.ClassAd(text) for text in request["ads"]], "UPDATE_STARTD_AD")
    return {}


def answer_collector(request: dict[str, Any]) -> dict[str, Any]:
    """The collector's own name and version, and by how many seconds its clock is ahead of this machine's."""
    import htcondor2

    collector = htcondor2.Collector(request["collector"])

    def later(seconds: int) -> bool:
        # time() in a constraint is the collector's own (23.9, 25.14).
        constraint = f"time() - {int(time.time())} >= {seconds}"
        return bool(collector.query(htcondor2.AdType.Collector, constraint, ["Name"]))

    ads = collector.query(htcondor2.AdType.Collector, "true", ["Name", "CondorVersion"])
    if not ads:
        raise RuntimeError("it answers and knows no collector, not even itself")
    return {
        "name": str(ads[0].get("Name", "")),
        "version": str(ads[0].get("CondorVersion", "")),
        "ahead_s": ahead_s(later),
    }


_CLOCK_RANGE_S = 40 * 365 * 86400


def ahead_s(later: Callable[[int], bool]) -> int:
    """By how much a clock is ahead, from "is it ahead by so many seconds or more?"; 0 within what a query takes."""
    if later(-1) and not later(3):
        return 0
    low, high = -_CLOCK_RANGE_S, _CLOCK_RANGE_S
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if later(middle) else (low, middle)
    return low


# What `routes.policy` begins the names of its routes with; the router leaves the name in the routed job.
ROUTE_PREFIX = "HTCEBridge_"


def answer_tagged(request: dict[str, Any]) -> dict[str, Any]:
    """How many jobs of a schedd carry which grant, VO and route of ours; `ahead_s` is its clock, None without a job."""
    import htcondor2

    schedd = _schedd(request)
    grant, vo = request["attribute"], request["vo_attribute"]
    ours = f'(RouteName =!= undefined && regexp("^{ROUTE_PREFIX}", RouteName))'
    rows = schedd.query(f"{grant} =!= undefined || {ours}", [grant, vo, "RouteName"], opts=htcondor2.QueryOpt.GroupBy)
    times = [int(row["ServerTime"]) for row in rows if "ServerTime" in row]
    return {
        "tags": [
            {
                "value": text(row, grant) if grant in row else None,
                "vo": text(row, vo) if vo in row else None,
                "route": text(row, "RouteName") if "RouteName" in row else None,
                "jobs": int(row["JobCount"]),
            }
            for row in rows
        ],
        "ahead_s": times[0] - int(time.time()) if times else None,
    }


def quote(text: str) -> str:
    """Text as a ClassAd string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_ANSWERS = {
    "pool": answer_pool,
    "demand": answer_demand,
    "history": answer_history,
    "advertise": answer_advertise,
    "collector": answer_collector,
    "tagged": answer_tagged,
}


def main(lines: Iterable[str]) -> int:
    request = json.loads("".join(lines))
    answer = _ANSWERS[request["ask"]]
    try:
        result = json.dumps(answer(request))
    except Exception as error:  # the parent reports it: whatever the bindings raise is this daemon's error
        result = json.dumps({"error": " ".join(str(error).split()) or type(error).__name__})
    sys.stdout.write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin))
