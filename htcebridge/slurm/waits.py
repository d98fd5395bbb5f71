"""What a pending pilot waits for, and how likely it starts in time. Pure.

Slurm's reasons are those of src/common/job_state_reason.c (slurm_protocol_defs.c before 24.05), 22.05 to 26.05: 221
words, and a few sentences that slurmctld puts in their place.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

from htcebridge.model import Pilot, PilotPhase, Wait
from htcebridge.slurm.reservations import Maintenance
from htcebridge.slurm.states import Stage, stage_of

_NORMAL = frozenset(
    {
        *("None", "Priority", "Resources", "BeginTime", "Dependency", "Licenses", "JobArrayTaskLimit", "SchedDefer"),
        *("Prolog", "Cleaning", "FedJobLock", "MpiPortsBusy", "NvidiaImexChannels"),
        *("BurstBufferResources", "BurstBufferStageIn"),
        # How the last run ended, on a job that was requeued.
        *("NonZeroExitCode", "RaisedSignal", "TimeLimit", "InactiveLimit", "OutOfMemory"),
    }
)
_LIMIT = frozenset(
    {
        *("QOSJobLimit", "QOSResourceLimit", "AssociationJobLimit", "AssociationResourceLimit", "AccountingPolicy"),
        *("AssocMaxJobsLimit", "AssocMaxSubmitJobLimit", "QOSMaxJobsPerUserLimit", "QOSMaxSubmitJobPerUserLimit"),
        *("MaxJobsPerAccount", "MaxSubmitJobsPerAccount"),
    }
)
_BUDGET = frozenset(
    {"AssocGrpWallLimit", "QOSGrpWallLimit", "AssociationTimeLimit", "QOSTimeLimit", "QOSUsageThreshold"}
)
_NEVER = frozenset(
    {
        *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig", "BadConstraints", "MaxMemPerLimit"),
        *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "DependencyNeverSatisfied"),
        *("ReservationDeleted", "ReservationInvalid", "DeadLine", "BurstBufferOperation"),
        *("AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit", "QOSMinCpuNotSatisfied"),
    }
)
_OUTAGE = frozenset(
    {
        *("ReqNodeNotAvail", "NodeDown", "PartitionDown", "PartitionInactive", "Reservation", "Constraints"),
        *("MaxPoweredUpNodes", "PowerNotAvail", "PowerReserved", "FrontEndDown", "BlockFreeAction", "BlockMaxError"),
    }
)
_HELD = frozenset({"JobHeldAdmin", "JobHeldUser", "JobHoldMaxRequeue", "JobLaunchFailure", "SystemFailure"})
_WORDS = {
    word: wait
    for wait, words in (
        (Wait.NORMAL, _NORMAL),
        (Wait.LIMIT, _LIMIT),
        (Wait.BUDGET, _BUDGET),
        (Wait.NEVER, _NEVER),
        (Wait.OUTAGE, _OUTAGE),
        (Wait.HELD, _HELD),
    )
    for word in words
}

_TRES = r"(BB|Billing|Cpu|CPU|Energy|GRES|License|Mem|Memory|Node|Unknown)"
# The rest of the words: one for each trackable resource, the holder of the limit and what is bounded.
_PATTERNS = tuple(
    (re.compile(pattern), wait)
    for pattern, wait in (
        (rf"(Assoc|QOS)Grp({_TRES}|Jobs|SubmitJobs)(Limit)?", Wait.LIMIT),
        (rf"(Assoc|QOS)Grp{_TRES}RunMinutes(Limit)?", Wait.LIMIT),
        (rf"QOSMax{_TRES}PerUser(Limit)?", Wait.LIMIT),
        (rf"Max{_TRES}(RunMins)?Per(Account|User)", Wait.LIMIT),
        (rf"(Assoc|QOS)Grp{_TRES}Minutes(Limit)?", Wait.BUDGET),
        (rf"(Assoc|QOS)Max{_TRES}(Minutes)?Per(Job|Node)(Limit)?", Wait.NEVER),
        (rf"QOSMin{_TRES}", Wait.NEVER),
    )
)
# What slurmctld says instead of a word (state_desc in its source). The first that matches counts.
_SENTENCES = tuple(
    (re.compile(pattern), wait)
    for pattern, wait in (
        # Slurm's own word for this one is Resources. It is contention where partitions share nodes, and what a low
        # partition sees of drained nodes (24.11, now and then) or a maintenance (22.05) elsewhere.
        (r"Nodes required for job are DOWN, DRAINED", Wait.NORMAL),
        (r"Job's (account|QOS) not permitted to use this partition", Wait.NEVER),
        (r"Reservation .+ (was deleted|is invalid)", Wait.NEVER),
        (r"uid \d+ not in group permitted to use this partition", Wait.NEVER),
        (r"Job is at or exceeds .+ group (max TRES\(.+\) minutes|wall limit)", Wait.BUDGET),
        (r"Job is at or exceeds .+ max TRES\(.+\) minutes", Wait.NEVER),
        (r"(job requeued in held state|launch failed requeued held)", Wait.HELD),
        (r"burst buffer/\w+: Stage-out in progress|Burst buffer ", Wait.NORMAL),
        (r"burst buffer/\w+: ", Wait.NEVER),
    )
)


def wait_of(reason: str, state: str) -> Wait:
    """What Slurm's reason means for a job that has not started. A reason that is not known is NORMAL (`is_known`)."""
    if stage_of(state) is Stage.HELD:
        return Wait.HELD
    if state != "PENDING":
        return Wait.NORMAL
    return _known(reason) or Wait.NORMAL


def by_maintenance(wait: Wait, reason: str, shortest_s: int, maintenances: Iterable[Maintenance], now: int) -> Wait:
    """What a pending pilot's wait is where maintenances are known; `shortest_s` is the least that Slurm may give it.

    One that would run into a maintenance of all nodes starts after it. Of some nodes, it starts on the others.
    """
    if wait is not Wait.NORMAL and not (wait is Wait.OUTAGE and reason.startswith("ReqNodeNotAvail")):
        return wait
    in_the_way = [each for each in maintenances if each.begins < now + shortest_s and now < each.ends]
    if any(each.whole for each in in_the_way):
        return Wait.MAINTENANCE
    return Wait.NORMAL if in_the_way and "maintenance" in reason else wait


def is_known(reason: str) -> bool:
    """Whether `wait_of` knows this reason; one that it does not know is worth a line in the log."""
    return _known(reason) is not None


def _known(reason: str) -> Wait | None:
    text = reason.replace("_", " ")  # some of the sentences come with "_" for " "
    for pattern, wait in _SENTENCES:
        if pattern.match(text):
            return wait
    # "ReqNodeNotAvail, UnavailableNodes:lrdn0001", "RaisedSignal:9(Killed)"
    word = re.split(r"[,:]", reason, maxsplit=1)[0]
    if word in _WORDS:
        return _WORDS[word]
    return next((wait for pattern, wait in _PATTERNS if pattern.fullmatch(word)), None)


# Fewer past waits than these say nothing about the longest ones.
_ENOUGH_WAITS = 20


def chance(age_s: float, starts_in_s: float | None, history_waits_s: Sequence[float], horizon_s: float) -> float:
    """How likely, 0 to 1, a pending pilot that has waited `age_s` starts within the next `horizon_s` seconds.

    `starts_in_s` is Slurm's own estimate from now on, None where it has none; within the horizon it is taken at its
    word, beyond it is not: for a low-priority job it changes with every backfill pass. `history_waits_s` are the waits
    of earlier pilots that started: of those that lasted longer than this one has by now, the share that was over
    within the horizon. 1 where no such wait is known; 0 beyond the 95th percentile of at least 20 waits.
    """
    if starts_in_s is not None and starts_in_s <= horizon_s:
        return 1.0
    waits = sorted(history_waits_s)
    if len(waits) >= _ENOUGH_WAITS and age_s > waits[-(-len(waits) * 95 // 100) - 1]:
        return 0.0
    survived = bisect_right(waits, age_s)
    if survived == len(waits):
        return 1.0
    return (bisect_right(waits, age_s + horizon_s) - survived) / (len(waits) - survived)


def in_turn(pilots: Iterable[Pilot], now: int, horizon_s: float) -> tuple[Pilot, ...]:
    """The pilots, none thought luckier than an older one that waits for the same in the same queue.

    `chance` looks at an age alone: where nothing starts any more it gives up the old ones and trusts the new. Slurm's
    own estimate within the horizon is about that one pilot, and stands.
    """
    least: dict[tuple[str, int | None], float] = {}
    capped: dict[str, float] = {}
    waiting = [each for each in pilots if each.phase is PilotPhase.PENDING and each.wait is Wait.NORMAL]
    for each in sorted(waiting, key=lambda pilot: pilot.job.submitted if pilot.job.submitted is not None else now):
        job = each.job
        if job.starts is None or job.starts - now > horizon_s:
            equal = (job.resource, job.time_limit_s)
            capped[job.id] = least[equal] = min(each.chance, least.get(equal, 1.0))
    return tuple(replace(each, chance=capped.get(each.job.id, each.chance)) for each in pilots)
