"""What the hand did in one cycle, as a value: what is learnt from it is in `learn.acted`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from htcebridge.slurm.text import Answer


@dataclass(frozen=True)
class Refusal:
    """What Slurm said to a submission that it did not take."""

    answer: Answer
    why: str


@dataclass(frozen=True)
class Done:
    """Pilots that were cancelled, or told to leave, and undrained; resources whose pilots Slurm took, or refused.

    `at` in seconds since the epoch; `misbilled`: resource -> why its pilots were cancelled.
    """

    at: int = 0
    cancelled: tuple[str, ...] = ()
    undrained: tuple[str, ...] = ()
    submitted: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    misbilled: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """Sentences for a person."""
    unfinished: str = ""
    """Why the safety path did not come to its end: nothing else is done then."""
