"""Slurm's job states and what each means for a pilot: the one table (squeue(1), sacct(1), JOB STATE CODES).

A state that is in no row is unknown, not guessed: it is shown, it counts for the caps, and it is no supply.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    HELD = "held"
    """Pending, and somebody has to release it."""
    BOOTING = "booting"
    """It has a node, which is made ready for it."""
    RUNNING = "running"
    LEAVING = "leaving"
    """It has a node, and does not work there now."""
    ENDED = "ended"
    """It holds nothing any more."""
    UNKNOWN = "unknown"


class End(StrEnum):
    """How it ended, as far as Slurm knows."""

    EXITED = "exited"
    """By itself: its exit code says more."""
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIMED_OUT = "timed out"
    NODE_FAILED = "node failed"
    OTHER = "other"


@dataclass(frozen=True)
class State:
    """What a word of Slurm's means. `end` is None as long as it has not ended."""

    stage: Stage
    end: End | None = None


STATES = {
    "PENDING": State(Stage.PENDING),
    "REQUEUED": State(Stage.PENDING),
    "REQUEUE_FED": State(Stage.PENDING),
    "REQUEUE_HOLD": State(Stage.HELD),
    "RESV_DEL_HOLD": State(Stage.HELD),
    "SPECIAL_EXIT": State(Stage.HELD),
    "CONFIGURING": State(Stage.BOOTING),
    "POWER_UP_NODE": State(Stage.BOOTING),
    "RUNNING": State(Stage.RUNNING),
    "EXPEDITING": State(Stage.RUNNING),
    "COMPLETING": State(Stage.LEAVING),
    "RESIZING": State(Stage.LEAVING),
    "SIGNALING": State(Stage.LEAVING),
    "STAGE_OUT": State(Stage.LEAVING),
    "STOPPED": State(Stage.LEAVING),
    "SUSPENDED": State(Stage.LEAVING),
    "UPDATE_DB": State(Stage.LEAVING),
    "COMPLETED": State(Stage.ENDED, End.EXITED),
    "FAILED": State(Stage.ENDED, End.EXITED),
    "OUT_OF_MEMORY": State(Stage.ENDED, End.EXITED),
    "CANCELLED": State(Stage.ENDED, End.CANCELLED),
    "PREEMPTED": State(Stage.ENDED, End.PREEMPTED),
    "TIMEOUT": State(Stage.ENDED, End.TIMED_OUT),
    "DEADLINE": State(Stage.ENDED, End.TIMED_OUT),
    "BOOT_FAIL": State(Stage.ENDED, End.NODE_FAILED),
    "LAUNCH_FAILED": State(Stage.ENDED, End.NODE_FAILED),
    "NODE_FAIL": State(Stage.ENDED, End.NODE_FAILED),
    "RECONFIG_FAIL": State(Stage.ENDED, End.NODE_FAILED),
    "REVOKED": State(Stage.ENDED, End.OTHER),
}


def state_of(word: str) -> State:
    """What squeue's or sacct's word means; sacct adds to some ("CANCELLED by 1000")."""
    return STATES.get(word.partition(" ")[0], State(Stage.UNKNOWN))


def stage_of(word: str) -> Stage:
    """Where a job of this state stands."""
    return state_of(word).stage
