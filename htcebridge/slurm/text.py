"""What Slurm's commands print, as values: squeue's lines, sacct's lines, sbatch's refusals. Pure.

Text output with a chosen separator, for `squeue --json` of 21.08 and 22.05 prints an empty list and exits 0 when
slurmctld is down, and every release since changed its shape. A line that does not parse makes the whole answer
unknown: fewer pilots than there are would start more. tests/slurm_outputs has what 22.05, 24.11 and 26.05 print.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from htcebridge.errors import UnknownState
from htcebridge.model import SlurmJob
from htcebridge.slurm.states import Stage, stage_of

COMMENT_PREFIX = "htcebridge"
# %r and %k stand last: reason and comment are the fields that may hold a separator. %r is the reason alone; %R puts
# node lists in its place. No field may have a capital C in it: squeue then asks for every job's details (squeue.c).
QUEUE_FORMAT = "%i|%T|%P|%q|%a|%U|%V|%S|%e|%l|%N|%D|%r|%k|;"
# The same from 22.05 to 26.05. It is asked for so that no answer at all differs from an empty queue.
QUEUE_HEADER = (
    "JOBID|STATE|PARTITION|QOS|ACCOUNT|UID|SUBMIT_TIME|START_TIME|END_TIME|TIME_LIMIT|NODELIST|NODES|REASON|COMMENT"
)
_END = "|;\n"
_PLAIN_FIELDS = QUEUE_FORMAT.count("|") - 2
ENDED_FIELDS = "JobID,State,ExitCode,Submit,Start,End,ElapsedRaw,AllocNodes,NodeList,Reason"
_ENDED_COUNT = ENDED_FIELDS.count(",") + 1
SUBMITTED_FIELDS = "JobID,Submit,Comment"


@dataclass(frozen=True)
class OtherJob:
    """A live Slurm job or array task that is none of this instance's. `user` is the uid, `nodes` None if not said."""

    id: str
    user: int
    account: str
    partition: str
    qos: str
    state: str
    nodes: int | None


@dataclass(frozen=True)
class Queue:
    """What squeue lists: this instance's jobs, ended ones too for some minutes, and every other live one."""

    ours: tuple[SlurmJob, ...]
    others: tuple[OtherJob, ...]


@dataclass(frozen=True)
class Ended:
    """The end of a job or array task as slurmdbd has it; times in seconds since the epoch.

    `state` is Slurm's word without "by UID", `cancelled_by` that uid where it stands. `started` is None for a job
    that never had a node. `elapsed_s` is one node's time, `node_seconds` that of all its nodes together.
    """

    id: str
    state: str
    cancelled_by: int | None
    exit_code: int
    signal: int
    submitted: int | None
    started: int | None
    ended: int
    node: str
    elapsed_s: int
    nodes: int
    reason: str

    @property
    def node_seconds(self) -> int:
        return self.elapsed_s * self.nodes


@dataclass(frozen=True)
class Submitted:
    """A job or whole array that slurmdbd knows. `plan_id` is None where it has no comment (yet)."""

    id: str
    submitted: int
    plan_id: str | None


class Answer(StrEnum):
    """What to do about a submission that failed (`answers.classify`)."""

    OUTAGE = "outage"
    """Slurm or the partition is away; nothing was submitted. Decide nothing, try again later."""
    UNKNOWN = "unknown"
    """The job may exist or not: look for it before anything is submitted again."""
    BACK_OFF = "back off"
    """Slurm is busy; nothing was submitted. Less often."""
    LIMIT = "limit"
    """A limit is reached; nothing was submitted. It passes when jobs end."""
    CONFIG = "config"
    """It will be refused for ever as it stands: somebody has to change the configuration, or has lost a right."""
    TRANSIENT = "transient"
    """Nothing was submitted, for a passing or an unknown reason: try again, and show the text."""


def comment(instance: str, resource: str, plan_id: str) -> str:
    """What marks a Slurm job as ours; the state of the controller is in these alone."""
    return f"{COMMENT_PREFIX}:{instance}:{resource}:{plan_id}"


def parse_comment(text: str, instance: str) -> tuple[str, str] | None:
    """(resource, plan id) if the comment is one of this instance's."""
    parts = text.strip().split(":")
    if len(parts) == 4 and parts[:2] == [COMMENT_PREFIX, instance]:
        return parts[2], parts[3]
    return None


def parse_queue(output: str, instance: str, uid: int) -> Queue:
    """squeue's header and lines of `QUEUE_FORMAT` -> what is this instance's and what not. Raises UnknownState.

    `uid` is this user's: an instance of somebody else may have the same name.
    """
    head, *lines = output.split(_END)
    if head != QUEUE_HEADER or not lines:
        raise UnknownState(f"squeue did not begin with its own header: {head[:120]!r}")
    if rest := lines.pop():
        raise UnknownState(f"squeue printed a line that is none of its own: {rest[:120]!r}")
    ours, others = [], []
    for line in lines:
        fields = _queue_fields(line)
        marked = parse_comment(fields[-1], instance)
        if marked and int(fields[5]) == uid:
            if not _is_rest_of_array(fields):
                ours.append(_our_job(fields, *marked))
        elif stage_of(fields[1]) is not Stage.ENDED:
            others.append(_other_job(fields))
    return Queue(tuple(ours), tuple(others))


def _queue_fields(line: str) -> list[str]:
    *plain, free = line.split("|", _PLAIN_FIELDS)
    # Ours have no separator in the comment; where another job's has one, neither reason nor comment are looked at.
    reason, separator, marked = free.rpartition("|")
    if not (len(plain) == _PLAIN_FIELDS and separator and _JOB_ID.fullmatch(plain[0])):
        raise UnknownState(f"squeue printed a line that is none of its own: {line[:120]!r}")
    if not (re.fullmatch(r"[A-Z_]+", plain[1]) and plain[5].isdecimal() and _NODES.fullmatch(plain[11])):
        raise UnknownState(f"squeue printed a line that is none of its own: {line[:120]!r}")
    return [*plain, reason, marked]


def _is_rest_of_array(fields: Sequence[str]) -> bool:
    """Once a task has run, squeue shows the waiting rest of a cancelled array under the array's own id, in spite of -r
    (22.05 to 26.05). Pilots are tasks of arrays always; slurmdbd has the end of each."""
    return "_" not in fields[0] and stage_of(fields[1]) is Stage.ENDED and fields[10] == ""


_JOB_ID = re.compile(r"\d+(_\d+|\+\d+)?")
# Thousands are printed as 1K; a pending job may ask for a range.
_NODES = re.compile(r"(\d+)(\.\d+)?[KM]?(-\d+(\.\d+)?[KM]?)?")


def _our_job(fields: Sequence[str], resource: str, plan_id: str) -> SlurmJob:
    id_, state, partition, qos, account, _, submitted, starts, ends, limit, node, _, reason, _ = fields
    # Of a pending job these are the scheduler's estimates; one that was cancelled while it waited has no node.
    pending = state == "PENDING"
    started = stage_of(state) is not Stage.ENDED or node != ""
    return SlurmJob(
        id=id_,
        resource=resource,
        plan_id=plan_id,
        state=state,
        reason=reason,
        partition=partition,
        qos=qos,
        account=account,
        node=node,
        submitted=epoch(submitted),
        started=epoch(starts) if started and not pending else None,
        ends=None if pending else epoch(ends),
        time_limit_s=parse_time_limit(limit),
        starts=epoch(starts) if pending else None,
    )


def _other_job(fields: Sequence[str]) -> OtherJob:
    id_, state, partition, qos, account, user, *_, nodes, _, _ = fields
    return OtherJob(id_, int(user), account, partition, qos, state, int(nodes) if nodes.isdecimal() else None)


def parse_ended(output: str, ids: Iterable[str]) -> list[Ended]:
    """sacct's lines of `ENDED_FIELDS` -> the ends of those of `ids` that slurmdbd has. Raises UnknownState.

    Tasks that never started share one line ("12_[3-5,7]"). 26.05 leaves tasks in it that have a line of their own:
    that one counts then.
    """
    wanted, alone, shared = set(ids), dict[str, Ended | None](), dict[str, Ended | None]()
    for line in output.splitlines():
        fields = line.split("|", _ENDED_COUNT - 1)
        tasks = expand_ids(fields[0])
        if len(fields) != _ENDED_COUNT or not tasks or not (fields[6].isdecimal() and fields[7].isdecimal()):
            raise UnknownState(f"sacct printed a line that is none of its own: {line[:120]!r}")
        found = shared if "[" in fields[0] else alone
        found.update({id_: _end(id_, fields) for id_ in tasks if id_ in wanted})
    return [end for end in {**shared, **alone}.values() if end is not None]


def _end(id_: str, fields: Sequence[str]) -> Ended | None:
    _, state, code, submitted, started, ended, elapsed, nodes, node, reason = fields
    at, exit_ = epoch(ended), re.fullmatch(r"(\d+):(\d+)", code)
    if at is None or not exit_:
        return None
    word, _, by = state.partition(" by ")
    held = int(nodes) > 0  # 22.05 gives a job that never started its end as its start
    return Ended(
        id=id_,
        state=word,
        cancelled_by=int(by) if by.isdecimal() else None,
        exit_code=int(exit_[1]),
        signal=int(exit_[2]),
        submitted=epoch(submitted),
        started=epoch(started) if held else None,
        ended=at,
        node=node if held else "",
        elapsed_s=int(elapsed),
        nodes=int(nodes),
        reason=reason,
    )


def expand_ids(text: str) -> list[str]:
    """A job id of sacct's -> the ids of its tasks: "12_[3-5,7%2]" is 12_3, 12_4, 12_5 and 12_7. Empty: it is none."""
    found = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", text)
    if not found:
        return [text] if _JOB_ID.fullmatch(text) else []
    tasks: list[str] = []
    for part in found[2].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not span:
            return []
        first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
        tasks += [f"{found[1]}_{task}" for task in range(first, last + 1, max(1, step))]
    return tasks


def parse_submitted(output: str, instance: str) -> list[Submitted]:
    """sacct's lines of `SUBMITTED_FIELDS`, without the jobs that have somebody else's comment. Raises UnknownState."""
    found = []
    for line in output.splitlines():
        fields = line.split("|", 2)
        if len(fields) != 3 or not fields[1].isdecimal():
            raise UnknownState(f"sacct printed a line that is none of its own: {line[:120]!r}")
        id_, submitted, text = fields
        ours = parse_comment(text, instance)
        if ours or not text:
            found.append(Submitted(id_, int(submitted), ours[1] if ours else None))
    return found


def parse_time_limit(text: str) -> int | None:
    """Slurm's [days-]hours:minutes:seconds in seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_sbatch(output: str) -> str:
    """The job id in `sbatch --parsable`'s last line ("123" or "123;cluster"). Raises UnknownState."""
    lines = output.strip().splitlines()
    found = re.fullmatch(r"(\d+)(;\S+)?", lines[-1].strip()) if lines else None
    if not found:
        raise UnknownState(f"sbatch printed no job id: {output.strip()[:120]!r}; the next cycle sees what became of it")
    return found[1]


def format_minutes(seconds: int) -> str:
    """Slurm's --time in whole minutes, rounded up (sbatch(1): seconds are rounded up to the next minute)."""
    return str(-(-seconds // 60))


def epoch(text: str) -> int | None:
    """A time as Slurm prints it with SLURM_TIME_FORMAT=%s; None for N/A, Unknown, None."""
    return int(text) if text.isdecimal() else None
