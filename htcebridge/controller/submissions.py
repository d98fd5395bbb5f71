"""Submissions of which nobody knew whether Slurm took them, and what became of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from htcebridge.controller.observation import Source
from htcebridge.model import Pilot
from htcebridge.state.ledger import Entry, unsettled
from htcebridge.state.memory import Submissions

# A scheduler cycle: what shows in no two listings, and so long after it was made, was never taken.
_SHOWS_AFTER_S = 60


def in_doubt(entries: Sequence[Entry], pilots: Iterable[Pilot], before: Submissions, now: int) -> list[Entry]:
    """The unsettled ones that squeue should show by now and does not: slurmdbd is asked about them."""
    listed = _listed(pilots)
    return [entry for entry in unsettled(entries) if entry.key not in listed and _is_late(entry, before, now)]


def learn(
    before: Submissions,
    entries: Sequence[Entry],
    pilots: Iterable[Pilot],
    answers: Mapping[str, Source[str]],
    now: int,
) -> Submissions:
    """What this look settles: found by the plan id in Slurm's comments, or slurmdbd's word. While that is not known
    they stay unsettled."""
    listed = _listed(pilots)
    settled: dict[str, str] = {}
    for entry in unsettled(entries):
        answer = answers.get(entry.key)
        if entry.key in listed:
            settled[entry.key] = listed[entry.key]
        elif answer is not None and answer.value is not None and _is_late(entry, before, now):
            settled[entry.key] = answer.value
    missing = {
        entry.key: before.missing.get(entry.key, 0) + 1 for entry in unsettled(entries) if entry.key not in settled
    }
    return Submissions(missing, settled)


def with_outcomes(entries: Iterable[Entry], known: Submissions) -> tuple[Entry, ...]:
    """The ledger with what is known by now."""
    return tuple(
        replace(entry, outcome=known.settled.get(entry.key, "")) if not entry.outcome else entry for entry in entries
    )


def _listed(pilots: Iterable[Pilot]) -> dict[str, str]:
    """`Entry.key` -> job id, of all that squeue lists."""
    jobs = (each.job for each in pilots)
    return {f"{job.plan_id}:{job.resource}": job.id.partition("_")[0] for job in jobs}


def _is_late(entry: Entry, before: Submissions, now: int) -> bool:
    return before.missing.get(entry.key, 0) >= 1 and now - entry.when >= _SHOWS_AFTER_S
