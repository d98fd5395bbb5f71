"""What one cycle came to: what is recorded, counted and shown of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from htcebridge.errors import ExitCode
from htcebridge.history.usage import Used
from htcebridge.model import Plan, Situation
from htcebridge.state.memory import Memory


@dataclass(frozen=True)
class CycleResult:
    """What one cycle came to. `problems` are sentences for a person; `exit_code` is `pressure once`'s."""

    plan: Plan
    plan_id: str
    problems: tuple[str, ...] = ()
    exit_code: ExitCode = ExitCode.OK
    seconds: float = 0.0
    """How long it took."""
    situation: Situation | None = None
    unfinished: str = ""
    """Why the safety path (kill switch, pilots under a wrong account) did not come to its end."""
    core_s: Used | None = None
    """Core-seconds of all time by (resource, VO, use); None where the history could not be written."""
    memory: Memory = field(default_factory=Memory)
