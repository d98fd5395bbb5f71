"""A pilot's partitionable slot as an ad to match jobs against, without what belongs to one node or one moment.

Used by the child that asks the collector as well, so it imports nothing of this package.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

GUESS = "PilotAdIsGuess"
"""True in an ad that no pilot has shown yet: what only a node knows is unknown in it."""

# What differs from node to node, or from minute to minute, in an ad as the collector has it (23.9, 25.14).
_PASSING = re.compile(
    r"child.*|updates.*|monitorself.*|recent.*|clock.*|expectedmachine.*|entered.*|last.*|job(starts|.*preemptions)"
    r"|activationrequests|claimrequests|(total)?(condor)?loadavg|keyboardidle|consoleidle|(total)?virtualmemory"
    r"|total(time.*|slots|cpus|memory|disk|gpus)|totalslot.*|detected.*|daemon(start|lastreconfig)time|daemoncoredutycycle"
    r"|name|machine|myaddress|startdipaddr|addressv1|hardwareaddress|subnetmask|uiddomain|filesystemdomain"
    r"|utsname(nodename|version)|glidein_(todie|toretire|sitewms_(jobid|slot))|pilot(jobid|ends|started|draining"
    r"|drainreason|checkfailed)|mycurrenttime|updatesequencenumber|numdynamicslots.*|numpids|newdslotnotmatch"
    r"|nextfetchworkdelay|timetolive|retirementtimeremaining|state|activity|cpubusy(time)?|currentrank|maxclaimtime"
    r"|is(local|wake|owner).*|hibernat.*|unhibernate|wakeon.*|canhibernate|authenti.*|slotid|slottypeid|mips|kflops"
    r"|cpus|memory|disk|gpus|assignedgpus|offline.*|starterabilitylist|condorscratchdir|executevolume|pslotroll.*",
    re.IGNORECASE,
)
# What the node's hardware and system are, which nobody knows before the first pilot has joined from there.
_OF_THE_NODE = re.compile(
    r"has_(avx|sse|ssse|avx512).*|microarch|cpu(family|modelnumber|model|cachesize)|opsys(?!$).*|utsname.*"
    r"|has(user|pid)namespaces|singularity.*|availablegpus|gpus_.*|cuda.*|pilotcheck_.*|pilotreaches_.*|pilotisolation|hassshd|hasvm|hasrotationalscratch",
    re.IGNORECASE,
)
_MEASURED = re.compile(r"detected.*|total.*|virtualmemory|mips|kflops", re.IGNORECASE)
# What the configuration of a pilot says (`pilot.script.template_ad` adds it), or its Apptainer.
_CONFIGURED = re.compile(
    r"start|collector_host_string|daemonshutdown|classadlifetime|machinemaxvacatetime|opportunistic.*|glidein_.*"
    r"|is_glidein|pilot.*|node_is_healthy|has(container|sif|singularity|sandboximage|dockerurl)|has_cvmfs.*|apel.*"
    r"|cpus|memory|disk|gpus|condorversion|cms.*",
    re.IGNORECASE,
)
RESOURCES = ("Cpus", "Memory", "Disk", "GPUs")
_VERSION = re.compile(r"\$CondorVersion: (\d+)\.(\d+)\.")


Ad = Mapping[str, str]
"""Attribute -> expression, each as it is written."""


def lasting(ad: Any) -> dict[str, str]:
    """A slot's ad (classad2.ClassAd): only what is so for all such pilots, and all that it has in all.

    `Cpus` and the like are those of the empty slot, so that equal pilots show the same however busy they are.
    """
    found = {name: str(ad.lookup(name)) for name in ad if not _PASSING.fullmatch(name)}
    totals = {name: f"TotalSlot{name}" for name in RESOURCES}
    found |= {name: str(ad.lookup(total)) for name, total in totals.items() if total in ad}
    return dict(sorted(found.items(), key=lambda each: each[0].lower()))


def kind(ad: Ad) -> str:
    """A name for all slots of this content."""
    return hashlib.sha256(repr(sorted(ad.items())).encode()).hexdigest()[:12]


def text(*layers: Ad) -> str:
    """These ads as one, as ClassAd text: of an attribute that is in several the last."""
    merged = {name.lower(): f"{name} = {value};" for layer in layers for name, value in layer.items()}
    return f"[ {' '.join(merged.values())} ]"


def without_the_nodes(ad: Ad) -> dict[str, str]:
    """As it can be shipped: HTCondor's own part, not what is so on the nodes or by the configuration of that pilot."""
    return {name: value for name, value in ad.items() if not is_of_the_node(name) and not _CONFIGURED.fullmatch(name)}


def is_of_the_node(name: str) -> bool:
    """Whether an attribute says what only a node knows."""
    return _OF_THE_NODE.fullmatch(name) is not None


def is_measured(name: str) -> bool:
    """Whether an attribute says how much a node has: it differs from one to the next, and is in no ad of a kind."""
    return _MEASURED.fullmatch(name) is not None


def shipped(condor_version: str) -> Ad:
    """The slot of a pilot that nobody has seen yet, of the newest HTCondor that is no newer than this CondorVersion, or
    of the oldest. Made from real startds by scripts/slot-ads."""
    ads = _shipped()
    found = _VERSION.search(condor_version)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return ads[max((each for each in ads if each <= version), default=min(ads))]


@cache
def _shipped() -> Mapping[tuple[int, int], Ad]:
    """(major, minor) of an HTCondor -> slot."""
    found = {}
    for file in (Path(__file__).parent / "slot_ads").glob("*.ad"):
        major, minor = file.stem.split(".")
        lines = (line.partition(" = ") for line in file.read_text("utf-8").splitlines() if not line.startswith("#"))
        found[int(major), int(minor)] = {name: value for name, equals, value in lines if equals}
    return found
