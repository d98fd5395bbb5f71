"""Files of the old tool -> a configuration: `config import`.

Each JSON file (jobexecutor, jobname, max_running, max_idle, max_hours) becomes a resource in mode "constant" whose
pilot is what the job executor's `srun` line started. What neither file says is left as "" and marked FILL IN, so that
`config check` names it with its line; nothing is guessed, least of all who pays.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from htcebridge.config import legacy_script
from htcebridge.config.legacy_script import Launch
from htcebridge.errors import ConfigError
from htcebridge.units import format_duration, format_megabytes

_NUMBERS = ("max_running", "max_idle", "max_hours")
_REQUIRED = ("jobexecutor", "jobname", *_NUMBERS)
_FILL_IN = "FILL IN: "
# What a resource cannot be without, in the order of the file, and what to write there.
_ASKED = {
    "executor": "the program that srun started: its path on the shared file system",
    "job_name": "Slurm job name",
    "account": "Slurm account",
    "partition": "Slurm partition",
    "qos": "Slurm QOS. With none Slurm takes the account's default, which is billed",
    "cpus": "cores of one pilot",
    "memory": "memory of one pilot. With none Slurm gave the partition's default for these cores",
    "walltime": 'longest life of a pilot, such as "12h"',
}
_PLACEHOLDERS = {"executor": "/x", "cpus": 1, "memory": "8G", "walltime": "12h"}
# srun options that say nothing about what is asked, or that a pilot sets itself.
_SILENT = {"error", "input", "label", "nodes", "ntasks", "output", "quiet", "unbuffered", "verbose"}
_HEAD = """\
# htcebridge.toml, made by `htcebridge config import` from {names}.
# What is "" and marked FILL IN is in none of those files. `htcebridge config check` names each with its line,
# docs/migrating.md has the next steps.

[tier1]
collector = "" # FILL IN: the Tier-1 collector, host:port
"""


@dataclass(frozen=True)
class Legacy:
    """One JSON file of the old tool, as it was read."""

    path: Path
    jobexecutor: str
    jobname: str
    max_running: int
    max_idle: int
    max_hours: float


@dataclass(frozen=True)
class Imported:
    """A configuration as TOML text; the keys that it lacks, as table.key; and what a person should know."""

    text: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Draft:
    """A resource in the making: key -> value, and why a key could not be had."""

    values: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: str = ""


def import_files(paths: Sequence[Path], environment: Mapping[str, str] = os.environ) -> Imported:
    """The configuration that these files make. Raises ConfigError with file and line or key."""
    files = [read(path) for path in paths]
    drafts = dict(zip(_names(paths), (_draft(each, environment) for each in files), strict=True))
    text = _HEAD.format(names=", ".join(_printable(path.name) for path in paths))
    text += "".join(_table(name, draft) for name, draft in drafts.items())
    missing = [f"resource.{name}.{key}" for name, draft in drafts.items() for key in _ASKED if key not in draft.values]
    notes = [f"{each.path}: {note}" for each, draft in zip(files, drafts.values(), strict=True) for note in draft.notes]
    return Imported(text, ("tier1.collector", *missing), (*notes, *_shared_names(files)))


def read(path: Path) -> Legacy:
    """Read one JSON file. Raises ConfigError with file and line or key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        raw = json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error or 'not JSON'}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}:1: not a JSON object with the keys {', '.join(_REQUIRED)}")
    lacking = [key for key in _REQUIRED if key not in raw]
    if lacking:
        raise ConfigError(f"{path}: lacks the key {', '.join(lacking)}; is it a file of the old tool?")
    for key in _REQUIRED:
        _check(path, text, key, raw[key])
    return Legacy(path, **{key: raw[key] for key in _REQUIRED})


def _check(path: Path, text: str, key: str, value: object) -> None:
    if key in _NUMBERS:
        kinds = (int, float) if key == "max_hours" else (int,)
        good = isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < 10**9
        what = "a number, 0 or more" if key == "max_hours" else "a whole number, 0 or more"
    else:
        good = isinstance(value, str) and value.isprintable() and bool(value.strip())
        what = "a text of one line"
    if not good:
        found = re.search(rf'"{key}"\s*:', text)
        line = f":{text.count(chr(10), 0, found.start()) + 1}" if found else ""
        raise ConfigError(f"{path}{line}: {key} is {json.dumps(value)[:60]}, and should be {what}")


def _no_key_twice(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key} is there twice")
        made[key] = value
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _names(paths: Iterable[Path]) -> list[str]:
    """A resource's name for each file: its own name as an identifier, numbered where two are equal."""
    names: list[str] = []
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9_]", "_", path.stem)
        stem = name = stem if re.match(r"[A-Za-z]", stem) else f"resource_{stem}"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names


def _shared_names(files: Sequence[Legacy]) -> list[str]:
    by_name: dict[str, list[str]] = {}
    for each in files:
        by_name.setdefault(each.jobname, []).append(each.path.name)
    return [
        f"{' and '.join(names)} have the same jobname {jobname}: the old tool counted their pilots together, "
        "and each held the other back; here each resource counts its own"
        for jobname, names in by_name.items()
        if len(names) > 1
    ]


def _draft(file: Legacy, environment: Mapping[str, str]) -> _Draft:
    draft = _Draft(
        {
            "mode": "constant",
            "job_name": file.jobname,
            "max_running": file.max_running,
            "max_pending": file.max_idle,
            "max_hours": file.max_hours,
        }
    )
    # The tool was started where its JSON files are.
    directory = file.path.absolute().parent
    try:
        command = shlex.split(file.jobexecutor)
        script = directory / os.path.expanduser(command[0])
        launch = legacy_script.parse(script.read_text(encoding="utf-8"), command[1:], str(directory), environment)
    except (OSError, ValueError) as error:
        draft.notes.append(f"its jobexecutor {file.jobexecutor} cannot be read: {error}")
        return draft
    if launch is None:
        draft.notes.append(f"{script.name} has no srun line that starts something")
        return draft
    draft.origin = f"{script.name}, line {launch.line}"
    _take(draft, launch, directory)
    _leave_out_what_is_wrong(draft)
    return draft


def _take(draft: _Draft, launch: Launch, directory: Path) -> None:
    """Put what the srun line says into the draft."""
    asked = dict(launch.options)
    name = asked.pop("job-name", draft.values["job_name"])
    if name != draft.values["job_name"]:
        draft.notes.append(f"its jobname is {draft.values['job_name']}, but {draft.origin} says {name}: taken")
        draft.values["job_name"] = name
    for key in ("account", "partition", "qos"):
        if key in asked:
            draft.values[key] = asked.pop(key)
    gres = [item.removeprefix("gres/") for item in asked.pop("gres", "").split(",") if item]
    gpus = asked.pop("gpus", None) or asked.pop("gpus-per-node", None)
    counts = [item.rpartition(":")[2] for item in [*gres, *([f"gpu:{gpus}"] if gpus else [])] if item.startswith("gpu")]
    draft.values["gpus"] = sum(int(count) if count.isdecimal() else 1 for count in counts)
    draft.values["gres"] = gres
    cpus = asked.pop("cpus-per-task", None)
    draft.values["cpus"] = int(cpus) if cpus and cpus.isdecimal() else cpus
    draft.values["memory"] = _memory(asked, draft.values["cpus"])
    draft.values["walltime"] = _walltime(asked.pop("time", None))
    for key in ("ntasks", "nodes"):
        if asked.get(key, "1") != "1":
            draft.why["cpus"] = f"{draft.origin} asks --{key}={asked[key]}, but a pilot is one task on one node"
            draft.values["cpus"] = None
    executor = launch.executor
    draft.values["executor"] = executor if executor[0] in "/~$" else os.path.normpath(directory / executor)
    if launch.arguments:
        draft.why["executor"] = "it takes no arguments; write a script that runs: " + shlex.join(
            [draft.values["executor"], *launch.arguments]
        )
        draft.values["executor"] = None
    # srun handed the login environment on. This is what is left of it: what every login has, and the script's own.
    draft.values["setup"] = ["source /etc/profile || true", *launch.exports]
    ignored = sorted(set(asked) - _SILENT)
    if ignored:
        draft.notes.append(f"not taken over from {draft.origin}: {' '.join('--' + key for key in ignored)}")
    if launch.others:
        draft.notes.append(f"{draft.origin} is the first of several srun lines; the others are not looked at")


def _memory(asked: dict[str, str], cpus: object) -> str | None:
    """--mem or --mem-per-cpu (sbatch(1): megabytes unless a unit is given; 0 is all of the node)."""
    whole, each = asked.pop("mem", None), asked.pop("mem-per-cpu", None)
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", whole or each or "", re.IGNORECASE)
    if not found or int(found[1]) == 0:
        return whole or each
    factor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()]
    times = 1 if whole else cpus
    return format_megabytes(int(int(found[1]) * factor * times)) if isinstance(times, int) else None


def _walltime(text: str | None) -> str | None:
    """sbatch(1) --time: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text or "")
    if not found:
        return text
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    first, second, third = parts
    if days is not None or third is not None:
        hours, minutes, seconds = first or 0, second or 0, third or 0
    else:
        hours, minutes, seconds = 0, first or 0, second or 0
    return format_duration((((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def _leave_out_what_is_wrong(draft: _Draft) -> None:
    """Take away what `config check` would refuse, with its reason: the admin is asked for it instead."""
    from pydantic import ValidationError

    from htcebridge.config.resource import Resource

    draft.values = {key: value for key, value in draft.values.items() if value is not None}
    missing = {key: _PLACEHOLDERS.get(key, "x") for key in _ASKED if key not in draft.values}
    try:
        Resource.model_validate({**missing, **draft.values})
    except ValidationError as error:
        for mistake in error.errors():
            key = str(mistake["loc"][0]) if mistake["loc"] else "walltime"
            if key in draft.values:
                draft.why[key] = f"{mistake['msg'].removeprefix('Value error, ')} ({draft.origin})"
                del draft.values[key]
    executor = draft.values.get("executor", "$")
    if "$" not in executor and not os.access(os.path.expanduser(executor), os.X_OK):
        draft.notes.append(
            f"the executor {executor} is not there, or not executable: its pilots would end with code 18"
        )


def _table(name: str, draft: _Draft) -> str:
    lines = ["", f"# {_printable(draft.origin)}"] if draft.origin else [""]
    lines += [f"[resource.{name}]", 'mode = "constant"']
    optional = ("gpus", "gres", "max_running", "max_pending", "max_hours", "setup")
    for key in (*_ASKED, *optional):
        if key in draft.values:
            lines.append(tomli_w.dumps({key: draft.values[key]}).rstrip("\n"))
        elif key in _ASKED:
            lines.append(f'{key} = "" # {_FILL_IN}{_printable(draft.why.get(key, _ASKED[key]))}')
        elif key in draft.why:
            lines.append(f"# {key} left out: {_printable(draft.why[key])}")
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Text for a TOML comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
