"""A configuration as the checks see it: settings, routes and transforms with the line of each statement, the lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from htcebridge.errors import BridgeError
from htcebridge.routes.ce import CE, Knob
from htcebridge.routes.lint.source import Assignment, Files

ROUTES = "JOB_ROUTER_ROUTE_NAMES"
PRE = "JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES"
POST = "JOB_ROUTER_POST_ROUTE_TRANSFORM_NAMES"
# What HTCondor-CE 24 and 25 ship in these lists, and the transforms that they ship and do not list.
SHIPPED = {
    ROUTES: "Condor_Pool",
    PRE: "Base Cleanup OrigRequests",
    POST: "WholeNode Cpus Gpus Memory Queue BatchRuntime CERequirements OnExitHold Env",
}
SHIPPED_TRANSFORMS = frozenset(f"{SHIPPED[PRE]} {SHIPPED[POST]} UidAcctGroup x509AcctGroup".upper().split())

Role = Literal["route", "pre", "post", "unlisted"]


@dataclass(frozen=True)
class Statement:
    """One line of a route or transform."""

    text: str
    where: str


@dataclass(frozen=True)
class Routine:
    """A route or a transform. `late`: the CE's OrigRequests has renamed AuthToken* by the time it runs."""

    name: str
    knob: Knob
    role: Role
    statements: tuple[Statement, ...]
    where: str
    late: bool = False

    @property
    def is_route(self) -> bool:
        return self.knob.name.upper().startswith("JOB_ROUTER_ROUTE_")

    @property
    def is_shipped(self) -> bool:
        """A transform that HTCondor-CE brings along."""
        return not self.is_route and self.name.upper() in SHIPPED_TRANSFORMS


def _nothing(name: str) -> str:
    return ""


@dataclass(frozen=True)
class View:
    """All of it. `alone`: one file without its CE. `value`: a setting expanded, "" where that is not known."""

    knobs: dict[str, Knob]
    files: tuple[str, ...]
    source: Files
    grants: tuple[str, ...] = ()
    alone: bool = False
    value: Callable[[str], str] = _nothing
    routines: tuple[Routine, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "routines", tuple(self._routines()))

    def own(self) -> list[Knob]:
        """The settings that come from a file, HTCondor's defaults left out."""
        return [knob for knob in self.knobs.values() if not knob.file.startswith("<")]

    def names(self, list_name: str) -> list[str]:
        """A list of routes or transforms, in its order. Of a file alone: with what HTCondor-CE ships."""
        knob = self.knobs.get(list_name)
        if self.alone:
            made = self.assignment(knob) if knob else None
            value = made.value if made else knob.value if knob else f"$({list_name})"
            value = re.sub(rf"\$\({list_name}\)", SHIPPED[list_name], value, flags=re.IGNORECASE)
        else:
            value = knob.value if knob else ""
        return split_names(value)

    def assignment(self, knob: Knob) -> Assignment | None:
        """The statement that set a knob, from its file."""
        same = [one for one in self.source.assignments(knob.file) if one.name.upper() == knob.name.upper()]
        return next((one for one in reversed(same) if knob.line in (None, one.last)), same[-1] if same else None)

    def where(self, knob: Knob) -> str:
        """The line on which a knob's setting begins."""
        made = self.assignment(knob)
        return f"{knob.file}:{made.first}" if made else knob.where

    def extends(self, knob: Knob) -> bool:
        """Whether a setting has its own earlier value in it, which a file alone does not show."""
        made = self.assignment(knob)
        return made is not None and f"$({knob.name.upper()}" in made.value.upper()

    def _routines(self) -> list[Routine]:
        pre, post = ([name.upper() for name in self.names(which)] for which in (PRE, POST))
        made = []
        for key, knob in self.knobs.items():
            matched = re.fullmatch(r"JOB_ROUTER_(ROUTE|TRANSFORM)_(.+)", key)
            if not matched or knob.file.startswith("<") or key == ROUTES:
                continue
            name = matched[2]
            role: Role = "route"
            if matched[1] == "TRANSFORM":
                role = "pre" if name in pre else "post" if name in post else "unlisted"
            late = role in ("route", "post")
            if role == "pre" and "ORIGREQUESTS" in pre:
                late = pre.index(name) > pre.index("ORIGREQUESTS")
            shown = knob.name[len(key) - len(name) :]
            made.append(Routine(shown, knob, role, self._statements(knob), self.where(knob), late))
        return made

    def _statements(self, knob: Knob) -> tuple[Statement, ...]:
        """A value's lines as HTCondor has them, each with its place if the file can be read."""
        made = self.assignment(knob)
        places = [(" ".join(line.text.split()), f"{knob.file}:{line.number}") for line in made.lines] if made else []
        at = self.where(knob)
        statements = []
        for text in (line.strip() for line in knob.value.splitlines()):
            # A line that the file doesn't have has come from $(NAME): the setting's earlier text.
            found = next((n for n, (known, _) in enumerate(places) if known == " ".join(text.split())), None)
            if text:
                statements.append(Statement(text, at if found is None else places.pop(found)[1]))
        return tuple(statements)


def split_names(value: str) -> list[str]:
    """Names in a list that blanks or commas separate; macros left out."""
    return [name for name in re.split(r"[\s,]+", re.sub(r"\$\([^)]*\)", " ", value)) if name]


def of_ce(ce: CE, knobs: dict[str, Knob], grants: Sequence[str]) -> View:
    """The whole configuration of a CE."""

    def value(name: str) -> str:
        try:
            return ce.value(name)
        except BridgeError:
            return ""

    files = [str(ce.config), *(file for file in ce.files() if file != str(ce.config))]
    return View(knobs, tuple(files), Files(), tuple(grants), value=value)


def of_file(path: Path, knobs: dict[str, Knob], grants: Sequence[str]) -> View:
    """One file; settings from elsewhere, the defaults, are left out."""
    mine = {name: knob for name, knob in knobs.items() if knob.file == str(path)}
    return View(mine, (str(path),), Files(), tuple(grants), alone=True)
