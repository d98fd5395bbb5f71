"""Does this job fit this slot, what does it take there, and why not: HTCondor's own matching of two ads.

The one answer for demand, plan, explain and doctor, for pilots that are there and for those that would be started.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from htcebridge.model import Shape
from htcebridge.tier1 import slots
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


@dataclass(frozen=True)
class Fit:
    """One job on one slot: what it would take there, and for how long. `why_not` is empty if both accept."""

    job: Job
    why_not: str = ""


CONFINED = "PilotRequirements"
"""A slot's own Requirements, where a collector of the pilots' own has put a clause behind them (`routes.central`)."""
_REQUESTS = ("RequestCpus", "RequestMemory", "RequestDisk", "RequestGPUs")
# What condor_submit writes into Requirements, which the requests say anyway; and what is left of them otherwise.
_BY_REQUEST = re.compile(r"\b(?:TARGET\.)?(Cpus|Memory|Disk|GPUs)\s*>=\s*(?:MY\.)?Request\1\b", re.IGNORECASE)
_OF_THE_MOMENT = re.compile(r"\b(?:Cpus|Memory|Disk|GPUs|GLIDEIN_To(?:Die|Retire))\b", re.IGNORECASE)


class Matcher:
    """Matches job ads against slots: name -> ad of an empty one as ClassAd text.

    Of a pilot to be started it comes from `pilot.script.template_ad`, of one that is there from `tier1.slots.lasting`.
    """

    def __init__(self, ads: Mapping[str, str]) -> None:
        classad2 = bindings()
        self._slots = {name: classad2.ClassAd(text) for name, text in ads.items()}

    def judge(self, job_text: str, default: Job) -> dict[str, Fit]:
        """How such a job fits each slot; `default` is what it asks where no slot is in sight. Raises nothing."""
        try:
            job = bindings().ClassAd(job_text)
        except Exception as error:  # whatever a job's ad makes the bindings raise is its own reason, nobody else's
            return dict.fromkeys(self._slots, Fit(default, _cannot(error)))
        for request in ("RequestCpus", "RequestMemory", "RequestDisk"):
            if not _has(job, request):  # condor_submit always says them
                job[request] = 1
        return {name: _judged(job, slot, default) for name, slot in self._slots.items()}

    @staticmethod
    def looks_at_the_moment(job_text: str) -> bool:
        """Whether it matters to such a job how a slot is just now, beside the sizes of its requests: one of them is an
        expression, or Requirements look at what is free or how long the pilot lives."""
        try:
            job = bindings().ClassAd(job_text)
            written = _BY_REQUEST.sub("", str(job.lookup("Requirements"))) if "Requirements" in job else ""
            if _OF_THE_MOMENT.search(written):
                return True
            return any(isinstance(job.get(name), bindings().ExprTree) for name in _REQUESTS if _has(job, name))
        except Exception:  # as in `judge`: taken nowhere
            return False

    def fit(self, job_text: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """The slots that take such a job and that it takes, and for each other one the reason. Raises nothing."""
        found = self.judge(job_text, Job(Shape(1, 1), 0))
        why_not = {name: each.why_not for name, each in found.items() if each.why_not}
        return tuple(name for name in found if name not in why_not), why_not


def _judged(job: classad2.ClassAd, slot: classad2.ClassAd, default: Job) -> Fit:
    try:
        asked = _asked_of(job, slot)
        why_not = _why_not(job, slot, asked)
    except BadValue as bad:
        return Fit(default, str(bad))
    except Exception as error:  # as in `Matcher.judge`
        return Fit(default, _cannot(error))
    return Fit(asked, why_not)


def _cannot(error: Exception) -> str:
    return f"its ad cannot be evaluated ({type(error).__name__})"


# The startd gives a job its memory in such steps (MODIFY_REQUEST_EXPR_REQUESTMEMORY as shipped, 23.9 and 25.14).
_MEMORY_STEP_MB = 128
# Of a slot whose configuration says otherwise: what it gives for a request, an expression as in MODIFY_REQUEST_EXPR_*.
GIVES = "PilotGives_"


def _asked_of(job: classad2.ClassAd, slot: classad2.ClassAd) -> Job:
    """What the job would take of this slot, requests that are expressions on it included. Raises BadValue."""
    memory_mb = _request(job, slot, "RequestMemory", 1)
    step_mb = 1 if f"{GIVES}RequestMemory" in slot else _MEMORY_STEP_MB
    rounded_mb = -(-memory_mb // step_mb) * step_mb
    there_mb = number_or(0, slot, "Memory")
    shape = Shape(
        cpus=_request(job, slot, "RequestCpus", 1, MOST_UNITS),
        # The last step of a slot may be a short one; what is too big anyway is named as it was asked.
        memory_mb=rounded_mb if rounded_mb <= there_mb else max(memory_mb, there_mb),
        gpus=_request(job, slot, "RequestGPUs", 0, MOST_UNITS),
        disk_mb=-(-_request(job, slot, "RequestDisk", 0) // 1024),
    )
    walltime = _in_match(slot, job, "JobWall")
    return Job(shape, 0 if walltime is None else whole(walltime, "its walltime"))


def _request(job: classad2.ClassAd, slot: classad2.ClassAd, name: str, absent: int, most: int = MOST) -> int:
    """What it asks, or what this slot makes of that. HTCondor would start a job of -1 cores, or of NaN seconds. Raises
    BadValue."""
    if not _has(job, name):
        return absent
    if (gives := GIVES + name) in slot:
        return max(absent, whole(evaluate_in(str(slot.lookup(gives)), job, slot), gives, most))
    try:
        written = job.get(name)
        if type(written) is int and 0 <= written <= most:
            return written
        value = evaluate_in(str(job.lookup(name)), job, slot)
    except Exception as error:
        raise BadValue(f"{name} cannot be evaluated ({type(error).__name__})") from None
    if value is bindings().Value.Undefined:
        return absent
    count = whole(value, name, most)
    if most == MOST_UNITS and value != count:
        raise BadValue(f"{name} is {value:g}: slots have whole ones, and HTCondor never starts such a job")
    return count


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


@cache
def bindings() -> Any:
    """classad2 with HTCondor's own functions: split() or stringListMember() are errors until htcondor2 is loaded.

    Measured with 25.14. No configuration of this machine's is read.
    """
    os.environ.setdefault("CONDOR_CONFIG", str(CONDOR_CONFIG))
    importlib.import_module("htcondor2")
    return importlib.import_module("classad2")


def _has(job: classad2.ClassAd, name: str) -> bool:
    """`in` evaluates, and raises what it likes of what is there."""
    try:
        return name in job
    except Exception:
        return True


def _why_not(job: classad2.ClassAd, slot: classad2.ClassAd, asked: Job) -> str:
    """Empty if job and slot accept each other, else the first reason that a person understands."""
    if job.symmetricMatch(slot):
        return ""
    return _too_big(asked.shape, slot) or _too_long(asked, slot) or _clauses(job, slot)


def _too_big(asked: Shape, slot: classad2.ClassAd) -> str:
    for have, wants, unit in (
        ("Cpus", asked.cpus, "cpus"),
        ("Memory", asked.memory_mb, "MB memory"),
        ("GPUs", asked.gpus, "GPUs"),
        ("Disk", asked.disk_mb * 1024, "KB disk"),
    ):
        there = number(slot, have)
        if wants > there:
            return f"asks {wants} {unit}, a pilot has {there}"
    return ""


def _too_long(asked: Job, slot: classad2.ClassAd) -> str:
    longest_s = number(slot, "PilotJobLife", MOST)
    if asked.walltime_s > longest_s:
        return f"runs {format_duration(asked.walltime_s)}, a pilot gives a job {format_duration(longest_s)} at most"
    return ""


def _clauses(job: classad2.ClassAd, slot: classad2.ClassAd) -> str:
    """The first clause that is not true, of either side. What an ad does not know is taken for yes: one of no node in
    particular how much a node has, a guess also what belongs to the nodes. A pilot will tell."""
    guess = slot.get(slots.GUESS) is True
    unknown = False
    for side, own, other in (("the job's Requirements", job, slot), ("the pilot's START", slot, job)):
        for clause in conjuncts(_condition(own)):
            value = evaluate_in(clause, own, other)
            if value is True:
                continue
            if own is job and _asks_the_unknown(clause, job, slot, guess):
                unknown = True
                continue
            return f"{side}: {clause} is {value_word(value)}"
    return "" if unknown else "they do not match"


def _condition(ad: classad2.ClassAd) -> str:
    """What an ad wants of the other, a slot's Requirements with what its Start stands for."""
    requirements = str(ad.lookup("Requirements")) if "Requirements" in ad else "true"
    for name in (CONFINED, "Start", "WithinResourceLimits"):
        if name in ad:
            meant = f"({ad.lookup(name)})".replace("\\", "\\\\")
            requirements = re.sub(rf"\b{name}\b", meant, requirements, flags=re.IGNORECASE)
    return requirements


def _asks_the_unknown(clause: str, job: classad2.ClassAd, slot: classad2.ClassAd, guess: bool) -> bool:
    """Whether a clause looks at what this ad lacks. Its value says nothing then: `=?=` is false, not undefined."""
    names = {name for name in re.findall(r"[A-Za-z_]\w*", clause) if not _has(job, name) and name not in slot}
    return any(slots.is_measured(name) or (guess and slots.is_of_the_node(name)) for name in names)


def _in_match(own: classad2.ClassAd, other: classad2.ClassAd, name: str) -> object:
    return evaluate_in(str(own.lookup(name)), own, other) if name in own else None


def evaluate_in(expression: str, own: classad2.ClassAd, other: classad2.ClassAd) -> object:
    return _parsed(expression).eval(own, other)


@lru_cache(maxsize=1024)
def _parsed(expression: str) -> classad2.ExprTree:
    return bindings().ExprTree(expression)


def value_word(value: object) -> str:
    """true, false, undefined or error, as HTCondor writes them."""
    return str(getattr(value, "name", value)).lower()


@lru_cache(maxsize=1024)
def conjuncts(expression: str) -> Sequence[str]:
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
