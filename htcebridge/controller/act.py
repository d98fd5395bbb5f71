"""The hand: carries out a plan in Slurm and on the shared file system, and writes down what it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller.situation import UNDRAIN_SEEN_S, fingerprint
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.model import Pilot, PilotPhase, Plan, ResourcePlan, SlurmJob
from htcebridge.pilot import marks
from htcebridge.pilot import script as pilot_script
from htcebridge.slurm.commands import OutcomeUnknown, Slurm, SlurmRefused, Submission
from htcebridge.slurm.text import Answer
from htcebridge.state import ledger
from htcebridge.state.ledger import Entry, Ledger
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import Disabled, Memory, Pause
from htcebridge.units import plural

# How long a resource pauses when Slurm refuses it, by how often in a row.
_LIMIT_PAUSE_S = (900, 1800, 3600)
_BACK_OFF_PAUSE_S = (60, 120, 300, 900, 1800)


@dataclass
class _Doing:
    """What one cycle's actions change, while they go on."""

    config: Config
    plan_id: str
    slurm: Slurm
    ledger: Ledger
    lock: ControllerLock
    memory: Memory
    problems: list[str]


def carry_out(
    config: Config, plan: Plan, plan_id: str, memory: Memory, lock: ControllerLock
) -> tuple[Memory, list[str]]:
    """Drain, cancel, submit. One resource's failure does not stop the others; it is one of the sentences returned."""
    doing = _Doing(config, plan_id, Slurm(config.pressure.instance), Ledger(config), lock, memory, [])
    for name, decision in plan.resources.items():
        try:
            _drain(doing, name, decision)
            _cancel(doing, name, decision)
            if decision.submit:
                _submit(doing, name, decision)
        except (BridgeError, OSError) as error:
            doing.problems.append(f"resource {name}: {error}")
    return doing.memory, doing.problems


def _drain(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    shared = doing.config.resources[name].shared_dir.path
    for id_ in decision.drain:
        marks.set_drain(shared, id_, f"plan {doing.plan_id}: its work fits elsewhere", tail=True)
    for id_ in decision.undrain:
        marks.lift_drain(shared, id_, tail=True)
    now = int(time.time())
    recent = {id_: when for id_, when in doing.memory.undrained.items() if now - when < UNDRAIN_SEEN_S}
    doing.memory = replace(doing.memory, undrained={**recent, **dict.fromkeys(decision.undrain, now)})
    for what, ids in (("drained", decision.drain), ("undrained", decision.undrain)):
        if ids:
            logs.event(what, plan=doing.plan_id, resource=name, pilots=ids)


def _cancel(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    if decision.cancel:
        doing.memory = _noted_as_cancelled(doing.memory, decision.cancel)
        doing.slurm.cancel_pending(decision.cancel)
        logs.event("cancelled", plan=doing.plan_id, resource=name, pilots=decision.cancel)


def _submit(doing: _Doing, name: str, decision: ResourcePlan) -> None:
    resource = doing.config.resources[name]
    marks.prepare(resource.shared_dir.path)
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
            doing.memory = _refused(doing, name, error)
        return
    doing.ledger.settle(entry, job_id)
    doing.memory = replace(doing.memory, paused=_without(doing.memory.paused, name))
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


def _refused(doing: _Doing, name: str, error: SlurmRefused) -> Memory:
    """What Slurm's refusal means for the next cycles."""
    memory, now = doing.memory, int(time.time())
    if error.answer is Answer.CONFIG:
        disabled = Disabled(str(error), now, fingerprint(doing.config.resources[name]))
        return replace(memory, disabled={**memory.disabled, name: disabled})
    steps = _LIMIT_PAUSE_S if error.answer is Answer.LIMIT else _BACK_OFF_PAUSE_S
    times = memory.paused[name].times + 1 if name in memory.paused else 1
    pause = Pause(now + steps[min(times, len(steps)) - 1], times, str(error))
    return replace(memory, paused={**memory.paused, name: pause})


def settlements(entries: Sequence[Entry], jobs: Iterable[SlurmJob], memory: Memory, now: int) -> dict[str, str]:
    """Entry key -> what became of submissions of which nobody knew, found by their plan id in Slurm's comments.

    One that shows in no two listings, and a scheduler cycle (60 s) after it was made, was never taken.
    """
    found = {f"{job.plan_id}:{job.resource}": job.id.partition("_")[0] for job in jobs}
    known: dict[str, str] = {}
    for entry in ledger.unsettled(entries):
        if entry.key in found:
            known[entry.key] = found[entry.key]
        elif memory.unsettled.get(entry.key, 0) >= 1 and now - entry.when >= 60:
            known[entry.key] = "none"
    return known


def misbilled(pilots: Iterable[Pilot], entries: Iterable[Entry]) -> dict[str, list[tuple[str, str]]]:
    """Resource -> (pilot id, what is wrong) for pilots that Slurm has under another account, partition or QOS than
    they were submitted for: a site's submit plugin can do that, and the other one may cost money."""
    asked = {entry.key: entry for entry in entries}
    wrong: dict[str, list[tuple[str, str]]] = {}
    for each in pilots:
        job, entry = each.job, asked.get(f"{each.job.plan_id}:{each.job.resource}")
        if entry is None or each.phase is PilotPhase.ENDED:
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


def cancel_misbilled(config: Config, wrong: Mapping[str, list[tuple[str, str]]], memory: Memory) -> Memory:
    """Cancel them, running or not, and disable the resource. Raises BridgeError if Slurm does not take it."""
    slurm, now = Slurm(config.pressure.instance), int(time.time())
    for name, cases in wrong.items():
        ids = [id_ for id_, _ in cases]
        why = f"{plural(len(ids), 'pilot')} cancelled: Slurm has them under {cases[0][1]}"
        if name in config.resources:
            disabled = Disabled(why, now, fingerprint(config.resources[name]))
            memory = replace(memory, disabled={**memory.disabled, name: disabled})
        memory = _noted_as_cancelled(memory, ids)
        slurm.cancel(ids)
        logs.event("disabled", logging.ERROR, resource=name, why=why, pilots=ids)
    return memory


def tell_executors(config: Config, pilots: Iterable[Pilot], memory: Memory) -> Memory:
    """Have manual glideins leave, which look at no mark: once, for they may take their time. Raises BridgeError."""
    running = [
        each.job.id
        for each in pilots
        if each.phase is PilotPhase.JOINED
        and each.startd is None
        and each.job.id in memory.pilots
        and not memory.pilots[each.job.id].cancelled
    ]
    if running:
        Slurm(config.pressure.instance).tell_to_leave(running)
        logs.event("manual glideins told to leave", pilots=running)
    return _noted_as_cancelled(memory, running)


def _noted_as_cancelled(memory: Memory, ids: Iterable[str]) -> Memory:
    pilots = dict(memory.pilots)
    for id_ in ids:
        if id_ in pilots:
            pilots[id_] = replace(pilots[id_], cancelled=True)
    return replace(memory, pilots=pilots)


def _without(pauses: Mapping[str, Pause], name: str) -> dict[str, Pause]:
    return {other: pause for other, pause in pauses.items() if other != name}
