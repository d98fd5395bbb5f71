"""The checks of a pilot's node, as files: htcebridge's own from slurm_scripts/checks/, and the admin's.

They run before the pilot joins (a failed one ends it) and again while it lives (a failed one keeps new jobs away).
Each is a small script: exit code 0 or not, the reason as its last line on stderr, and on stdout `Name = value` lines
for the startd's ad. docs/pilot.md says what an own one finds in its environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from htcebridge.config import Config
from htcebridge.config_pilot import Resource
from htcebridge.errors import ConfigError
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
        )
        for name in _ours(resource)
    }
    found.update(_own(own) if own is not None else ())
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


def _own(folder: Path) -> Iterator[tuple[str, str]]:
    """What is executed on every node: nobody else may be able to write it."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".md")
        for path in (folder, *paths):
            if path.stat().st_mode & 0o022:
                raise ConfigError(f"{path}: others may write it, and it runs on every node; chmod go-w {path}")
        for path in paths:
            if not re.fullmatch(r"\d\d-[A-Za-z0-9_.-]+", path.name):
                raise ConfigError(f"{path}: a check's name is two digits, '-' and letters, such as 35-licence.sh")
            text = path.read_text(encoding="utf-8")
            if not text.startswith("#!/"):
                raise ConfigError(f"{path}: its first line must name what runs it, such as #!/bin/bash")
            yield path.name, text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"checks = {str(folder)!r}: {error}") from None
