"""Put the routes into a CE, and take them out: stage, check, try, one rename per side, reconfig, look.

Nothing is written before the CE's real router has accepted the set under the CE's real configuration, and a set that
the running router does not take is taken back.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes import FILE_NAME, RouteFile, disk, log
from htcebridge.routes.accept import defined_routes, try_out
from htcebridge.routes.disk import SIDES, Change
from htcebridge.routes.host import Host
from htcebridge.routes.running import NotTaken, Say, has_loaded, router_runs, tell

NO_TABLE = log.Table(None, (), {})


@dataclass(frozen=True)
class Options:
    """How to install: how long the router may take, whether to write at all, whether to tell HTCondor.

    `grants`: the attributes that only a route may set; the check wants them scrubbed.
    """

    timeout_s: float = 60.0
    dry_run: bool = False
    reconfig: bool = True
    grants: tuple[str, ...] = ("OpportunisticSite", "OpportunisticVO")


def install(host: Host, files: Sequence[RouteFile], options: Options, say: Say) -> None:
    """Bring the set into effect; a set that is in effect is left as it is.

    Raises ConfigError for what is not ours, cannot be written or cannot be read, LockHeld if another is at work, and
    BridgeError for a set that is not good, or that the running router did not take and that was taken back.
    """
    files = tuple(disk.one_file_per_side(files).values())
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(disk.locked(host.state))
            disk.tidy(host.state, (host.ce_dir, host.pool_dir))
        changes = plan(host, files)
        # Without files to install or remove there is nothing to try.
        wanted = try_out(host, files, options.grants) if files or changes else NO_TABLE
        if options.dry_run:
            _say_plan(changes, say)
        elif changes:
            _apply(host, changes, wanted, options, say)
        elif files:
            _bring_into_effect(host, wanted, options, say)
        else:
            say("Not installed: there is nothing to remove.")


def uninstall(host: Host, options: Options, say: Say) -> None:
    """Take our files away and bring what is left into effect. Raises what `install` raises.

    A file of our name that somebody copied there by hand is theirs: ConfigError names it.
    """
    for side in SIDES:
        path = host.side(side)[1] / FILE_NAME
        if path.exists() and host.installed(side) is None:
            raise ConfigError(f"{path}: not written by `routes install`, so it is left alone; remove it by hand")
    install(host, (), options, say)


def plan(host: Host, files: Sequence[RouteFile]) -> list[Change]:
    """What has to change on disk: the pool's side first, and last where all is removed.

    Raises ConfigError if something is in the way that is not ours.
    """
    found = compare(host, files)
    for change in found:
        if change.side == "ce" or change.after is not None:
            host.must_be_read(change.side)
        disk.refuse_what_is_not_ours(change)
    changes = [change for change in found if change.is_one]
    return changes if files else changes[::-1]


def compare(host: Host, files: Sequence[RouteFile]) -> list[Change]:
    """Each side's file as it is and as it should be, changed or not. Raises ConfigError if it can't be read."""
    wanted = disk.one_file_per_side(files)
    found = [Change(side, host.side(side)[1], host.installed(side), wanted.get(side)) for side in SIDES]
    return [change for change in found if change.before is not None or change.after is not None]


def difference(change: Change) -> str:
    """A change as a unified diff, without the marks."""
    before, after = change.before, change.after
    old = before.body.splitlines(keepends=True) if before else []
    new = after.text.splitlines(keepends=True) if after else []
    names = (str(before.path) if before else "/dev/null", str(change.path) if after else "/dev/null")
    return "".join(difflib.unified_diff(old, new, *names))


def _apply(host: Host, changes: Sequence[Change], wanted: log.Table, options: Options, say: Say) -> None:
    earlier = (log.parse_tables(host.ce.router_table()) or [NO_TABLE])[-1]
    try:
        kept = disk.keep(host.state, changes)
    except OSError as error:
        raise disk.not_written(host.state / "previous", error) from None
    for number, change in enumerate(changes, 1):
        try:
            disk.carry_out(change)
        except OSError as error:
            _undo(changes[:number])
            raise disk.not_written(change.path, error) from None
    for change in changes:
        say(f"{'Wrote' if change.after else 'Removed'} {change.path}.")
    say(f"What was there before is kept in {kept}.")
    if not options.reconfig:
        say("HTCondor is not told (--no-reconfig): this takes effect at its next reconfig or start.")
        return
    routes = defined_routes(text for change in changes for text in change.texts)
    sides = [change.side for change in changes]
    try:
        tell(host, sides, wanted, routes, options.timeout_s, say)
    except NotTaken as error:
        _undo(changes)
        back = "The files are as they were, and the router has its old table again."
        try:
            tell(host, sides, earlier, routes, options.timeout_s, lambda _: None)
        except NotTaken as again:
            back = f"The files are as they were, but the router does not show its old table:\n{again}"
        raise BridgeError(f"the running router did not take the new table:\n{error}\n{back}") from None


def _bring_into_effect(host: Host, wanted: log.Table, options: Options, say: Say) -> None:
    """The files are right already. An earlier run may have ended before the router was told."""
    installed = list(host.all_installed())
    routes = defined_routes(file.body for file in installed)
    tables = log.parse_tables(log.whole(host.router_log))
    written = max(file.mtime for file in installed)
    if router_runs(host.ce) and has_loaded(tables[-1] if tables else None, wanted, routes, written):
        say("Installed and loaded already: nothing is changed.")
        return
    say("Installed already: no file is changed.")
    if not options.reconfig:
        return
    try:
        tell(host, SIDES, wanted, routes, options.timeout_s, say)
    except NotTaken as error:
        raise BridgeError(
            f"the files are in place, but the running router did not take them:\n{error}\n"
            f"`htcebridge routes uninstall` takes them away; earlier sets are in {host.state / 'previous'}"
        ) from None


def _undo(changes: Sequence[Change]) -> None:
    for change in reversed(changes):
        try:
            disk.undo(change)
        except OSError as error:
            raise disk.not_written(change.path, error) from None


def _say_plan(changes: Sequence[Change], say: Say) -> None:
    for change in changes:
        say(difference(change).rstrip("\n"))
    say("Dry run: checked and tried, nothing is written." if changes else "Dry run: nothing would change.")
