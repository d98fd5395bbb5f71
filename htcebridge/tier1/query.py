"""Asks one daemon one question with HTCondor's bindings: the child process that `pool` starts for it.

The question is a JSON document on standard input, the answer one on standard output: {"error": ...} if there is none.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from htcebridge.tier1 import slots
from htcebridge.tier1.advalues import MOST_UNITS, BadValue, number_or, text, whole
from htcebridge.tier1.asking import count, quote, said, schedd_of
from htcebridge.tier1.query_demand import answer_demand
from htcebridge.tier1.query_history import answer_history


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
        by_type.get(text(ad, "MyType"), by_type["ghost" if said(ad, "IsGhost") is True else "slot"]).append(ad)
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
        "ended": count(ad, "LastNegotiationCycleEnd0"),
        # The longest of the last three: the negotiator is called between its turns, too.
        "period_s": max(count(ad, f"LastNegotiationCyclePeriod{number}") for number in range(3)),
        "version": text(ad, "CondorVersion"),
        "name": text(ad, "Name"),
        "address": text(ad, "MyAddress"),
    }


def answer_settings(request: dict[str, Any]) -> dict[str, Any]:
    """What a daemon has configured."""
    import classad2
    import htcondor2

    there = htcondor2.RemoteParam(classad2.ClassAd({"MyAddress": request["address"]}))
    return {"settings": {name: str(there[name]) for name in request["names"] if name in there}}


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
            "cpus": count(ad, f"{prefix}Cpus", MOST_UNITS),
            "memory_mb": count(ad, f"{prefix}Memory"),
            "gpus": count(ad, f"{prefix}GPUs", MOST_UNITS),
            "disk_mb": count(ad, f"{prefix}Disk") // 1024,
        }

    draining = said(ad, "PilotDraining") is True
    return {
        "pilot_id": text(ad, "PilotJobId"),
        "name": text(ad, "Name"),
        "machine": text(ad, "Machine"),
        "total": shape("TotalSlot"),
        "free": shape(""),
        "jobs": count(ad, "NumDynamicSlots", MOST_UNITS),
        "to_die": count(ad, "GLIDEIN_ToDie"),
        "accepting": not draining and count(ad, "GLIDEIN_ToRetire") > count(ad, "MyCurrentTime"),
        "draining": draining,
        "busy_by_vo": _busy_by_vo(ad, vo_list),
        "healthy": said(ad, "NODE_IS_HEALTHY") is not False,
        "kind": name,
        "made": text(ad, "PilotConfig"),
    }


def _busy_by_vo(ad: Any, vo_list: str) -> dict[str, int]:
    """Cores by VO, from the lists that the partitionable slot keeps of its dynamic ones; a slot without job has no VO.

    The startd makes all its Child lists of one set of slots, in one order (Resource::publishDynamicChildSummaries).
    """
    vos, cpus = (said(ad, name) for name in (vo_list, "ChildCpus"))
    busy: Counter[str] = Counter()
    if isinstance(vos, list) and isinstance(cpus, list):
        for vo, cores in zip(vos, cpus, strict=False):
            if isinstance(vo, str):
                with suppress(BadValue):
                    busy[vo] += whole(cores, "ChildCpus", MOST_UNITS)
    return dict(busy)


def _ghost_row(ad: Any) -> dict[str, Any]:
    """An offline slot and what the negotiator has written into it (RegisterAttemptedOfflineMatch, matchmaker.cpp)."""
    records = said(ad, "OfflineMatches")
    matches = (_match(record) for record in (records if isinstance(records, list) else []))
    return {
        "resource": text(ad, "PilotResource"),
        "digest": text(ad, "GhostDigest"),
        "sent": count(ad, "GhostSent"),
        "matched": count(ad, "MachineLastMatchTime"),
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

    schedd = schedd_of(request)
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


_ANSWERS = {
    "pool": answer_pool,
    "demand": answer_demand,
    "history": answer_history,
    "advertise": answer_advertise,
    "collector": answer_collector,
    "tagged": answer_tagged,
    "settings": answer_settings,
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
