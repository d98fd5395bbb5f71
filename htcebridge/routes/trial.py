"""What the CE's real router makes of job ads, today and with new files in place.

The ads go through `condor_job_router_info -route-jobs`, which runs the daemon's own code. Its exit code is 0 whatever
happens, so the verdict is in the routed ads and in the steps that it logs (measured: 23.9.6, 25.14.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from htcebridge.errors import BridgeError
from htcebridge.pilot import script
from htcebridge.routes.ce import CE
from htcebridge.routes.jobad import JobAd, attribute, attributes_of, new_form
from htcebridge.routes.stage import unlimited
from htcebridge.templates import classad_string
from htcebridge.tier1.fit import Matcher

if TYPE_CHECKING:
    from htcebridge.config.tables import Config
    from htcebridge.routes import RouteFile

WORKER = "Tier-1 worker"
# One job takes the router about a millisecond and says 60 lines (25.14.1).
_TIMEOUT_S = 900.0
_CORES, _MEMORY_MB, _DISK_KB = 64, 64 * 4096, 64 * 20 * 1024**2


@dataclass(frozen=True)
class Routed:
    """What became of one job. `text` is the routed ad in long form, "" if there is none."""

    route: str | None = None
    text: str = ""
    errors: tuple[str, ...] = ()

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Attribute, as written -> expression."""
        return attributes_of(self.text)


@dataclass(frozen=True)
class Change:
    """One attribute that differs. `before` or `after` is None where it is absent."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Trial:
    """One job, with the CE's present configuration and with the new files.

    `fits` are the resources (and WORKER) that the routed job matches, `why_not` the reason for each other one.
    """

    job: JobAd
    before: Routed
    after: Routed
    changes: tuple[Change, ...] = ()
    fits: tuple[str, ...] = ()
    why_not: Mapping[str, str] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether the job takes another route."""
        return self.before.route != self.after.route

    @property
    def failed(self) -> bool:
        """Whether no route takes it, or one of its transforms failed."""
        return not self.after.text or bool(self.after.errors)


def try_routes(ce: CE, files: Sequence[RouteFile], config: Config, jobs: Sequence[JobAd]) -> list[Trial]:
    """Send every job through the real router twice. Raises ConfigError, and BridgeError if the router is disabled."""
    with unlimited(ce, None) as present, unlimited(ce, files) as new:
        before, after = route(present, jobs), route(new, jobs)
    matcher = Matcher(templates(config, ce.version()))
    trials = []
    fitted: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
    for job in jobs:
        old, made = before[job.id], after[job.id]
        fits, why_not = fitted.get(_shape(made), ((), {})) if made.text else ((), {})
        if made.text and _shape(made) not in fitted:
            fits, why_not = fitted.setdefault(_shape(made), fit(matcher, made))
        changes = differences(old.attributes or job.attributes, made.attributes, config) if made.text else ()
        trials.append(Trial(job, old, made, changes, fits, why_not))
    return trials


def _shape(routed: Routed) -> str:
    """The ad without what differs from job to job: equal jobs need to be matched once."""
    unique = {"routedfromjobid", "globaljobid", "clusterid", "procid", "qdate", "enteredcurrentstatus", "args", "cmd"}
    return "\n".join(line for line in routed.text.splitlines() if line.partition(" ")[0].lower() not in unique)


def route(ce: CE, jobs: Sequence[JobAd]) -> dict[str, Routed]:
    """Job id -> what the real router makes of it under this CE's configuration. Raises ConfigError, BridgeError."""
    if not jobs:
        return {}
    patient = replace(ce, timeout_s=max(ce.timeout_s, _TIMEOUT_S))
    # From stdin and to stdout: as root the tool becomes the condor user before it opens its files.
    ask = ["condor_job_router_info", "-route-jobs", "-", "-jobads", "-", "-ignore-prior-routing", "-log-steps"]
    found = parse_routing(patient.said(ask, "\n".join(job.text.rstrip("\n") + "\n" for job in jobs)))
    return {job.id: found.get(job.id, Routed()) for job in jobs}


_CLAIMED = re.compile(r"\(src=(?P<id>\d+\.\d+),route=(?P<route>[^)]*)\): claimed job")
# 25.13.2 and later end every transform with such a line, with nothing behind the colon where all is well.
_NOISE = re.compile(r"ERROR in (transform|route) \S+ : *$")
_ERROR = re.compile(r"ERROR( in (transform|route) \S+ )?: *(?P<what>.*)|(?P<failure>failure \(?(?!.*src=).*)")


def parse_routing(said: str) -> dict[str, Routed]:
    """What `condor_job_router_info -route-jobs - -log-steps` says -> job id -> Routed.

    A job that is not in it was taken by no route. Raises BridgeError if the router is disabled, cannot read its
    configuration, or has seen no job at all: then nothing is known.
    """
    head = said.partition("): claimed job")[0]
    if "Matching jobs against routes" not in head or re.search(
        "JobRouter is disabled|There are no jobs to match", head
    ):
        lines = [
            line.strip() for line in head.splitlines() if re.search(r"ERROR|[Ee]rror|EXCEPT|disabled|[Cc]an't", line)
        ]
        raise BridgeError(f"the router routes no job: {'; '.join(lines) or head.strip()[-300:] or 'it says nothing'}")
    made: dict[str, Routed] = {}
    for section in re.split(r"^(?=\(src=\d+\.\d+,route=[^)]*\): claimed job)", said, flags=re.MULTILINE)[1:]:
        claimed = _CLAIMED.match(section)
        if claimed:
            made[claimed["id"]] = _section(claimed["route"], section)
    return made


def _section(name: str, section: str) -> Routed:
    """One job's part of what the router says: its steps, then the ad that it would submit, then an empty line."""
    steps, _, rest = section.partition("\nsubmit_job as ")
    text = rest.partition("\n")[2].partition("\n\n")[0]
    found = [_ERROR.match(line) for line in steps.splitlines() if not _NOISE.match(line)]
    errors = [(error["what"] or error["failure"]).strip() for error in found if error]
    if rest and not attribute(attributes_of(text), "RouteName"):
        text = ""
        errors.append("the routed ad cannot be read: a SET without a blank before '=' (SET X= 1) ends it")
    elif not rest and not errors:
        errors.append("the route failed, and the router does not say why")
    return Routed(name, text, tuple(dict.fromkeys(errors)))


def differences(before: Mapping[str, str], after: Mapping[str, str], config: Config) -> tuple[Change, ...]:
    """The attributes that differ, names compared as ClassAds do; the grant first."""
    old = {name.lower(): (name, value) for name, value in before.items()}
    new = {name.lower(): (name, value) for name, value in after.items()}
    changes = [
        Change(new.get(key, old.get(key))[0], old.get(key, ("", None))[1], new.get(key, ("", None))[1])  # type: ignore[index]
        for key in sorted({**old, **new})
        if old.get(key, ("", None))[1] != new.get(key, ("", None))[1]
    ]
    first = [config.grant.attribute.lower(), config.grant.vo_attribute.lower(), "routename", "requirements"]
    rank = {name: number for number, name in enumerate(first)}
    return tuple(sorted(changes, key=lambda change: rank.get(change.name.lower(), len(first))))


# --------------------------------------------------------------------------- who takes the routed job


def granted(routed: Routed, config: Config) -> bool:
    """Whether the routed job carries the grant."""
    return attribute(routed.attributes, config.grant.attribute) == classad_string(config.grant.value)


def fit(matcher: Matcher, routed: Routed) -> tuple[tuple[str, ...], dict[str, str]]:
    """The resources (and WORKER) that a routed job matches, and for each other one the reason."""
    fits, why_not = matcher.fit(new_form(routed.text))
    if not attribute(routed.attributes, "Requirements"):
        return fits, dict.fromkeys(why_not, "the routed job has no Requirements: HTCondor matches it with nothing")
    return fits, why_not


def templates(config: Config, version: str) -> dict[str, str]:
    """The ad of a pilot of each resource, and of a plain worker of the Tier-1, as ClassAd text."""
    pilots = {name: script.template_ad(config, name, version) for name in config.resources}
    return {**pilots, WORKER: worker_ad(version)}


def worker_ad(version: str) -> str:
    """A worker node of the Tier-1: 64 cores, no GPU, no grant; it takes whatever asks for no more than it has."""
    values: dict[str, object] = {
        "Arch": "X86_64",
        "OpSys": "LINUX",
        "CondorVersion": version,
        "HasFileTransfer": True,
        "PartitionableSlot": True,
        "Cpus": _CORES,
        "TotalCpus": _CORES,
        "Memory": _MEMORY_MB,
        "TotalMemory": _MEMORY_MB,
        "Disk": _DISK_KB,
        "TotalDisk": _DISK_KB,
        "GPUs": 0,
        "Start": True,
    }
    lines = [f"{name} = {classad_string(value)};" for name, value in values.items()]
    lines.append(f"Requirements = Start && {script.WITHIN_RESOURCE_LIMITS};")
    return "[ " + " ".join(lines) + " ]"


# --------------------------------------------------------------------------- job ads
