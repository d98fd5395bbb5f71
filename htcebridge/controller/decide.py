"""From what was known and seen to a plan: learn, situation, plan. Pure, so that a recording can be decided again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from htcebridge.config.tables import Config
from htcebridge.controller import situation
from htcebridge.controller.learn import learn
from htcebridge.controller.observation import Observation
from htcebridge.controller.pilots import pilots_of
from htcebridge.model import Demand, Plan, ScheddAnswer, Situation
from htcebridge.plan import planner
from htcebridge.state.memory import Memory
from htcebridge.units import format_duration


@dataclass(frozen=True)
class Decision:
    """A plan and what it rests on. `situation` is None and the plan held where something is unknown.

    `memory` is what is known now; `problems` are sentences for a person.
    """

    plan: Plan
    problems: tuple[str, ...]
    memory: Memory
    situation: Situation | None = None


def decide(config: Config, before: Memory, seen: Observation) -> Decision:
    """Decide one cycle."""
    pilots = pilots_of(config, seen, before.pilots)
    if seen.held is not None:
        memory = replace(before, upkeep=replace(before.upkeep, looked=seen.now))
        return Decision(planner.hold(seen.held, config.resources, pilots), (seen.held,), memory)
    memory = learn(config, before, pilots, seen)
    view, alarms = situation.build(config, memory, pilots, seen)
    plan = planner.plan(view)
    problems = (*silent_schedds(seen.demand), *alarms, *plan.alarms)
    if seen.negotiator is not None:
        problems = (*problems, *seen.negotiator.alarms)
    if view.stop is not None:
        problems = (f"stopped: {view.stop}; `htcebridge pressure resume` lifts it", *problems)
    memory = replace(memory, resources=replace(memory.resources, streaks=plan.streaks))
    return Decision(plan, problems, memory, view)


def silent_schedds(demand: Demand) -> tuple[str, ...]:
    """A sentence for each schedd that did not answer."""
    return tuple(
        f"schedd {schedd.name}: {schedd.error}; {counted(schedd)}, so nothing is cancelled"
        for schedd in demand.schedds
        if not schedd.ok
    )


def counted(silent: ScheddAnswer) -> str:
    """What the demand has of a schedd that did not answer."""
    if silent.age_s is None:
        return "its jobs are not counted"
    return f"its jobs are counted as they were {format_duration(silent.age_s)} ago"
