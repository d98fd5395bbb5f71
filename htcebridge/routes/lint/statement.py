"""Checks of one statement of a route or transform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from htcebridge.routes.lint import classads
from htcebridge.routes.lint.command import EXPRESSIONS, KEYWORDS, TWO_ARGUMENTS, Command
from htcebridge.routes.lint.finding import Finding
from htcebridge.routes.lint.view import Routine

_OLD = re.compile(r"(\+|MY\.|(?:eval_)?set_|copy_|delete_)(\w+)$", re.IGNORECASE)
_CONDITION = re.compile(
    r"(?:!\s*)*(?:defined\s+\S+|defined\s+use\s+\S+|version\s*[<>=!]+\s*[\d.v]+|-?[\d.]+|true|false|yes|no|t|f|\$\w*\(.*\)|)$",
    re.IGNORECASE,
)


def check(one: Command, routine: Routine) -> Iterator[Finding]:
    """Every finding in one statement."""
    yield from _statement(one, routine)
    yield from _tokens(one, routine)


def _statement(one: Command, routine: Routine) -> Iterator[Finding]:
    what = "route" if routine.is_route else "transform"
    if one.macro:
        yield from _macro(one, routine)
    elif one.condition is not None:
        if not _CONDITION.match(one.condition) or (one.condition.count("$(") > 1 and not _single_macro(one.condition)):
            yield Finding(
                "R12",
                one.where,
                f"`{one.text}`: an if takes one name, number or macro; with operators in it the {what} "
                + _dropped(routine),
                "Evaluate it first: EVALMACRO test EXPR, then if $(test).",
            )
    elif one.keyword == "REQUIREMENTS":
        yield from _requirements(one, routine)
    elif one.keyword in TWO_ARGUMENTS:
        yield from _two_arguments(one, routine)
    elif one.keyword and one.keyword not in KEYWORDS:
        near = get_close_matches(one.keyword.upper(), KEYWORDS, 1, 0.5)
        continued = one.keyword.startswith(("&", "|", ")", "(", '"'))
        fix = f"Did you mean {near[0]}?" if near else f"The keywords are {', '.join(KEYWORDS)}."
        yield Finding(
            "R11",
            one.where,
            f"{one.keyword} is no keyword: the {what} {_dropped(routine)}",
            "End the line before with a backslash: this looks like its continuation." if continued else fix,
        )


def _dropped(routine: Routine) -> str:
    if routine.is_route:
        return "is dropped without a word, and its jobs take another route."
    return "fails for every job, and nothing is routed." if routine.role != "unlisted" else "would fail for every job."


def _single_macro(condition: str) -> bool:
    text = re.sub(r"^(?:!\s*)*", "", condition)
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return at == len(text) - 1
    return False


def _macro(one: Command, routine: Routine) -> Iterator[Finding]:
    name, old = one.macro, _OLD.match(one.macro)
    if name.upper() == "REQUIREMENTS":
        yield Finding(
            "R01",
            one.where,
            f"REQUIREMENTS with = sets a macro of that name: {routine.name} takes every job.",
            f"Write REQUIREMENTS {one.value} without the =.",
        )
        return
    if old and not routine.is_shipped and f"$({name}" not in routine.knob.value:
        verb = {"copy_": "COPY", "delete_": "DELETE", "eval_set_": "EVALSET"}.get(old[1].lower(), "SET")
        target = "" if verb == "DELETE" else f" {_unquoted(one.value)}"
        yield Finding(
            "R09",
            one.where,
            f"{name} = is the old syntax: here it sets a macro that nothing reads, and the job is not changed.",
            f"Write {verb} {old[2]}{target}.",
        )
    if name.upper() in ("MAXJOBS", "MAXIDLEJOBS") and "$(" not in one.value:
        if not re.fullmatch(r"[+-]?\d+", one.value):
            yield Finding(
                "R15",
                one.where,
                f"{name} = {one.value} is no number: the default of all routes holds instead.",
                f"Write {name} = and digits, with nothing behind them.",
            )
        elif name.upper() == "MAXJOBS" and int(one.value) <= 0:
            yield Finding(
                "R15",
                one.where,
                f"MaxJobs = {one.value} is not unlimited: the route takes no job at all.",
                "Write a large number, or leave it out for JOB_ROUTER_DEFAULT_MAX_JOBS_PER_ROUTE.",
            )


def _unquoted(value: str) -> str:
    return value.strip().rstrip(";").strip()


def _requirements(one: Command, routine: Routine) -> Iterator[Finding]:
    expression, where = one.value, one.where
    never = "is taken by no job" if routine.is_route else "applies to no job"
    if "$(" in expression:
        yield Finding(
            "R02",
            where,
            f"A macro $(...) is not expanded in REQUIREMENTS: {routine.name} {never}.",
            "Write the value itself.",
        )
    elif not _has_trailer(one) and not classads.parses(expression):
        yield Finding(
            "R04",
            where,
            f"REQUIREMENTS is no expression: {routine.name} "
            + ("is dropped, and its jobs take another route." if routine.is_route else "disables all routing."),
            "Mend the expression: look for brackets, quotes and operators.",
        )
    if routine.is_route and re.search(r"\bTARGET\s*\.", classads.bare(expression), re.IGNORECASE):
        yield Finding(
            "R03",
            where,
            f"TARGET. is never defined in a route's REQUIREMENTS: {routine.name} is taken by no job.",
            "Write the bare attribute name.",
        )
    if routine.is_route and classads.rests_on_x509(expression):
        yield Finding(
            "R17",
            where,
            f"{routine.name} rests on x509UserProxy attributes alone: a self-made proxy gives them any value.",
            "Ask for Owner (the mapfile's account) or AuthTokenIssuer as well.",
        )
    if routine.is_route and classads.mentions(expression, r"orig_AuthToken\w+"):
        yield Finding(
            "R18",
            where,
            f"orig_AuthToken* is not there yet when {routine.name} is chosen, except where a submitter wrote it.",
            "Test AuthToken*.",
        )
    elif not routine.is_route and routine.late and classads.mentions(expression, r"AuthToken\w+"):
        yield _token_renamed(one, routine)


def _token_renamed(one: Command, routine: Routine) -> Finding:
    return Finding(
        "R18",
        one.where,
        f"AuthToken* is orig_AuthToken* by the time {routine.name} runs: this is always undefined.",
        "Write orig_AuthToken*, or list the transform before OrigRequests.",
    )


def _two_arguments(one: Command, routine: Routine) -> Iterator[Finding]:
    keyword = one.keyword
    if one.attr.startswith("=") or ("=" in one.attr and not one.attr.startswith("/")) or one.value.startswith("="):
        happens = {"SET": "the attribute is not set", "DEFAULT": "the attribute is not set"}.get(keyword, "it fails")
        name, _, rest = re.sub(r"\s*=+\s*", "=", f"{one.attr} {one.value}", count=1).partition("=")
        yield Finding(
            "R08",
            one.where,
            f"`{one.text}`: blanks separate the name from the value, and = is none: {happens}"
            + (", yet the job is routed." if keyword == "SET" and one.value else " or the job fails."),
            f"Write {keyword} {name.strip()} {rest.strip()}.",
        )
        return
    if not one.value:
        yield Finding(
            "R05",
            one.where,
            f"{keyword} {one.attr} has no value: every job of this route fails.",
            f"Write {keyword} NAME VALUE.",
        )
        return
    if keyword in EXPRESSIONS and not _has_trailer(one) and not classads.parses(one.value):
        effect = (
            "the macro stays undefined" if keyword == "EVALMACRO" else "it is skipped, and the job is routed without it"
        )
        yield Finding(
            "R05",
            one.where,
            f"The value of {keyword} {one.attr} is no expression: {effect}.",
            "Mend the expression: look for brackets, quotes and operators.",
        )
    if routine.late and keyword in ("EVALSET", "EVALMACRO") and classads.mentions(one.value, r"AuthToken\w+"):
        yield _token_renamed(one, routine)
    if routine.is_route and keyword in ("SET", "EVALSET") and one.attr.upper() == "PERIODICREMOVE":
        yield Finding(
            "R23",
            one.where,
            "PeriodicRemove on a routed job: the CE sees a removed copy, and routes the job again and again.",
            "Use SYSTEM_PERIODIC_REMOVE on the CE.",
            "warning",
        )


def _has_trailer(one: Command) -> bool:
    return _comment(one) or _semicolon(one)


def _comment(one: Command) -> bool:
    return re.search(r"(?:^|\s)#", classads.bare(one.value)) is not None


def _semicolon(one: Command) -> bool:
    return classads.bare(one.value).rstrip().endswith(";")


def _tokens(one: Command, routine: Routine) -> Iterator[Finding]:
    """What goes wrong wherever a value stands."""
    if one.condition is not None or one.keyword in ("NAME", "TRANSFORM", "UNIVERSE", "DELETE"):
        return
    if one.keyword and one.keyword not in KEYWORDS:
        return
    if _comment(one):
        yield Finding(
            "R06",
            one.where,
            f"The comment belongs to the value: {_spoilt(one, routine)}.",
            "Put the comment on a line of its own.",
        )
    elif _semicolon(one):
        yield Finding(
            "R07",
            one.where,
            f"The ; belongs to the value: {_spoilt(one, routine)}.",
            "Leave it out: a statement ends with its line.",
        )
    if one.keyword not in ("REQUIREMENTS", *EXPRESSIONS):
        return
    literal = r'(?:==|=\?=|\bis\b|!=|=!=|\bisnt\b)\s*"(?:true|false)"|"(?:true|false)"\s*(?:==|=\?=|\bis\b)'
    if re.search(rf"\w\s*{literal}\s*", one.value, re.IGNORECASE) and not _unparsed(one.value):
        yield Finding(
            "R28",
            one.where,
            'A boolean never equals a string: `Flag == "true"` is error or false for Flag = true.',
            "Write =?= true, without quotes.",
        )
    if re.search(r"(==|=\?=|!=|=!=|\bis|\bisnt)\s*'[^']*'", classads.bare(one.value), re.IGNORECASE):
        yield Finding(
            "R42",
            one.where,
            "Single quotes make an attribute's name, not a string: the comparison is with something undefined.",
            "Use double quotes.",
        )


def _unparsed(value: str) -> bool:
    """unparse() and its like do give strings."""
    return re.search(r'\)\s*(?:==|=\?=|\bis\b)\s*"(?:true|false)"', value, re.IGNORECASE) is not None


def _spoilt(one: Command, routine: Routine) -> str:
    if one.macro:
        return f"{one.macro} has it in its text, and a number is no number any more"
    if one.keyword == "REQUIREMENTS":
        return f"{routine.name} is dropped" if routine.is_route else "all routing is disabled"
    return f"{one.keyword} {one.attr} is skipped, and the job is routed without it"
