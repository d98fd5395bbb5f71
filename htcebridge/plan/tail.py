"""Which joined pilots could be spared when nothing waits. Pure.

A burst leaves its pilots half empty, each held until its last job ends. Those with little work stop taking jobs, so
that what comes goes to the others and the nodes empty one by one. A drained pilot can be had back at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from htcebridge.model import Pilot, PilotPhase, Shape
from htcebridge.plan.packing import Bin, Stage

# What the next job will need where no job says it.
_SMALLEST = Shape(cpus=1, memory_mb=1)


def spare(pilots: Sequence[Pilot], there: Sequence[Bin], drain_fill: float) -> tuple[str, ...]:
    """Ids of the pilots of one resource whose work would fit into the free part of the others, emptiest first.

    `there` are their bins after the waiting jobs were put in. A pilot that is busier than `drain_fill` is kept, and so
    is free room for one average job: the next one should find a place. Where no job runs one pilot stays.
    """
    joined = [bin_ for bin_ in there if bin_.stage is Stage.JOINED]
    free = {pilot: bin_.free for bin_ in joined for pilot in bin_.pilots}
    # Pilots that work was put into stay; so do those to which a spared one's work would go, the fullest first.
    promised = {pilot for bin_ in joined if bin_.jobs for pilot in bin_.pilots}
    candidates = sorted(
        (pilot for pilot in pilots if pilot.phase is PilotPhase.JOINED and pilot.job.id in free and pilot.startd),
        key=lambda pilot: (_fill(pilot), _to_die(pilot)),
    )
    everybody = _average(candidates) or _SMALLEST
    takers = [(pilot.job.id, _to_die(pilot)) for pilot in reversed(candidates)]
    spared: dict[str, None] = {}
    for pilot in candidates:
        if not pilot.startd or _fill(pilot) > drain_fill:
            break
        if pilot.job.id in promised:
            continue
        job = _average([pilot]) or everybody
        takers = [(name, to_die) for name, to_die in takers if name not in spared and free[name].cpus > 0]
        others = (name for name, to_die in takers if name != pilot.job.id and to_die >= _to_die(pilot))
        moved = _place(job, pilot.startd.jobs or 1, others, free)
        if moved is not None:
            free.update(moved)
            promised |= set(moved)
            spared[pilot.job.id] = None
    return tuple(spared)


def _place(job: Shape, jobs: int, takers: Iterable[str], free: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """What is left free in these pilots with so many such jobs more; None if they do not fit."""
    after = {}
    for name in takers:
        room = free[name]
        fit = min(jobs, job.times_in(room)) if room.cpus >= job.cpus else 0
        if fit:
            after[name] = room.less(job, fit)
            jobs -= fit
        if not jobs:
            return after
    return None


def _average(pilots: Sequence[Pilot]) -> Shape | None:
    """The mean shape of the jobs that run there, rounded up; None where none does."""
    jobs = sum(pilot.startd.jobs for pilot in pilots if pilot.startd)
    if not jobs:
        return None
    used = [0, 0, 0, 0]
    for pilot in pilots:
        if pilot.startd:
            for axis, amount in enumerate(pilot.startd.total.less(pilot.startd.free).axes):
                used[axis] += amount
    return Shape(*(-(-amount // jobs) for amount in used))


def _fill(pilot: Pilot) -> float:
    startd = pilot.startd
    return startd.total.less(startd.free).dominant_share(startd.total) if startd else 1.0


def _to_die(pilot: Pilot) -> int:
    return pilot.startd.to_die if pilot.startd else 0
