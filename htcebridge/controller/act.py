"""The hand: the only one that changes anything in Slurm and on the shared file system. It writes down what it does.

The safety path stands first and by itself: it needs the marks, squeue and the ledger, and nothing of the Tier-1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller import renew
from htcebridge.controller.done import Done, Refusal
from htcebridge.controller.observation import Near
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.model import Plan, ResourcePlan, SlurmJob
from htcebridge.pilot import marks
from htcebridge.pilot import script as pilot_script
from htcebridge.slurm.commands import OutcomeUnknown, Slurm, SlurmRefused, Submission
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.state import ledger
from htcebridge.state.ledger import Entry, Ledger
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import Memory, Submissions
from htcebridge.units import plural


@dataclass
class _Doing:
    """What one cycle does, while it goes on."""

    config: Config
    plan_id: str
    slurm: Slurm
    ledger: Ledger
    lock: ControllerLock
    cancelled: list[str] = field(default_factory=list)
    undrained: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    refused: dict[str, Refusal] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------- safety


def safety(config: Config, near: Near, memory: Memory) -> Done:
    """Before anything else is looked at: with the kill switch on, cancel all that pends and have manual glideins leave;
    cancel what would be billed to somebody else. Both reach every job with this instance's comment, those of resources
    that the configuration does not have any more too.
    """
    queue = near.queue.value
    if queue is None:
        return Done(at=near.now)
    slurm, unfinished = Slurm(config.pressure.instance), ""
    reached: list[str] = []
    wrong: dict[str, str] = {}
    said: list[str] = []
    try:
        if near.stop is not None:
            _stop(slurm, queue.ours, _executors(config, queue.ours, memory), reached)
        for name, cases in misbilled(queue.ours, near.entries).items():
            ids, what = [id_ for id_, _ in cases], cases[0][1]
            slurm.cancel(ids)
            reached += ids
            wrong[name] = f"{plural(len(ids), 'pilot')} cancelled: Slurm has them under {what}"
            said.append(f"resource {name}: {what}: cancelled, and the resource disabled")
            logs.event("disabled", logging.ERROR, resource=name, why=wrong[name], pilots=ids)
    except BridgeError as error:
        unfinished = str(error)
        said.append(unfinished)
    return Done(
        at=near.now,
        cancelled=tuple(reached),
        misbilled=wrong,
        problems=tuple(said),
        unfinished=unfinished,
    )


def _stop(slurm: Slurm, jobs: Iterable[SlurmJob], executors: list[str], reached: list[str]) -> None:
    """Raises BridgeError; `reached` has those that were told before."""
    pending = [job.id for job in jobs if stage_of(job.state) in (Stage.PENDING, Stage.HELD)]
    slurm.cancel_pending(pending)
    reached += pending
    if pending:
        logs.event("cancelled", why="the kill switch is on", pilots=pending)
    slurm.tell_to_leave(executors)
    reached += executors
    if executors:
        logs.event("manual glideins told to leave", pilots=executors)


def misbilled(jobs: Iterable[SlurmJob], entries: Iterable[Entry]) -> dict[str, list[tuple[str, str]]]:
    """Resource -> (pilot id, what is wrong) for pilots that Slurm has under another account, partition or QOS than
    they were submitted for: a site's submit plugin can do that, and the other one may cost money."""
    asked = {entry.key: entry for entry in entries}
    wrong: dict[str, list[tuple[str, str]]] = {}
    for job in jobs:
        entry = asked.get(f"{job.plan_id}:{job.resource}")
        if entry is None or stage_of(job.state) is Stage.ENDED:
            continue
        for what, there, wanted in (
            ("account", job.account.lower(), entry.account.lower()),
            ("partition", job.partition, entry.partition),
            ("QOS", job.qos, entry.qos),
        ):
            if there != wanted:
                wrong.setdefault(job.resource, []).append((job.id, f"{what} {there} instead of {wanted}"))
                break
    return wrong


def _executors(config: Config, jobs: Iterable[SlurmJob], memory: Memory) -> list[str]:
    """Manual glideins that run, and look at no mark: told once, for they may take their time."""
    ours = {name for name, resource in config.resources.items() if resource.executor is not None}
    known = memory.pilots.seen
    theirs = {id_ for id_, each in known.items() if each.executor}
    return [
        job.id
        for job in jobs
        if (job.resource in ours or job.id in theirs)
        and stage_of(job.state) is Stage.RUNNING
        and not (job.id in known and known[job.id].cancelled)
    ]


# --------------------------------------------------------------------------- the plan


def settle(config: Config, entries: Iterable[Entry], known: Submissions) -> None:
    """Write down what became of submissions of which nobody knew. Raises BridgeError."""
    book = Ledger(config)
    for entry in ledger.unsettled(tuple(entries)):
        outcome = known.settled.get(entry.key)
        if outcome:
            book.settle(entry, outcome)
            logs.event("settled", plan=entry.plan_id, resource=entry.resource, job=outcome)


def carry_out(config: Config, plan: Plan, plan_id: str, lock: ControllerLock, safe: Done) -> Done:
    """Drain, cancel, submit. One resource's failure does not stop the others; it is one of the problems.

    `safe` is what the safety path did: its resources are left alone in this cycle.
    """
    doing = _Doing(config, plan_id, Slurm(config.pressure.instance), Ledger(config), lock)
    for name, decision in plan.resources.items():
        if name in safe.misbilled:
            continue
        try:
            _drain(doing, name, decision)
            _cancel(doing, name, decision)
            if decision.submit:
                _submit(doing, name, decision)
        except (BridgeError, OSError) as error:
            doing.problems.append(f"resource {name}: {error}")
    return replace(
        safe,
        at=int(time.time()),
        cancelled=(*safe.cancelled, *doing.cancelled),
        undrained=tuple(doing.undrained),
        submitted=tuple(doing.submitted),
        refused=doing.refused,
        problems=(*safe.problems, *doing.problems),
    )


def _drain(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    shared = doing.config.resources[name].shared_dir.path
    for id_ in decision.drain:
        marks.set_drain(shared, id_, f"plan {doing.plan_id}: its work fits elsewhere", tail=True)
    for id_ in decision.undrain:
        marks.lift_drain(shared, id_, tail=True)
    doing.undrained += decision.undrain
    for what, ids in (("drained", decision.drain), ("undrained", decision.undrain)):
        if ids:
            logs.event(what, plan=doing.plan_id, resource=name, pilots=ids)


def _cancel(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    if decision.cancel:
        doing.cancelled += decision.cancel
        doing.slurm.cancel_pending(decision.cancel)
        logs.event("cancelled", plan=doing.plan_id, resource=name, pilots=decision.cancel)


def _submit(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    resource = doing.config.resources[name]
    marks.prepare(resource.shared_dir.path)
    renew.have(doing.config, resource.token_file)
    script = pilot_script.script(doing.config, name)
    entry = Entry(
        when=int(time.time()),
        plan_id=doing.plan_id,
        resource=name,
        count=_within_hard_caps(doing, decision.submit),
        account=resource.account,
        partition=resource.partition,
        qos=resource.qos,
        time_min_s=decision.time_min_s,
    )
    doing.ledger.begin(entry)
    submission = Submission(
        script=script,
        count=entry.count,
        resource=name,
        plan_id=doing.plan_id,
        time_min_s=decision.time_min_s,
        walltime_s=decision.walltime_s,
        exclude=decision.exclude,
    )
    try:
        job_id = doing.slurm.submit(submission, doing.lock.file)
    except OutcomeUnknown as error:
        doing.problems.append(f"resource {name}: {error}; nothing more is submitted there until that is known")
        return
    except (SlurmRefused, UnknownState) as error:
        doing.ledger.settle(entry, "none")
        doing.problems.append(f"resource {name}: {error}")
        if isinstance(error, SlurmRefused):
            doing.refused[name] = Refusal(error.answer, str(error))
        return
    doing.ledger.settle(entry, job_id)
    doing.submitted.append(name)
    logs.event("submitted", plan=doing.plan_id, resource=name, count=entry.count, job=job_id)


def _within_hard_caps(doing: _Doing, wanted: int) -> int:
    """The caps per hour and day once more, where nothing can go past them. Raises BridgeError if nothing is left."""
    entries, now, pressure = doing.ledger.entries(), int(time.time()), doing.config.pressure
    left = min(
        pressure.max_new_per_hour - ledger.submitted_since(entries, now - ledger.HOUR_S),
        pressure.max_new_per_day - ledger.submitted_since(entries, now - ledger.DAY_S),
    )
    if left < wanted:
        raise BridgeError(f"the plan wants {plural(wanted, 'pilot')}, the caps per hour and day leave {max(0, left)}")
    return wanted
