"""The doctor's questions about the CE's side: are its routes those of the configuration?

From the edge node only the jobs show it (`doctor_tier1`). On a CE its files and its running router do, and anywhere
else a copy of its config.d.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from htcebridge import routes
from htcebridge.config.tables import Config
from htcebridge.doctor.checks import Check, Finding, Status, finding
from htcebridge.routes import disk
from htcebridge.routes.ce import CE_CONFIG
from htcebridge.routes.host import Host


def is_ces_admin() -> bool:
    """Whether this is root on a CE: then the edge node, its user and its tokens are elsewhere."""
    return os.geteuid() == 0 and CE_CONFIG.exists()


def checks(config: Config, directory: Path | None, timeout_s: float) -> list[Check]:
    """The CE of this machine, if it is one, and the files in `directory`."""
    found = []
    if config.vos and CE_CONFIG.exists():
        found.append(Check("routes", "this CE", partial(_this_ce, config), 4 * timeout_s))
    if directory is not None:
        found.append(Check("routes", str(directory), partial(_copy, config, directory), timeout_s))
    return found


def _this_ce(config: Config) -> Iterator[Finding]:
    from htcebridge.routes.status import look

    if not is_ces_admin():
        yield Finding("routes", "this CE", Status.SKIP, "not checked: only root can read all of it", "run it as root")
        return
    found = look(Host.at(), routes.render_files(config))
    if found.in_step:
        yield finding("routes", "this CE", f"{', '.join(found.routes)}: installed, loaded, as the configuration says")
    for problem in found.problems:
        yield Finding(
            "routes", "this CE", Status.FAIL, problem, "htcebridge routes status -v; htcebridge routes install"
        )


def _copy(config: Config, directory: Path) -> Finding:
    """The file that `routes show` prints, or that `routes install` has written, against the configuration."""
    about = str(directory)
    wanted = next(file for file in routes.render_files(config) if file.side == "ce")
    path = directory / wanted.name
    try:
        ours = disk.read(path)
        text = ours.body if ours else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        fix = f"name the directory with the CE's {wanted.name}; on the CE: htcebridge routes install"
        return Finding("routes", about, Status.FAIL, f"{path}: {(error.strerror or str(error)).lower()}", fix)
    if text == wanted.text:
        return finding("routes", about, f"{wanted.name} is what this configuration makes")
    here, there = wanted.text.splitlines(), text.splitlines()
    new = [line.strip() for line in there if line not in here and line.strip() and not line.startswith("#")]
    said = f"{wanted.name} is not what this configuration makes" + (f"; it has: {new[0]}" if new else "")
    fix = "one configuration for both: bring it to the CE, and there: htcebridge routes install"
    return Finding("routes", about, Status.FAIL, said, fix)
