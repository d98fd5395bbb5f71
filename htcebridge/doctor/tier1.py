"""The doctor's questions to the Tier-1: tokens, collector, clocks, schedds, the routes' grant."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from htcebridge.config.paths import EdgePath
from htcebridge.config.tables import Config
from htcebridge.doctor import judge
from htcebridge.doctor.checks import Check, Finding, Problem, Status, finding
from htcebridge.doctor.judge import TokenFile
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.pilot import advertise
from htcebridge.state.memory import recall
from htcebridge.tier1 import pool as tier1_pool
from htcebridge.tier1 import tokens
from htcebridge.tier1.pool import Negotiation, Schedd, Tagged

_CONNECT_S = 5.0


def checks(config: Config, now: float, timeout_s: float) -> list[Check]:
    """What is asked of the Tier-1. `timeout_s` bounds one answer."""
    each_s = min(timeout_s, config.tier1.timeout.total_seconds())
    deadline_s = 2 * each_s + _CONNECT_S + 2
    found = [
        Check("token", "controller", partial(_controllers_tokens, config, now), timeout_s),
        Check("clock", "", partial(_collector, config, each_s), deadline_s),
        Check("schedd", "", partial(_schedds, config, each_s, int(now)), deadline_s),
    ]
    files: dict[EdgePath, list[str]] = {}
    for name, resource in config.resources.items():
        if resource.executor is None:
            files.setdefault(resource.token_file, []).append(name)
    for file, names in files.items():
        whose = "pilot" if len(files) == 1 else f"pilot {', '.join(names)}"
        found.append(Check("token", whose, partial(_pilots_token, config, file, whose, names, now), timeout_s))
        found.append(Check("advertise", whose, partial(_advertise, config, file, whose, each_s), deadline_s + each_s))
    return found


def _controllers_tokens(config: Config, now: float) -> Iterator[Finding]:
    directory = config.tier1.token_directory.path
    try:
        paths = [path for path in sorted(directory.iterdir()) if path.is_file()]
    except OSError as error:
        said, fix = (
            f"{directory}: {(error.strerror or str(error)).lower()}",
            "make it (mode 0700), or set tier1.token_directory",
        )
        yield Finding("token", "controller", Status.FAIL, said, fix)
        return
    if not paths:
        fix = f"ask the Tier-1 for an IDTOKEN that allows READ, and put it there: install -m 600 TOKEN {directory}"
        yield Finding("token", "controller", Status.FAIL, f"{directory}: no token in it", fix)
    for path in paths:
        about = "controller" if len(paths) == 1 else f"controller {path.name}"
        yield judge.token(about, _token_file(path), judge.CONTROLLER_NEEDS, now)


def _pilots_token(config: Config, file: EdgePath, about: str, names: list[str], now: float) -> Iterator[Finding]:
    longest_s = max(config.resources[name].walltime.total_seconds() for name in names)
    path = file.path
    if not path.exists() and any(config.resources[name].token_command for name in names):
        yield finding("token", about, "none is there: token_command makes one when a pilot is submitted")
        return
    yield judge.token(about, _token_file(path), judge.PILOT_NEEDS, now, longest_s)


def _token_file(path: Path) -> TokenFile:
    """A token's own account of itself; its text goes no further."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        return TokenFile(str(path), mode, tokens.claims_of(path))
    except OSError as error:
        return TokenFile(str(path), 0o600, None, f"{path}: {(error.strerror or str(error)).lower()}")
    except ConfigError as error:
        return TokenFile(str(path), mode, None, str(error))


def _collector(config: Config, timeout_s: float) -> Iterator[Finding]:
    pool = replace(tier1_pool.pool_of(config), timeout_s=timeout_s)
    try:
        tokens.check_directory(pool.token_directory)
        said = tier1_pool.read_collector(pool)
    except ConfigError as error:
        yield Finding("clock", "collector", Status.SKIP, f"not checked: {error}", "see token")
        return
    except BridgeError:
        # The line "collector" says why.
        yield Finding("clock", "collector", Status.SKIP, "not checked: the collector does not answer", "see collector")
        return
    yield judge.clock("collector", said.ahead_s, config.pilot.max_clock_skew.total_seconds())
    yield judge.versions("HTCondor", "collector", said.version, judge.OLDEST_CONDOR)


def _advertise(config: Config, file: EdgePath, about: str, timeout_s: float) -> Iterator[Finding]:
    """Whether the pool lets the pilots' token in, and only where it should.

    It asks for the ads to be taken away for which `false` holds.
    """
    bounded = config.tier1.model_copy(update={"timeout": timedelta(seconds=timeout_s)})
    own, pools = (
        config.model_copy(update={"tier1": bounded.model_copy(update={"pilot_collector": where})})
        for where in (config.tier1.pilot_collector, None)
    )
    try:
        advertise.send(own, file, [], "false", masters_too=True)
    except ConfigError as error:
        yield Finding("advertise", about, Status.SKIP, f"not checked: {error}", "see token")
    except BridgeError as error:
        fix = (
            "have the pilots a collector of their own there (htcebridge pool), and is tier1.pilot_collector set? Else, "
            "on the central manager: is the token's identity in ALLOW_ADVERTISE_STARTD and ALLOW_ADVERTISE_MASTER, and "
            "its signing key still there? condor_reconfig after a change"
        )
        if _answers(config, timeout_s):
            yield Finding("advertise", about, Status.FAIL, str(error), fix)
        else:
            said = "not checked: the collector does not answer"
            yield Finding("advertise", about, Status.SKIP, said, "see collector")
    else:
        said = f"{config.tier1.joined} lets a startd and a master with this token in"
        problems = []
        if config.tier1.pilot_collector:
            with suppress(BridgeError):
                advertise.send(pools, file, [], "false")
                wrong = f"{config.tier1.collector} takes it as well: who has it can take any startd's ad away"
                fix = "on the central manager: htcebridge pool install, when the last pilot that joined there has ended"
                problems.append(Problem(Status.WARN, wrong, fix))
        yield finding("advertise", about, said, problems)


def _answers(config: Config, timeout_s: float) -> bool:
    """Whether the collector answers the controller."""
    try:
        tier1_pool.read_collector(replace(tier1_pool.pool_of(config), timeout_s=timeout_s))
    except BridgeError:
        return False
    return True


def _schedds(config: Config, timeout_s: float, now: int) -> Iterator[Finding]:
    """The collector, then each schedd that it has or lately had, all at the same time, and what their jobs show."""
    pool = replace(tier1_pool.pool_of(config), timeout_s=timeout_s)
    where = config.tier1.collector
    try:
        view = tier1_pool.read_pool(pool, config.pressure.instance, config.grant.vo_attribute)
    except ConfigError as error:
        yield Finding("collector", where, Status.SKIP, f"not checked: {error}", "see token")
        return
    except BridgeError as error:
        yield Finding(
            "collector", where, Status.FAIL, *_why_silent(where, str(error), "condor_collector", pool.token_directory)
        )
        return
    pilots = len({startd.pilot_id for startd in view.startds})
    answered = sum(1 for schedd in view.schedds if schedd.address)
    yield finding("collector", where, f"READ allowed; it knows {answered} of our schedds, {pilots} of our pilots")
    yield from judge.isolation(config, [view.kinds[startd.kind] for startd in view.startds])
    if config.pressure.demand_source == "negotiator":
        yield judge.negotiator([each.version for each in view.negotiators])
    schedds = tier1_pool.with_absent(config, view.schedds, now, recall(config).schedds.known)
    with ThreadPoolExecutor(max_workers=len(schedds) + len(view.negotiators)) as threads:
        negotiations = threads.map(lambda each: _negotiation(config, pool, each), view.negotiators)
        answers = list(threads.map(lambda schedd: _ask(config, pool, schedd), schedds))
        yield from negotiations
    for lines, _ in answers:
        yield from lines
    tags = [tag for _, found in answers if found is not None for tag in found]
    asked = sum(1 for _, found in answers if found is not None)
    if asked:
        yield from judge.routes(config, tags, asked)


def _negotiation(config: Config, pool: tier1_pool.Pool, negotiator: Negotiation) -> Finding:
    """What the plan assumes of a negotiator. One that answers nobody is no fault: its ad has its cycles."""
    depth_first = None
    with suppress(BridgeError):
        settings = tier1_pool.read_settings(pool, negotiator.address, negotiator.version, [judge.DEPTH_FIRST])
        depth_first = settings.get(judge.DEPTH_FIRST, "false").strip().lower() in ("true", "1", "t", "yes")
    return judge.negotiation(config, negotiator, depth_first)


def _ask(config: Config, pool: tier1_pool.Pool, schedd: Schedd) -> tuple[list[Finding], list[Tagged] | None]:
    if not schedd.address:
        said = "not in the collector: is it down?"
        fix = "start its condor_schedd; or, if it is gone for good, see tier1.remember_schedds and tier1.schedds"
        return [Finding("schedd", schedd.name, Status.FAIL, said, fix)], None
    try:
        tags, ahead_s = tier1_pool.read_tagged(pool, schedd, config.grant.attribute, config.grant.vo_attribute)
    except BridgeError as error:
        said, fix = _why_silent(_host_port(schedd), str(error), "condor_schedd", pool.token_directory)
        return [Finding("schedd", schedd.name, Status.FAIL, said, fix)], None
    version = judge.versions("HTCondor", schedd.name, schedd.version, judge.OLDEST_CONDOR)
    jobs = sum(tag.jobs for tag in tags if tag.value == config.grant.value)
    lines = [finding("schedd", schedd.name, f"READ allowed; {version.said}; {jobs} granted jobs")]
    if version.status is not Status.OK:
        lines.append(version)
    if ahead_s is not None and abs(ahead_s) > 2:
        lines.append(judge.clock(schedd.name, ahead_s, config.pilot.max_clock_skew.total_seconds()))
    return lines, tags


def _host_port(schedd: Schedd) -> str:
    """ "<192.0.2.1:9618?...>" -> "192.0.2.1:9618"."""
    return schedd.address.strip("<>").partition("?")[0]


def _why_silent(where: str, error: str, daemon: str, tokens: Path) -> tuple[str, str]:
    """What is wrong and what to do: the network's own answer tells a closed port from a refused query."""
    if "has no schedd" in error:  # it answered (tier1.read_pool)
        return error, "is a condor_schedd up, and does tier1.schedd_constraint accept it? condor_status -schedd"
    network = unreachable(where)
    if network:
        return f"{where}: {network}", f"is {daemon} up there, and does the firewall let this machine through to it?"
    fix = (
        f"something listens there: is {daemon} itself up and not hanging (see its log), and does a token in {tokens} "
        "allow READ there (ALLOW_READ, its signing key)?"
    )
    return f"{where}: {error}", fix


def unreachable(where: str) -> str:
    """Why no TCP connection to "host:port" can be made, "" if it can."""
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        host, port = where, "9618"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return ""
    except socket.gaierror:
        return f"the name {host} is not known here"
    except TimeoutError:
        return f"no answer to a TCP connection in {_CONNECT_S:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
