"""What the doctor's answers mean: from plain values to findings. Pure.

Thresholds that are no knob of the configuration stand here, each with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.controller import walltimes
from htcebridge.doctor.checks import Finding, Problem, Status, finding
from htcebridge.pilot import ghost, script
from htcebridge.slurm.limits import SlurmLimits, room
from htcebridge.templates import classad_string
from htcebridge.tier1.pool import Negotiation, Tagged
from htcebridge.tier1.slots import Ad
from htcebridge.tier1.tokens import Claims
from htcebridge.units import format_duration, plural

# A new token takes a mail to the Tier-1 and a colleague who is on leave.
TOKEN_SOON_S = 14 * 86400
# The oldest series that the tests run with.
OLDEST_CONDOR = (23, 9)
OLDEST_SLURM = (22, 5)
# A clock kept by NTP is within a second; what is more is found out late by its effects.
CLOCK_WARN_S = 5
# `pressure run` is ended by its watchdog after as long (deploy/systemd), and cron starts every 2 minutes.
CYCLE_FAIL_S = 900
# One may have begun before the pilot was there, one may have been cut short.
CYCLES_OF_AN_IDLE_PILOT = 3
# A pilot's log that young shows that nodes write there.
PILOT_LATELY_S = 7 * 86400
# File systems of one machine. Any other may be a shared one.
LOCAL_FILE_SYSTEMS = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs")
)
_MIN_FREE_MB = 1024


def versions(kind: str, about: str, text: str, oldest: tuple[int, int]) -> Finding:
    """A daemon's or tool's version against the oldest one that is tested."""
    found = re.search(r"(\d+)\.(\d+)(\.\d+)*", text)
    if not found:
        problem = Problem(Status.WARN, f"no version in {text!r}", "")
        return finding("versions", about, "", [problem])
    old = (int(found[1]), int(found[2])) < oldest
    said = f"{kind} {found[0]}"
    wanted = f"{oldest[0]}.{oldest[1]:02d}" if kind == "Slurm" else f"{oldest[0]}.{oldest[1]}"
    problems = [Problem(Status.WARN, f"older than {wanted}, the oldest that is tested", "update it")] if old else []
    return finding("versions", about, said, problems)


def negotiator(condor_versions: Sequence[str]) -> Finding:
    """Whether the pool's negotiators may be shown offline slots (demand_source = "negotiator")."""
    refusal = ghost.refusal(condor_versions)
    if refusal:
        fix = 'until then set pressure.demand_source = "query", which shows the negotiator nothing'
        return Finding("negotiator", "", Status.FAIL, refusal, fix)
    return finding("negotiator", "", "its version may be shown offline slots")


DEPTH_FIRST = "NEGOTIATOR_DEPTH_FIRST"


def negotiation(config: Config, last: Negotiation, depth_first: bool | None) -> Finding:
    """How often a negotiator looks at a pilot, and whether it fills one before the next (None: it did not say)."""
    about = last.name.partition("@")[2] or last.name or "negotiator"
    if not last.period_s:
        said = (
            "the collector does not say how long its cycles take: whether it gives what a plan counts on is not known"
        )
        return finding("negotiator", about, said)
    order = {
        True: f"fills one pilot before the next ({DEPTH_FIRST})",
        False: f"may spread a burst over several pilots ({DEPTH_FIRST} is off)",
        None: f"does not say whether {DEPTH_FIRST} is on",
    }[depth_first]
    needs_s = CYCLES_OF_AN_IDLE_PILOT * last.period_s
    hasty = sorted(
        name
        for name, resource in config.resources.items()
        if resource.executor is None and resource.idle_timeout.total_seconds() < needs_s
    )
    problems = []
    if hasty:
        too_short = f"idle_timeout of {', '.join(hasty)} is shorter than {CYCLES_OF_AN_IDLE_PILOT} of them"
        fix = f"a pilot may leave before a job is given to it: set it to {format_duration(needs_s)} or more"
        problems.append(Problem(Status.WARN, too_short, fix))
    return finding("negotiator", about, f"a cycle every {format_duration(last.period_s)}; it {order}", problems)


def isolation(config: Config, joined: Sequence[Ad]) -> Iterator[Finding]:
    """What keeps jobs from all else that the pilots' account has: as configured, and as the joined pilots say."""
    for name, resource in config.resources.items():
        if resource.executor is not None:
            continue
        said = Counter(
            ad.get("PilotIsolation", "").strip('"') for ad in joined if ad.get("PilotResource") == classad_string(name)
        )
        problems = []
        if resource.isolation == "none":
            weak = "a job can do all that the account can (docs/security.md)"
            problems.append(Problem(Status.WARN, 'isolation = "none"', f"{weak}: remove it"))
        elif said["none"]:
            fix = "their logs say why (htcebridge logs PILOT); with require_isolation = true such a pilot does not join"
            weak = f"jobs are not isolated on {said['none']} of {plural(said.total(), 'joined pilot')}"
            problems.append(Problem(Status.WARN, weak, fix))
        proved = [f"{how} on {plural(said[how], 'joined pilot')}" for how in ("namespaces", "container") if said[how]]
        yield finding("isolation", name, ", ".join(proved) or "no joined pilot has proved any", problems)


def account(config: Config, usable: Collection[tuple[str, str]]) -> Finding:
    """In which (account, QOS) the pilots' user may submit, beside those of the resources: what a job that gets out of
    the isolation, or is in none, could have billed."""
    if not usable:
        fix = "sacctmgr show assoc user=$USER; if there is none, ask the HPC what else this user may submit to"
        return Finding("account", "", Status.SKIP, "not known: Slurm shows no association of this user", fix)
    meant = {(each.account, each.qos) for each in config.resources.values()}
    others = sorted(f"{qos} of {account}" for account, qos in usable if (account, qos) not in meant)
    if not others:
        return finding("account", "", "its user may submit to the QOS of the resources and to no other")
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    said = f"its user may submit to {shown} as well"
    better = "better an account for pilots, with the free QOS alone: docs/security.md, two accounts"
    if any(each.isolation == "none" for each in config.resources.values() if each.executor is None):
        return finding(
            "account", "", "", [Problem(Status.WARN, f"{said}, and so may a job that is not isolated", better)]
        )
    return finding("account", "", f"{said}; {better}")


def clock(whose: str, ahead_s: int, max_skew_s: float) -> Finding:
    """A clock of the Tier-1 against ours: START, tokens and waiting times go by it."""
    if not ahead_s:
        return finding("clock", whose, "agrees with this machine's")
    way = "ahead of" if ahead_s > 0 else "behind"
    said = f"{format_duration(abs(ahead_s))} {way} this machine's clock"
    if abs(ahead_s) <= CLOCK_WARN_S:
        return finding("clock", whose, said)
    status = Status.FAIL if abs(ahead_s) > max_skew_s else Status.WARN
    fix = "whose clock is right? start chrony or ntpd on the other machine: chronyc tracking"
    return Finding("clock", whose, status, said, fix)


@dataclass(frozen=True)
class TokenFile:
    """A token as it lies there. `claims` is None and `error` says why where it is none; `mode` as chmod takes it."""

    path: str
    mode: int
    claims: Claims | None
    error: str = ""


# What implies READ, and what a startd's token may hold instead (HTCondor manual, Security, Authorization).
_IMPLIES = {
    "READ": {"WRITE", "DAEMON", "ADMINISTRATOR", "NEGOTIATOR", "CONFIG"},
    "ADVERTISE_STARTD": {"DAEMON"},
    "ADVERTISE_MASTER": {"DAEMON"},
}
CONTROLLER_NEEDS = ("READ",)
PILOT_NEEDS = ("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER")


def token(about: str, file: TokenFile, needs: Sequence[str], now: float, longest_s: float = 0) -> Finding:
    """One token. `longest_s`: for how long it must live, as the pilots that take it along do."""
    problems = []
    if file.mode & 0o077:
        said = f"open to others (mode {file.mode:04o})"
        problems.append(Problem(Status.FAIL, said, f"chmod 600 {file.path}"))
    if file.claims is None:
        problems.append(Problem(Status.FAIL, file.error, "ask the Tier-1 for an IDTOKEN (README, step 5)"))
        return finding("token", about, file.path, problems)
    claims = file.claims
    renew = f"ask the Tier-1 for a new one: condor_token_create -identity {claims.identity} ... (README, step 5)"
    has = claims.authorizations
    missing = [need for need in needs if has and need not in has and not _IMPLIES[need] & has]
    if missing:
        problems.append(Problem(Status.FAIL, f"does not allow {', '.join(missing)}", renew))
    extra = sorted(has - set(needs) - {"READ"}) if has else ["whatever its identity may do"]
    if extra:
        problems.append(Problem(Status.WARN, f"allows more than it needs: {', '.join(extra)}", renew))
    lives = "does not expire"
    if claims.expires is not None:
        left_s = claims.expires - now
        lives = f"{_about(left_s)} left"
        if left_s <= 0:
            lives = "expired"
            problems.append(Problem(Status.FAIL, f"expired {_about(-left_s)} ago", renew))
        elif left_s < longest_s:
            said = f"expires in {_about(left_s)}, before a pilot of {format_duration(longest_s)} would end"
            problems.append(Problem(Status.FAIL, said, renew))
        elif left_s < TOKEN_SOON_S:
            problems.append(Problem(Status.WARN, f"expires in {_about(left_s)}", renew))
    rights = ", ".join(sorted(has)) or "everything"
    return finding("token", about, f"{claims.identity} of {claims.issuer}: {rights}; {lives}", problems)


def _about(seconds: float) -> str:
    """A duration as a person says it: days from two on, then hours, then minutes."""
    for unit_s, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * unit_s:
            return plural(int(seconds // unit_s), name)
    return plural(int(seconds), "second")


def slurm(name: str, resource: Resource, limits: SlurmLimits, now: int) -> list[Finding]:
    """A resource against Slurm's accounts, limits and walltimes: three lines. `now` in seconds since the epoch."""
    key = f"[resource.{name}]"
    where = f"partition {resource.partition}, account {resource.account}, QOS {resource.qos}"
    fix = f"correct {key}, or ask the HPC: sacctmgr show assoc user=$USER; scontrol show partition"
    problems = [Problem(Status.FAIL, why, fix) for why in limits.refusals]
    if limits.unknown:
        problems.append(Problem(Status.WARN, limits.unknown, "is slurmdbd up? sacctmgr show qos"))
    for each in limits.unread:
        said = f"a limit that is not known here, and cuts nothing: {each}"
        problems.append(Problem(Status.WARN, said, "look whether it is below max_running, and lower that"))
    charged = ""
    if limits.usage_factor is not None:
        charged = "; not charged" if limits.usage_factor == 0 else f"; charged with factor {limits.usage_factor:g}"
    return [
        finding("slurm", name, where + charged, problems),
        _walltime(name, resource, limits, now),
        _room(name, resource, limits),
    ]


def _walltime(name: str, resource: Resource, limits: SlurmLimits, now: int) -> Finding:
    asked_s = int(resource.walltime.total_seconds())
    said = f"{format_duration(asked_s)} asked"
    lasting = replace(limits, maintenances=())
    pilot, passing = (walltimes.new_pilot(name, resource, each, now) for each in (lasting, limits))
    most = format_duration(limits.max_wall_s) if limits.max_wall_s is not None else ""
    if pilot.cut:
        fix = f'set walltime = "{most}" in [resource.{name}]'
        what = "no pilot can start" if pilot.too_short else "pilots are cut to that"
        status = Status.FAIL if pilot.too_short else Status.WARN
        return Finding("walltime", name, status, f"{said} and {limits.max_wall_of} is {most}: {what}", fix)
    allowed = f"{said}; {limits.max_wall_of} is {most}" if most else f"{said}, no limit known"
    if passing.cut:
        fix = "nothing to do: it passes; scontrol show reservation"
        return Finding("walltime", name, Status.WARN, f"{allowed}; {passing.cut}", fix)
    return finding("walltime", name, allowed)


def _room(name: str, resource: Resource, limits: SlurmLimits) -> Finding:
    """What Slurm would let run at a time, with nothing there, against what the configuration wants."""
    caps = [cap for cap in room(limits, (), script.asks(resource)) if cap.why not in limits.refusals]
    said = f"max_running {resource.max_running}"
    tight = min(caps, key=lambda cap: cap.pilots, default=None)
    fix = f"correct [resource.{name}], or ask the HPC to raise it"
    if tight is not None and tight.pilots == 0:
        return Finding("limits", name, Status.FAIL, f"no pilot would fit: {tight.why}", fix)
    if tight is not None and tight.pilots < resource.max_running:
        return finding("limits", name, f"{said}, and Slurm takes {plural(tight.pilots, 'pilot')}: {tight.why}")
    return finding("limits", name, f"{said}; no limit of Slurm's is below it")


@dataclass(frozen=True)
class DirectoryFacts:
    """A directory of the shared file system, seen from here. `error` is why it could not be written.

    `above`: the directory above is there. `newest_log_s` is the age of the newest log of a pilot in it; `free_mb` MiB.
    """

    path: str
    exists: bool
    above: bool
    error: str = ""
    file_system: str = ""
    free_mb: int | None = None
    newest_log_s: float | None = None
    stop: str | None = None


def directory(about: str, key: str, facts: DirectoryFacts, shared: bool = True) -> Finding:
    """A directory of the pilots too (`shared`), or of the controller alone. `key` is its name in the configuration."""
    problems = []
    on = f"{facts.path} on {facts.file_system}" if facts.file_system else facts.path
    if not facts.exists and not facts.above:
        fix = f"is the file system mounted? mount it, or set {key}"
        return Finding("directory", about, Status.FAIL, f"{facts.path}: the directory above it is not there", fix)
    if facts.error:
        fix = f"make it writable for you, free space, or set {key}"
        return Finding("directory", about, Status.FAIL, f"{on}: cannot be written: {facts.error}", fix)
    if facts.free_mb is not None and facts.free_mb < _MIN_FREE_MB:
        problems.append(Problem(Status.WARN, f"{facts.free_mb} MiB free", "remove what is old there"))
    seen = facts.newest_log_s is not None and facts.newest_log_s < PILOT_LATELY_S
    if shared and not seen and facts.file_system in LOCAL_FILE_SYSTEMS:
        said = (
            f"{facts.file_system} is this machine's own file system as far as is known, and no pilot wrote there lately"
        )
        problems.append(Problem(Status.WARN, said, f"try it from a node: htcebridge doctor --from-node; or set {key}"))
    wrote = f"; a pilot wrote there {_about(facts.newest_log_s)} ago" if seen and facts.newest_log_s is not None else ""
    new = "" if facts.exists else "; the first cycle makes it"
    return finding("directory", about, f"{on}, writable here{wrote}{new}", problems)


def kill_switch(stop: str | None) -> Finding:
    """Whether anything may run at all."""
    if stop is None:
        return finding("stop", "", "the kill switch is off")
    return Finding("stop", "", Status.WARN, f"stopped: {stop}", "htcebridge pressure resume")


def cycle(looked: int, now: float, interval_s: float, who: str) -> Finding:
    """How long ago a cycle looked at Slurm last. `who` holds the lock, "" if nobody does."""
    at_work = f"the lock: {who}" if who else "nobody holds the lock"
    start = "start it as docs/running.md says, or try one: htcebridge pressure once"
    if not looked:
        return Finding("cycle", "", Status.WARN, f"there was none yet; {at_work}", start)
    age_s = now - looked
    said = f"the last one was {_about(max(0, age_s))} ago, the interval is {format_duration(interval_s)}; {at_work}"
    fix = (
        f"it hangs? see its log, end it (kill {who.split()[1]}) and start it again" if who.startswith("pid ") else start
    )
    if age_s < -CLOCK_WARN_S:
        return Finding("cycle", "", Status.WARN, f"the last one was {_about(-age_s)} in the future", "see clock")
    if age_s > max(CYCLE_FAIL_S, 10 * interval_s):
        return Finding("cycle", "", Status.FAIL, said, fix)
    if age_s > 3 * interval_s + 60:
        return Finding("cycle", "", Status.WARN, said, fix)
    return finding("cycle", "", said)


def unit(states: Mapping[str, str], who: str, missing: str = "") -> Finding:
    """systemd's units of ours: name ("--user NAME" for the user's own) -> what `systemctl is-active` says.

    `missing` is why it cannot be asked; `who` holds the lock.
    """
    active = [name for name, state in states.items() if state == "active"]
    broken = {name: state for name, state in states.items() if state in ("failed", "activating", "deactivating")}
    kinds = {name.split("htcebridge")[1][:5] == "-once" for name in active}
    for name, state in broken.items():
        if state == "failed":
            fix = f"journalctl {_unit_option(name)} -n 50; then systemctl reset-failed and start {name}"
            return Finding("unit", "", Status.FAIL, f"{name} has failed", fix)
    if active:
        both = [Problem(Status.WARN, "service and timer are both active", "stop one: docs/running.md")]
        return finding("unit", "", f"{', '.join(active)}: active", both if len(kinds) > 1 else [])
    for name, state in broken.items():
        if who:
            return finding("unit", "", f"{name} waits for the lock: {who}")
        return Finding("unit", "", Status.WARN, f"{name} is {state}", f"journalctl {_unit_option(name)} -n 50")
    if who:
        return finding("unit", "", f"no unit is active; a controller runs without one: {who}")
    if missing:
        return Finding("unit", "", Status.SKIP, f"not checked: {missing}", "see cycle; docs/running.md has other ways")
    fix = "start it as docs/running.md says; with cron or a timer elsewhere, see cycle"
    return Finding("unit", "", Status.WARN, "no unit of htcebridge is active, and no controller runs", fix)


def _unit_option(name: str) -> str:
    return name.replace("--user ", "--user -u ") if name.startswith("--user ") else f"-u {name}"


def routes(config: Config, tags: Iterable[Tagged], asked: int) -> list[Finding]:
    """What the CEs' routes put into jobs against the controller's grant, as far as jobs in the schedds show it.

    `asked` schedds have answered. A route by another name than ours, and no job at all, show nothing.
    """
    grant = config.grant
    known_values = {grant.value, *(site.value for site in config.sites)}
    known_vos = {vo.name.lower() for vo in config.vos}
    ours, others, untagged, vos = 0, Counter[str](), 0, Counter[str]()
    for tag in tags:
        if tag.value is None:
            untagged += tag.jobs
            continue
        if tag.value in known_values:
            ours += tag.jobs if tag.value == grant.value else 0
            if tag.value == grant.value and (tag.vo or "").lower() not in known_vos:
                vos[tag.vo or "none"] += tag.jobs
        else:
            others[tag.value] += tag.jobs
    said = f"{plural(ours, 'job')} with {grant.attribute} = {grant.value!r} in {plural(asked, 'schedd')}"
    same = "compare [grant] and [[vo]] with the CE's htcebridge.toml; there: htcebridge routes status"
    problems = []
    if untagged:
        text = f"{plural(untagged, 'job')} came over a route of ours without {grant.attribute}: another name there?"
        problems.append(Problem(Status.WARN, text, same))
    if others and not ours:
        text = ", ".join(f"{value!r} ({jobs})" for value, jobs in others.most_common(5))
        problems.append(Problem(Status.WARN, f"no job has our grant, others have {text}", same))
    if vos and config.vos:
        text = ", ".join(f"{vo!r} ({jobs})" for vo, jobs in vos.most_common(5))
        problems.append(Problem(Status.WARN, f"granted jobs of VOs that the configuration does not know: {text}", same))
    if not problems and not ours:
        said = f"not checked: no granted job in {plural(asked, 'schedd')} now"
        return [
            Finding("routes", "", Status.SKIP, said, "look again when jobs wait; on the CE: htcebridge routes status")
        ]
    return [finding("routes", "", said, problems)]
