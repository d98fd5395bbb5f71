"""Reads and drives Slurm through its commands: squeue, sbatch, scancel, sacct, scontrol, sacctmgr.

What they print is parsed in `text`, `levels` and `answers`; here they are run.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import IO

from htcebridge import calls
from htcebridge.errors import BridgeError, ConfigError, UnknownState
from htcebridge.slurm.answers import classify, only_gone
from htcebridge.slurm.levels import (
    ASSOC_FIELDS,
    QOS_FIELDS,
    Asked,
    Row,
    Settings,
    limits_of,
    parse_partition,
    parse_rows,
    parse_settings,
    partition_limits,
)
from htcebridge.slurm.limits import SlurmLimits
from htcebridge.slurm.reservations import Maintenance, parse_maintenances
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.slurm.text import (
    ENDED_FIELDS,
    QUEUE_FORMAT,
    SUBMITTED_FIELDS,
    Answer,
    Ended,
    Queue,
    Submitted,
    comment,
    format_minutes,
    parse_comment,
    parse_ended,
    parse_queue,
    parse_sbatch,
    parse_submitted,
)
from htcebridge.slurm.tres import HELD_FORMAT, Tres, parse_held

SACCT_FIELDS = "ElapsedRaw,AllocNodes,State,JobName,Account,Partition,QOS,Comment"
_SACCT_FIELDS = SACCT_FIELDS.count(",") + 1
# Linux takes 128 KiB in one argument.
_IDS_AT_ONCE = 5000
_MAX_ACCOUNT_DEPTH = 20
_DAY_S = 86400
_ALIVE = (Stage.PENDING, Stage.HELD, Stage.BOOTING, Stage.RUNNING, Stage.LEAVING)
_FILTERS_TASKS = (24, 5)


class SlurmRefused(BridgeError):
    """Slurm answered, and said no: nothing was submitted. `answer` says what that means."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


class OutcomeUnknown(UnknownState):
    """sbatch did not come to its end: the job may exist, or not."""


@dataclass(frozen=True)
class Submission:
    """An array of equal pilots, ready for sbatch. Without `walltime_s` the script's own --time stands."""

    script: str
    count: int
    resource: str
    plan_id: str
    time_min_s: int | None = None
    walltime_s: int | None = None
    exclude: tuple[str, ...] = ()


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

    def queue(self, accounts: Sequence[str] = ()) -> Queue:
        """What Slurm lists of this user, or of everybody in these accounts. Raises UnknownState, ConfigError."""
        output = self._run(["squeue", *_whose(accounts), "-r", "-t", "all", "-o", QUEUE_FORMAT])
        return parse_queue(output, self.instance, os.getuid())

    def held(self, accounts: Sequence[str] = ()) -> dict[str, Tres]:
        """What each job that `queue` lists holds, or asks for, by job id. Raises UnknownState, ConfigError."""
        return parse_held(self._run(["squeue", *_whose(accounts), "-r", "-t", "all", "-O", HELD_FORMAT]))

    def ended(self, ids: Iterable[str]) -> list[Ended]:
        """The ends of these jobs and array tasks that slurmdbd knows by now. Raises UnknownState, ConfigError.

        Of a pending array task that was cancelled alone slurmdbd, and squeue, know nothing ever (22.05, 24.11, 26.05).
        """
        wanted = list(ids)
        # Whole arrays are asked for: `-j 12_4` does not find a task that never started ("12_[3-5]").
        jobs = sorted({id_.partition("_")[0] for id_ in wanted}, key=int)
        ends: list[Ended] = []
        for first in range(0, len(jobs), _IDS_AT_ONCE):
            some = ",".join(jobs[first : first + _IDS_AT_ONCE])
            # With -j the window begins at the epoch, without it at midnight (sacct(1), DEFAULT TIME WINDOW).
            ends += parse_ended(self._run(["sacct", "-X", "-n", "-P", "-j", some, "-o", ENDED_FIELDS]), wanted)
        return ends

    def submitted_since(self, name: str, since: int) -> list[Submitted]:
        """Jobs and arrays of this name submitted since then, as far as they may be ours. Raises UnknownState,
        ConfigError.

        slurmdbd has a plan id only of ended jobs, and only with AccountingStoreFlags=job_comment; the live ones are in
        `queue`. Jobs that were held all their life are not in slurmdbd at all.
        """
        # sacct takes local time only. The margin is for the clocks, and the jobs that it adds are dropped here.
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since - _DAY_S))
        output = self._run(["sacct", "-X", "-n", "-P", "-S", start, f"--name={name}", "-o", SUBMITTED_FIELDS])
        return [job for job in parse_submitted(output, self.instance) if job.submitted >= since]

    def limits(self, account: str, partition: str, qos: str) -> SlurmLimits:
        """What Slurm allows this user there; six short calls. Raises UnknownState if slurmctld does not answer.

        Without slurmdbd, or without a right to read it, `unknown` says why and only the partition's limits are known.
        """
        asked = Asked(os.getuid(), account, partition, qos)
        settings = parse_settings(self._run(["scontrol", "show", "config"]))
        found = self._partition(partition)
        maintenances, why = self._maintenances(found)
        try:
            qos_rows = self._sacctmgr(["qos"], QOS_FIELDS)
            own = self._associations(settings, f"user={_user_name()}")
            above = self._accounts_above(settings, account)
        except (BridgeError, KeyError) as error:
            known = partition_limits(asked, found)
            known = replace(known, unknown=f"Slurm's accounting limits are not known: {error}")
        else:
            known = limits_of(asked, settings, found, {row["Name"]: row for row in qos_rows}, own, above)
        return replace(known, maintenances=maintenances, unread=(*known.unread, *why))

    def usable(self) -> set[tuple[str, str]]:
        """The (account, QOS) in which this user may submit, by its associations. Raises UnknownState if slurmctld or
        slurmdbd does not answer, ConfigError."""
        settings = parse_settings(self._run(["scontrol", "show", "config"]))
        try:
            rows = self._associations(settings, f"user={_user_name()}")
        except KeyError as error:
            raise UnknownState(f"this process's user has no name: {error}") from None
        return {(row["Account"], qos) for row in rows for qos in row["QOS"].split(",") if qos}

    def submit(self, submission: Submission, lock: IO[str] | None = None) -> str:
        """Submit one array; returns its job id. Raises SlurmRefused, OutcomeUnknown, UnknownState, ConfigError.

        After any error but OutcomeUnknown nothing was submitted. sbatch inherits `lock`, so that the next cycle waits
        for it even if this controller is killed meanwhile.
        """
        arguments = [
            "sbatch",
            "--parsable",
            f"--array=1-{submission.count}",
            f"--comment={comment(self.instance, submission.resource, submission.plan_id)}",
        ]
        if submission.walltime_s is not None:
            arguments.append(f"--time={format_minutes(submission.walltime_s)}")
        if submission.time_min_s is not None:
            arguments.append(f"--time-min={format_minutes(submission.time_min_s)}")
        if submission.exclude:
            arguments.append(f"--exclude={','.join(submission.exclude)}")
        output = self._run(arguments, script=submission.script, lock=lock)
        try:
            return parse_sbatch(output)
        except UnknownState as error:
            raise OutcomeUnknown(str(error)) from None

    def version(self) -> str:
        """ "24.11.5". Raises UnknownState, ConfigError."""
        return self._run(["squeue", "--version"]).strip().removeprefix("slurm ")

    def would_take(self, script: str) -> None:
        """Whether Slurm would take this script, without submitting it. Raises SlurmRefused, UnknownState, ConfigError.

        It asks for what the script's #SBATCH lines say, a site's job_submit plugin included (sbatch(1), --test-only).
        """
        self._run(["sbatch", "--test-only"], script=script)

    def submit_alone(self, script: str) -> str:
        """Submit a script that is no pilot; returns its job id. Raises as `submit`."""
        return parse_sbatch(self._run(["sbatch", "--parsable"], script=script))

    def state_of(self, job: str) -> tuple[str, str, str] | None:
        """A job's state, reason and nodes, None once Slurm does not list it. Raises UnknownState, ConfigError."""
        try:
            said = self._run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T|%r|%N"])
        except UnknownState as error:
            if "Invalid job id" in str(error):
                return None
            raise
        state, _, rest = said.strip().partition("|")
        reason, _, node = rest.rpartition("|")
        return (state, reason, node) if state else None

    def cancel_pending(self, ids: Sequence[str]) -> None:
        """Cancel these jobs if they are still pending. Raises SlurmRefused, UnknownState, ConfigError.

        Before 24.05 `scancel --state=PENDING 12_6` cancels all pending tasks of array 12 (SchedMD ticket 19686; seen
        with 22.05): there the tasks are named alone, and one that has just started is cancelled, too.
        """
        if ids:
            filters = ["--state=PENDING"] if self._scancel_version() >= _FILTERS_TASKS else []
            self._scancel([*filters, *ids])

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel these jobs, whatever they do. Raises SlurmRefused, UnknownState, ConfigError."""
        if ids:
            self._scancel(ids)

    def _scancel(self, arguments: Sequence[str]) -> None:
        try:
            self._run(["scancel", *arguments])
        except SlurmRefused as error:
            # With --state, a job that is gone is an error; the others are cancelled all the same (22.05 to 26.05).
            if not only_gone(str(error)):
                raise

    def _scancel_version(self) -> tuple[int, int]:
        found = re.search(r"(\d+)\.(\d+)", self._run(["scancel", "--version"]))
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def tell_to_leave(self, ids: Sequence[str]) -> None:
        """Send USR1 to the batch scripts alone, as Slurm does near the end of a walltime; no payload hears it.

        Raises SlurmRefused, UnknownState, ConfigError.
        """
        if ids:
            self._run(["scancel", "--batch", "--signal=USR1", *ids])

    def node_hours(self, resource: str, as_: Billing, since: date | None) -> float:
        """Node-hours of this instance's ended pilots of a resource, by slurmdbd. Raises UnknownState, ConfigError.

        It reads every job of this user since then: once, not in every cycle.
        """
        start = (since or date(1970, 1, 2)).isoformat()
        output = self._run(["sacct", "-X", "-n", "-P", "-S", start, "-o", SACCT_FIELDS])
        return parse_node_hours(output, self.instance, resource, as_)

    def _partition(self, name: str) -> Row | None:
        try:
            return parse_partition(self._run(["scontrol", "show", "partition", "-o", name]))
        except UnknownState as error:
            if f"Partition {name} not found" in str(error):
                return None
            raise

    def _maintenances(self, partition: Row | None) -> tuple[tuple[Maintenance, ...], tuple[str, ...]]:
        """Those of a partition, and why they are not known where that is so."""
        try:
            output = self._run(["scontrol", "show", "reservation", "-o"])
            return parse_maintenances(output, partition or {}), ()
        except UnknownState as error:
            return (), (f"maintenance reservations: {error}",)

    def _sacctmgr(self, what: Sequence[str], fields: str) -> list[Row]:
        return parse_rows(self._run(["sacctmgr", "-n", "-P", "show", *what, f"format={fields}"]), fields)

    def _associations(self, settings: Settings, *where: str) -> list[Row]:
        # One slurmdbd may serve several clusters.
        return self._sacctmgr(["assoc", "where", f"cluster={settings.cluster}", *where], ASSOC_FIELDS)

    def _accounts_above(self, settings: Settings, account: str) -> list[Row]:
        """The association of the account itself and those of its parents, upwards."""
        found: list[Row] = []
        for _ in range(_MAX_ACCOUNT_DEPTH):
            rows = self._associations(settings, f"account={account}", "user=")
            found += rows[:1]
            account = rows[0]["ParentName"] if rows else ""
            if not account:
                break
        return found

    def _run(self, arguments: Sequence[str], script: str | None = None, lock: IO[str] | None = None) -> str:
        command = arguments[0]
        calls.count(command)
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
            kind = OutcomeUnknown if command == "sbatch" else UnknownState
            hint = f"; {_ASKS[command]}" if command in _ASKS else ""
            raise kind(f"{command}: no answer from Slurm in {self.timeout_s:g} s{hint}") from None
        if done.returncode != 0:
            raise _failure(command, done.returncode, done.stderr or done.stdout)
        return done.stdout


def _whose(accounts: Sequence[str]) -> list[str]:
    return [f"--account={','.join(accounts)}"] if accounts else ["--me"]


# Who answers these commands, and how to see whether it lives.
_SLURMCTLD = "is slurmctld up? `scontrol ping` names its host"
_SLURMDBD = "is slurmdbd up? `scontrol show config | grep AccountingStorageHost` names its host"
_ASKS = {"squeue": _SLURMCTLD, "scontrol": _SLURMCTLD, "sacct": _SLURMDBD, "sacctmgr": _SLURMDBD}


def _failure(command: str, code: int, said: str) -> BridgeError:
    """The error for a command that failed."""
    text = f"{command} failed (exit code {code}): {' '.join(said.split()) or 'nothing said'}"
    # What only looks has nothing to refuse: no answer is unknown.
    if command in _ASKS:
        return UnknownState(f"{text}; {_ASKS[command]}" if classify(said) is not Answer.CONFIG else text)
    answer = Answer.UNKNOWN if code < 0 else classify(said)
    if command == "sbatch":
        if answer is Answer.UNKNOWN:
            return OutcomeUnknown(text)
        return UnknownState(text) if answer is Answer.OUTAGE else SlurmRefused(text, answer)
    lost = answer in (Answer.UNKNOWN, Answer.OUTAGE, Answer.BACK_OFF)
    return UnknownState(text) if lost else SlurmRefused(text, answer)


def parse_node_hours(output: str, instance: str, resource: str, as_: Billing) -> float:
    """Node-hours in sacct's lines of `SACCT_FIELDS` that are this resource's. Raises UnknownState.

    slurmdbd keeps a comment only with AccountingStoreFlags=job_comment, and from the job's end on (22.05 to 26.05).
    A job without one counts if it looks like ours: rather a node-hour too many than a budget overrun.
    """
    seconds = 0
    for line in output.splitlines():
        fields = line.split("|", _SACCT_FIELDS - 1)
        if len(fields) != _SACCT_FIELDS or not (fields[0].isdigit() and fields[1].isdigit()):
            raise UnknownState(f"sacct printed a line that is none of its own: {line[:120]!r}")
        elapsed, nodes, state, *billing, text = fields
        if stage_of(state) in _ALIVE:
            continue
        ours = parse_comment(text, instance)
        if (ours and ours[0] == resource) or (not text and Billing(*billing).same(as_)):
            seconds += int(elapsed) * int(nodes)
    return seconds / 3600


def _user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _environment() -> dict[str, str]:
    """Only what the commands need: SLURM_*, SBATCH_* and SQUEUE_* of a shell or an outer job change their ways.

    SLURM_BITSTR_LEN=0: the default cuts a list of array tasks after 64 characters and writes "...".
    """
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF") if key in os.environ}
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
