"""The central manager's part: a collector of the pilots' own behind the pool's, so that their token harms nobody else.

Installed as routes are: found again by its mark, one rename, taken back if what runs is not as it should be. Whether it
is, is tried with a token of the pilots' identity that lives for two minutes.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.pilot.script import site_domain
from htcebridge.routes import RouteFile, disk
from htcebridge.routes.ce import CE
from htcebridge.routes.disk import Change
from htcebridge.routes.host import must_be_read
from htcebridge.routes.install import difference
from htcebridge.routes.running import Say, reconfigure
from htcebridge.routes.stage import staged
from htcebridge.templates import render
from htcebridge.units import plural

POOL_CONFIG = Path("/etc/condor/condor_config")
_POLL_S = 0.5
_TOKEN_S = 120
# What the pilots' identity is to be allowed, at which collector. READ at the pool's own is the Tier-1's choice.
_RIGHTS = ("ADVERTISE_STARTD", "ADVERTISE_MASTER", "ADVERTISE_SCHEDD", "DAEMON", "NEGOTIATOR", "ADMINISTRATOR")
_OF_PILOTS = ("ADVERTISE_STARTD", "ADVERTISE_MASTER")


@dataclass(frozen=True)
class Central:
    """What htcebridge.toml says of it. `address`: where pilots join; `pool`: the pool's own collector; `domain`: how
    the names of its pilots end."""

    site: str
    pool: str
    address: str
    identity: str
    domain: str
    file: RouteFile

    @property
    def name(self) -> str:
        """How its collector's name begins."""
        return f"Pilots of {self.site}@"

    @property
    def sock(self) -> str:
        """The name of its socket behind the pool's port."""
        return self.address.partition("?sock=")[2]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `good` is None where it could not be."""

    what: str
    good: bool | None
    said: str


def of(config: Config, closed: bool = True) -> Central:
    """The central manager's part of a configuration. Not `closed`: the pool's collector takes the pilots, too.

    Raises ConfigError where the configuration does not say where pilots join, or who they are.
    """
    address, identity = config.tier1.pilot_collector, config.tier1.pilot_identity
    host = config.tier1.collector.partition(":")[0]
    if address and "?sock=" in address and address.partition("?")[0] != _with_port(config.tier1.collector):
        raise ConfigError(
            f"tier1.pilot_collector: {address}; the pilots' collector is behind the pool's port: it begins with "
            f"{_with_port(config.tier1.collector)}, as tier1.collector"
        )
    if not address or "?sock=" not in address:
        raise ConfigError(
            f"tier1.pilot_collector: {address or 'not set'}; the pilots' collector is one behind the pool's port: "
            f'pilot_collector = "{host}:9618?sock=htcebridge"'
        )
    if not identity:
        raise ConfigError("tier1.pilot_identity: not set; whose is the pilots' token? It is its `sub`: NAME@DOMAIN")
    domain = site_domain(config)
    text = render(
        "ce_routes/central-manager.conf.j2",
        site=config.grant.value,
        attribute=config.grant.attribute,
        file_name=_file_name(config),
        local=_local_name(domain),
        address=address,
        sock=address.partition("?sock=")[2],
        identity=identity,
        is_pilot=f'regexp("[.]{domain.replace(".", "[.]")}$", Name)',
        closed=closed,
    )
    file = RouteFile("central", _file_name(config), text)
    return Central(config.grant.value, config.tier1.collector, address, identity, domain, file)


def _with_port(collector: str) -> str:
    return collector if ":" in collector else f"{collector}:9618"


def _file_name(config: Config) -> str:
    """Each HPC has its own: a Tier-1 may have several next door."""
    return f"60-htcebridge-{site_domain(config).removesuffix('.invalid')}.conf"


@dataclass(frozen=True)
class CentralManager:
    """The host of the pool's collector: its HTCondor, and the directory that our file goes to."""

    condor: CE
    directory: Path

    @classmethod
    def at(cls, config: Path = POOL_CONFIG, directory: Path | None = None) -> CentralManager:
        """The host with the pool's condor_config in `config`."""
        return cls(CE(config), directory or config.parent / "config.d")

    @property
    def state(self) -> Path:
        """Where the lock and the earlier files are."""
        return self.condor.config.parent / "htcebridge"

    def installed(self, name: str) -> disk.Ours | None:
        """Our file for this HPC. Raises ConfigError if it cannot be read."""
        return disk.read(self.directory / name)


# --------------------------------------------------------------------------- to install


@dataclass(frozen=True)
class Options:
    """How to install. `cut_off`: even if pilots that run lose the pool by it."""

    timeout_s: float = 60.0
    dry_run: bool = False
    reconfig: bool = True
    cut_off: bool = False


def install(manager: CentralManager, central: Central, options: Options, say: Say) -> None:
    """Bring the file into effect, and try that it does what it is for.

    Raises ConfigError for what is not ours or cannot be written; LockHeld if another is at work; BridgeError where
    pilots that run would lose the pool, and for what would not be in force, or was not and is taken back.
    """
    _bring(manager, central, central.file, options, say)


def uninstall(manager: CentralManager, central: Central, options: Options, say: Say) -> None:
    """Take our file away, and with it the pilots' collector. Raises what `install` raises."""
    path = manager.directory / central.file.name
    if path.exists() and manager.installed(path.name) is None:
        raise ConfigError(f"{path}: not written by `pool install`, so it is left alone; remove it by hand")
    _bring(manager, central, None, options, say)


def _bring(manager: CentralManager, central: Central, file: RouteFile | None, options: Options, say: Say) -> None:
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(disk.locked(manager.state))
            disk.tidy(manager.state, (manager.directory,))
        change = _change(manager, central, file)
        disk.refuse_what_is_not_ours(change)
        _refuse_another_socket(central, change)
        if file is not None:
            must_be_read(manager.condor, manager.directory, last=True)
            _refuse_anothers(manager, central)
            _refuse_overridden(manager, file)
        if change.is_one and not options.cut_off:
            _refuse_to_cut_off(manager, central, change)
        if options.dry_run:
            say(difference(change).rstrip("\n") if change.is_one else "Dry run: nothing would change.")
        elif change.is_one:
            _apply(manager, central, change, options, say)
        elif file is None:
            say(f"Not installed: there is nothing to remove.{_others(manager, central)}")
        else:
            say("Installed already: no file is changed.")
            if options.reconfig:
                _take_effect(manager, central, file, options.timeout_s, say)


def _change(manager: CentralManager, central: Central, file: RouteFile | None) -> Change:
    return Change("central", manager.directory, manager.installed(central.file.name), file)


def _refuse_anothers(manager: CentralManager, central: Central) -> None:
    """Raises ConfigError if somebody else's collector answers there."""
    names = _names(manager, central.address)
    if names and not any(name.startswith(central.name) for name in names):
        raise ConfigError(f"tier1.pilot_collector: {central.address} is {names[0]} already; choose another sock=")


def _refuse_another_socket(central: Central, change: Change) -> None:
    """Raises ConfigError if ours is installed with another one: its pilots would be looked for in the wrong place."""
    if (
        change.before is not None
        and f"_ARGS = -local-name {_local_name(central.domain)} -sock {central.sock}\n" not in change.before.body
    ):
        raise ConfigError(
            "tier1.pilot_collector: the collector that runs has another socket, and keeps it until it ends: "
            "`htcebridge pool uninstall` with the old one first"
        )


def _local_name(domain: str) -> str:
    return "HTCEBRIDGE_" + domain.removesuffix(".invalid").replace("-", "_").upper()


def _others(manager: CentralManager, central: Central) -> str:
    """The files of other HPCs, or of this one under another grant.value."""
    names = sorted(path.name for path in manager.directory.glob("60-htcebridge-*.conf"))
    others = [name for name in names if name != central.file.name]
    return f" Of another grant.value there is {', '.join(others)}." if others else ""


def _refuse_overridden(manager: CentralManager, file: RouteFile) -> None:
    """Raises BridgeError if the host's configuration, with the file in it, would not say what the file says."""
    with staged(manager.condor, [replace(file, side="ce")]) as condor:
        staged_file = str(condor.config.parent / "config.d" / file.name)
        problems = list(_overridden(condor, file, staged_file))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise BridgeError(f"what this file says would not be in force:\n{listed}\nnothing is changed")


_SETS = re.compile(r"^([A-Za-z_][\w.]*) *@?=", re.MULTILINE)


def _overridden(condor: CE, file: RouteFile, path: str) -> Iterator[str]:
    """What is set again behind the file. Lists may be added to there: our own daemon has to be in."""
    knobs = condor.knobs()
    for name in dict.fromkeys(_SETS.findall(file.text)):
        knob = knobs.get(name.upper())
        if name in _LISTS:
            ours = re.findall(rf"^{re.escape(name)} *=.* (\S+)$", file.text, re.MULTILINE)[-1]
            words = re.split(r"[,\s]+", condor.value(name))
            if ours not in words:
                yield f"{name}: {ours} is not in it" + (f"; it is set in {knob.where}" if knob else "")
        elif knob is None or knob.file != path:
            yield f"{name}: set again in {knob.where}" if knob else f"{name}: not set"


_LISTS = ("DAEMON_LIST", "COLLECTOR.DENY_ADVERTISE_STARTD", "COLLECTOR.DENY_ADVERTISE_MASTER")


def _refuse_to_cut_off(manager: CentralManager, central: Central, change: Change) -> None:
    """Raises BridgeError if pilots have joined where they would not be taken any more, or if nobody knows."""
    closing = change.after is not None and _closes(change.after)
    renamed = change.before is not None and f".ALLOW_ADVERTISE_STARTD = {central.identity}\n" not in change.before.body
    ending = change.after is None or renamed
    if not closing and not ending:
        return
    own = _pilots(manager, central, central.address) if _names(manager, central.address) else {}
    if ending and own:
        how = "`pool install --transition`, let new pilots join at the pool's collector, and come again"
        raise BridgeError(_would_lose(own, central.address, how))
    if not closing:
        return
    direct = {name: who for name, who in _pilots(manager, central, central.pool).items() if name not in own}
    if direct:
        how = "`pool install --transition` first, let new pilots join at their own, and come again"
        raise BridgeError(_would_lose(direct, central.pool, how))


def _would_lose(pilots: Mapping[str, str], where: str, how: str) -> str:
    named = sorted(f"{name} of {who}" for name, who in pilots.items())
    names = ", ".join([*named[:3], *(["..."] if len(named) > 3 else [])])
    return (
        f"{plural(len(pilots), 'pilot')} joined at {where} would lose the pool ({names}): "
        f"{how} when the last of them has ended (or --cut-off)"
    )


def _pilots(manager: CentralManager, central: Central, where: str) -> dict[str, str]:
    """The pilots that a collector shows, by slot, and who sent the ad. Raises BridgeError if it does not answer."""
    ours = f'PartitionableSlot && regexp("[.]{central.domain.replace(".", "[.]")}$", Name)'
    look = ["condor_status", "-pool", where, "-constraint", ours, "-af", "Name", "AuthenticatedIdentity"]
    done = manager.condor.call(look)
    if done.returncode != 0:
        raise BridgeError(f"whether pilots would lose the pool is not known: {_said(done.stderr)}; --cut-off does it")
    rows = (line.split(None, 1) for line in done.stdout.splitlines())
    return {row[0]: row[-1] for row in rows if row}


def _apply(manager: CentralManager, central: Central, change: Change, options: Options, say: Say) -> None:
    try:
        kept = disk.keep(manager.state, [change])
        disk.carry_out(change)
    except OSError as error:
        raise disk.not_written(change.path, error) from None
    say(f"{'Wrote' if change.after else 'Removed'} {change.path}.")
    if change.before is not None:
        say(f"What was there before is kept in {kept}.")
    if not options.reconfig:
        say("HTCondor is not told (--no-reconfig): this takes effect at its next reconfig or start.")
        return
    try:
        _take_effect(manager, central, change.after, options.timeout_s, say)
    except BridgeError as error:
        try:
            disk.undo(change)
        except OSError as again:
            raise disk.not_written(change.path, again) from None
        reconfigure(manager.condor)
        raise BridgeError(f"{error}\nThe file is as it was, and HTCondor is told so.") from None


def _take_effect(manager: CentralManager, central: Central, file: RouteFile | None, timeout_s: float, say: Say) -> None:
    """Tell HTCondor, and wait until what runs is as the file says. Raises BridgeError if it is not in time."""
    if refused := reconfigure(manager.condor):
        say(f"HTCondor is stopped ({refused}): this takes effect at its start.")
        return
    deadline = time.monotonic() + timeout_s
    while True:
        lines = list(_look(manager, central, file))
        bad = [line for line in lines if not line.good]
        if not bad:
            break
        if time.monotonic() > deadline:
            listed = "\n".join(f"  {line.what}: {line.said}" for line in bad)
            raise BridgeError(f"what runs is not as it should be after {timeout_s:g} s:\n{listed}")
        time.sleep(_POLL_S)
    for line in lines:
        say(f"{line.what}: {line.said}")


# --------------------------------------------------------------------------- to look


def look(manager: CentralManager, closed: Central, transition: Central, in_transition: bool) -> list[Line]:
    """Whether the file is there, in force, and does what it is for. Changes nothing. Raises ConfigError.

    `closed`, `transition`: what the configuration says, both ways. Not `in_transition`: it is to be closed by now.
    """
    ours = manager.installed(closed.file.name)
    where = manager.directory / closed.file.name
    if ours is None:
        said = f"{where}: not installed; `htcebridge pool install` does it.{_others(manager, closed)}"
        return [Line("file", False, said)]
    lines = []
    if not ours.intact:
        lines.append(Line("file", False, f"{where}: edited by hand since htcebridge {ours.version} wrote it"))
    elif ours.body not in (closed.file.text, transition.file.text):
        said = f"{where}: differs from the configuration; `htcebridge pool install --dry-run` shows how"
        lines.append(Line("file", False, said))
    else:
        lines.append(Line("file", True, f"{where}, by htcebridge {ours.version}"))
    file = RouteFile("central", closed.file.name, ours.body)
    problems = list(_overridden(manager.condor, file, str(where)))
    said = "; ".join(problems) or "nothing that the file says is set again behind it"
    lines.append(Line("in force", not problems, said))
    if not _closes(file):
        said = "still takes pilots, and who has their token can take any startd away; `pool install` closes it"
        lines.append(Line("the pool's collector", in_transition, said))
    return [*lines, *_look(manager, closed, file)]


def _look(manager: CentralManager, central: Central, file: RouteFile | None) -> Iterator[Line]:
    """What runs, against what the file says."""
    answers = any(name.startswith(central.name) for name in _names(manager, central.address))
    if file is None:
        yield Line("pilots' collector", not answers, "does not run" if not answers else "still answers")
        return
    yield Line("pilots' collector", answers, f"{central.address} {'answers' if answers else 'does not answer'}")
    try:
        with _token(manager, central.identity) as token:
            pool: Mapping[str, bool | None] = _rights(manager, central.pool, central.identity, token)
            own: Mapping[str, bool | None] = (
                _rights(manager, central.address, central.identity, token) if answers else {}
            )
    except ConfigError as error:
        yield Line("rights", None, str(error))
        return
    yield _judged(f"at {central.pool}", pool, () if _closes(file) else _OF_PILOTS, central.identity)
    if answers:
        yield _judged(f"at {central.address}", own, _OF_PILOTS, central.identity)


def _closes(file: RouteFile) -> bool:
    """Whether the pool's collector refuses the pilots by this file."""
    return "\nCOLLECTOR.DENY_ADVERTISE_STARTD" in file.text


def _judged(where: str, rights: Mapping[str, bool | None], wanted: Sequence[str], identity: str) -> Line:
    """What a token of this identity may there. What could not be tried is neither."""
    unknown = [right for right in _RIGHTS if rights.get(right) is None]
    wrong = [f"{right} is {'refused' if right in wanted else 'allowed'}" for right in _RIGHTS]
    wrong = [text for text, right in zip(wrong, _RIGHTS, strict=True) if rights.get(right) is (right not in wanted)]
    if wrong:
        return Line(where, False, f"to {identity} {', '.join(wrong)}")
    if unknown:
        return Line(where, None, f"could not be tried: {', '.join(unknown)}")
    return Line(where, True, f"{identity} may {', '.join(wanted) or 'write nothing'}")


def _names(manager: CentralManager, address: str) -> list[str]:
    """What a collector there calls itself; nothing where none answers."""
    done = manager.condor.call(["condor_status", "-pool", address, "-collector", "-af", "Name"])
    return done.stdout.splitlines() if done.returncode == 0 else []


@contextmanager
def _token(manager: CentralManager, identity: str) -> Iterator[Path]:
    """A directory with a token of this identity, nobody else's to read, that expires in two minutes."""
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as directory:
        create = ["condor_token_create", "-identity", identity, "-lifetime", str(_TOKEN_S)]
        done = manager.condor.call(create)
        if done.returncode != 0:
            raise ConfigError(f"no token can be made to try it with: {_said(done.stderr)}; run this as root")
        with os.fdopen(os.open(Path(directory) / "pilot", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(done.stdout)
        yield Path(directory)


def _rights(manager: CentralManager, address: str, identity: str, tokens: Path) -> dict[str, bool | None]:
    """Which rights this token has at a collector; None where it could not be tried."""
    with_it = {"_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS"}
    with_it |= {f"_CONDOR_SEC_TOKEN_{which}": str(tokens) for which in ("DIRECTORY", "SYSTEM_DIRECTORY")}
    found: dict[str, bool | None] = {}
    for right in _RIGHTS:
        ping = ["condor_ping", "-pool", address, "-type", "COLLECTOR", "-verbose", right]
        done = manager.condor.call(ping, with_it)
        denied = f'Received "DENIED" from server for user {identity} ' in done.stdout + done.stderr
        found[right] = True if done.returncode == 0 else False if denied else None
    return found


def _said(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]
