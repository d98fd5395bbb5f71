"""Whether the routes in a CE are those of the configuration: on disk, and in the running router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import BridgeError
from htcebridge.routes import RouteFile, disk, install, log
from htcebridge.routes.accept import defined_routes
from htcebridge.routes.host import Host
from htcebridge.routes.running import has_loaded, router_runs


@dataclass(frozen=True)
class Status:
    """What is installed and what is loaded. `routes`: our routes -> their jobs, None if the router doesn't say.

    `loaded` is None if it is not known: the CE's collector does not answer, or the log has no table.
    """

    files: tuple[Path, ...]
    version: str | None
    differences: tuple[str, ...]
    router_runs: bool | None
    loaded: bool | None
    table_time: float | None
    order: tuple[str, ...]
    routes: Mapping[str, log.Count | None]
    problems: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether a file of ours is there."""
        return bool(self.files)

    @property
    def in_step(self) -> bool:
        """Whether all is as the configuration says."""
        return not self.problems


def look(host: Host, files: Sequence[RouteFile]) -> Status:
    """Compare the configuration, the files and the running router. Raises ConfigError, BridgeError; changes nothing."""
    files = tuple(disk.one_file_per_side(files).values())
    problems: list[str] = []
    found = install.compare(host, files)
    changes = [change for change in found if change.is_one]
    try:
        install.plan(host, files)
    except BridgeError as error:
        problems.append(str(error))
    ours = list(host.all_installed())
    if not ours:
        problems.append("not installed; `htcebridge routes install` does it")
    elif changes and not problems:
        problems.append("the files differ from the configuration; `htcebridge routes install` brings it in (-v: how)")
    text = log.whole(host.router_log)
    tables = log.parse_tables(text)
    last = tables[-1] if tables else None
    runs = router_runs(host.ce)
    loaded = _loaded(host, ours, last, runs)
    if runs is not True:
        problems.append(
            "the CE's job router does not run" if runs is False else "the CE does not answer: is it stopped?"
        )
    elif last is None:
        problems.append(f"no route table in {host.router_log}: what the router has is not known")
    elif ours and not loaded:
        problems.append("the running router has another table than the files; `htcebridge routes install` tells it")
    counts = log.parse_counts(text)
    return Status(
        files=tuple(file.path for file in ours),
        version=ours[0].version if ours else None,
        differences=tuple(install.difference(change) for change in changes if ours),
        router_runs=runs,
        loaded=loaded,
        table_time=last.time if last else None,
        order=last.order if last else (),
        routes={name: counts.get(name) for name in defined_routes(file.text for file in files)},
        problems=tuple(problems),
    )


def _loaded(host: Host, ours: Sequence[disk.Ours], last: log.Table | None, runs: bool | None) -> bool | None:
    """Whether the running router has the routes of the installed file, with the texts that they have now."""
    if last is None or runs is None:
        return None
    installed = [found for found in ours if found.path.parent == host.ce_dir]
    if not installed or not runs:
        return False
    names = defined_routes(found.body for found in installed)
    tables = log.parse_tables(host.ce.router_table())
    return bool(tables) and has_loaded(last, tables[-1], names, installed[0].mtime)
