"""The wheels of the project and its dependencies for the Python of a suite: what `Testbed.install_wheels` installs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .errors import TestbedError, UsageError
from .places import cache_dir, locked
from .root import apt_install

PYTHONS = {"trixie": "3.13", "forky": "3.14"}
PIP_TIMEOUT_S = 600
KEPT_S = 24 * 3600
# setuptools writes into the source directory (build/, *.egg-info), and a stale build/ would end up in the wheel.
NOT_SOURCES = (
    *(".git", "build", "dist", "*.egg-info", "__pycache__", ".venv", "venv", ".*_cache", ".hypothesis"),
    "tests",
)


def wheelhouse(project: Path, suite: str, say: Callable[[str], object] = print) -> Path:
    """A directory with every wheel that installing `project` on a host of `suite` needs. It never changes.

    The dependencies are downloaded once for each state of setup.cfg, the project's own wheel is built once for each
    state of its sources. pip is this machine's, with this machine's settings: no index is named here.
    """
    if suite not in PYTHONS:
        raise UsageError(f"no suite {suite!r}; there are: {', '.join(PYTHONS)}")
    ensure_pip(say)
    asked = hashlib.sha256(f"{suite} {platform.machine()}".encode() + (project / "setup.cfg").read_bytes())
    name = f"wheels-{suite}-{asked.hexdigest()[:12]}"
    dependencies, house = cache_dir() / f"{name}-dependencies", cache_dir() / f"{name}-{digest(project)[:12]}"
    with (
        locked(cache_dir() / f"wheels-{suite}.lock"),
        tempfile.TemporaryDirectory(prefix="building-wheels-", dir=cache_dir()) as work,
    ):
        if not house.is_dir() or not dependencies.is_dir():
            shutil.rmtree(house, ignore_errors=True)
            own = build_wheel(project, Path(work), say)
            if not dependencies.is_dir():
                download(own, suite, Path(work) / "house", say)
                (Path(work) / "house" / own.name).unlink(missing_ok=True)
                (Path(work) / "house").rename(dependencies)
            whole = Path(work) / "whole"
            whole.mkdir()
            for wheel in (own, *dependencies.glob("*.whl")):
                os.link(wheel, whole / wheel.name)
            whole.rename(house)
        for used in (dependencies, house):
            os.utime(used)
        remove_old(suite)
    return house


def digest(project: Path) -> str:
    """What the project's own wheel is made of, and nothing that is not: every file, with its content."""
    found = hashlib.sha256()
    for directory, inside, names in os.walk(project):
        inside[:] = sorted(set(inside) - set(shutil.ignore_patterns(*NOT_SOURCES)(directory, inside)))
        for path in (Path(directory) / name for name in sorted(names)):
            found.update(f"{path.relative_to(project)} {path.stat().st_mode:o} ".encode() + path.read_bytes())
    return found.hexdigest()


def build_wheel(project: Path, work: Path, say: Callable[[str], object]) -> Path:
    say(f"wheels: building {project.name}'s own")
    copy = work / "source"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES), symlinks=True)
    run_pip(["wheel", "--quiet", "--no-deps", f"--wheel-dir={work}", str(copy)])
    (own,) = work.glob("*.whl")
    return own


def download(own: Path, suite: str, target: Path, say: Callable[[str], object]) -> None:
    """Binary wheels of all that the wheel `own` depends on. Both suites have a newer glibc than any platform named."""
    say(f"wheels: downloading the dependencies for Python {PYTHONS[suite]} of {suite}")
    machine = platform.machine()
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    python = [f"--python-version={PYTHONS[suite]}", "--implementation=cp", *platforms]
    run_pip(["download", "--quiet", "--only-binary=:all:", *python, f"--dest={target}", str(own)])


def run_pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{' '.join(command)}: not done after {PIP_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise TestbedError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout.strip()}\n{done.stderr.strip()}")


def ensure_pip(say: Callable[[str], object]) -> None:
    if importlib.util.find_spec("pip") is None:
        apt_install(["python3-pip", "python3-venv"], say)


def remove_old(suite: str) -> None:
    """What no checkout has asked for since yesterday."""
    for old in cache_dir().glob(f"wheels-{suite}-*"):
        if old.is_dir() and time.time() - old.stat().st_mtime > KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
