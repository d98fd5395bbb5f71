"""Commands and files in the hosts of a running bed."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from . import lifecycle, slurm
from .errors import TestbedError, UsageError
from .files import UNPACK, Directory, File, archive
from .hosts import Host
from .inside import Door, InsideProcess, command_line
from .pace import Patience
from .places import locked


class Commands:
    """Runs commands and moves files; the rest of the Testbed stands on it."""

    def __init__(self, state: lifecycle.State) -> None:
        self._state = state
        self._by_name = {host.name: host for host in state.hosts}
        self.name = state.name
        self.hosts = [host.name for host in state.hosts]

    def alive(self) -> bool:
        return self._state.alive()

    def host(self, name: str) -> Host:
        if name not in self._by_name:
            raise UsageError(f"no host {name!r} in bed {self.name}; there are: {', '.join(self.hosts)}")
        return self._by_name[name]

    def door(self, host: str) -> Door:
        """The host's namespaces, for what has no method here."""
        return self._state.door(self.host(host).name)

    def on(
        self,
        host: str,
        argv: Sequence[str],
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # subprocess.run's name for it
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` in a host as `user` (root), at home, in a clean login-like environment plus `env`; capture output.

        Raises TestbedError if it takes longer than `timeout` seconds of a calm machine or, with `check`, if it fails.
        """
        done = self._run(host, argv, user, env, None if input is None else input.encode(), timeout)
        text = subprocess.CompletedProcess(
            list(argv), done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and text.returncode != 0:
            raise TestbedError(describe(host, user, argv, text))
        return text

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        **popen_kwargs: Any,
    ) -> InsideProcess:
        """Start `argv` in a host. Signals sent through the object reach the command; killing `pid` kills it too."""
        popen_kwargs.setdefault("umask", 0o022)
        return InsideProcess(self.command_line(host, argv, user, env), **popen_kwargs)

    def command_line(
        self, host: str, argv: Sequence[str], user: str | None, env: Mapping[str, str] | None
    ) -> list[str]:
        """The command of this machine that runs `argv` in the host."""
        if not argv:
            raise UsageError("no command given")
        extra = dict(env or {})
        if self.host(host).is_hpc and user in slurm.USERS:
            extra.setdefault("WORK", f"/leonardo/work/{user}")
        if not self.alive():
            raise TestbedError(f"bed {self.name} is not running any more")
        return command_line(self.door(host), argv, user, extra)

    def write(self, host: str, path: str, text: str, mode: int = 0o644, owner: str = "root") -> None:
        """Write a file in a host. Missing directories are made, as the owner's."""
        account = self.door(host).account(owner)
        self.on(host, ["mkdir", "-p", str(PurePosixPath(path).parent)], user=owner)
        unfinished = f"{path}.testbed-new"
        script = 'cat >"$1" && chown "$2" "$1" && chmod "$3" "$1" && mv "$1" "$4"'
        self.on(
            host, ["sh", "-c", script, "sh", unfinished, f"{account.uid}:{account.gid}", f"{mode:o}", path], input=text
        )

    def read(self, host: str, path: str) -> str:
        return self.on(host, ["cat", path]).stdout

    def unpack(self, host: str, entries: Sequence[File | Directory]) -> None:
        """Put many files into a host at once."""
        done = self._run(host, UNPACK, None, None, archive(entries), 120)
        if done.returncode != 0:
            raise TestbedError(f"files for {host}: tar said {done.stderr.decode(errors='replace')}")

    def install_wheels(self, host: str, wheel_dir: Path, venv: str, user: str, requirement: str) -> None:
        """Make the virtual environment `venv` in a host and install `requirement` from `wheel_dir` alone, as `user`.

        The same, once made, is kept beside the wheels and unpacked where another host asks for it: pip takes 10 s of a
        core. Nothing is done where it is already.
        """
        wheels = sorted(wheel_dir.glob("*.whl"))
        if not wheels:
            raise UsageError(f"no wheel in {wheel_dir}")
        contents = {wheel.name: wheel.read_bytes() for wheel in wheels}
        asked = hashlib.sha256(f"{venv} {user} {requirement}".encode())
        for name, content in contents.items():
            asked.update(name.encode() + hashlib.sha256(content).digest())
        mark, wanted = f"{venv}/.installed-from", asked.hexdigest()
        if self.on(host, ["cat", mark], check=False).stdout == wanted:
            return
        made = wheel_dir / f"installed-{hashlib.sha256(venv.encode()).hexdigest()[:8]}.tar"
        with locked(made.with_suffix(".lock")):
            kept = made.with_suffix(".of")
            if not (made.is_file() and kept.is_file() and kept.read_text() == wanted):
                self._install(host, contents, venv, user, requirement)
                self.write(host, mark, wanted, owner=user)
                pack = ["tar", "--create", "--absolute-names", venv]
                made.write_bytes(self._checked(host, pack, user, None))
                kept.write_text(wanted)
                return
        self._checked(host, ["tar", "--extract", "--absolute-names"], user, made.read_bytes())

    def _install(self, host: str, contents: Mapping[str, bytes], venv: str, user: str, requirement: str) -> None:
        inside = self.on(host, ["mktemp", "-d", "/tmp/wheels-XXXXXX"], user=user).stdout.strip()
        self.unpack(host, [File(f"{inside}/{name}", content) for name, content in contents.items()])
        try:
            self.on(host, ["python3", "-m", "venv", venv], user=user)
            pip = [
                f"{venv}/bin/pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
                "--no-index",
                f"--find-links={inside}",
            ]
            self.on(host, [*pip, requirement], user=user, timeout=300)
        finally:
            self.on(host, ["rm", "-rf", inside], check=False)

    def _checked(self, host: str, argv: Sequence[str], user: str, data: bytes | None) -> bytes:
        """Bytes in, bytes out. Raises TestbedError if it fails."""
        done = self._run(host, argv, user, None, data, 120)
        if done.returncode != 0:
            raise TestbedError(f"{user}@{host}: {' '.join(argv)}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def _run(
        self,
        host: str,
        argv: Sequence[str],
        user: str | None,
        env: Mapping[str, str] | None,
        data: bytes | None,
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        patience = Patience(timeout)
        with feed(data) as stdin:
            process = self.popen(
                host,
                argv,
                user,
                env,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            with process:
                try:
                    out, err = communicate(process, patience)
                except BaseException as error:
                    process.kill_session()
                    out, err = process.communicate()
                    if not isinstance(error, subprocess.TimeoutExpired):
                        raise
                    text = subprocess.CompletedProcess(
                        list(argv), -9, out.decode(errors="replace"), err.decode(errors="replace")
                    )
                    raise TestbedError(f"not done after {patience}: " + describe(host, user, argv, text)) from None
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def communicate(process: InsideProcess, patience: Patience) -> tuple[bytes, bytes]:
    """Its output once it has ended. Raises subprocess.TimeoutExpired when there is no patience left."""
    wait = patience.seconds
    while True:
        try:
            out, err = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            wait = patience.left()  # more than nothing, where the machine was slow meanwhile
            if not wait:
                raise
        else:
            return out, err


@contextmanager
def feed(data: bytes | None) -> Iterator[IO[bytes]]:
    """Standard input from a file: it can't block, however slowly the command reads. Empty without data."""
    with tempfile.TemporaryFile() as file:
        file.write(data or b"")
        file.seek(0)
        yield file


def describe(host: str, user: str | None, argv: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    who = f"{user or 'root'}@{host}"
    return (
        f"{who}: {' '.join(argv)}: exit {done.returncode}\nstdout: {done.stdout.strip()}\nstderr: {done.stderr.strip()}"
    )
