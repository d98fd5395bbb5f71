"""Usage records of what ran on the HPC, so that it is not published as the Tier-1's own hardware.

A record says where a job really ran (`MachineAttr...0`, which the routes keep in each job's history), not where it
might have. Jobs come from the schedds' histories, pilots from this controller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.history import store
from htcebridge.state.memory import recall
from htcebridge.tier1 import pool as tier1_pool

SCHEMA = 1


@dataclass(frozen=True)
class JobRecord:
    """One job whose last run was in a pilot, as its schedd's history has it. Times in seconds since the epoch.

    `wall_s`, `cpu_user_s` and `cpu_system_s` are those of its last run, which is the one whose result counts;
    `wall_all_s` has earlier, lost runs in it, wherever they were. `cores` is what the last run held. `status` is
    HTCondor's JobStatus in words: "completed" or "removed". `ended` is when it completed or was removed.
    """

    site: str
    resource: str
    vo: str
    schedd: str
    job_id: str
    global_job_id: str
    ce_job_id: str
    owner: str
    token_issuer: str
    token_subject: str
    accounting_group: str
    pilot: str
    host: str
    cores: int
    memory_mb: int
    submitted: int
    started: int
    ended: int
    wall_s: int
    wall_all_s: int
    cpu_user_s: int
    cpu_system_s: int
    starts: int
    status: str
    exit_code: int | None
    apel_specs: str
    apel_scaling: str


@dataclass(frozen=True)
class PilotRecord:
    """One ended pilot: what Slurm gave, and what became of it. Times in seconds since the epoch.

    `core_s` are the core-seconds that Slurm accounts (wall time times cores), `job_core_s` those of its jobs,
    `lost_core_s` of those the ones that had to leave with it.
    """

    site: str
    resource: str
    slurm_job: str
    partition: str
    account: str
    node: str
    cores: int
    submitted: int | None
    started: int
    ended: int
    wall_s: int
    core_s: int
    job_core_s: int
    lost_core_s: int
    jobs: int
    evicted: int
    outcome: str
    plan: str


@dataclass(frozen=True)
class JobRecords:
    """What the schedds have. `silent` is schedd -> why it did not answer: the records are not complete then."""

    records: tuple[JobRecord, ...]
    silent: Mapping[str, str]


def jobs(config: Config, since: int, until: int) -> JobRecords:
    """Jobs that ended in [since, until), seconds since the epoch, of every schedd. Raises UnknownState, ConfigError."""
    pool = tier1_pool.pool_of(config)
    view = tier1_pool.read_pool(pool, config.pressure.instance, config.grant.vo_attribute)
    # One that is down has taken its ad away: its jobs are missing, and that has to be said.
    schedds = tier1_pool.with_absent(config, view.schedds, int(time.time()), recall(config).schedds.known)
    request = {
        "ask": "history",
        "attribute": config.grant.attribute,
        "value": config.grant.value,
        "vo_attribute": config.grant.vo_attribute,
        "since": since,
        "until": until,
    }

    def ask(schedd: tier1_pool.Schedd) -> tuple[list[JobRecord], str]:
        if not schedd.address:
            return [], "not in the collector: is it down?"
        try:
            answer = tier1_pool.ask(
                pool, {**request, "name": schedd.name, "address": schedd.address, "version": schedd.version}
            )
        except BridgeError as error:
            return [], str(error)
        return [JobRecord(**row) for row in answer["jobs"]], ""

    with ThreadPoolExecutor(max_workers=max(1, len(schedds))) as threads:
        answers = dict(zip(schedds, threads.map(ask, schedds), strict=True))
    silent = {schedd.name: error for schedd, (_, error) in answers.items() if error}
    if len(silent) == len(answers):
        raise UnknownState("; ".join(f"schedd {name}: {why}" for name, why in silent.items()))
    found = [record for records, _ in answers.values() for record in records]
    return JobRecords(tuple(sorted(found, key=lambda record: (record.ended, record.global_job_id))), silent)


def pilots(config: Config, since: int, until: int) -> tuple[PilotRecord, ...]:
    """Pilots that had a node and ended in [since, until), seconds since the epoch. Raises HistoryError, ConfigError."""
    with store.reading(store.path_of(config)) as database:
        rows = database.execute(
            "SELECT * FROM pilots WHERE ended >= ? AND ended < ? AND outcome IS NOT NULL AND started IS NOT NULL"
            " ORDER BY ended, id",
            (since, until),
        ).fetchall()
    return tuple(_pilot(config, row) for row in rows)


def _pilot(config: Config, row: Mapping[str, Any]) -> PilotRecord:
    resource = config.resources.get(row["resource"])
    wall_s = max(0, row["ended"] - row["started"])
    return PilotRecord(
        site=config.grant.value,
        resource=row["resource"],
        slurm_job=row["id"],
        partition=resource.partition if resource else "",
        account=resource.account if resource else "",
        node=row["node"],
        cores=row["cpus"],
        submitted=row["submitted"],
        started=row["started"],
        ended=row["ended"],
        wall_s=wall_s,
        core_s=wall_s * row["cpus"],
        job_core_s=row["core_s"],
        lost_core_s=row["lost_core_s"],
        jobs=row["jobs"],
        evicted=row["evicted"],
        outcome=row["outcome"],
        plan=row["plan_id"],
    )
