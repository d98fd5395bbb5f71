"""Builds the root directory of a suite: Debian with HTCondor and Slurm, shared read-only by all hosts of all beds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .errors import TestbedError, UsageError
from .places import ETC, cache_dir, locked, try_lock

Say = Callable[[str], object]

SUITES = ("trixie", "forky")
NEEDED = {  # command that must be there -> Debian package that has it
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
    "hostname": "hostname",
    "apt-get": "apt",
}
SHOW_EVERY_S = 10.0


def check_machine(suite: str) -> None:
    """Raises UsageError for what no package can mend."""
    if suite not in SUITES:
        raise UsageError(f"no suite {suite!r}; there are: {', '.join(SUITES)}")
    if os.geteuid() != 0:
        raise UsageError("the testbed makes namespaces and mounts: run it as root")


def ensure_tools(say: Say) -> None:
    """Install, through apt, the few programs that the testbed runs outside its hosts. One bed does, others wait."""
    if not missing_tools():
        return
    with locked(cache_dir() / "apt.lock"):
        if missing := missing_tools():
            apt_install(missing, say)


def missing_tools() -> list[str]:
    return sorted({package for command, package in NEEDED.items() if shutil.which(command) is None})


def apt_install(packages: list[str], say: Say) -> None:
    say(f"apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    # Somebody else's apt, such as an unattended upgrade, is waited for.
    install += ["-o", "DPkg::Lock::Timeout=300", *packages]
    for command in (install, ["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0 and command is install:
            return
    raise TestbedError(f"could not install {' '.join(packages)}: {' '.join(install)} said\n{done.stderr.strip()}")


def packages() -> list[str]:
    lines = (ETC / "root" / "packages").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def root_path(suite: str) -> Path:
    """Where the root directory of this suite and this recipe is, or will be."""
    recipe = hashlib.sha256(f"{suite} {platform.machine()}".encode())
    for part in ("packages", "customize.sh"):
        recipe.update((ETC / "root" / part).read_bytes())
    return cache_dir() / f"root-{suite}-{recipe.hexdigest()[:12]}"


def users_lock(root: Path) -> Path:
    """Locked shared by every bed that uses `root`, so that nobody removes it under them."""
    return root.with_name(root.name + ".users")


def ensure_root(suite: str, say: Say) -> Path:
    """The root directory of `suite`, built if it isn't there: about half a minute and 600 MB."""
    check_machine(suite)
    ensure_tools(say)
    root = root_path(suite)
    if root.is_dir():
        return root
    lock = cache_dir() / f"build-{suite}.lock"
    probe = try_lock(lock)
    if probe is None:
        say(f"root {suite}: somebody else is building it, waiting")
    else:
        os.close(probe)
    with locked(lock):
        if not root.is_dir():
            sweep_builds(suite)
            build(suite, root, say)
            remove_old_roots(suite, keep=root)
    return root


def build(suite: str, root: Path, say: Say) -> None:
    started = time.monotonic()
    say(f"root {suite}: building {root} with mmdebstrap, about half a minute on a good network")
    unfinished = Path(tempfile.mkdtemp(prefix=f"building-{suite}-", dir=root.parent))
    log = root.parent / f"build-{suite}.log"
    # In namespaces of its own: killed at any moment, it leaves no process and no mount, only a directory that is swept.
    command = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages())}"),
        # The Release file of a testing suite may have expired on a mirror that lags.
        *('--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=APT::Install-Recommends "false"'),
        f"--customize-hook={ETC / 'root' / 'customize.sh'}",
        *(suite, str(unfinished), mirror()),
    ]
    tail: deque[str] = deque(maxlen=15)
    with (
        log.open("w") as log_file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            shown = started
            for line in process.stdout:
                log_file.write(line)
                tail.append(line.rstrip())
                if time.monotonic() - shown > SHOW_EVERY_S:
                    shown = time.monotonic()
                    say(f"root {suite}: {shown - started:.0f} s, {line.strip()[:80]}")
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.wait()
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    if process.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise TestbedError(f"mmdebstrap {suite} failed ({process.returncode}); log {log}, its end:\n" + "\n".join(tail))
    unfinished.chmod(0o755)
    unfinished.rename(root)
    say(f"root {suite}: built in {time.monotonic() - started:.0f} s")


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    sites = [site for site in answer.stdout.split() if "security" not in site and "debian" in site]
    if answer.returncode != 0 or not sites:
        raise TestbedError(
            f"no Debian mirror in apt's configuration: {' '.join(command)} said {answer.stdout!r} {answer.stderr!r}"
        )
    return sites[0]


def sweep_builds(suite: str) -> None:
    """Remove what a killed builder left. The caller holds the build lock."""
    for left in cache_dir().glob(f"building-{suite}-*"):
        shutil.rmtree(left, ignore_errors=True)


def remove_old_roots(suite: str, keep: Path) -> None:
    """Remove root directories of older recipes, except those that a running bed uses."""
    for old in cache_dir().glob(f"root-{suite}-*"):
        if old == keep or not old.is_dir():
            continue
        lock = try_lock(users_lock(old))
        if lock is not None:
            with contextlib.suppress(FileNotFoundError):
                users_lock(old).unlink()
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
