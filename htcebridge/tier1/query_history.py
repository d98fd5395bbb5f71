"""The question of `query` for the jobs that ended in our pilots: the schedd's history, for `accounting`."""

from __future__ import annotations

from typing import Any

from htcebridge.tier1.advalues import text
from htcebridge.tier1.asking import count, quote, said, schedd_of

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
    ads = schedd_of(request).history(constraint, projection, since=older)
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
        values = (said(ad, name) for name in names)
        return next((str(value) for value in values if isinstance(value, (str, float))), "")

    def specs(name: str) -> str:
        found = said(ad, name)
        if not isinstance(found, classad2.ClassAd):
            return ""
        values = ((key, said(found, key)) for key in sorted(found))
        return ",".join(f"{key}={value:g}" for key, value in values if type(value) in (int, float))

    def positive(*names: str) -> int:
        return next((found for name in names if (found := count(ad, name)) > 0), 0)

    exit_code = said(ad, "ExitCode")
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
        "status": _STATUS.get(count(ad, "JobStatus"), text(ad, "JobStatus")),
        "exit_code": exit_code if type(exit_code) is int else None,
        "apel_specs": specs("MachineAttrApelSpecs0"),
        "apel_scaling": words("MachineAttrApelScaling0"),
    }
