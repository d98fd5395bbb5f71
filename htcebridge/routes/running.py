"""The running CE: tell it to read its configuration again, and see that its router has the new table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from htcebridge.errors import BridgeError
from htcebridge.routes import log
from htcebridge.routes.ce import CE
from htcebridge.routes.disk import Side
from htcebridge.routes.host import Host

Say = Callable[[str], object]
# A table that differs, or an error, may be of a reconfig before ours: how long the router gets to show a better one.
GRACE_S = 5.0
POLL_S = 0.3


class NotTaken(Exception):
    """The running router does not show the table; the message has its log's lines."""


def tell(
    host: Host, sides: Iterable[Side], wanted: log.Table, routes: Sequence[str], timeout_s: float, say: Say
) -> None:
    """Reconfigure these sides and wait until the router has the table, as far as it concerns `routes`.

    A stopped CE is told nothing, and that is said. Raises NotTaken.
    """
    if "pool" in sides and host.pool.config.exists() and (refused := reconfigure(host.pool)):
        say(f"The pool's HTCondor is not reconfigured ({refused}): its side takes effect at its start.")
    if "ce" not in sides:
        return
    try:
        router_log = host.router_log
    except BridgeError as error:  # else a CE that can't read its configuration would look like one that is stopped
        raise NotTaken(f"  {error}") from None
    runs = router_runs(host.ce)
    # The log has whole seconds: only a table of a later second than the file's is surely one of the file.
    time.sleep(1.01 - time.time() % 1)
    start = log.mark(router_log)
    refused = reconfigure(host.ce)
    if refused and runs:
        raise NotTaken(f"  condor_reconfig: {refused}")
    if refused or runs is False:
        what = f"The CE is stopped ({refused})" if refused else "The CE's job router is stopped"
        say(f"{what}: this takes effect at its start. Its router accepts it.")
        return
    _wait(router_log, start, wanted, routes, timeout_s)
    say(f"The running router has it: {', '.join(wanted.order) or 'no route'}.")


def router_runs(ce: CE) -> bool | None:
    """Whether the CE's collector knows a job router (one that stops takes its ad away); None if it doesn't answer."""
    try:
        return bool(ce.run(["condor_status", "-any", "-constraint", 'MyType == "Job_Router"', "-af", "Name"]).strip())
    except BridgeError:
        return None


def has_loaded(table: log.Table | None, wanted: log.Table, routes: Sequence[str], written: float) -> bool:
    """Whether the router took this table, and took it after the file was written."""
    return table is not None and table.time is not None and table.time >= written and table.agrees(wanted, routes)


def _wait(path: Path, start: log.Mark, wanted: log.Table, routes: Sequence[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    wrong_since: float | None = None
    while True:
        text = log.since(path, start)
        tables = log.parse_tables(text)
        if tables and tables[-1].agrees(wanted, routes):
            return
        now = time.monotonic()
        wrong_since = (wrong_since or now) if tables or log.refuses(text) else None
        if now > deadline or (wrong_since and now > wrong_since + GRACE_S):
            lines = log.complaints(text) or [
                f"no new route table in {timeout_s:g} s; a busy router may need a longer --timeout"
            ]
            raise NotTaken("\n".join(f"  {path.name}: {line}" for line in lines))
        time.sleep(POLL_S)


def reconfigure(ce: CE) -> str:
    """What condor_reconfig says where it fails, "" if it does not."""
    said = ce.said(["condor_reconfig"]).strip()
    return "" if said.startswith('Sent "Reconfig"') else (said.splitlines() or ["it says nothing"])[0]
