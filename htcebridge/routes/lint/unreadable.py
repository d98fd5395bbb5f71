"""HTCondor's own complaint about a configuration that it can't read, as a finding."""

from __future__ import annotations

import re
from pathlib import Path

from htcebridge.routes.lint.finding import Finding


def unreadable(said: str, config: str) -> Finding:
    """What condor_config_val printed -> the line to mend. Every tool and daemon of the CE stops at it."""
    ends = "No tool of the CE works with this configuration, and a reconfig or restart with it stops the CE: "
    open_here = re.search(r"end-of-file while scanning for '@(.+?)' in (.+)", said)
    if open_here:
        tag, file = open_here[1], open_here[2].strip()
        return Finding(
            "R39",
            f"{file}:{_opening(file, tag)}",
            f"{ends}the here-document ends nowhere; nothing but @{tag} ends it.",
            "End it with @TAG on a line of its own, the TAG of its first line, and put no comment after that one.",
        )
    # The first complaint with a file and a line is the innermost.
    place = re.search(r'Error "(.+?)", Line (\d+)(?:, Include Depth \d+)?: ?(.*)', said) or re.search(
        r"Error Line (\d+) while reading .*?source (\S+)()", said
    )
    if place and place[1].isdigit():
        where, why = f"{place[2]}:{place[1]}", ""
    elif place:
        where, why = f"{place[1]}:{place[2]}", place[3].strip()
    else:
        where, why = config, said.strip().splitlines()[-1] if said.strip() else "condor_config_val failed"
    fix = "Write NAME = VALUE, or NAME @=tag with the = in it."
    if "Illegal Identifier" in why:
        fix = "Name it with letters, digits and _ only; a - is not allowed."
    return Finding("R39", where, f"{ends}{why or 'this line is no setting'}.", fix)


def _opening(file: str, tag: str) -> int:
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 1
    found = [number for number, line in enumerate(lines, 1) if re.search(rf"@=\s*{re.escape(tag)}\s*$", line)]
    return found[-1] if found else len(lines)
