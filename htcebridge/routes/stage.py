"""A copy of a CE's configuration with new files in it, to try them without touching the CE.

Only the CE's last configuration directory is staged, as one `include` per file: every file keeps its place in the
order, its own path in `condor_config_val -v`, and what it includes itself. Scripts in LOCAL_CONFIG_FILE ("... |") and
the other directories are read as the CE reads them (measured: 23.9.6, 25.14.1).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes.ce import CE

if TYPE_CHECKING:
    from htcebridge.routes import RouteFile

# A file of an earlier set of ours, which the new set replaces.
OURS = re.compile(r"\d+-htcebridge[\w.-]*\.conf")
# What a daemon or tool writes to; all the CE's other paths hang on these.
_WRITTEN = ("LOG", "RUN", "LOCK", "SPOOL", "EXECUTE")
# Above any number of jobs that one CE holds. A negative MaxJobs blocks a route, a negative MaxIdleJobs lifts its limit.
_LIFTED = "MaxJobs = 1000000000\nMaxIdleJobs = -1\n"


@contextmanager
def staged(ce: CE, files: Sequence[RouteFile]) -> Iterator[CE]:
    """The CE with `files` (those of the CE's side) in place of an installed earlier set of ours.

    Without files it is the CE without ours. Raises ConfigError if the CE's configuration cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as root:
        ours = {file.name: file.text for file in files if file.side == "ce"}
        yield _stage(ce, Path(root), ours)


@contextmanager
def unlimited(ce: CE, files: Sequence[RouteFile] | None) -> Iterator[CE]:
    """As `staged`, without the routes' limits, so that job 501 is not refused for the 500 before it in a trial.

    Without a list of files the CE's own set stays as it is. Raises ConfigError.
    """
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as root:
        ours = None if files is None else {file.name: file.text for file in files if file.side == "ce"}
        stage_ce = _stage(ce, Path(root), ours)
        text = "JOB_ROUTER_MAX_JOBS = -1\n"
        for name, knob in stage_ce.knobs("JOB_ROUTER_ROUTE_").items():
            if name != "JOB_ROUTER_ROUTE_NAMES":
                # The last value of a route's macro is the one that counts (measured: 23.9.6, 25.14.1).
                text += f"{knob.name} @=htcebridge\n{knob.value.rstrip()}\n{_LIFTED}@htcebridge\n"
        (Path(root) / "last.d" / "limits.conf").write_text(text, encoding="utf-8")
        yield stage_ce


def config_directories(ce: CE) -> list[Path]:
    """LOCAL_CONFIG_DIR: the directories of configuration files, in the order in which they are read."""
    return [Path(part) for part in re.split(r"[,\s]+", ce.value("LOCAL_CONFIG_DIR")) if part]


def _stage(ce: CE, root: Path, ours: dict[str, str] | None) -> CE:
    """Write the stage into `root`. `ours` replaces the installed set; None leaves it."""
    directories = config_directories(ce)
    if not directories:
        raise ConfigError(f"{ce.config} names no LOCAL_CONFIG_DIR: there is no directory to install a route file into")
    config_d, last_d = root / "config.d", root / "last.d"
    for directory in (config_d, last_d, *(root / name.lower() for name in _WRITTEN)):
        directory.mkdir()
    for path in _files(directories[-1]):
        if ours is None or not (path.name in ours or OURS.fullmatch(path.name)):
            (config_d / path.name).write_text(f"include : {path}\n", encoding="utf-8")
    for name, text in (ours or {}).items():
        (config_d / name).write_text(text, encoding="utf-8")
    redirected = "".join(f"{name} = {root / name.lower()}\n" for name in _WRITTEN)
    (last_d / "redirect.conf").write_text(redirected, encoding="utf-8")
    read = ",".join(str(directory) for directory in (*directories[:-1], config_d, last_d))
    (root / "condor_config").write_text(
        # $(CONFIG_ROOT) is the directory of the file that CONDOR_CONFIG names.
        f"CONFIG_ROOT = {ce.config.parent}\ninclude : {ce.config}\nLOCAL_CONFIG_DIR = {read}\n",
        encoding="utf-8",
    )
    stage_ce = replace(ce, config=root / "condor_config")
    if str(config_d) not in stage_ce.value("LOCAL_CONFIG_DIR"):
        raise BridgeError(
            f"a file in {directories[-1]} sets LOCAL_CONFIG_DIR again, so the configuration cannot be staged: "
            f"set it in {ce.config} only"
        )
    return stage_ce


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"{directory}: the CE's configuration cannot be read: {error.strerror}") from None
