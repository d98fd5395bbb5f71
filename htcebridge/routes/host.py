"""A CE's host: the two HTCondor configurations on it, and where our files go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import ConfigError
from htcebridge.routes import disk
from htcebridge.routes.ce import CE, CE_CONFIG
from htcebridge.routes.disk import Side
from htcebridge.routes.stage import config_directories

POOL_CONFIG_DIR = Path("/etc/condor/config.d")


@dataclass(frozen=True)
class Host:
    """A CE, the pool beside it, and the directory of each that our files go to."""

    ce: CE
    ce_dir: Path
    pool: CE
    pool_dir: Path

    @classmethod
    def at(cls, ce_config: Path = CE_CONFIG, ce_dir: Path | None = None, pool_dir: Path = POOL_CONFIG_DIR) -> Host:
        """The host with the CE's configuration in `ce_config`; pool_dir is beside the pool's condor_config."""
        pool = CE(pool_dir.parent / "condor_config")
        return cls(CE(ce_config), ce_dir or ce_config.parent / "config.d", pool, pool_dir)

    @property
    def state(self) -> Path:
        """Where the lock and the earlier sets are: beside the CE's config.d, where HTCondor reads nothing."""
        return self.ce.config.parent / "htcebridge"

    @property
    def router_log(self) -> Path:
        """The running router's log. Raises ConfigError."""
        path = self.ce.value("JOB_ROUTER_LOG")
        if not path:
            raise ConfigError(f"{self.ce.config}: JOB_ROUTER_LOG is not set: what the router does cannot be seen")
        return Path(path)

    def side(self, side: Side) -> tuple[CE, Path]:
        """A side's HTCondor and directory."""
        return (self.ce, self.ce_dir) if side == "ce" else (self.pool, self.pool_dir)

    def installed(self, side: Side) -> disk.Ours | None:
        """The file of ours that a side's HTCondor reads. Raises ConfigError."""
        ce, directory = self.side(side)
        return disk.find(directory, _excluded(ce)) if ce.config.exists() else None

    def all_installed(self) -> Iterator[disk.Ours]:
        """Our files on both sides, the CE's first. Raises ConfigError."""
        yield from (found for side in disk.SIDES[::-1] if (found := self.installed(side)) is not None)

    def must_be_read(self, side: Side) -> None:
        """Raises ConfigError if HTCondor doesn't read the directory, or would read a file under its temporary name."""
        ce, directory = self.side(side)
        # The CE's is staged as the last one.
        must_be_read(ce, directory, last=side == "ce")


def must_be_read(ce: CE, directory: Path, last: bool) -> None:
    """Raises ConfigError if HTCondor doesn't read the directory (as the `last` one), or would read a file in it under
    its temporary name."""
    read = config_directories(ce)
    if directory.resolve() not in [path.resolve() for path in (read[-1:] if last else read)]:
        raise ConfigError(
            f"{directory} is not {'the last' if last else 'a'} directory that {ce.config} reads (LOCAL_CONFIG_DIR = "
            f"{', '.join(map(str, read)) or 'empty'}): a file there would be overridden or not read at all"
        )
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; make it, or name the one that is there")
    if not _excluded(ce).match(disk.temporary_name("60-htcebridge.conf")):
        raise ConfigError(
            f"LOCAL_CONFIG_DIR_EXCLUDE_REGEXP in {ce.config} doesn't exclude names that begin with a dot, so "
            r"HTCondor would read a half-written file; begin it with ^((\..*)|... as HTCondor's default does"
        )


def _excluded(ce: CE) -> re.Pattern[str]:
    value = ce.value("LOCAL_CONFIG_DIR_EXCLUDE_REGEXP")
    with suppress(re.error):
        if value:
            return re.compile(value)
    return re.compile(r"(?!)")
