"""htcebridge's own planner in the simulation: what `controller` does in each cycle, without the outer worlds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from htcebridge.model import Cap, Limits, Pilot, PilotPhase, Plan, Situation, Streaks
from htcebridge.plan import health, planner
from htcebridge.simulation.interface import Seen
from htcebridge.simulation.scenario import Scenario
from htcebridge.simulation.workload import DAY_S
from htcebridge.slurm.waits import chance, in_turn

# As many of the latest waits as `follow.waits` keeps.
_WAITS = 200
_JUDGE_EVERY_S = 300


class Ours:
    """Plans from what is seen, hands the streaks on, and lets ended pilots speak through `plan.health`."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._streaks = Streaks()
        self._submitted: deque[tuple[int, int]] = deque()
        self._verdicts: Mapping[str, health.Health] = {}
        self._evidence: object = None
        self._judged = 0

    def decide(self, seen: Seen) -> Plan:
        plan = planner.plan(self.situation(seen))
        self._streaks = plan.streaks
        submitted = sum(each.submit for each in plan.resources.values())
        if submitted:
            self._submitted.append((seen.now, submitted))
        return plan

    def situation(self, seen: Seen) -> Situation:
        """What the planner is given."""
        return Situation(
            now=seen.now,
            demand=seen.demand,
            pilots=self._with_chances(seen),
            limits=self._limits(seen),
            policy=self._scenario.policy,
            streaks=self._streaks,
        )

    def _limits(self, seen: Seen) -> dict[str, Limits]:
        verdicts = self._health(seen)
        rates = self._rate_caps(seen.now)
        limits = {}
        for name, limit in self._scenario.limits.items():
            verdict = verdicts.get(name, health.Health())
            limits[name] = replace(
                limit,
                caps=(*rates, *verdict.caps),
                notes=verdict.notes,
                exclude=verdict.exclude,
                preemptions_per_hour=verdict.preemptions_per_hour,
            )
        return limits

    def _health(self, seen: Seen) -> Mapping[str, health.Health]:
        """Judged anew when a pilot starts, joins or ends, and every five minutes, because back-off and quarantine end.

        Not in every cycle: the past of a day is long, and half of a simulation's time would go into it.
        """
        evidence = (seen.ended[-1:], len(seen.ended), seen.live)
        if evidence != self._evidence or seen.now >= self._judged + _JUDGE_EVERY_S:
            self._verdicts = health.health(seen.ended, seen.live, seen.now, self._scenario.rules)
            self._evidence, self._judged = evidence, seen.now
        return self._verdicts

    def _rate_caps(self, now: int) -> list[Cap]:
        while self._submitted and self._submitted[0][0] <= now - DAY_S:
            self._submitted.popleft()
        caps = []
        for key, (most, span_s) in self._scenario.most_new.items():
            used = sum(count for when, count in self._submitted if when > now - span_s)
            caps.append(Cap(key, most - used, f"{key} {most} ({used} submitted)"))
        return caps

    def _with_chances(self, seen: Seen) -> tuple[Pilot, ...]:
        """How likely each pending pilot is to start soon, by how long the latest ones waited."""
        waits: dict[str, list[int]] = {}
        for pilot in seen.ended:
            if pilot.submitted is not None and pilot.started is not None:
                waits.setdefault(pilot.resource, []).append(pilot.started - pilot.submitted)
        for each in seen.pilots:
            if each.job.submitted is not None and each.job.started is not None:
                waits.setdefault(each.job.resource, []).append(each.job.started - each.job.submitted)
        lately = {name: lengths[-_WAITS:] for name, lengths in waits.items()}
        horizon_s = self._scenario.start_horizon_s
        known = [
            replace(
                each, chance=chance(seen.now - (each.job.submitted or 0), None, lately[each.job.resource], horizon_s)
            )
            if each.phase is PilotPhase.PENDING and each.job.resource in lately
            else each
            for each in seen.pilots
        ]
        return in_turn(known, seen.now, horizon_s)
