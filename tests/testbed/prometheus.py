"""Debian's prometheus and promtool for the tests: unpacked beside the testbed's cache, never installed.

An installed package would start a server on all interfaces, and stay. The programs need nothing but libc.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import TestbedError
from .places import cache_dir, locked
from .root import Say


def ensure_prometheus(say: Say = print) -> Path:
    """The directory that has `prometheus` and `promtool`. Downloaded once, 20 MB through apt, which checks it.

    Raises TestbedError where apt cannot.
    """
    home = cache_dir() / f"prometheus-{platform.freedesktop_os_release().get('VERSION_CODENAME', '')}"
    if home.is_dir():
        return home
    with (
        locked(cache_dir() / "apt.lock"),
        tempfile.TemporaryDirectory(prefix="building-prometheus-", dir=cache_dir()) as work,
    ):
        if not home.is_dir():
            _unpack(_download(Path(work), say), Path(work))
            shutil.move(Path(work) / "usr" / "bin", home)
    return home


def _download(work: Path, say: Say) -> Path:
    say("apt-get download prometheus")
    # apt's own account may not write into this directory.
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
    said = ""
    for command in (download, ["apt-get", "update", "-qq"], download):
        try:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TestbedError(f"{' '.join(command)}: {error}") from None
        if done.returncode == 0 and command is download:
            return next(work.glob("prometheus_*.deb"))
        said = done.stderr.strip() or said
    raise TestbedError(f"could not download Debian's package prometheus: {said}")


def _unpack(package: Path, work: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", str(package), str(work)], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise TestbedError(f"dpkg-deb -x {package.name}: {done.stderr.strip()}")
