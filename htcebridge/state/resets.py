"""What an admin asks of the next cycle: to forget a resource's failures, refusals and quarantine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from htcebridge.config.tables import Config


def request(config: Config, resource: str) -> None:
    """Have the next cycle forget. Raises OSError."""
    path = _file(config, resource)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def requested(config: Config) -> tuple[str, ...]:
    """The resources that are asked for."""
    return tuple(name for name in config.resources if _file(config, name).exists())


def done(config: Config, resources: Iterable[str]) -> None:
    """It has been remembered."""
    for name in resources:
        _file(config, name).unlink(missing_ok=True)


def _file(config: Config, resource: str) -> Path:
    return config.pressure.state_dir.path / f"{config.pressure.instance}.reset.{resource}"
