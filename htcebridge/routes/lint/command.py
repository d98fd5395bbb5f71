"""A route's or transform's statements, taken apart as HTCondor does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from htcebridge.routes.lint.view import Routine, Statement

EXPRESSIONS = ("SET", "DEFAULT", "EVALSET", "EVALMACRO")
TWO_ARGUMENTS = (*EXPRESSIONS, "COPY", "RENAME")
KEYWORDS = (*TWO_ARGUMENTS, "DELETE", "NAME", "UNIVERSE", "REQUIREMENTS", "TRANSFORM")


@dataclass(frozen=True)
class Command:
    """A statement taken apart as HTCondor does: `KEYWORD attr value`, a macro `name = value`, or an if's condition."""

    where: str
    text: str
    keyword: str = ""
    attr: str = ""
    value: str = ""
    macro: str = ""
    condition: str | None = None


def command(statement: Statement) -> Command:
    """A statement's parts. An unknown first word is the keyword as it stands."""
    text, where = statement.text, statement.where
    control = re.match(r"(if|elif|else|endif)\b(?!\s*=)\s*(.*)$", text, re.IGNORECASE)
    if control:
        condition = control[2].strip() if control[1].lower() in ("if", "elif") else None
        return Command(where, text, condition=condition)
    macro = re.match(r"([^\s=]+)\s*=(.*)$", text)
    if macro and not text.startswith("["):
        return Command(where, text, macro=macro[1], value=macro[2].strip())
    word, _, rest = text.partition(" ") if " " in text else text.partition("\t")
    rest, keyword = rest.strip(), word.upper()
    if keyword not in TWO_ARGUMENTS:
        return Command(where, text, keyword if keyword in KEYWORDS else word, value=rest)
    if rest.startswith("/"):
        end = re.match(r"/(?:\\.|[^/\\])*/\w*", rest)
        attr = end[0] if end else rest
    else:
        attr = rest.split()[0] if rest else ""
    value = rest[len(attr) :].strip()
    if value == "=" or value.startswith(("= ", "=\t")):  # a stand-alone = is swallowed
        value = value[1:].strip()
    return Command(where, text, keyword, attr, value)


def commands(routine: Routine) -> list[Command]:
    """A text's statements; what is inside a here-document of its own is left out."""
    made, tag = [], ""
    for statement in routine.statements:
        opened = re.match(r"\S+\s*@=\s*(\S+)$", statement.text)
        if tag:
            tag = "" if statement.text == tag else tag
        elif opened:
            tag = "@" + opened[1]
        else:
            made.append(command(statement))
    return made
