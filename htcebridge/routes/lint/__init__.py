"""`routes check`: mistakes in route configuration that HTCondor takes without a word, by name, with line and fix.

A check of routing stands for what the real router was seen to do (HTCondor 23.9.6 and 25.14.1): tests/routes/broken
has a configuration for each, and tests/e2e/test_routes_check.py shows what becomes of its jobs. R21, R23, R27 and R29
are about the schedds around the router, where it has no say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from htcebridge.routes.ce import CE, parse_dump
from htcebridge.routes.lint.finding import RULES, Finding
from htcebridge.routes.lint.knobs import check as check_knobs
from htcebridge.routes.lint.order import check as check_order
from htcebridge.routes.lint.text import check as check_text
from htcebridge.routes.lint.unreadable import unreadable
from htcebridge.routes.lint.view import View, of_ce, of_file

__all__ = ["RULES", "Finding", "Report", "check_ce", "check_file", "lint"]

GRANTS = ("OpportunisticSite", "OpportunisticVO")


@dataclass(frozen=True)
class Report:
    """What was looked at, and what is wrong with it."""

    findings: tuple[Finding, ...]
    routes: int = 0
    transforms: int = 0

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)


def check_ce(ce: CE, grants: Sequence[str] = GRANTS) -> Report:
    """Lint a CE's effective configuration. Raises ConfigError if it is not there, BridgeError if a tool fails."""
    done = ce.call(["condor_config_val", "-dump", "-v", "-raw"])
    if done.returncode != 0:
        return Report((unreadable(done.stderr or done.stdout, str(ce.config)),))
    ce.version()
    return lint(of_ce(ce, parse_dump(done.stdout), grants))


def check_file(path: Path, grants: Sequence[str] = GRANTS) -> Report:
    """Lint one file of routes without its CE; what is not in it is taken as HTCondor-CE ships it.

    Raises ConfigError if the file can't be read or condor_config_val is not there.
    """
    path = path.absolute()
    with tempfile.TemporaryDirectory(prefix="htcebridge-check-") as folder:
        root = Path(folder) / "condor_config"
        root.write_text(f"LOCAL_CONFIG_DIR =\nLOCAL_CONFIG_FILE =\ninclude : {path}\n", encoding="utf-8")
        done = CE(root).call(["condor_config_val", "-dump", "-v", "-raw"])
    if done.returncode != 0:
        return Report((unreadable(done.stderr or done.stdout, str(path)),))
    return lint(of_file(path, parse_dump(done.stdout), grants))


def lint(view: View) -> Report:
    """Every check on one configuration; findings in the order of file and line."""
    found: set[Finding] = set()
    for routine in view.routines:
        found.update(check_text(routine, view))
    found.update(check_order(view))
    found.update(check_knobs(view))
    routes = sum(routine.is_route for routine in view.routines)
    return Report(tuple(sorted(found, key=_place)), routes, len(view.routines) - routes)


def _place(finding: Finding) -> tuple[str, int, str, str]:
    file, _, line = finding.where.rpartition(":")
    return (file, int(line), finding.code, finding.message) if file and line.isdigit() else (finding.where, 0, "", "")
