"""The doctor's questions to the file systems of pilots and controller: from here, and in a small job from a node."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from htcebridge import trusted
from htcebridge.config.paths import EdgePath
from htcebridge.config.tables import Config
from htcebridge.doctor import judge
from htcebridge.doctor.checks import Check, Finding, Problem, Status, finding
from htcebridge.doctor.judge import DirectoryFacts
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.history import store
from htcebridge.pilot import marks
from htcebridge.slurm.commands import Slurm
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.units import plural

_POLL_S = 1.0
# A node's file is seen here once the client of a network file system looks again (NFS: acdirmax 60 s).
_SETTLE_S = 60


def checks(config: Config, now: float, timeout_s: float) -> list[Check]:
    """Each directory that the configuration names, once. A file system that hangs costs its own deadline."""
    found = [
        Check("directory", ", ".join(names), partial(_directory, path, ", ".join(names), now), timeout_s)
        for path, names in _directories(config).items()
    ]
    records = (("metrics", _textfile, config.metrics.textfile_directory), ("log", _log, config.log.file))
    return [
        *found,
        Check("directory", "state_dir", partial(_state_dir, config), timeout_s),
        Check("trust", "", partial(_trust, config), timeout_s),
        Check("records", "history", partial(_history, config), timeout_s),
        *(Check("records", what, partial(look, path), timeout_s) for what, look, path in records if path),
    ]


def _trust(config: Config) -> Finding:
    """Whether nobody else can change what runs here and on the nodes. The configuration was looked at already."""
    problems = []
    for place in dict.fromkeys(_trusted_places(config)):
        with suppress(OSError):  # what is not there is another check's
            problems += [Problem(Status.FAIL, *why.split(": ", 1)) for why in trusted.others(place)]
    return finding("trust", "", "nobody else can change the programs, the state, or what the nodes run", problems)


def _trusted_places(config: Config) -> Iterator[Path]:
    yield from (Path(sys.prefix), Path(__file__).parent.parent)
    paths = [config.pressure.state_dir, config.tier1.token_directory]
    for resource in config.resources.values():
        paths += [path for path in (resource.checks, resource.templates, resource.executor) if path is not None]
    for each in paths:
        with suppress(ConfigError):
            yield each.path


def _history(config: Config) -> Finding:
    """What the reports rest on: there and usable, or still to be begun where it can be."""
    path = store.path_of(config)
    if not path.exists():
        above = look_at(_nearest(path), 0)
        wrong = f"{above.path}: {above.error}" if above.error else ""
        return _record("history", wrong, "see history.file", f"{path}: the first cycle begins it")
    try:
        with store.reading(path) as database:
            cycles = database.execute("SELECT count(*) FROM cycles").fetchone()[0]
    except store.HistoryError as error:
        return _record("history", str(error), "the controller goes on without it meanwhile", "")
    return _record("history", _not_writable(path), "see its owner and mode", f"{path}: {plural(cycles, 'cycle')}")


def _textfile(path: EdgePath) -> Finding:
    """Where node_exporter looks."""
    facts = look_at(path.path, 0)
    wrong = f"{facts.path}: {facts.error or 'is not there'}" if facts.error or not facts.exists else ""
    return _record("metrics", wrong, "make it, or change metrics.textfile_directory", f"{facts.path}: can be written")


def _log(path: EdgePath) -> Finding:
    """Without its file the controller does not start."""
    file = path.path
    above = look_at(file.parent, 0)
    wrong = _not_writable(file) if file.exists() else above.error
    if not above.exists:
        wrong = f"{above.path}: is not there"
    elif file.is_dir():
        wrong = f"{file}: is a directory"
    return _record("log", wrong, "make it, or change log.file", f"{file}: can be written")


def _record(what: str, wrong: str, fix: str, fine: str) -> Finding:
    return Finding("records", what, Status.FAIL, wrong, fix) if wrong else Finding("records", what, Status.OK, fine)


def _not_writable(path: Path) -> str:
    return "" if os.access(path, os.W_OK) else f"{path}: cannot be written by this user"


def _directories(config: Config) -> dict[EdgePath, list[str]]:
    """Path -> the resources that have it."""
    found: dict[EdgePath, list[str]] = {}
    for name, resource in config.resources.items():
        for key in ("shared_dir", "job_scratch"):
            if path := getattr(resource, key):
                found.setdefault(path, []).append(name)
    return found


def _directory(path: EdgePath, about: str, now: float) -> Iterator[Finding]:
    try:
        here = path.path
    except ConfigError as error:
        yield Finding("directory", about, Status.FAIL, str(error), "set the variable where the controller runs, too")
        return
    yield judge.directory(about, path.key, look_at(here, now))


def look_at(path: Path, now: float) -> DirectoryFacts:
    """A directory as it is, tried by writing a file; nothing is left of it."""
    there = path.is_dir()
    above = path.parent.is_dir()
    target = path if there else path.parent
    error, free_mb = "", None
    if path.exists() and not there:
        error = "it is no directory"
    elif target.is_dir():
        try:
            with tempfile.NamedTemporaryFile(dir=target, prefix=".htcebridge-doctor-") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            space = os.statvfs(target)
            free_mb = space.f_bavail * space.f_frsize // 2**20
        except OSError as failed:
            error = failed.strerror or str(failed)
    return DirectoryFacts(
        path=str(path),
        exists=there,
        above=above,
        error=error,
        file_system=file_system(target, _mounts()),
        free_mb=free_mb,
        newest_log_s=_newest_log(path / "logs", now),
    )


def _mounts() -> str:
    with suppress(OSError):
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return ""


def file_system(path: Path, mountinfo: str) -> str:
    """The type of the file system that a path is on, from proc(5)'s mountinfo; "" if it is not in there."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        # A later mount on the same point lies over the earlier one.
        if Path(os.path.realpath(path)).is_relative_to(point) and len(point) >= best:
            best, kind = len(point), rest.split()[0]
    return kind


def _newest_log(logs: Path, now: float) -> float | None:
    """Seconds since a pilot wrote into its log last: slurmd on the node does that."""
    newest = None
    with suppress(OSError), os.scandir(logs) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat()
                if entry.name.endswith(".out") and status.st_size:
                    newest = max(newest or 0.0, status.st_mtime)
    return now - newest if newest is not None else None


def _state_dir(config: Config) -> Finding:
    path = config.pressure.state_dir.path
    facts = look_at(_nearest(path), 0)
    key = "pressure.state_dir"
    facts = DirectoryFacts(str(path), path.is_dir(), above=True, error=facts.error, free_mb=facts.free_mb)
    return judge.directory("state_dir", key, facts, shared=False)


def _nearest(path: Path) -> Path:
    """It, or the first directory above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


# --------------------------------------------------------------------------- a small job


# A node's file is seen here once the client of a network file system looks again (NFS: acdirmax 60 s).
_SETTLE_S = 60


def from_node(config: Config, name: str, deadline_s: float) -> Check:
    """Try the shared directories of a resource from a node, in a Slurm job of a minute."""
    slurm = Slurm(config.pressure.instance, 30)
    return Check("from-node", name, partial(_from_node, config, slurm, name, deadline_s), deadline_s + _SETTLE_S + 60)


def _from_node(config: Config, slurm: Slurm, name: str, deadline_s: float) -> Iterator[Finding]:
    resource = config.resources[name]
    keys = [key for key in ("shared_dir", "job_scratch") if getattr(resource, key)]
    directories = [getattr(resource, key).path for key in keys]
    token = f".htcebridge-doctor-{os.getpid()}-{time.time_ns():x}"
    try:
        for directory in directories:
            if not directory.exists():
                marks.make_if_new(directory)
            (directory / f"{token}.here").write_text(token, encoding="ascii")
        job = slurm.submit_alone(node_script(resource.partition, resource.account, resource.qos, directories, token))
        try:
            yield _followed(slurm, name, job, [path / f"{token}.there" for path in directories], deadline_s)
        finally:
            with suppress(BridgeError):
                slurm.cancel([job])
    except OSError as error:
        said = f"{error.filename}: {(error.strerror or str(error)).lower()}"
        yield Finding("from-node", name, Status.SKIP, f"not checked: {said}", "see directory")
    finally:
        for directory in directories:
            for end in ("here", "there"):
                with suppress(OSError):
                    (directory / f"{token}.{end}").unlink()


def node_script(partition: str, account: str, qos: str, directories: Sequence[Path], token: str) -> str:
    """The job: it reads the file that was written here, and leaves one that says from where."""
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in (("partition", partition), ("account", account), ("qos", qos))),
        "#SBATCH --job-name=htcebridge-doctor --nodes=1 --ntasks=1 --cpus-per-task=1 --mem=100M --time=1",
        "#SBATCH --output=/dev/null",
    ]
    for directory in directories:
        here, there = (shlex.quote(f"{directory}/{token}.{end}") for end in ("here", "there"))
        lines.append(f'[ "$(cat {here})" = {token} ] && echo "$(hostname -s)" > {there}')
    return "\n".join([*lines, ""])


def _followed(slurm: Slurm, name: str, job: str, files: Sequence[Path], deadline_s: float) -> Finding:
    """Wait until the job's files are there, or it has ended without them, or the deadline is over."""
    started = time.monotonic()
    ended: float | None = None
    state, reason, node = "PENDING", "", ""
    while True:
        missing = [path for path in files if not _text(path)]
        if not missing:
            where = ", ".join(str(path.parent) for path in files)
            return finding("from-node", name, f"{_text(files[0])} sees and writes {where} (job {job})")
        now = time.monotonic()
        found = slurm.state_of(job)
        state, reason, node = found if found is not None else ("gone", reason, node)
        if (found is None or stage_of(state) is Stage.ENDED) and ended is None:
            ended = now
        if ended is not None and now - ended > min(_SETTLE_S, deadline_s):
            what = f"job {job} on {node or 'a node'} has ended ({state}), and {missing[0].parent} shows no file of it"
            fix = "is it on a file system that the nodes mount, writable there? set shared_dir or job_scratch"
            return Finding("from-node", name, Status.FAIL, what, fix)
        if ended is None and now - started > deadline_s:
            what = f"not checked: job {job} is still {state} ({reason}) after {deadline_s:g} s; it is cancelled"
            return Finding(
                "from-node", name, Status.SKIP, what, "try again when a node is free, or with a longer --deadline"
            )
        time.sleep(_POLL_S)


def _text(path: Path) -> str:
    """A small file's text, "" while it is not there. The directory is listed: that makes an NFS client look again."""
    with suppress(OSError):
        os.listdir(path.parent)
        return path.read_text(encoding="utf-8").strip()
    return ""
