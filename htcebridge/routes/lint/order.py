"""Checks of the lists: listed and not defined, defined and not listed, lost between files, in the wrong order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePath

from htcebridge.routes.lint.command import commands
from htcebridge.routes.lint.finding import Finding
from htcebridge.routes.lint.source import Assignment
from htcebridge.routes.lint.view import POST, PRE, ROUTES, SHIPPED, SHIPPED_TRANSFORMS, Routine, View, split_names

# HTCondor-CE's package installs these names; a site's file that sorts before them is read before them.
_PACKAGED = re.compile(r"0[0-5]-(ce|common|managed|pilot)-[\w-]+\.conf$")


def check(view: View) -> Iterator[Finding]:
    """Every finding about lists and order."""
    yield from _listed(view)
    yield from _dropped(view)
    yield from _overridden(view)
    yield from _grants(view)


def _listed(view: View) -> Iterator[Finding]:
    defined = {routine.name.upper() for routine in view.routines if routine.is_route}
    listed = view.names(ROUTES)
    place = view.where(view.knobs[ROUTES]) if ROUTES in view.knobs else next(iter(view.files), "configuration")
    missing = [name for name in listed if name.upper() not in defined]
    if view.alone:
        missing = [name for name in missing if name.upper() != SHIPPED[ROUTES].upper()]
    if not view.alone and len(missing) == len(listed):
        why = "names only routes that are not defined" if listed else "is empty"
        yield Finding(
            "R33",
            place,
            f"{ROUTES} {why}: the router runs, and routes nothing.",
            "Name a route that is defined as JOB_ROUTER_ROUTE_<NAME>.",
        )
    for name in dict.fromkeys(missing):
        yield Finding(
            "R30",
            place,
            f"The route {name} is listed and not defined{' in this file' if view.alone else ''}: it is left out "
            "without a word, and its jobs take another route.",
            f"Define JOB_ROUTER_ROUTE_{name}, or take it out of {ROUTES}.",
            "warning" if view.alone else "error",
        )
    yield from _undefined_transforms(view)
    names = {name.upper() for which in (ROUTES, PRE, POST) for name in view.names(which)}
    for routine in view.routines:
        if routine.name.upper() not in names and not routine.is_shipped:
            kind, which = ("route", ROUTES) if routine.is_route else ("transform", f"{PRE} or {POST}")
            yield Finding(
                "R31",
                routine.where,
                f"The {kind} {routine.name} is defined and not listed: it is not in use.",
                f"Add it to {which}, or remove it.",
                "warning",
            )


def _undefined_transforms(view: View) -> Iterator[Finding]:
    defined = {routine.name.upper() for routine in view.routines if not routine.is_route}
    if view.alone:
        defined |= SHIPPED_TRANSFORMS
    for which in (PRE, POST):
        for name in dict.fromkeys(view.names(which)):
            if name.upper() not in defined and which in view.knobs:
                yield Finding(
                    "R34",
                    view.where(view.knobs[which]),
                    f"The transform {name} is listed and not defined: that disables all routing.",
                    f"Define JOB_ROUTER_TRANSFORM_{name}, or take it out of {which}.",
                )


def _dropped(view: View) -> Iterator[Finding]:
    """A list that is set anew, without its own $(...), forgets the names that files before it have put there."""
    for which in (ROUTES, PRE, POST):
        if view.alone:
            yield from _dropped_of_shipped(view, which)
            continue
        final = {name.upper() for name in view.names(which)}
        held: dict[str, tuple[str, Assignment]] = {}
        for file, made in _settings(view, which):
            new = {name.upper() for name in split_names(made.value)}
            if "$(" not in made.value:
                lost = [name for name in held if name not in new | final and held[name][0] != file]
                for loser in dict.fromkeys(held[name][0] for name in lost):
                    its = [name for name in lost if held[name][0] == loser]
                    shown = ", ".join(n for n in split_names(held[its[0]][1].value) if n.upper() in its)
                    yield _loss(which, shown, loser, held[its[0]][1], file, made)
                held = {}
            held.update(dict.fromkeys(new, (file, made)))


def _loss(which: str, names: str, loser: str, lost: Assignment, winner: str, made: Assignment) -> Finding:
    if _early(loser, winner):
        return Finding(
            "R36",
            f"{loser}:{lost.first}",
            f"{winner}:{made.first} is read later and sets {which} anew: {names} is lost.",
            "Give the file a name that sorts after the packaged ones, 50- or higher.",
        )
    return Finding(
        "R35",
        f"{winner}:{made.first}",
        f"{which} is set anew: {names} of {loser}:{lost.first} is not in use any more.",
        f"Write {which} = ... $({which}), or name it here too.",
    )


def _dropped_of_shipped(view: View, which: str) -> Iterator[Finding]:
    knob = view.knobs.get(which)
    if knob is None or _PACKAGED.match(PurePath(knob.file).name):
        return
    listed = {name.upper() for name in view.names(which)}
    lost = [name for name in SHIPPED[which].split() if name.upper() not in listed and name != "Env"]
    if lost:
        yield Finding(
            "R35",
            view.where(knob),
            f"{which} is set without what it had before: {', '.join(lost)} of HTCondor-CE is not in use any more.",
            f"Write {which} = ... $({which}).",
            "warning" if which == ROUTES else "error",
        )


def _settings(view: View, which: str) -> Iterator[tuple[str, Assignment]]:
    for file in view.files:
        for made in view.source.assignments(file):
            if made.name.upper() == which and not made.conditional:
                yield file, made


def _early(loser: str, winner: str) -> bool:
    """A site's own file beaten by a packaged one in the same directory: its name sorts too early."""
    first, second = PurePath(loser), PurePath(winner)
    return first.parent == second.parent and bool(_PACKAGED.match(second.name)) and not _PACKAGED.match(first.name)


def _overridden(view: View) -> Iterator[Finding]:
    """A setting that two files of one directory make, where the first is surely meant to hold."""
    made: dict[str, list[tuple[str, Assignment]]] = {}
    for file in view.files:
        for one in view.source.assignments(file):
            if not one.conditional:
                made.setdefault(one.name.upper(), []).append((file, one))
    for name, settings in made.items():
        if name in (ROUTES, PRE, POST):
            continue
        for (loser, lost), (winner, won) in pairwise(settings):
            kept = re.search(rf"\$\({re.escape(name)}\b", won.value, re.IGNORECASE)
            if loser == winner or kept or lost.value.split() == won.value.split():
                continue
            early, text_of_route = _early(loser, winner), re.match(r"JOB_ROUTER_(ROUTE|TRANSFORM)_", name)
            if early or (text_of_route and PurePath(loser).parent == PurePath(winner).parent):
                yield Finding(
                    "R36",
                    f"{loser}:{lost.first}",
                    f"{winner}:{won.first} is read later and sets {lost.name} again: what stands here has no effect.",
                    "Give the file a name that sorts after the packaged ones, 50- or higher."
                    if early
                    else "Remove one of the two.",
                    "error" if early else "warning",
                )


def _grants(view: View) -> Iterator[Finding]:
    """What a route grants must be taken away from every job before, or a submitter grants it to himself."""
    by_name = {routine.name.upper(): routine for routine in view.routines if not routine.is_route}
    pre = [by_name[name.upper()] for name in view.names(PRE) if name.upper() in by_name]
    granted: dict[str, str] = {}
    for routine in view.routines:
        for one in commands(routine) if routine.is_route else ():
            for grant in view.grants:
                if one.keyword in ("SET", "EVALSET", "DEFAULT") and one.attr.upper() == grant.upper():
                    granted.setdefault(grant, one.where)
    for grant, where in granted.items():
        if not any(deletes(routine, grant) for routine in pre):
            yield Finding(
                "R19",
                where,
                f"Nothing takes {grant} from a job before the route: who submits with +{grant} has it on any route.",
                f"List a transform with DELETE {grant} first in {PRE}.",
            )
    order = [name.upper() for name in view.names(PRE)]
    for routine in pre:
        at = order.index(routine.name.upper())
        first_scrub = any(deletes(routine, grant) for grant in granted)
        if routine.late and deletes(routine, "orig_AuthTokenIssuer"):
            yield Finding(
                "R20",
                view.where(view.knobs[PRE]),
                f"{routine.name} deletes orig_AuthToken* after OrigRequests made it: the job's true token is lost too.",
                f"List {routine.name} first: {PRE} = {routine.name} $({PRE}).",
            )
        elif first_scrub and any(
            not deletes(by_name[name], grant) for name in order[:at] if name in by_name for grant in granted
        ):
            yield Finding(
                "R20",
                view.where(view.knobs[PRE]),
                f"{routine.name} takes the grant away only after {', '.join(order[:at])} saw what the submitter wrote.",
                f"List {routine.name} first: {PRE} = {routine.name} $({PRE}).",
                "warning",
            )


def deletes(routine: Routine, attribute: str) -> bool:
    """Whether a transform deletes an attribute from every job: not inside an if, no REQUIREMENTS."""
    depth = 0
    for one in commands(routine):
        word = one.text.split()[0].lower()
        depth += (word == "if") - (word == "endif")
        if one.keyword == "REQUIREMENTS":
            return False
        if one.keyword != "DELETE" or depth:
            continue
        pattern = re.match(r"/(.*)/\w*\s*$", one.value)
        if pattern is None and one.value.upper() == attribute.upper():
            return True
        try:
            if pattern and re.search(pattern[1], attribute, re.IGNORECASE):
                return True
        except re.error:
            continue
    return False
