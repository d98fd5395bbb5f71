"""Demand as the Tier-1's own negotiator sees it: `pressure.demand_source = "negotiator"`.

Per resource one offline partitionable slot, a ghost, is advertised: what a fresh pilot would advertise. Into it the
negotiator writes, cycle by cycle, which autoclusters would start there: quotas, START, Requirements and limits are its
own (RegisterAttemptedOfflineMatch in matchmaker.cpp, HTCondor 10.3 and later; undocumented). No job ever runs there:
an offline slot is not claimed. `ghost_view` says what can be concluded from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from htcebridge.config.paths import EdgePath
from htcebridge.config.tables import Config
from htcebridge.model import Track
from htcebridge.pilot import ghost_view
from htcebridge.pilot.advertise import send
from htcebridge.pilot.ghost_view import Answer, GhostView
from htcebridge.pilot.script import site_domain
from htcebridge.templates import classad_string
from htcebridge.tier1 import pool

# WantAdRevaluate and GhostMultiplier belong together: with one of them alone the first autocluster takes the ghost and
# no other is written down. The multiplier bounds the matches of a cycle, and SlotWeight (1) times it is added to the
# pool when dynamic group quotas are shared out: hundreds, not thousands, and the Tier-1 admins' consent.
_MULTIPLIER = 500
# By NEGOTIATOR_PRE_JOB_RANK's default (10000000 * My.Rank - 100000 * Cpus ...) an emptier real slot would come after
# the ghost, and a job alone in its autocluster goes to the ghost in every cycle and never runs (measured: 23.9, 25.14).
_LAST = -1000000
# The collector looks for expired ads every CLASSAD_LIFETIME (900 s): GhostUntil ends the matching in time.
_MIN_LIFETIME_S = 300
# A negotiator that has ended no cycle for so long is down; its ad is renewed every NEGOTIATOR_UPDATE_INTERVAL (300 s).
_SILENT_S = 900
_DEFAULT_PERIOD_S = 60


# A match with an offline ad crashes these negotiators, first and last of each (HTCONDOR-2819).
_CRASHES = (((23, 10, 1), (23, 10, 29)), ((24, 0, 1), (24, 0, 3)), ((24, 1, 1), (24, 3, 0)))


def refusal(condor_versions: Sequence[str]) -> str:
    """Why no negotiator of these versions (CondorVersion of each one's ad) may be shown a ghost; "" if all may.

    One that cannot be seen, or does not say what it is, may be any.
    """
    setting = 'demand_source = "negotiator"'
    if not condor_versions:
        return f"{setting}: the collector shows no negotiator, whose version must be known; it is not asked"
    for text in condor_versions:
        found = re.search(r"\$CondorVersion: (\d+)\.(\d+)\.(\d+)\b", text)
        if not found:
            return f"{setting}: the negotiator's ad does not say its version; it is not asked"
        version = (int(found[1]), int(found[2]), int(found[3]))
        if any(first <= version <= last for first, last in _CRASHES):
            return (
                f"{setting}: HTCondor {'.'.join(found.groups())} of the Tier-1's negotiator crashes when it matches an "
                "offline slot (HTCONDOR-2819); it is not asked. Update it: 24.0.4, 24.4.0 and later do not"
            )
    return ""


def advertise(config: Config, ads: Mapping[str, str], seen: Iterable[pool.Ghost], now: int) -> None:
    """Advertise a ghost for each resource in demand mode: the missing, the changed, and those that grow old.

    `ads` are the slots of new pilots by resource, as ClassAd text (`script.template_ad`). `seen` are the ghosts of
    `tier1.pool.read_pool`; those of no such resource are taken away. Uses the pilots' token, the controller's own may
    only read. Raises ConfigError for a bad token, UnknownState if the collector does not take them.
    """
    there = {ghost.resource: ghost for ghost in seen}
    wanted = _resources(config)
    due = [name for name in wanted if not _fresh(config, ads[name], there.get(name), now)]
    stray = [name for name in there if name not in wanted]
    if stray:
        named = " || ".join(f"PilotResource =?= {classad_string(name)}" for name in stray)
        send(config, _any_token(config), [], f"{_ours(config)} && ({named})")
    for token in sorted({config.resources[name].token_file for name in due}):
        sent = [ad_text(config, name, ads[name], now) for name in due if config.resources[name].token_file == token]
        send(config, token, sent, "")


def withdraw(config: Config) -> None:
    """Take all ghosts of this instance out of the collector. Raises ConfigError for a bad token, UnknownState."""
    if config.resources:
        send(config, _any_token(config), [], _ours(config))


def read(
    config: Config,
    view: pool.PoolView,
    groups: Sequence[pool.ScheddGroups],
    memory: Mapping[str, Track],
    ads: Mapping[str, str],
    now: int,
) -> tuple[GhostView, dict[str, Track]]:
    """What the negotiator has said lately, and what to remember for the next cycle (by resource). Asks nobody.

    `view` and `groups` are of this cycle, `groups` with `refused_since` the start of the window (`window_s`):
    autocluster ids are renumbered now and then, so they are resolved at once.
    """
    window = window_s(config, view)
    alive = any(now - each.ended <= max(_SILENT_S, 5 * each.period_s) for each in view.negotiators)
    there = {ghost.resource: ghost for ghost in view.ghosts}
    present = [group.key for answered in groups for group in answered.groups]
    tracks: dict[str, Track] = {}
    answers: dict[str, Answer] = {}
    for name in _resources(config):
        ghost = there.get(name)
        if ghost is None or ghost.digest != digest(ads[name]):
            answers[name] = Answer()
            continue
        jobs = ghost_view.resolved(ghost, view.schedds, groups)
        tracks[name] = ghost_view.follow(memory.get(name), ghost, jobs, present, now, window)
        answers[name] = ghost_view.answer(tracks[name], now, window, alive)
    refused = frozenset(group.key for answered in groups for group in answered.groups if group.refused)
    return GhostView(window, answers, refused), tracks


def window_s(config: Config, view: pool.PoolView) -> int:
    """The time after which the negotiator has certainly tried what waits, and we have looked: three cycles of each."""
    period_s = max((each.period_s for each in view.negotiators), default=0) or _DEFAULT_PERIOD_S
    return 3 * max(period_s, config.pressure.cycle_s)


def ad_text(config: Config, name: str, template: str, now: int) -> str:
    """A resource's ghost as ClassAd text: its pilots' template ad, offline, with a name that shows what it is."""
    lifetime_s = _lifetime_s(config)
    slot = f"ghost-{name}@{config.pressure.instance}.{site_domain(config)}"
    values: dict[str, object] = {
        "MyType": "Machine",
        "Name": slot,
        # Else the negotiator notes each match in a slot1 that it makes up as well.
        "OfflinePrimarySlotName": slot,
        "Machine": slot.partition("@")[2],
        # Both protocols: a schedd that speaks only one is not matched with a slot of the other.
        "MyAddress": "<127.0.0.1:9?addrs=127.0.0.1-9+[--1]-9>",
        "StartdIpAddr": "<127.0.0.1:9?addrs=127.0.0.1-9+[--1]-9>",
        "State": "Unclaimed",
        "Activity": "Idle",
        # Of a slot 1 without a startd the collector makes up the startd's own ad too.
        "SlotID": 2,
        "Rank": _LAST,
        "SlotWeight": 1,
        "Offline": True,
        "WantAdRevaluate": True,
        "GhostMultiplier": _MULTIPLIER,
        "IsGhost": True,
        "GhostDigest": digest(template),
        "GhostSent": now,
        "GhostUntil": now + lifetime_s,
        "ClassAdLifetime": lifetime_s,
    }
    lines = " ".join(f"{key} = {classad_string(value)};" for key, value in values.items())
    requirements = "Requirements = Start && WithinResourceLimits && (time() < GhostUntil);"
    return f"{template.removesuffix(' ]')} {lines} {requirements} ]"


def digest(template: str) -> str:
    """Of all that the negotiator judges a ghost by."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def _resources(config: Config) -> list[str]:
    return [name for name, resource in config.resources.items() if resource.mode == "demand"]


def _lifetime_s(config: Config) -> int:
    return max(_MIN_LIFETIME_S, 5 * config.pressure.cycle_s)


def _fresh(config: Config, template: str, ghost: pool.Ghost | None, now: int) -> bool:
    """Whether it is there as it should be. Renewing it takes the negotiator's notes away, so not every cycle."""
    if ghost is None or ghost.digest != digest(template):
        return False
    return 0 <= now - ghost.sent <= _lifetime_s(config) // 3


def _ours(config: Config) -> str:
    return f"IsGhost =?= true && PilotInstance =?= {classad_string(config.pressure.instance)}"


def _any_token(config: Config) -> EdgePath:
    return next(iter(config.resources.values())).token_file
