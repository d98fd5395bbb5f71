"""What is done to a Slurm so that it gives each pending reason and each refusal. Data for `capture`."""

from __future__ import annotations

from dataclasses import dataclass

Command = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """Commands of root on the Slurm controller, and what takes them back."""

    do: tuple[Command, ...]
    undo: tuple[Command, ...]


@dataclass(frozen=True)
class Scene:
    """A job that is to wait for the reason `name` (or one that begins with `reason`), or to be refused.

    `fillers` jobs are submitted before it; `{first}` in an argument is the first one's id. With `change_after` the
    change comes when the job is in the queue.
    """

    name: str
    arguments: tuple[str, ...] = ()
    change: Change | None = None
    change_after: bool = False
    fillers: int = 0
    filler: tuple[str, ...] = ()
    reason: str = ""


def _qos(limit: str, unlimited: str = "-1") -> Change:
    return _modify(("qos", "qos_lowprio"), limit, unlimited)


def _user(limit: str, unlimited: str = "-1") -> Change:
    return _modify(("user", "leo", "account=INF24_lhc_2"), limit, unlimited)


def _account(limit: str, unlimited: str = "-1") -> Change:
    return _modify(("account", "INF24_lhc_2"), limit, unlimited)


def _modify(what: Command, limit: str, unlimited: str) -> Change:
    start = ("sacctmgr", "-i", "modify", *what, "set")
    key = limit.split("=")[0]
    return Change(((*start, limit),), ((*start, f"{key}={unlimited}"),))


def _scontrol(do: str, undo: str) -> Change:
    return Change((("scontrol", *do.split()),), (("scontrol", *undo.split()),))


_PARTITION = "update partitionname=dcgp_usr_prod"
_NODES = "update nodename=lrdn[0001-0003]"
_RESERVE = "create reservation users=leo nodes=lrdn0001 duration=60 starttime=now+1hour reservationname="


def _both(first: Change, second: Change) -> Change:
    return Change(first.do + second.do, second.undo + first.undo)


# Leonardo's setting is not known; without it sbatch takes what the partition forbids, and the job waits for ever.
_ENFORCED = Change(
    (("sh", "-c", "echo EnforcePartLimits=ALL >>/etc/slurm/slurm.conf && scontrol reconfigure"), ("sleep", "3")),
    (("sh", "-c", "sed -i /EnforcePartLimits/d /etc/slurm/slurm.conf && scontrol reconfigure"), ("sleep", "3")),
)

REASONS = (
    Scene("Resources", fillers=3),
    Scene("Priority", fillers=4, arguments=("--nice=100",)),
    Scene("JobHeldUser", ("--hold",)),
    Scene("BeginTime", ("--begin=now+1hour",)),
    Scene("Dependency", ("--dependency=afterok:{first}",), fillers=1),
    Scene(
        "DependencyNeverSatisfied",
        ("--dependency=afterok:{first}",),
        fillers=1,
        change=Change((("sh", "-c", "sleep 5; scancel -u leo -t RUNNING"),), ()),
        filler=("-w", "lrdn0001"),
        change_after=True,
    ),
    Scene("JobArrayTaskLimit", ("--array=1-3%1",)),
    Scene("PartitionConfig", ("-c", "500")),
    Scene("PartitionTimeLimit", ("-t", "2-00:00:00")),
    Scene("PartitionNodeLimit", ("-N", "2"), _scontrol(f"{_PARTITION} maxnodes=1", f"{_PARTITION} maxnodes=UNLIMITED")),
    Scene("PartitionDown", change=_scontrol(f"{_PARTITION} state=DOWN", f"{_PARTITION} state=UP")),
    Scene(
        "PartitionInactive",
        ("--begin=now+3seconds",),
        _scontrol(f"{_PARTITION} state=INACTIVE", f"{_PARTITION} state=UP"),
        change_after=True,
    ),
    Scene(
        "AccountNotAllowed",
        ("--begin=now+3seconds",),
        _scontrol(f"{_PARTITION} allowaccounts=paying", f"{_PARTITION} allowaccounts=ALL"),
        change_after=True,
    ),
    Scene(
        "QOSNotAllowed",
        ("--begin=now+3seconds",),
        _scontrol(f"{_PARTITION} allowqos=normal", f"{_PARTITION} allowqos=ALL"),
        change_after=True,
    ),
    Scene(
        "InvalidQOS",
        ("--begin=now+3seconds",),
        Change(
            (("sacctmgr", "-i", "modify", "user", "leo", "set", "qos-=qos_lowprio"),),
            (("sacctmgr", "-i", "modify", "user", "leo", "set", "qos+=qos_lowprio"),),
        ),
        change_after=True,
    ),
    Scene(
        "ReqNodeNotAvail-drained",
        reason="ReqNodeNotAvail",
        arguments=("-w", "lrdn0001"),
        change=_scontrol(
            "update nodename=lrdn0001 state=drain reason=capture", "update nodename=lrdn0001 state=resume"
        ),
    ),
    Scene(
        "all-nodes-drained",
        reason="N",
        change=_scontrol(f"{_NODES} state=drain reason=capture", f"{_NODES} state=resume"),
    ),
    Scene(
        "maintenance",
        reason="ReqNodeNotAvail",
        change=_scontrol(
            "create reservation reservationname=maint user=root starttime=now+10minutes duration=60 nodes=ALL "
            "flags=maint,ignore_jobs",
            "delete reservation=maint",
        ),
    ),
    Scene("Reservation", ("--reservation=later",), _scontrol(f"{_RESERVE}later", "delete reservation=later")),
    Scene(
        "BadConstraints",
        ("-w", "lrdn0003", "--begin=now+3seconds"),
        _scontrol(f"{_PARTITION} nodes=lrdn0001,lrdn0002", f"{_PARTITION} nodes=lrdn[0001-0003]"),
        change_after=True,
    ),
    Scene("QOSMaxJobsPerUserLimit", change=_qos("MaxJobsPerUser=0")),
    Scene("QOSMaxCpuPerUserLimit", change=_qos("MaxTRESPerUser=cpu=1", "cpu=-1")),
    Scene("QOSMaxNodePerUserLimit", change=_qos("MaxTRESPerUser=node=0", "node=-1")),
    Scene("QOSMaxMemoryPerUser", change=_qos("MaxTRESPerUser=mem=1M", "mem=-1")),
    Scene("MaxJobsPerAccount", change=_qos("MaxJobsPerAccount=0")),
    Scene("MaxCpuPerAccount", change=_qos("MaxTRESPerAccount=cpu=1", "cpu=-1")),
    Scene("QOSGrpJobsLimit", reason="QOSGrp", change=_qos("GrpJobs=0")),
    Scene("QOSGrpCpuLimit", change=_qos("GrpTRES=cpu=1", "cpu=-1")),
    Scene("QOSGrpNodeLimit", change=_qos("GrpTRES=node=0", "node=-1")),
    Scene("QOSGrpMemLimit", change=_qos("GrpTRES=mem=1M", "mem=-1")),
    Scene("QOSGrpBilling", change=_qos("GrpTRES=billing=1", "billing=-1")),
    Scene("QOSGrpCPUMinutesLimit", change=_qos("GrpTRESMins=cpu=0", "cpu=-1")),
    Scene("QOSGrpCPURunMinutesLimit", change=_qos("GrpTRESRunMins=cpu=1", "cpu=-1")),
    Scene("QOSGrpWallLimit", change=_qos("GrpWall=0")),
    Scene("QOSMaxWallDurationPerJobLimit", change=_qos("MaxWall=1")),
    Scene("QOSMaxCpuPerJobLimit", change=_qos("MaxTRESPerJob=cpu=1", "cpu=-1")),
    Scene("QOSMaxNodePerJobLimit", ("-N", "2"), _qos("MaxTRESPerJob=node=1", "node=-1")),
    Scene("QOSMinCpuNotSatisfied", change=_qos("MinTRESPerJob=cpu=300", "cpu=-1")),
    Scene("AssocMaxJobsLimit", change=_user("MaxJobs=0")),
    Scene("AssocGrpJobsLimit", reason="AssocGrp", change=_account("GrpJobs=0")),
    Scene("AssocGrpCpuLimit", change=_account("GrpTRES=cpu=1", "cpu=-1")),
    Scene("AssocGrpNodeLimit", change=_account("GrpTRES=node=0", "node=-1")),
    Scene("AssocGrpBilling", change=_account("GrpTRES=billing=1", "billing=-1")),
    Scene("AssocGrpCPUMinutesLimit", change=_account("GrpTRESMins=cpu=0", "cpu=-1")),
    Scene("AssocGrpBillingMinutes", change=_account("GrpTRESMins=billing=0", "billing=-1")),
    Scene("AssocGrpCPURunMinutesLimit", change=_account("GrpTRESRunMins=cpu=1", "cpu=-1")),
    Scene("AssocGrpWallLimit", change=_account("GrpWall=0")),
    Scene("AssocMaxWallDurationPerJobLimit", change=_user("MaxWall=1")),
    Scene("AssocMaxCpuPerJobLimit", change=_user("MaxTRESPerJob=cpu=1", "cpu=-1")),
    Scene(
        "JobHeldAdmin",
        ("--begin=now+1hour",),
        Change((("sh", "-c", "scontrol hold $(squeue -h -u leo -o %i)"),), ()),
        change_after=True,
    ),
)

REFUSALS = (
    Scene("no_such_account", ("-A", "nowhere")),
    Scene("somebody_elses_account", ("-A", "paying")),
    Scene("no_such_qos", ("--qos=nowhere",)),
    Scene("no_such_partition", ("-p", "nowhere")),
    Scene("too_many_cpus", ("-c", "500"), _ENFORCED),
    Scene("too_much_memory", ("--mem=9000G",)),
    Scene("no_such_gres", ("--gres=nowhere:1",)),
    Scene("gpu_where_is_none", ("--gres=gpu:4",)),
    Scene("no_such_feature", ("--constraint=nowhere",)),
    Scene("no_such_node_excluded", ("--exclude=nowhere",)),
    Scene("all_nodes_excluded", ("--exclude=lrdn[0001-0003]",)),
    Scene("array_too_big", ("--array=1-5000",)),
    Scene("time_min_above_time", ("-t", "10", "--time-min=20")),
    Scene("time_is_no_time", ("-t", "soon")),
    Scene("no_such_reservation", ("--reservation=nowhere",)),
    Scene("no_such_option", ("--nowhere",)),
    Scene("no_such_script", ("/nowhere/script",)),
    Scene("partition_drained", change=_scontrol(f"{_PARTITION} state=DRAIN", f"{_PARTITION} state=UP")),
    Scene("partition_inactive", change=_scontrol(f"{_PARTITION} state=INACTIVE", f"{_PARTITION} state=UP")),
    Scene("walltime_above_partitions", ("-t", "2-00:00:00"), _ENFORCED),
    Scene(
        "account_not_in_partition",
        change=_both(_ENFORCED, _scontrol(f"{_PARTITION} allowaccounts=paying", f"{_PARTITION} allowaccounts=ALL")),
    ),
    Scene(
        "qos_not_in_partition",
        change=_both(_ENFORCED, _scontrol(f"{_PARTITION} allowqos=normal", f"{_PARTITION} allowqos=ALL")),
    ),
    Scene(
        "group_not_in_partition",
        change=_both(_ENFORCED, _scontrol(f"{_PARTITION} allowgroups=root", f"{_PARTITION} allowgroups=ALL")),
    ),
    Scene("submit_limit_of_qos_user", ("--array=1-3",), _qos("MaxSubmitJobsPerUser=2")),
    Scene("submit_limit_of_qos_account", ("--array=1-3",), _qos("MaxSubmitJobsPerAccount=2")),
    Scene("submit_limit_of_qos", ("--array=1-3",), _qos("GrpSubmitJobs=2")),
    Scene("submit_limit_of_user", ("--array=1-3",), _user("MaxSubmitJobs=2")),
    Scene("submit_limit_of_account", ("--array=1-3",), _account("GrpSubmitJobs=2")),
    Scene(
        "walltime_denied_by_qos",
        change=Change(
            (("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", "MaxWall=1", "flags=DenyOnLimit"),),
            (("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", "MaxWall=-1", "flags=-1"),),
        ),
    ),
    Scene(
        "size_denied_by_qos",
        change=Change(
            (("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", "MaxTRESPerJob=cpu=1", "flags=DenyOnLimit"),),
            (("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", "MaxTRESPerJob=cpu=-1", "flags=-1"),),
        ),
    ),
)
