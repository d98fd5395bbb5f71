"""Which group fits which resource, and why not: HTCondor's own matching of a job ad against the ad of a pilot."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from htcebridge.model import Shape
from htcebridge.tier1.advalues import MOST, MOST_UNITS, BadValue, number, number_or, whole
from htcebridge.tier1.pool import CONDOR_CONFIG
from htcebridge.units import format_duration

if TYPE_CHECKING:
    import classad2


@dataclass(frozen=True)
class Job:
    """What a job asks, evaluated."""

    shape: Shape
    walltime_s: int


class Matcher:
    """Matches job ads against the pilots of some resources.

    `pilots` maps a resource to the ad that its pilot would advertise (ClassAd text, from `pilot.script.template_ad`).
    """

    def __init__(self, pilots: dict[str, str]) -> None:
        classad2 = bindings()
        self._pilots = {name: classad2.ClassAd(text) for name, text in pilots.items()}

    def fit(self, job_text: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """The resources that take such a job and that it takes, and for each other one the reason. Raises nothing."""
        try:
            job = bindings().ClassAd(job_text)
            why_not = {name: why for name, pilot in self._pilots.items() if (why := _why_not(job, pilot))}
        except Exception as error:  # whatever this job's ad makes the bindings raise is its own reason, nobody else's
            return (), dict.fromkeys(self._pilots, f"its ad cannot be evaluated ({type(error).__name__})")
        return tuple(name for name in self._pilots if name not in why_not), why_not


def evaluate(job_text: str, walltime: Sequence[str], default_walltime_s: int) -> Job:
    """What a job asks. Attributes that are missing count as HTCondor counts them: one CPU, no GPU.

    So does what is no number to count with, or no ad: `Matcher.fit` says so, and takes the job nowhere.
    """
    classad2 = bindings()
    try:
        ad = classad2.ClassAd(job_text)
    except Exception:  # as in `Matcher.fit`
        ad = classad2.ClassAd()
    ad["PilotJobWall"] = classad2.ExprTree(walltime_expression(walltime, default_walltime_s, scope=""))
    return Job(
        shape=Shape(
            cpus=number_or(1, ad, "RequestCpus", MOST_UNITS),
            memory_mb=number_or(1, ad, "RequestMemory"),
            gpus=number_or(0, ad, "RequestGPUs", MOST_UNITS),
            disk_mb=-(-number_or(0, ad, "RequestDisk") // 1024),
        ),
        walltime_s=number_or(default_walltime_s, ad, "PilotJobWall"),
    )


def walltime_expression(walltime: Sequence[str], default_s: int, scope: str = "TARGET.") -> str:
    """The first defined walltime attribute, seconds, as a ClassAd expression.

    `?:` binds tighter than `*` in ClassAds, so each alternative stands in parentheses.
    """
    expression = str(default_s)
    for alternative in reversed(walltime):
        expression = f"(({scope}{alternative}) ?: {expression})"
    return expression


def bindings() -> Any:
    """classad2 with HTCondor's own functions: split() or stringListMember() are errors until htcondor2 is loaded.

    Measured with 25.14. No configuration of this machine's is read.
    """
    os.environ.setdefault("CONDOR_CONFIG", str(CONDOR_CONFIG))
    importlib.import_module("htcondor2")
    return importlib.import_module("classad2")


def _why_not(job: classad2.ClassAd, pilot: classad2.ClassAd) -> str:
    """Empty if job and pilot accept each other, else the first reason that a person understands."""
    hostile = _hostile(job, pilot)
    if hostile or job.symmetricMatch(pilot):
        return hostile
    return _too_big(job, pilot) or _too_long(job, pilot) or _clauses(job, pilot) or "they do not match"


def _hostile(job: classad2.ClassAd, pilot: classad2.ClassAd) -> str:
    """What the job asks that is no number to plan with: HTCondor would start a job of -1 cores, or of NaN seconds."""
    try:
        for name, most in _REQUESTS.items():
            number(job, name, most=most)
        walltime = _in_match(pilot, job, "JobWall")
        if walltime is not None:
            whole(walltime, "its walltime")
    except BadValue as bad:
        return str(bad)
    return ""


_REQUESTS = {"RequestCpus": MOST_UNITS, "RequestMemory": MOST, "RequestGPUs": MOST_UNITS, "RequestDisk": MOST}


def _too_big(job: classad2.ClassAd, pilot: classad2.ClassAd) -> str:
    for request, have, default, unit in (
        ("RequestCpus", "Cpus", 1, "cpus"),
        ("RequestMemory", "Memory", 0, "MB memory"),
        ("RequestGPUs", "GPUs", 0, "GPUs"),
        ("RequestDisk", "Disk", 0, "KB disk"),
    ):
        asked, there = number(job, request, default), number(pilot, have)
        if asked > there:
            return f"asks {asked} {unit}, a pilot has {there}"
    return ""


def _too_long(job: classad2.ClassAd, pilot: classad2.ClassAd) -> str:
    walltime = _in_match(pilot, job, "JobWall")
    asked_s = 0 if walltime is None else whole(walltime, "its walltime")
    longest_s = number(pilot, "PilotJobLife")
    if asked_s > longest_s:
        return f"runs {format_duration(asked_s)}, a pilot gives a job {format_duration(longest_s)} at most"
    return ""


def _clauses(job: classad2.ClassAd, pilot: classad2.ClassAd) -> str:
    for side, own, other in (("the job's Requirements", job, pilot), ("the pilot's START", pilot, job)):
        name = "Requirements" if own is job else "Start"
        if name not in own:
            continue
        for clause in conjuncts(str(own.lookup(name))):
            value = evaluate_in(clause, own, other)
            if value is not True:
                return f"{side}: {clause} is {value_word(value)}"
    return ""


def _in_match(own: classad2.ClassAd, other: classad2.ClassAd, name: str) -> object:
    return evaluate_in(str(own.lookup(name)), own, other) if name in own else None


def evaluate_in(expression: str, own: classad2.ClassAd, other: classad2.ClassAd) -> object:
    return bindings().ExprTree(expression).eval(own, other)


def value_word(value: object) -> str:
    """true, false, undefined or error, as HTCondor writes them."""
    return str(getattr(value, "name", value)).lower()


def conjuncts(expression: str) -> Iterable[str]:
    """The parts of an expression that && joins at the top level, outer parentheses taken off."""
    expression = _unwrapped(expression.strip())
    parts, depth, start, quoted = [], 0, 0, False
    position = 0
    while position < len(expression):
        character = expression[position]
        if quoted:
            position += character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif expression.startswith(("=?=", "=!="), position):
            position += 2
        elif depth == 0 and expression.startswith(("||", "?"), position):
            return [expression]
        elif depth == 0 and expression.startswith("&&", position):
            parts.append(expression[start:position].strip())
            position += 1
            start = position + 1
        position += 1
    parts.append(expression[start:].strip())
    if len(parts) == 1:
        return parts
    return [clause for part in parts for clause in conjuncts(part)]


def _unwrapped(expression: str) -> str:
    """Without the parentheses that enclose all of it."""
    while expression.startswith("("):
        depth, quoted, escaped = 0, False, False
        for position, character in enumerate(expression):  # noqa: B007  it tells where the loop ended
            if quoted:
                quoted = escaped or character != '"'
                escaped = not escaped and character == "\\"
                continue
            quoted = character == '"'
            depth += (character == "(") - (character == ")")
            if depth == 0:
                break
        if position != len(expression) - 1:
            return expression
        expression = expression[1:-1].strip()
    return expression
