"""One finding, and the catalogue of what can be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

# code -> name. A code keeps its meaning for ever: scripts may rest on it.
RULES = {
    "R01": "requirements-equals",
    "R02": "requirements-macro",
    "R03": "requirements-target",
    "R04": "requirements-syntax",
    "R05": "value-syntax",
    "R06": "trailing-comment",
    "R07": "trailing-semicolon",
    "R08": "set-spacing",
    "R09": "old-command",
    "R10": "old-classad",
    "R11": "unknown-keyword",
    "R12": "complex-if",
    "R13": "macro-injection",
    "R14": "no-universe",
    "R15": "max-jobs",
    "R16": "memory-overruled",
    "R17": "x509-only",
    "R18": "token-renamed",
    "R19": "grant-forgeable",
    "R20": "scrub-order",
    "R21": "secure-grant",
    "R22": "round-robin",
    "R23": "periodic-remove",
    "R24": "user-map",
    "R25": "prefixed-knob",
    "R26": "source-constraint",
    "R27": "inert-policy",
    "R28": "boolean-string",
    "R29": "no-job-queue",
    "R30": "undefined-route",
    "R31": "unlisted",
    "R33": "no-route",
    "R34": "undefined-transform",
    "R35": "names-dropped",
    "R36": "overridden",
    "R37": "unknown-knob",
    "R38": "removed-knob",
    "R39": "unreadable",
    "R40": "requirements-twice",
    "R41": "comment-in-continuation",
    "R42": "single-quotes",
}


@dataclass(frozen=True)
class Finding:
    """A mistake: where it is ("file:line"), what happens because of it, and what to write instead."""

    code: str
    where: str
    message: str
    fix: str
    severity: Severity = "error"

    @property
    def name(self) -> str:
        """The code as a word."""
        return RULES[self.code]

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity,
            "where": self.where,
            "message": self.message,
            "fix": self.fix,
        }
