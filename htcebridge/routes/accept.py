"""Whether a CE's real router accepts a set, before anything is written."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes import RouteFile, disk, log
from htcebridge.routes.host import Host
from htcebridge.routes.stage import config_directories, staged

_DEFINED = re.compile(r"^JOB_ROUTER_ROUTE_(?!NAMES\b)(\w+) *@?=", re.MULTILINE)
_REFUSED = re.compile(r"is not valid|CONFIGURATION ERROR|is disabled|not found in the routing table|^ERROR\b")


def try_out(host: Host, files: Sequence[RouteFile], grants: Sequence[str]) -> log.Table:
    """The table that the real router makes of the CE's configuration with this set in place of ours.

    Raises BridgeError if the check or the router refuses it, ConfigError if HTCondor can't read it. Without files
    nothing is refused. The verdict is in what condor_job_router_info says: its exit code is 0 whatever it finds.
    """
    from htcebridge.routes.lint import check_ce

    host.ce.version()
    with staged(host.ce, files) as stage_ce:
        stage_ce.files()  # ConfigError has the syntax error
        root = str(stage_ce.config.parent / "config.d")
        findings = check_ce(stage_ce, grants).findings if files else ()
        said = stage_ce.router_table()
    errors = [f"{found.where}: {found.message} {found.fix}" for found in findings if found.severity == "error"]
    _refuse("the check found errors", [error.replace(root, str(host.ce_dir)) for error in errors])
    tables = log.parse_tables(said)
    table = tables[-1] if tables else log.Table(None, (), {})
    if files:
        missing = [name for name in defined_routes(file.text for file in files) if not _shows(said, name, files)]
        why = [f"route {name}, or its requirements, is not in the router's table" for name in missing]
        why += [line.strip() for line in said.splitlines() if _REFUSED.search(line)]
        _refuse("the CE's router does not accept it", why)
    for file in files:
        if file.side == "pool":
            _try_pool(host, file)
    return table


def defined_routes(texts: Iterable[str]) -> list[str]:
    """The routes that these texts define."""
    return list(dict.fromkeys(name for text in texts for name in _DEFINED.findall(text)))


def _refuse(what: str, why: Sequence[str]) -> None:
    if why:
        raise BridgeError(f"{what}; nothing is changed:\n  " + "\n  ".join(dict.fromkeys(why)))


def _shows(said: str, name: str, files: Sequence[RouteFile]) -> bool:
    """Whether the router shows a route, and its requirements if it has any."""
    block = re.search(rf'^Name +: "{re.escape(name)}"\n(.*?)(?:^Route |\Z)', said, re.MULTILINE | re.DOTALL)
    text = "\n".join(file.text for file in files)
    defined = re.search(rf"^JOB_ROUTER_ROUTE_{re.escape(name)} *@=(\S+)\n(.*?)^ *@\1", text, re.MULTILINE | re.DOTALL)
    wanted = re.search(r"^ *REQUIREMENTS +\S", defined[2] if defined else "", re.MULTILINE | re.IGNORECASE)
    return block is not None and (not wanted or bool(re.search(r"^Requirements +: \S", block[1], re.MULTILINE)))


def _try_pool(host: Host, file: RouteFile) -> None:
    """Raises ConfigError if the pool's HTCondor cannot read its configuration with this file."""
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as name:
        root = Path(name)
        (root / "config.d").mkdir()
        for path in host.pool_dir.iterdir():
            if path.is_file() and path.name != file.name and disk.read(path) is None:
                (root / "config.d" / path.name).write_text(f"include : {path}\n", encoding="utf-8")
        (root / "config.d" / file.name).write_text(file.text, encoding="utf-8")
        read = [root / "config.d" if path == host.pool_dir else path for path in config_directories(host.pool)]
        (root / "condor_config").write_text(
            f"include : {host.pool.config}\nLOCAL_CONFIG_DIR = {','.join(map(str, read))}\n", encoding="utf-8"
        )
        try:
            replace(host.pool, config=root / "condor_config").files()
        except ConfigError as error:
            raise ConfigError(f"the pool's HTCondor cannot read {file.name}; nothing is changed: {error}") from None
