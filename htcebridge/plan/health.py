"""What pilots teach: back-off for a resource, quarantine for a node, the rate of preemption. Pure.

Failures and preemptions are kept apart: PREEMPTED is the normal end of a low-priority pilot. Nothing is stored but
the pilots themselves, so the same history and time always give the same verdict.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from htcebridge.model import Cap, Cut, EndedPilot, Fault, LivePilot, Outcome
from htcebridge.units import plural

# A resource pauses after so many failures in a row, longer with each further one (HyperQueue's steps, one more first).
BACK_OFF_AFTER = 3
BACK_OFF_S = (60, 300, 900, 1800, 3600)
# A node is bad when this many of its pilots failed in a row. One is enough where the pilot blames the node or never
# reached the pool, while another one joined elsewhere: in an outage nobody joins. Each further failure doubles the
# time, up to 8 times.
FAILURES_OF_A_BAD_NODE = 2
_MOST_DOUBLINGS = 3
# A bad node is met again when the next burst comes, perhaps days later: its failures are remembered for so long.
NODE_MEMORY_S = 7 * 24 * 3600
# More are no black holes but a problem of the resource; and sbatch's --exclude has a length.
MOST_EXCLUDED = 50

# What no other node would change.
_NOT_THE_NODE = {Fault.CONFIGURATION, Fault.POOL}
_FAILED = {Outcome.NEVER_JOINED, Outcome.NODE_FAILED}


@dataclass(frozen=True)
class Rules:
    """`faults`: who is to blame for an exit code of a pilot's script. `window_s`: how far back anything but a node's
    failures counts. `quarantine_s`: how long a bad node is excluded at first; 0: never. `boot_timeout_s`: a pilot that
    has not joined by then has failed, though it may still run.
    """

    faults: Mapping[int, Fault]
    window_s: int = 24 * 3600
    quarantine_s: int = 6 * 3600
    boot_timeout_s: int = 900


@dataclass(frozen=True)
class Health:
    """What a resource's past says for its next plan. `alarms` are sentences for a person who should look.

    `quarantine` is node -> why and until when; `preemptions_per_hour` is the rate at which a running pilot is taken.
    """

    caps: tuple[Cap, ...] = ()
    quarantine: Mapping[str, str] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    preemptions_per_hour: float = 0.0

    @property
    def exclude(self) -> tuple[str, ...]:
        return tuple(self.quarantine)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"node {node} excluded: {why}" for node, why in self.quarantine.items())


def health(ended: Sequence[EndedPilot], live: Sequence[LivePilot], now: int, rules: Rules) -> dict[str, Health]:
    """The verdict on each resource that had a pilot in the window. `now` in seconds since the epoch."""
    gone: dict[str, list[EndedPilot]] = {}
    running: dict[str, list[LivePilot]] = {}
    for pilot in sorted(ended, key=lambda pilot: pilot.ended):
        gone.setdefault(pilot.resource, []).append(pilot)
    for each in live:
        running.setdefault(each.resource, []).append(each)
    return {
        name: _verdict(gone.get(name, []), running.get(name, []), now, rules)
        for name in dict.fromkeys([*gone, *running])
    }


def _verdict(ended: Sequence[EndedPilot], live: Sequence[LivePilot], now: int, rules: Rules) -> Health:
    events = sorted(_events(ended, live, now, rules), key=lambda event: event.when)
    quarantine = _quarantine(events, now, rules)
    since = now - rules.window_s
    recent = [pilot for pilot in ended if pilot.ended > since]
    # What a bad node does is not held against the resource once the node is excluded.
    failing = _back_off([event for event in events if event.when > since and event.node not in quarantine], now)
    starving = _starved(recent, now)
    return Health(
        caps=tuple(cap for cap, _ in (*failing, *starving)),
        quarantine=quarantine,
        alarms=tuple(alarm for _, alarm in (*failing, *starving)),
        preemptions_per_hour=_preemption_rate(recent, live, now),
    )


@dataclass(frozen=True)
class _Failure:
    """How a pilot failed. One that ran for longer than boot_timeout and did not join blames its node."""

    fault: Fault
    said: str
    started: int


@dataclass(frozen=True)
class _Event:
    """A pilot joined (`failure` is None), or failed to."""

    when: int
    node: str
    failure: _Failure | None = None


def _events(ended: Sequence[EndedPilot], live: Sequence[LivePilot], now: int, rules: Rules) -> Iterable[_Event]:
    everybody: list[EndedPilot | LivePilot] = [*ended, *live]
    for each in everybody:
        if each.joined is not None:
            yield _Event(each.joined, each.node)
    for pilot in ended:
        if pilot.outcome in _FAILED:
            started = pilot.started if pilot.started is not None else pilot.ended
            late = pilot.joined is None and pilot.ended - started >= rules.boot_timeout_s
            known = rules.faults.get(pilot.exit_code, Fault.UNCLEAR)
            fault = Fault.NODE if late and not pilot.exit_code else known
            yield _Event(pilot.ended, pilot.node, _Failure(fault, pilot.said or str(pilot.outcome), started))
    for lost in live:
        deadline = lost.started + rules.boot_timeout_s
        if lost.joined is None and deadline < now:
            yield _Event(deadline, lost.node, _Failure(Fault.NODE, "not joined within boot_timeout", lost.started))


def _trailing(events: Sequence[_Event]) -> list[_Event]:
    """The failures since somebody joined last."""
    failures: list[_Event] = []
    for event in reversed(events):
        if event.failure is None:
            break
        failures.append(event)
    return failures[::-1]


def _back_off(events: Sequence[_Event], now: int) -> list[tuple[Cap, str]]:
    """Failures in a row: nothing for a while, then one at a time until one of them joins."""
    failures = _trailing(events)
    if len(failures) < BACK_OFF_AFTER:
        return []
    last = failures[-1]
    what = f"{plural(len(failures), 'pilot')} in a row failed, the last on {last.node or 'no node'}: {_said(last)}"
    return [(_pause(len(failures), last.when, now, what), what)]


def _starved(ended: Sequence[EndedPilot], now: int) -> list[tuple[Cap, str]]:
    """Pilots that join and get no job, though jobs wait that they should take: more of them would be no better."""
    came_to_something = [pilot for pilot in ended if pilot.joined is not None]
    starved = []
    for pilot in reversed(came_to_something):
        if not (pilot.outcome is Outcome.NEVER_MATCHED and pilot.starved):
            break
        starved.append(pilot)
    if len(starved) < BACK_OFF_AFTER:
        return []
    what = f"{plural(len(starved), 'pilot')} in a row joined and never got a job, though jobs waited"
    hints = (
        "look at START and the jobs' Requirements (htcebridge explain), at the pilots' token and the pool's ALLOW "
        "lists, at the VO's quota and priority in the negotiator"
    )
    return [(_pause(len(starved), starved[0].ended, now, what), f"{what}: {hints}")]


def _pause(failures: int, last: int, now: int, what: str) -> Cap:
    until = last + BACK_OFF_S[min(failures - BACK_OFF_AFTER, len(BACK_OFF_S) - 1)]
    if now < until:
        return Cap("", 0, f"back-off until {_clock(until)}: {what}", kind=Cut.BACK_OFF)
    return Cap("", 1, f"back-off, one pilot at a time: {what}", in_flight=True, kind=Cut.BACK_OFF)


def _quarantine(events: Sequence[_Event], now: int, rules: Rules) -> dict[str, str]:
    """Nodes on which the latest pilots failed one after the other, while pilots elsewhere joined.

    If nobody joins anywhere it is not the nodes. Where there are too many, those with most failures are kept.
    """
    by_node: dict[str, list[_Event]] = {}
    for event in events:
        if event.node:
            by_node.setdefault(event.node, []).append(event)
    bad: list[tuple[int, str, str]] = []
    for node, own in by_node.items():
        failures = [event for event in _trailing(own) if event.failure and event.failure.fault not in _NOT_THE_NODE]
        enough = 1 if any(_blames_the_node(event, events) for event in failures) else FAILURES_OF_A_BAD_NODE
        if len(failures) < enough:
            continue
        time_s = rules.quarantine_s * 2 ** min(len(failures) - enough, _MOST_DOUBLINGS)
        until = failures[-1].when + time_s
        since = failures[-1].when - rules.quarantine_s
        if now < until and any(not e.failure and e.node != node and e.when >= since for e in events):
            what = f"{plural(len(failures), 'pilot')} in a row failed there ({_said(failures[-1])})"
            bad.append((len(failures), node, f"{what}, until {_clock(until)}"))
    bad.sort(key=lambda each: (-each[0], each[1]))
    return {node: why for _, node, why in bad[:MOST_EXCLUDED]}


def _blames_the_node(event: _Event, events: Iterable[_Event]) -> bool:
    """Whether this failure alone says that the node is bad: others joined elsewhere at the same time."""
    if event.failure is None or event.failure.fault is not Fault.NODE:
        return False
    return any(
        not other.failure and other.node != event.node and event.failure.started - 900 <= other.when <= event.when
        for other in events
    )


def _preemption_rate(ended: Iterable[EndedPilot], live: Iterable[LivePilot], now: int) -> float:
    """Preemptions per hour that pilots ran, the living included: the maximum-likelihood rate of random ends."""
    ran_s = sum(max(0, now - pilot.started) for pilot in live)
    preempted = 0
    for pilot in ended:
        if pilot.started is not None:
            ran_s += max(0, pilot.ended - pilot.started)
            preempted += pilot.outcome is Outcome.PREEMPTED
    return preempted * 3600 / ran_s if ran_s else 0.0


def _said(event: _Event) -> str:
    return event.failure.said if event.failure else ""


def _clock(when: int) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(when))
