"""What the negotiator wrote into the ghosts, cycle by cycle, and what follows from it for the demand. Pure.

What it writes is a lower bound (measured: 23.9, 25.14). A schedd asks for runs of equal jobs in the order of its
queue, and a ghost is given to the first: 40 jobs that came in turns with others were written down as 1. It asks for
MAX_JOBS_RUNNING at most, and since 25.11 for MAX_CONCURRENT_UPLOADS_PER_USER (20) of each user: what stands further
back is not tried at all while those in front find nothing. So a group counts as turned down only if a schedd says
that the negotiator tried and refused it (`tier1.JobGroup.refused`), and no ghost has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from htcebridge.model import Group, Track
from htcebridge.tier1.pool import Ghost, Schedd, ScheddGroups
from htcebridge.units import format_duration, plural

# Apart for so many windows is no race any more.
_PATIENCE = 4


@dataclass(frozen=True)
class Answer:
    """What the negotiator says of one resource.

    `jobs`: group key -> idle jobs that it would start there, the most of all looks within the window. `unmatched_s`:
    for how long it would start none any more, by group key; with the key "" for how long it has been asked.
    `complete`: it has been asked for a window's time.
    """

    complete: bool = False
    jobs: Mapping[str, int] = field(default_factory=dict)
    unmatched_s: Mapping[str, int] = field(default_factory=dict)

    def silent_s(self, key: str) -> int:
        """For how long this group has not been matched, seconds; 0 while it is."""
        return 0 if key in self.jobs else self.unmatched_s.get(key, self.unmatched_s.get("", 0))


@dataclass(frozen=True)
class GhostView:
    """Resource -> what the negotiator says. `refused`: keys of groups of which it has turned jobs away lately."""

    window_s: int
    answers: Mapping[str, Answer] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()


def confirmed(groups: Iterable[Group], view: GhostView) -> list[Group]:
    """The groups, each without the resources on which the negotiator would not start it; `why_not` says so.

    What is not known is left as it is: a resource whose ghost has not been there for long enough, a group that the
    negotiator has not refused, a group without `key`. A group that a ghost was given for counts as `rejected`: ghosts
    come last, so nothing else was free; a job alone in its autocluster is never turned away meanwhile.
    """
    return [_confirmed(group, view) for group in groups]


def _confirmed(group: Group, view: GhostView) -> Group:
    if group.rejected is False and any(group.key in answer.jobs for answer in view.answers.values()):
        group = replace(group, rejected=True)
    if not group.idle or group.key not in view.refused:
        return group
    asked = {name: view.answers.get(name, Answer()) for name in group.resources}
    turned_down = [name for name, answer in asked.items() if answer.complete and group.key not in answer.jobs]
    if not turned_down:
        return group
    silent = format_duration(view.window_s)
    why = f"the negotiator tried and would start none of these there for {silent}: a quota or a limit of its own?"
    return replace(
        group,
        resources=tuple(name for name in group.resources if name not in turned_down),
        why_not={**group.why_not, **dict.fromkeys(turned_down, why)},
    )


def disagreements(groups: Iterable[Group], view: GhostView) -> list[str]:
    """Where query and negotiator have been apart for long, as sentences. `groups` as matched, before `confirmed`.

    Fewer jobs than the query counts mean nothing (see above), more of them do.
    """
    by_key: dict[str, list[Group]] = {}
    for group in groups:
        if group.key:
            by_key.setdefault(group.key, []).append(group)
    return [
        f"{name}: {sentence}"
        for name, answer in view.answers.items()
        if answer.complete
        for key, same in by_key.items()
        for sentence in _apart(name, same, answer.jobs.get(key, 0), answer.silent_s(key), view)
    ]


def _apart(name: str, same: Sequence[Group], jobs: int, silent_s: int, view: GhostView) -> list[str]:
    """`same`: the groups of one key, one a schedd."""
    group, idle = same[0], sum(each.idle for each in same)
    who = f"{group.owner} ({group.vo or 'no VO'}, {plural(group.shape.cpus, 'cpu')})"
    patience_s = _PATIENCE * view.window_s
    if name not in group.resources:
        why = group.why_not.get(name, "they do not fit")
        return [f"the negotiator would start {plural(jobs, 'job')} of {who}; by the query: {why}"] if jobs else []
    if not idle or max(each.oldest_s for each in same) < patience_s:
        return []
    if group.key in view.refused and silent_s >= patience_s:
        silent = format_duration(silent_s)
        return [f"{plural(idle, 'job')} of {who} fit by the query; the negotiator would start none for {silent}"]
    if jobs > 1.25 * idle + 5:
        return [f"{plural(idle, 'job')} of {who} wait by the query; the negotiator counts {jobs}"]
    return []


def follow(
    track: Track | None, ghost: Ghost, jobs: Mapping[str, int], present: Iterable[str], now: int, window_s: int
) -> Track:
    """A ghost's track with this look at it: `jobs` as `resolved`, `present` the keys of all groups that wait.

    One look may come in the middle of a negotiation and find a part of the list, so several are kept. A controller
    that did not look for a window's time begins anew.
    """
    if track is None or track.digest != ghost.digest or now - track.read > window_s:
        track = Track(ghost.digest, since=now, read=now)
    counts = dict(track.counts)
    for key, count in jobs.items():
        earlier = (each for each in counts.get(key, ()) if each[0] != ghost.matched)
        counts[key] = (*earlier, (ghost.matched, count))
    recent = {key: tuple(each for each in kept if each[0] >= now - window_s) for key, kept in counts.items()}
    last = {key: counts[key][-1:] for key in present if key in counts and not recent[key]}
    return replace(track, read=now, counts={key: kept for key, kept in (recent | last).items() if kept})


def answer(track: Track, now: int, window_s: int, alive: bool) -> Answer:
    """What a track comes to. `alive`: the negotiator has ended a cycle lately."""
    recent = {key: [jobs for when, jobs in kept if when >= now - window_s] for key, kept in track.counts.items()}
    gone = {key: now - track.counts[key][-1][0] for key, jobs in recent.items() if not jobs}
    return Answer(
        complete=alive and now - track.since >= window_s,
        jobs={key: max(jobs) for key, jobs in recent.items() if jobs},
        unmatched_s={"": now - track.since, **gone},
    )


def resolved(ghost: Ghost, schedds: Iterable[Schedd], groups: Iterable[ScheddGroups]) -> dict[str, int]:
    """Group key -> idle jobs. Owner and VO need not be significant: groups of one autocluster share its count.

    Several runs of an autocluster add up, but not beyond what waits: another spin of the pie writes them once more.
    """
    names = {schedd.address: schedd.name for schedd in schedds}
    members: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for answered in groups:
        for group in answered.groups:
            for number, idle in group.autoclusters.items():
                members.setdefault((answered.schedd, number), []).append((group.key, idle))
    runs: dict[tuple[str, int], list[int]] = {}
    for match in ghost.matches:
        runs.setdefault((names.get(match.address, ""), match.autocluster), []).append(match.jobs)
    jobs: dict[str, int] = {}
    for cluster, counts in runs.items():
        sharing = members.get(cluster, [])
        total = sum(idle for _, idle in sharing)
        count = max(*counts, min(sum(counts), total))
        for key, idle in sharing:
            jobs[key] = jobs.get(key, 0) + -(-count * idle // total)
    return jobs
