"""Reads and drives Slurm through its commands: squeue, sbatch, scancel, sacct.

Text output with a chosen separator, for `squeue --json` of 21.08 and 22.05 prints an empty list and exits 0 when
slurmctld is down, and every release since changed its shape. A line that does not parse makes the whole answer
unknown: fewer pilots than there are would start more.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import IO

from htcebridge.errors import BridgeError, ConfigError, UnknownState
from htcebridge.model import SlurmJob

# %k, the comment, stands last: it is the only field of others' jobs that may hold a separator.
# %r is the reason alone; %R puts node lists with blanks in its place.
SQUEUE_FORMAT = "%i|%A|%T|%r|%P|%q|%a|%V|%S|%e|%l|%N|%k|;"
_END = "|;\n"
_FIELDS = SQUEUE_FORMAT.count("|")
COMMENT_PREFIX = "htcebridge"
SACCT_FIELDS = "ElapsedRaw,AllocNodes,State,JobName,Account,Partition,QOS,Comment"
_SACCT_FIELDS = SACCT_FIELDS.count(",") + 1

_OUTAGE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Unable to resolve",
    "Zero Bytes were transmitted",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Rate limit exceeded",
)


class SlurmRefused(BridgeError):
    """Slurm answered, and said no."""


@dataclass(frozen=True)
class Submission:
    """An array of equal pilots, ready for sbatch."""

    script: str
    count: int
    resource: str
    plan_id: str
    time_min_s: int | None = None


@dataclass(frozen=True)
class Billing:
    """As what a resource's pilots appear in slurmdbd."""

    job_name: str
    account: str
    partition: str
    qos: str

    def same(self, other: Billing) -> bool:
        """slurmdbd keeps account names in lower case whatever was written."""
        return (self.job_name, self.account.lower(), self.partition, self.qos) == (
            other.job_name,
            other.account.lower(),
            other.partition,
            other.qos,
        )


@dataclass(frozen=True)
class Slurm:
    """The Slurm of this edge node. `instance` names the controller whose jobs are ours."""

    instance: str
    timeout_s: float = 60.0

    def jobs(self) -> list[SlurmJob]:
        """Every job of this instance that Slurm still lists, ended ones too. Raises UnknownState, ConfigError."""
        return parse_squeue(self._run(["squeue", "--me", "-h", "-r", "-t", "all", "-o", SQUEUE_FORMAT]), self.instance)

    def submit(self, submission: Submission, lock: IO[str] | None = None) -> str:
        """Submit one array; returns its job id. Raises SlurmRefused, UnknownState, ConfigError.

        sbatch inherits `lock`, so that the next cycle waits for it even if this controller is killed meanwhile.
        """
        arguments = [
            "sbatch",
            "--parsable",
            f"--array=1-{submission.count}",
            f"--comment={comment(self.instance, submission.resource, submission.plan_id)}",
        ]
        if submission.time_min_s is not None:
            arguments.append(f"--time-min={format_minutes(submission.time_min_s)}")
        return parse_sbatch(self._run(arguments, script=submission.script, lock=lock))

    def cancel_pending(self, ids: Sequence[str]) -> None:
        """Cancel these jobs if they are still pending. Raises SlurmRefused, UnknownState, ConfigError."""
        if ids:
            self._run(["scancel", "--state=PENDING", *ids])

    def node_hours(self, resource: str, as_: Billing, since: date | None) -> float:
        """Node-hours of this instance's ended pilots of a resource, by slurmdbd. Raises UnknownState, ConfigError."""
        start = (since or date(1970, 1, 2)).isoformat()
        output = self._run(["sacct", "-X", "-n", "-P", "-S", start, "-o", SACCT_FIELDS])
        return parse_node_hours(output, self.instance, resource, as_)

    def _run(self, arguments: Sequence[str], script: str | None = None, lock: IO[str] | None = None) -> str:
        command = arguments[0]
        try:
            done = subprocess.run(
                arguments,
                input=script if script is not None else "",
                env=_environment(),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self.timeout_s,
                check=False,
                pass_fds=[lock.fileno()] if lock else (),
            )
        except (FileNotFoundError, PermissionError):
            raise ConfigError(
                f"{command}: not on PATH; this command runs on the HPC's edge node, where Slurm's client is installed"
            ) from None
        except subprocess.TimeoutExpired:
            raise UnknownState(f"{command}: no answer from Slurm in {self.timeout_s:g} s") from None
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split()) or "nothing said"
            asked = command in ("squeue", "sacct")  # what only looks has nothing to refuse: no answer is unknown
            kind = UnknownState if asked or any(text in said for text in _OUTAGE) else SlurmRefused
            raise kind(f"{command} failed (exit code {done.returncode}): {said}")
        return done.stdout


def comment(instance: str, resource: str, plan_id: str) -> str:
    """What marks a Slurm job as ours; the state of the controller is in these alone."""
    return f"{COMMENT_PREFIX}:{instance}:{resource}:{plan_id}"


def parse_squeue(output: str, instance: str) -> list[SlurmJob]:
    """squeue's lines of `SQUEUE_FORMAT` -> the jobs of this instance. Raises UnknownState for foreign output."""
    jobs = []
    *lines, rest = output.split(_END)
    for line in [*lines, rest] if rest else lines:
        fields = line.split("|", _FIELDS - 1)
        if line is rest or len(fields) != _FIELDS or not re.match(r"\d", fields[0]):
            raise UnknownState(f"squeue printed a line that is none of its own: {line[:120]!r}")
        ours = parse_comment(fields[-1], instance)
        if ours:
            jobs.append(_job(fields, *ours))
    return jobs


def _job(fields: Sequence[str], resource: str, plan_id: str) -> SlurmJob:
    id_, _, state, reason, partition, qos, account, submitted, started, ends, limit, node, _ = fields
    pending = state == "PENDING"
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
        submitted=_time(submitted),
        # For a pending job these are the scheduler's estimates.
        started=None if pending else _time(started),
        ends=None if pending else _time(ends),
        time_limit_s=parse_time_limit(limit),
    )


def parse_comment(text: str, instance: str) -> tuple[str, str] | None:
    """(resource, plan id) if the comment is one of this instance's."""
    parts = text.strip().split(":")
    if len(parts) == 4 and parts[:2] == [COMMENT_PREFIX, instance]:
        return parts[2], parts[3]
    return None


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


def parse_node_hours(output: str, instance: str, resource: str, as_: Billing) -> float:
    """Node-hours in sacct's lines of `SACCT_FIELDS` that are this resource's. Raises UnknownState.

    slurmdbd keeps a comment only with AccountingStoreFlags=job_comment, and from the job's end on (24.11, 26.05).
    A job without one counts if it looks like ours: rather a node-hour too many than a budget overrun.
    """
    seconds = 0
    for line in output.splitlines():
        fields = line.split("|", _SACCT_FIELDS - 1)
        if len(fields) != _SACCT_FIELDS or not (fields[0].isdigit() and fields[1].isdigit()):
            raise UnknownState(f"sacct printed a line that is none of its own: {line[:120]!r}")
        elapsed, nodes, state, *billing, text = fields
        if state in ("RUNNING", "PENDING", "SUSPENDED"):
            continue
        ours = parse_comment(text, instance)
        if (ours and ours[0] == resource) or (not text and Billing(*billing).same(as_)):
            seconds += int(elapsed) * int(nodes)
    return seconds / 3600


def format_minutes(seconds: int) -> str:
    """Slurm's --time in whole minutes, rounded up (sbatch(1): seconds are rounded up to the next minute)."""
    return str(-(-seconds // 60))


def _time(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _environment() -> dict[str, str]:
    """Only what the commands need: SLURM_*, SBATCH_* and SQUEUE_* of a shell or an outer job change their ways."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF") if key in os.environ}
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
