"""Checks of one route or transform as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

from htcebridge.routes.lint import statement
from htcebridge.routes.lint.command import Command, commands
from htcebridge.routes.lint.finding import Finding
from htcebridge.routes.lint.view import POST, Routine, View


def check(routine: Routine, view: View) -> Iterator[Finding]:
    """Every finding in one text."""
    made = commands(routine)
    if made and made[0].text.startswith("["):
        yield Finding(
            "R10",
            routine.where,
            f"{routine.name} is in the old ClassAd syntax [ ... ]: HTCondor 24.10 and later drop it without a word.",
            "Rewrite it as statements; `condor_transform_ads -convertoldroutes` helps.",
        )
        return
    for one in made:
        yield from statement.check(one, routine)
    yield from _injection(made, routine)
    yield from _whole(made, routine, view)


def _injection(made: list[Command], routine: Routine) -> Iterator[Finding]:
    """$(MY.x) in a SET, unless the same text has given x its value."""
    if routine.is_shipped:
        return
    known: set[str] = set()
    for one in made:
        if one.keyword not in ("SET", "DEFAULT", "EVALSET"):
            continue
        used = [name for name in re.findall(r"\$\(MY\.(\w+)", one.value, re.IGNORECASE) if name.upper() not in known]
        if used:
            yield Finding(
                "R13",
                one.where,
                f"$(MY.{used[0]}) pastes what the submitter wrote, quotes taken off: text in it becomes expression.",
                f"EVALMACRO safe unparse({used[0]}), then $(safe); or name the attribute itself.",
            )
        if one.keyword != "DEFAULT":
            known.add(one.attr.upper())


def _whole(made: list[Command], routine: Routine, view: View) -> Iterator[Finding]:
    asked = [one for one in made if one.keyword == "REQUIREMENTS"]
    for one in asked[1:]:
        yield Finding(
            "R40",
            one.where,
            f"{routine.name} has REQUIREMENTS twice: only the last one counts, if or else around it or not.",
            "Write one, with && between the parts.",
        )
    if routine.is_route:
        yield from _universe(made, routine, view)
        yield from _memory(made, view)
    yield from _inside_continuation(routine, view)


def _universe(made: list[Command], routine: Routine, view: View) -> Iterator[Finding]:
    macros = {one.macro.upper() for one in made}
    if "TARGETUNIVERSE" in macros or (view.alone and view.extends(routine.knob)):
        return
    if any(one.keyword == "UNIVERSE" for one in made):
        where = next(one.where for one in made if one.keyword == "UNIVERSE")
        readers = [
            other.name for other in view.routines if other.role == "post" and "$(TargetUniverse)" in other.knob.value
        ]
        if readers or view.alone:
            yield Finding(
                "R14",
                where,
                f"UNIVERSE leaves $(TargetUniverse) empty, and {readers[0] if readers else 'WholeNode'} of the CE "
                "reads it: it fails for every job, and WantWholeNode does nothing.",
                "Write TargetUniverse = 5 instead.",
            )
    elif not macros & {"GRIDRESOURCE"} and not any(one.attr.upper() == "GRIDRESOURCE" for one in made):
        yield Finding(
            "R14",
            routine.where,
            f"{routine.name} has no TargetUniverse: jobs become grid jobs (universe 9) without a resource.",
            "Write TargetUniverse = 5 for an HTCondor pool.",
        )


def _memory(made: list[Command], view: View) -> Iterator[Finding]:
    late = [
        other.name
        for other in view.routines
        if other.role == "post" and re.search(r"\b(EVAL)?SET\s+RequestMemory\b", other.knob.value, re.IGNORECASE)
    ] + [name for name in view.names(POST) if view.alone and name.upper() == "MEMORY"]
    for one in made:
        if late and one.keyword in ("SET", "EVALSET", "DEFAULT") and one.attr.upper() == "REQUESTMEMORY":
            yield Finding(
                "R16",
                one.where,
                f"The transform {late[0]} runs after the route and sets RequestMemory again: this has no effect.",
                "Write default_maxMemory = MB for a default, or SET maxMemory MB to force it.",
            )


def _inside_continuation(routine: Routine, view: View) -> Iterator[Finding]:
    made = view.assignment(routine.knob)
    if made is None:
        return
    raw = view.source.text(routine.knob.file).splitlines()
    for number in range(made.first, min(made.last, len(raw))):
        line, before = raw[number].strip(), raw[number - 1].strip()
        if line.startswith("#") and before.endswith("\\") and not before.startswith("#"):
            yield Finding(
                "R41",
                f"{routine.knob.file}:{number + 1}",
                "A comment between continued lines is taken into the value, and cuts it off there.",
                "Put the comment above the statement.",
            )
