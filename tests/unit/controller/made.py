"""Values and a Slurm of fake commands, for the tests of the controller."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import cycle, observe
from htcebridge.controller.observation import Collector, Marks, Near, Observation, Source, Waiting
from htcebridge.model import (
    Demand,
    Group,
    Pilot,
    PilotPhase,
    ScheddAnswer,
    Shape,
    SlurmJob,
)
from htcebridge.slurm.text import QUEUE_HEADER, Queue
from htcebridge.state.ledger import Entry
from htcebridge.state.lock import ControllerLock
from htcebridge.tier1 import tokens

NOW = 1_800_000_000
HOUR = 3600
SHAPE = Shape(8, 16000, 0, 1000)
ACCOUNT, PARTITION, QOS = "INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio"


def slurm_job(state: str = "RUNNING", **changes: object) -> SlurmJob:
    job = SlurmJob(
        id="7_1",
        resource="dcgp",
        plan_id="p",
        state=state,
        reason="None",
        partition=PARTITION,
        qos=QOS,
        account="inf24_lhc_2",
        node="lrdn0001",
        submitted=NOW - 1000,
        started=NOW - 100,
        ends=NOW - 100 + 12 * HOUR,
        time_limit_s=12 * HOUR,
    )
    return replace(job, **changes)


def pending(number: int, **changes: object) -> Pilot:
    return Pilot(
        slurm_job("PENDING", id=f"7_{number}", started=None, ends=None, node="", **changes), PilotPhase.PENDING
    )


def group(**changes: object) -> Group:
    return replace(Group(SHAPE, HOUR, "cmspil", "cms", 5, 1, 600, ("dcgp",)), **changes)


def waiting(*groups: Group) -> Demand:
    return Demand(groups, (ScheddAnswer("ce01", 0.1),))


def seen(idle: int = 14 * 20, entries: Iterable[Entry] = (), marks: Marks = Marks()) -> Observation:  # noqa: B008
    near = Near(NOW, 1000, Source(NOW), Source(NOW, marks), Source(NOW, Queue((), ())), Source(NOW, tuple(entries)))
    return Observation(
        near,
        collector=Source(NOW, Collector((), frozenset())),
        waiting=Source(NOW, Waiting(waiting(group(idle=idle)), {})),
        ends=Source(NOW, ()),
    )


def with_resource(config: Config, **changes: object) -> Config:
    resource = config.resources["dcgp"].model_copy(update=changes)
    return config.model_copy(update={"resources": {"dcgp": resource}})


def submission(count: int, minutes_ago: float, outcome: str = "1", **changes: object) -> Entry:
    when = NOW - int(minutes_ago * 60)
    entry = Entry(when, f"p{minutes_ago}", "dcgp", count, ACCOUNT, PARTITION, QOS, None, outcome)
    return replace(entry, **changes)


class World:
    """A Slurm of fake commands and a Tier-1 that answers at once."""

    def __init__(self, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self._fake = fake_command
        self.demand = waiting(group(idle=28))
        self.calls = fake_command("sbatch", stdout="4711\n")
        self.queue()
        for name in ("scancel", "sacct"):
            fake_command(name)
        for name in ("scontrol", "sacctmgr"):
            fake_command(name, stderr="slurmdbd is not there", code=1)
        monkeypatch.setattr(tokens, "check_directory", lambda _: None)
        monkeypatch.setattr(observe, "_with_tier1", lambda _, seen, *__: self._tier1(seen))

    def _tier1(self, seen: Observation) -> Observation:
        return replace(
            seen,
            collector=Source(seen.now, Collector((), frozenset())),
            waiting=Source(seen.now, Waiting(self.demand, {})),
        )

    def queue(self, *rows: str, held: str = "") -> None:
        """What squeue lists; `held` is what it says to `Slurm.held`."""
        answer = f"case \"$*\" in *tres-alloc*) printf '%s' '{held}'; exit;; esac"
        self._fake("squeue", stdout="".join(f"{row}|;\n" for row in (QUEUE_HEADER, *rows)), first=answer)

    def sbatch(self, stdout: str = "4711\n", **changes: object) -> None:
        self._fake("sbatch", stdout=stdout, **changes)

    def asked(self, command: str) -> str:
        path = self.calls / f"{command}.args"
        return path.read_text() if path.exists() else ""


def row(id_: str, state: str, plan_id: str = "p", **changes: str) -> str:
    fields = {
        "id": id_,
        "state": state,
        "partition": PARTITION,
        "qos": QOS,
        "account": "inf24_lhc_2",
        "user": str(os.getuid()),
        "submitted": str(NOW),
        "start": str(NOW) if state == "RUNNING" else "N/A",
        "end": str(NOW + HOUR) if state == "RUNNING" else "N/A",
        "limit": "12:00:00",
        "node": "lrdn0001" if state == "RUNNING" else "",
        "nodes": "1",
        "reason": "None",
        "comment": f"htcebridge:leonardo:dcgp:{plan_id}",
    }
    return "|".join({**fields, **changes}.values())


def once(config: Config) -> cycle.CycleResult:
    with ControllerLock(config) as lock:
        return cycle.cycle(config, lock)
