"""The checks of a pilot's node, as files: htcebridge's own from slurm_scripts/checks/, and the admin's.

They run before the pilot joins (a failed one ends it) and again while it lives (a failed one keeps new jobs away).
Each is a small script: exit code 0 or not, the reason as its last line on stderr, and on stdout `Name = value` lines
for the startd's ad. docs/pilot.md says what an own one finds in its environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from htcebridge import trusted
from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot.exit_codes import PilotExit
from htcebridge.templates import render


def files(config: Config, resource: Resource, own: Path | None) -> dict[str, str]:
    """Path below the pilot's directory -> text. `own`: the admin's folder; a file there takes the place of ours.

    Names begin with two digits: 00 to 49 run before the `setup` lines, 50 to 99 with HTCondor in place. Raises
    ConfigError.
    """
    found = {
        name: render(
            f"slurm_scripts/checks/{name}.sh.j2",
            config=config,
            resource=resource,
            seconds=lambda duration: int(duration.total_seconds()),
            exit_codes=PilotExit,
        )
        for name in _ours(resource)
    }
    found.update(_own(own, tuple(found)) if own is not None else ())
    return {
        "run-checks": render("slurm_scripts/run-checks.sh"),
        **{f"checks/{name}": text for name, text in sorted(found.items())},
    }


def _ours(resource: Resource) -> Iterator[str]:
    yield "10-scratch"
    if resource.cvmfs:
        yield "20-cvmfs"
    yield "30-connectivity"
    if resource.executor is None:
        yield "60-collector"
        if resource.gpus:
            yield "70-gpus"


def _own(folder: Path, ours: Collection[str]) -> Iterator[tuple[str, str]]:
    shown: dict[str, str] = {}
    for path in trusted.folder(folder, "checks"):
        if path.suffix == ".md":
            continue
        if not re.fullmatch(r"\d\d-[A-Za-z0-9_.-]+", path.name):
            raise ConfigError(f"{path}: a check's name is two digits, '-' and letters, such as 35-licence.sh")
        if path.name not in ours and path.stem in ours:
            raise ConfigError(f"{path}: would run beside ours; {path.stem} is the name that replaces it")
        other = shown.setdefault(_shown(path.name), path.name)
        if other != path.name:
            raise ConfigError(f"{path}: {other} already stands for PilotCheck_{_shown(path.name)}")
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
        if not text.startswith("#!/"):
            raise ConfigError(f"{path}: its first line must name what runs it, such as #!/bin/bash")
        if "\r" in text:
            raise ConfigError(f"{path}: its lines end as on Windows; dos2unix {path}")
        yield path.name, text


def _shown(name: str) -> str:
    """What stands behind PilotCheck_ for it (slurm_scripts/run-checks.sh)."""
    return re.sub(r"\W", "_", re.sub(r"^\d\d-", "", name.rpartition(".")[0] or name))
