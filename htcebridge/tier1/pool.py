"""Reads the Tier-1's HTCondor: the demand of its schedds, the pilots that have joined.

Every daemon is asked by a child process of its own. The bindings hold Python's interpreter lock during a query
(htcondor 25.14) and cannot be interrupted, so a thread would let one hanging schedd stop everybody; a child is
killed at its deadline, and its memory goes with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from htcebridge import calls
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.model import Shape, Startd
from htcebridge.tier1 import slots, tokens

# Neither this machine's configuration nor ~/.condor/user_config, which an empty file would let in.
CONDOR_CONFIG = Path(__file__).with_name("condor_config")


@dataclass(frozen=True)
class Pool:
    """Where the Tier-1 is and how it is read. `timeout_s` is each daemon's own deadline."""

    collector: str
    token_directory: Path
    schedds: tuple[str, ...] = ()
    schedd_constraint: str = "true"
    timeout_s: float = 20.0


def pool_of(config: Config) -> Pool:
    """The Tier-1 as the configuration names it. Raises ConfigError."""
    return Pool(
        collector=config.tier1.collector,
        token_directory=config.tier1.token_directory.path,
        schedds=config.tier1.schedds,
        schedd_constraint=config.tier1.schedd_constraint,
        timeout_s=config.tier1.timeout.total_seconds(),
    )


@dataclass(frozen=True)
class Tag:
    """How a granted job is known, and which of its attributes say how long it runs (see `Demand.walltime`)."""

    attribute: str
    value: str
    vo_attribute: str
    walltime: tuple[str, ...]
    provenance: str | None = None

    @property
    def walltime_attributes(self) -> tuple[str, ...]:
        return tuple(expression.partition(" ")[0] for expression in self.walltime)


def tag_of(config: Config) -> Tag:
    """How a granted job is known, as the configuration says."""
    grant = config.grant
    return Tag(grant.attribute, grant.value, grant.vo_attribute, config.demand.walltime, grant.provenance)


@dataclass(frozen=True)
class Schedd:
    """A schedd's ad, as far as it is needed to ask it."""

    name: str
    address: str
    version: str


@dataclass(frozen=True)
class Matches:
    """`jobs` idle jobs of one autocluster of the schedd at `address` that the negotiator would start on a slot."""

    address: str
    autocluster: int
    jobs: int


@dataclass(frozen=True)
class Ghost:
    """An offline slot of ours and what the negotiator wrote into it. Times in seconds since the epoch, 0: never.

    `sent` is by the clock of whoever advertised it, `matched` (the last time that it was written into) by the
    negotiator's.
    """

    resource: str
    digest: str
    sent: int
    matched: int
    matches: tuple[Matches, ...] = ()


@dataclass(frozen=True)
class Negotiation:
    """A negotiator's last cycle: when it ended (seconds since the epoch), and the longest time from one to the next.

    `version` is its CondorVersion, `name` and `address` its own; "" where its ad has none.
    """

    ended: int
    period_s: int
    version: str = ""
    name: str = ""
    address: str = ""


@dataclass(frozen=True)
class PoolView:
    """What the collector knows of us: the schedds to ask, the startds of this controller's pilots, its ghosts.

    `kinds`: `Startd.kind` -> what the slots of this kind advertise.
    """

    schedds: tuple[Schedd, ...]
    startds: tuple[Startd, ...]
    ghosts: tuple[Ghost, ...] = ()
    negotiators: tuple[Negotiation, ...] = ()
    kinds: Mapping[str, slots.Ad] = field(default_factory=dict)


@dataclass(frozen=True)
class JobGroup:
    """Tagged jobs of one schedd that are equal in all that matters. `ad` is their part of a job ad, as ClassAd text.

    `key` is the same for the same jobs at another time or in another schedd. `oldest_qdate` is when the first of the
    idle ones was queued (seconds since the epoch), None if it just left. `refused`: the negotiator tried these lately
    and turned some away, for whatever reason; `rejected`: because nothing was free for them. Both are None where
    nobody asked, or where it cannot have seen them yet. `autoclusters` is this moment's AutoClusterId -> idle jobs.
    """

    ad: str
    owner: str
    vo: str
    idle: int
    running: int
    oldest_qdate: int | None
    key: str = ""
    refused: bool | None = None
    rejected: bool | None = None
    autoclusters: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheddGroups:
    """One schedd's answer; `error` is None where it answered.

    `qdates` is when the first job of each group was queued ("cluster.proc" -> seconds since the epoch): handed to the
    next `read_demand`, it saves the question. `age_s`: it did not answer, and these groups are what it said then.
    """

    schedd: str
    seconds: float
    groups: tuple[JobGroup, ...] = ()
    error: str | None = None
    qdates: Mapping[str, int] = field(default_factory=dict)
    age_s: int | None = None


def read_pool(pool: Pool, instance: str, vo_attribute: str = "OpportunisticVO") -> PoolView:
    """Ask the collector, once, for the schedds, this instance's startds and ghosts, and the negotiator's last cycle.

    `vo_attribute` is the job attribute by which the startds list who is busy on them (grant.vo_attribute).

    Raises ConfigError for a bad token directory, UnknownState if the collector does not answer or knows no schedd.
    """
    tokens.check_directory(pool.token_directory)
    request = {
        "ask": "pool",
        "collector": pool.collector,
        "schedds": pool.schedds,
        "constraint": pool.schedd_constraint,
        "instance": instance,
        "vo_attribute": vo_attribute,
    }
    try:
        answer = ask(pool, request)
    except BridgeError as error:
        raise UnknownState(
            f"collector {pool.collector}: {error}; is it up, is the port open from here, and does a token in "
            f"{pool.token_directory} allow READ there?"
        ) from None
    schedds = tuple(Schedd(**row) for row in answer["schedds"])
    missing = set(pool.schedds) - {schedd.name for schedd in schedds}
    # A schedd that is configured but not in the collector is down or misspelt: unknown, not empty.
    schedds += tuple(Schedd(name, "", "") for name in sorted(missing))
    if not schedds:
        raise UnknownState(
            f"collector {pool.collector} has no schedd that schedd_constraint ({pool.schedd_constraint}) accepts"
        )
    return PoolView(
        schedds=schedds,
        startds=tuple(_startd(row) for row in answer["startds"]),
        ghosts=tuple(_ghost(row) for row in answer["ghosts"]),
        negotiators=tuple(Negotiation(**row) for row in answer["negotiators"]),
        kinds=answer["kinds"],
    )


Qdates = Mapping[str, Mapping[str, int]]
"""Schedd -> "cluster.proc" -> when that job was queued, seconds since the epoch."""


def read_demand(
    pool: Pool, schedds: Sequence[Schedd], tag: Tag, known: Qdates | None = None, refused_since: int | None = None
) -> list[ScheddGroups]:
    """Ask every schedd at the same time, each with its own deadline. A failure is that schedd's `error`.

    A schedd walks its jobs once; once more for those that have not been negotiated for yet, and once for what is new
    since `known`, the `qdates` of the last call: the first job of a new group. `refused_since` (seconds since the
    epoch) asks one more: what the negotiator turned away since then.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(schedds))) as threads:
        return list(
            threads.map(
                lambda schedd: _read_schedd(pool, schedd, tag, (known or {}).get(schedd.name, {}), refused_since),
                schedds,
            )
        )


def qdates(answers: Sequence[ScheddGroups]) -> dict[str, dict[str, int]]:
    """What to hand to the next `read_demand`: JSON-able, and no larger than the groups of these answers."""
    return {answer.schedd: dict(answer.qdates) for answer in answers if answer.qdates}


def _read_schedd(
    pool: Pool, schedd: Schedd, tag: Tag, known: Mapping[str, int], refused_since: int | None
) -> ScheddGroups:
    started = time.monotonic()
    if not schedd.address:
        return ScheddGroups(schedd.name, 0.0, error="not in the collector: is it down?", qdates=known)
    request = demand_request(schedd, tag, known, refused_since)
    try:
        answer = ask(pool, request)
    except BridgeError as error:
        return ScheddGroups(schedd.name, time.monotonic() - started, error=str(error), qdates=known)
    groups = tuple(_job_group(row) for row in answer["groups"])
    return ScheddGroups(schedd.name, time.monotonic() - started, groups, qdates=answer["qdates"])


def demand_request(
    schedd: Schedd, tag: Tag, known: Mapping[str, int] | None = None, refused_since: int | None = None
) -> dict[str, Any]:
    """The question for one schedd's groups, as `ask` takes it; see `read_demand`."""
    return {
        "ask": "demand",
        "name": schedd.name,
        "address": schedd.address,
        "version": schedd.version,
        "attribute": tag.attribute,
        "value": tag.value,
        "vo_attribute": tag.vo_attribute,
        "walltime": tag.walltime_attributes,
        "provenance": tag.provenance,
        "known": dict(known or {}),
        "refused_since": refused_since,
    }


def with_absent(config: Config, schedds: Sequence[Schedd], now: int, known: Mapping[str, int]) -> tuple[Schedd, ...]:
    """These schedds and the ones that the collector knew lately (name -> when): their jobs are unknown, not gone."""
    there = {schedd.name for schedd in schedds}
    oldest = now - config.tier1.remember_schedds.total_seconds()
    absent = () if config.tier1.schedds else (name for name, seen in known.items() if seen >= oldest)
    return (*schedds, *(Schedd(name, "", "") for name in sorted(absent) if name not in there))


@dataclass(frozen=True)
class CollectorSelf:
    """What the collector says of itself. `ahead_s`: its clock less ours, 0 within 2 s."""

    name: str
    version: str
    ahead_s: int


def read_collector(pool: Pool) -> CollectorSelf:
    """Ask the collector for its version and its time. Raises BridgeError."""
    return CollectorSelf(**ask(pool, {"ask": "collector", "collector": pool.collector}))


def read_settings(pool: Pool, address: str, version: str, names: Sequence[str]) -> dict[str, str]:
    """What a daemon has configured, as written, of these names in capital letters; without those that it does not know.

    It answers whoever may READ. Raises BridgeError.
    """
    request = {"ask": "settings", "address": address, "version": version, "names": names}
    return dict(ask(pool, request)["settings"])


@dataclass(frozen=True)
class Tagged:
    """Jobs of a schedd that carry the grant's attribute or came over a route of ours; None: the job lacks it."""

    value: str | None
    vo: str | None
    route: str | None
    jobs: int


def read_tagged(pool: Pool, schedd: Schedd, attribute: str, vo_attribute: str) -> tuple[list[Tagged], int | None]:
    """The tags in a schedd, and its clock less ours in seconds (None where it has no such job). Raises BridgeError."""
    request = {"ask": "tagged", "address": schedd.address, "version": schedd.version}
    answer = ask(pool, {**request, "attribute": attribute, "vo_attribute": vo_attribute})
    return [Tagged(**row) for row in answer["tags"]], answer["ahead_s"]


def ask(pool: Pool, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one question of `query` in a child. Raises BridgeError with the reason."""
    calls.count(f"tier1 {request['ask']}")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "htcebridge.tier1.query"],
            input=json.dumps(request),
            env=_environment(pool),
            capture_output=True,
            text=True,
            timeout=pool.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BridgeError(f"no answer in {pool.timeout_s:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip() or "nothing said").splitlines()[-1]
        raise BridgeError(f"the query ended with code {done.returncode}: {last}") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise BridgeError(str(answer.get("error")) if isinstance(answer, dict) else "not an answer")
    return answer


def _environment(pool: Pool) -> dict[str, str]:
    """HTCondor's configuration for a child: the token and nothing of what a machine may have in /etc/condor."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER", "LANG", "PYTHONPATH") if key in os.environ}
    knobs = {
        "COLLECTOR_HOST": pool.collector,
        "SEC_CLIENT_AUTHENTICATION": "REQUIRED",
        "SEC_CLIENT_ENCRYPTION": "REQUIRED",
        "SEC_CLIENT_INTEGRITY": "REQUIRED",
        # With FS in the list a tool on a shared host authenticates as the local user and is denied.
        "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "SEC_TOKEN_DIRECTORY": str(pool.token_directory),
        "SEC_TOKEN_SYSTEM_DIRECTORY": str(pool.token_directory),
        "ENABLE_IPV6": "AUTO",
        # Queries that no token allows end here, instead of filing a token request with the Tier-1.
        "AUTO_REQUEST_TOKENS": "False",
    }
    return {**kept, "CONDOR_CONFIG": str(CONDOR_CONFIG), **{f"_CONDOR_{name}": value for name, value in knobs.items()}}


def _startd(row: dict[str, Any]) -> Startd:
    return Startd(**{**row, "total": Shape(**row["total"]), "free": Shape(**row["free"])})


def _ghost(row: dict[str, Any]) -> Ghost:
    return Ghost(**{**row, "matches": tuple(Matches(**match) for match in row["matches"])})


def _job_group(row: dict[str, Any]) -> JobGroup:
    return JobGroup(**{**row, "autoclusters": {int(number): idle for number, idle in row["autoclusters"].items()}})
