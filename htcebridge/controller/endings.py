"""What became of a pilot that Slurm has ended, from what Slurm, its own last line and this controller know. Pure."""

from __future__ import annotations

from htcebridge.model import EndedPilot, Outcome
from htcebridge.pilot import exit_codes
from htcebridge.pilot.logs import OutcomeLine
from htcebridge.slurm.states import End, state_of
from htcebridge.slurm.text import Ended
from htcebridge.state.memory import Seen

# Cycles without a job, while jobs waited that fit, after which an idle pilot is called starved.
STARVED_CYCLES = 3


def classify(ended: Ended, seen: Seen, own_uid: int, said: OutcomeLine | None) -> EndedPilot:
    """The outcome of one ended pilot.

    Of two sources the one that was nearer counts: the pilot knows whether it ran jobs, Slurm why it ended. Of a manual
    glidein only the exit code is known.
    """
    joined = seen.joined if seen.joined is not None else (ended.started if said and said.joined else None)
    worked = seen.worked or (said is not None and said.jobs > 0)
    outcome = _outcome(ended, seen, own_uid, said, joined is not None, worked)
    if outcome is Outcome.RAN and joined is None:
        joined = ended.started
    code = said.code if said else ended.exit_code
    return EndedPilot(
        id=ended.id,
        resource=seen.resource,
        plan_id=seen.plan_id,
        outcome=outcome,
        submitted=ended.submitted if ended.submitted is not None else seen.submitted,
        started=ended.started,
        ended=ended.ended,
        joined=joined,
        node=ended.node or seen.node,
        exit_code=code,
        said=_said(ended, said, outcome),
        starved=outcome is Outcome.NEVER_MATCHED and seen.starved >= STARVED_CYCLES,
        jobs=said.jobs if said else 0,
        evicted=said.evicted if said else 0,
        core_s=said.core_s if said else 0,
        lost_core_s=said.lost_core_s if said else 0,
    )


def _outcome(
    ended: Ended,
    seen: Seen,
    own_uid: int,
    said: OutcomeLine | None,
    joined: bool,
    worked: bool,
) -> Outcome:
    end = state_of(ended.state).end
    if end is End.CANCELLED:
        ours = seen.cancelled and ended.cancelled_by in (None, own_uid)
        return Outcome.CANCELLED_BY_US if ours else Outcome.CANCELLED_BY_OTHERS
    if ended.started is None:
        return Outcome.NEVER_STARTED
    if end is End.PREEMPTED:
        return Outcome.PREEMPTED
    if end is End.NODE_FAILED:
        return Outcome.NODE_FAILED
    if end is End.TIMED_OUT:
        return Outcome.TIMED_OUT if joined or seen.executor else Outcome.NEVER_JOINED
    if end is not End.EXITED:
        return Outcome.UNKNOWN
    if seen.executor:
        return Outcome.RAN if ended.state == "COMPLETED" else Outcome.NEVER_JOINED
    if worked:
        return Outcome.RAN
    if said and said.code == 0 and (not said.joined or said.reason.startswith("drained")):
        return Outcome.CANCELLED_BY_US  # by a drain mark
    code = said.code if said else ended.exit_code
    if said is None and not joined and ended.state == "COMPLETED":
        return Outcome.UNKNOWN  # neither its log nor what was seen of it is there any more
    if not joined or exit_codes.before_joining(code):
        return Outcome.NEVER_JOINED
    return Outcome.NEVER_MATCHED


def _said(ended: Ended, said: OutcomeLine | None, outcome: Outcome) -> str:
    if said and said.reason:
        return said.reason
    if outcome is Outcome.UNKNOWN:
        return f"Slurm's state {ended.state}"
    return ended.state if ended.state not in ("COMPLETED",) else ""
