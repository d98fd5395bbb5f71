"""A site's old ClassAd-syntax routes in today's syntax: HTCondor's own converter, and what it leaves to a person.

HTCondor 24.10.2 removed JOB_ROUTER_ENTRIES; before that it is ignored unless a site asks for deprecated entries.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import ConfigError
from htcebridge.routes import lint
from htcebridge.routes.ce import CE


@dataclass(frozen=True)
class Converted:
    """The new text, and what a person must look at before it is installed."""

    text: str
    notes: tuple[str, ...]


def convert(path: Path) -> Converted:
    """Convert the JOB_ROUTER_ENTRIES of a file. Raises ConfigError if there are none or HTCondor cannot read them."""
    path = path.absolute()
    with tempfile.TemporaryDirectory(prefix="htcebridge-convert-") as folder:
        root = Path(folder) / "condor_config"
        root.write_text("LOCAL_CONFIG_DIR =\nLOCAL_CONFIG_FILE =\n", encoding="utf-8")
        done = CE(root).call(["condor_transform_ads", "-convertoldroutes:file", str(path)])
        if not re.search(r"^JOB_ROUTER_ROUTE_\w+ @=", done.stdout, re.MULTILINE):
            said = " ".join((done.stderr or done.stdout).split())
            raise ConfigError(
                f"{path}: no JOB_ROUTER_ENTRIES that HTCondor's converter takes{': ' + said if said else ''}"
            )
        mended = _mend(done.stdout)
        draft = Path(folder) / "routes.conf"
        draft.write_text(mended.text, encoding="utf-8")
        findings = lint.check_file(draft).findings
    lines = mended.text.splitlines()
    notes = [f"{_near(lines, finding.where)}: {finding.message} {finding.fix}" for finding in findings]
    return Converted(mended.text, (*mended.notes, *notes))


def _mend(text: str) -> Converted:
    """What can be put right without knowing the site, and notes on what cannot."""
    lines, notes, route = [], [], ""
    for line in text.strip().splitlines():
        words = line.split()
        head = re.match(r"JOB_ROUTER_ROUTE_(\w+) @=", line)
        if head:
            route = head[1]
        if words[:2] == ["UNIVERSE", "VANILLA"]:
            # The CE's WholeNode transform reads the macro TargetUniverse.
            line = line.replace("UNIVERSE VANILLA", "TargetUniverse = 5")
        elif words[:2] == ["UNIVERSE", "GRID"]:
            line = line.replace("UNIVERSE GRID", "TargetUniverse = 9")
        elif words[:1] == ["NAME"] and route and words[1:] != [route]:
            notes.append(
                f"route {route}: it was called {words[1]}; its job counters start anew, and a '-' is not allowed"
            )
            continue
        elif words[:1] == ["OverrideRoutingEntry"]:
            notes.append(f"route {route}: OverrideRoutingEntry has no effect any more; it is left out")
            continue
        elif words[:1] == ["SET"] and len(words) > 1 and words[1].lower() == "requirements":
            notes.append(f"route {route}: SET {words[1]} replaces the job's own Requirements; is that meant?")
        elif line.startswith("JOB_ROUTER_ROUTE_NAMES") and "$(" not in line:
            line += " $(JOB_ROUTER_ROUTE_NAMES)"
            notes.append(
                "JOB_ROUTER_ROUTE_NAMES: the routes of other files are kept behind these; put them in your order"
            )
        lines.append(line)
    return Converted("\n".join(lines) + "\n", tuple(notes))


def _near(lines: list[str], where: str) -> str:
    """The route that a finding is in."""
    number = where.rpartition(":")[2]
    above = lines[: int(number)] if number.isdigit() else []
    heads = [found[1] for line in above if (found := re.match(r"JOB_ROUTER_ROUTE_(\w+) @=", line))]
    return f"route {heads[-1]}" if heads else "routes"
