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
from collections.abc import Callable
from pathlib import Path

from .errors import TestbedError, UsageError
from .places import cache_dir, locked
from .root import apt_install

PYTHONS = {"trixie": "3.13", "forky": "3.14"}
PIP_TIMEOUT_S = 600


def wheelhouse(project: Path, suite: str, say: Callable[[str], object] = print) -> Path:
    """A directory with every wheel that installing `project` on a host of `suite` needs.

    The dependencies are downloaded once for each state of setup.cfg; the project's own wheel is built every time.
    pip is this machine's, with this machine's settings: no index is named here.
    """
    if suite not in PYTHONS:
        raise UsageError(f"no suite {suite!r}; there are: {', '.join(PYTHONS)}")
    ensure_pip(say)
    asked = hashlib.sha256(f"{suite} {platform.machine()}".encode() + (project / "setup.cfg").read_bytes())
    house = cache_dir() / f"wheels-{suite}-{asked.hexdigest()[:12]}"
    with (
        locked(cache_dir() / f"wheels-{suite}.lock"),
        tempfile.TemporaryDirectory(prefix="building-wheels-", dir=cache_dir()) as work,
    ):
        own = build_wheel(project, Path(work), say)
        if not house.is_dir():
            download(own, suite, Path(work) / "house", say)
            (Path(work) / "house").rename(house)
            remove_old(suite, keep=house)
        # Versions of the project that were built before would be found too.
        for older in house.glob(f"{own.name.split('-')[0]}-*.whl"):
            older.unlink()
        shutil.move(own, house / own.name)
    return house


def build_wheel(project: Path, work: Path, say: Callable[[str], object]) -> Path:
    say(f"wheels: building {project.name}'s own")
    copy = work / "source"
    # setuptools writes into the source directory (build/, *.egg-info), and a stale build/ would end up in the wheel.
    ignore = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".venv", "venv")
    shutil.copytree(project, copy, ignore=ignore, symlinks=True)
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


def remove_old(suite: str, keep: Path) -> None:
    for old in cache_dir().glob(f"wheels-{suite}-*"):
        if old.is_dir() and old != keep:
            shutil.rmtree(old, ignore_errors=True)
