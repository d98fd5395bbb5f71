"""Asks one daemon one question with HTCondor's bindings: the child process that `tier1` starts for it.

The question is a JSON document on standard input, the answer one on standard output: {"error": ...} if there is none.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

RESOURCE_ATTRIBUTES = ("Requirements", "RequestCpus", "RequestMemory", "RequestDisk", "RequestGPUs")


def answer_pool(request: dict[str, Any]) -> dict[str, Any]:
    import htcondor2

    collector = htcondor2.Collector(request["collector"])
    constraint = f"({request['constraint']})"
    if request["schedds"]:
        constraint += " && (" + " || ".join(f"Name == {quote(name)}" for name in request["schedds"]) + ")"
    schedds = collector.query(htcondor2.AdType.Schedd, constraint, ["Name", "MyAddress", "CondorVersion"])
    startds = collector.query(
        htcondor2.AdType.Startd,
        f"PilotInstance =?= {quote(request['instance'])} && PartitionableSlot =?= true",
        _STARTD_PROJECTION,
    )
    return {
        "schedds": [
            {"name": ad["Name"], "address": ad["MyAddress"], "version": ad["CondorVersion"]}
            for ad in sorted(schedds, key=lambda ad: str(ad["Name"]))
        ],
        "startds": [_startd_row(ad) for ad in startds],
    }


_STARTD_PROJECTION = [
    "Name",
    "Machine",
    "PilotJobId",
    "Cpus",
    "Memory",
    "GPUs",
    "Disk",
    "TotalSlotCpus",
    "TotalSlotMemory",
    "TotalSlotGPUs",
    "TotalSlotDisk",
    "NumDynamicSlots",
    "GLIDEIN_ToDie",
    "GLIDEIN_ToRetire",
    "MyCurrentTime",
    "PilotDraining",
]


def _startd_row(ad: Any) -> dict[str, Any]:
    def number(name: str) -> int:
        value = ad.eval(name) if name in ad else 0
        return int(value) if isinstance(value, (int, float)) else 0

    def shape(prefix: str) -> dict[str, int]:
        return {
            "cpus": number(f"{prefix}Cpus"),
            "memory_mb": number(f"{prefix}Memory"),
            "gpus": number(f"{prefix}GPUs"),
            "disk_mb": number(f"{prefix}Disk") // 1024,
        }

    return {
        "pilot_id": str(ad.get("PilotJobId", "")),
        "name": str(ad["Name"]),
        "machine": str(ad.get("Machine", "")),
        "total": shape("TotalSlot"),
        "free": shape(""),
        "jobs": number("NumDynamicSlots"),
        "to_die": number("GLIDEIN_ToDie"),
        "accepting": ad.get("PilotDraining") is not True and number("GLIDEIN_ToRetire") > number("MyCurrentTime"),
    }


def answer_demand(request: dict[str, Any]) -> dict[str, Any]:
    """Exact counts from GroupBy, Requirements and requests from AutoCluster, joined on AutoClusterId.

    GroupBy costs a quarter of a plain query of 50,000 jobs as long as Requirements is no key; the schedd knows the
    autoclusters anyway. While no startd is in the pool there are none (measured: 23.9): such jobs are grouped by
    Requirements after all. Autocluster ids are renumbered now and then, so both are read together, again if need be.
    """
    import classad2
    import htcondor2

    schedd = htcondor2.Schedd(classad2.ClassAd({"MyAddress": request["address"], "CondorVersion": request["version"]}))
    tagged = f"{request['attribute']} =?= {quote(request['value'])} && (JobStatus == 1 || JobStatus == 2)"
    # GroupBy applies the constraint to its rows as well: an attribute that is no key makes it return nothing.
    keys = ["JobStatus", "AutoClusterId", "Owner", request["attribute"], request["vo_attribute"], *request["walltime"]]
    if request.get("provenance"):
        tagged += f" && AuthTokenSubject =?= {quote(request['provenance'])}"
        keys.append("AuthTokenSubject")
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
            break
    else:
        raise RuntimeError("the autoclusters changed during each of three reads")
    jobs: dict[str, dict[str, Any]] = {}
    first_jobs: dict[str, tuple[int, int]] = {}
    for row, cluster in [(row, clusters[row["AutoClusterId"]]) for row in known] + [(row, row) for row in loose]:
        ad = job_part(row, cluster)
        owner, vo = str(row.get("Owner", "")), str(row.get(request["vo_attribute"], ""))
        key = f"{ad}\n{owner}\n{vo}"
        group = jobs.setdefault(
            key, {"ad": ad, "owner": owner, "vo": vo, "idle": 0, "running": 0, "oldest_qdate": None}
        )
        group["idle" if row["JobStatus"] == 1 else "running"] += int(row["JobCount"])
        if row["JobStatus"] == 1:
            first = _first_job(str(row.get("JobIds", "")))
            if first:
                first_jobs[key] = min(first, first_jobs.get(key, first))
    for key, qdate in _queued_at(schedd, first_jobs).items():
        jobs[key]["oldest_qdate"] = qdate
    return {"groups": list(jobs.values())}


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


def _first_job(ids: str) -> tuple[int, int] | None:
    """The lowest job id of a group: the schedd lists its first and its last ("1.0 ... 2.39999")."""
    found = re.match(r"(\d+)\.(\d+)", ids)
    return (int(found[1]), int(found[2])) if found else None


def _queued_at(schedd: Any, first_jobs: dict[str, tuple[int, int]]) -> dict[str, int]:
    """When each group's first job was queued: the oldest, since job ids only grow."""
    wanted = sorted(set(first_jobs.values()))
    qdates: dict[tuple[int, int], int] = {}
    for start in range(0, len(wanted), 200):
        constraint = " || ".join(f"(ClusterId == {c} && ProcId == {p})" for c, p in wanted[start : start + 200])
        for ad in schedd.query(constraint, ["ClusterId", "ProcId", "QDate"]):
            qdates[ad["ClusterId"], ad["ProcId"]] = int(ad["QDate"])
    return {key: qdates[job] for key, job in first_jobs.items() if job in qdates}


def quote(text: str) -> str:
    """Text as a ClassAd string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main(lines: Iterable[str]) -> int:
    request = json.loads("".join(lines))
    answer = {"pool": answer_pool, "demand": answer_demand}[request["ask"]]
    try:
        result = answer(request)
    except Exception as error:  # the parent reports it: whatever the bindings raise is this daemon's error
        result = {"error": " ".join(str(error).split()) or type(error).__name__}
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin))
