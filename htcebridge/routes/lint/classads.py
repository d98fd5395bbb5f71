"""Questions about ClassAd expressions as text."""

from __future__ import annotations

import re

# classad2's functions that belong to HTCondor (userMap, ...) are known once htcondor2 is there.
import htcondor2  # noqa: F401  # isort: skip
import classad2

_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_MACRO = re.compile(r"\$[A-Za-z_]*\(([^()]*)\)")


def parses(expression: str) -> bool:
    """Whether it is one whole expression. A macro in it counts as whatever makes it one: its value is not known."""
    for stand_in in ("m1", "1", ""):
        text = expression
        while (replaced := _MACRO.sub(stand_in, text)) != text:
            text = replaced
        if "$(" in _STRING.sub("", text):
            return True
        try:
            classad2.ExprTree(text)
        except (classad2.ClassAdException, ValueError, SyntaxError):
            continue
        return True
    return False


def bare(expression: str) -> str:
    """The expression without what is in quotes."""
    return _STRING.sub('""', expression)


def mentions(expression: str, pattern: str) -> bool:
    """Whether an attribute of that name (a pattern) is in it; attributes are case-insensitive."""
    return re.search(rf"(?<![\w.])(?:(?:MY|TARGET)\s*\.\s*)?(?:{pattern})(?![\w(])", bare(expression), re.I) is not None


def split_top(expression: str, operator: str) -> list[str]:
    """Operands of `operator` (|| or &&) outside all brackets and quotes; brackets around the whole are taken off."""
    text = expression.strip()
    while text.startswith("(") and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        quoted = _STRING.match(text, at)
        if quoted:
            at = quoted.end()
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0 and text.startswith(operator, at):
            parts.append(text[start:at].strip())
            at = start = at + len(operator)
            continue
        at += 1
    return [*parts, text[start:].strip()]


def _closing(text: str) -> int:
    depth, at = 0, 0
    while at < len(text):
        quoted = _STRING.match(text, at)
        if quoted:
            at = quoted.end()
            continue
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
        at += 1
    return -1


def rests_on_x509(expression: str) -> bool:
    """Whether an x509UserProxy attribute alone can make it true: no Owner or AuthToken is asked beside it."""
    branches = split_top(expression, "||")
    if len(branches) > 1:
        return any(rests_on_x509(branch) for branch in branches)
    clauses = split_top(branches[0], "&&")
    if len(clauses) > 1:
        trusted = any(mentions(clause, _TRUSTED) and not rests_on_x509(clause) for clause in clauses)
        return not trusted and any(rests_on_x509(clause) for clause in clauses)
    return mentions(expression, r"x509UserProxy\w*") and not mentions(expression, _TRUSTED)


_TRUSTED = r"Owner|User|OsUser|AuthToken\w+"
