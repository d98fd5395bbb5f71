"""What the admin writes of the pilots: what they are made of, the nodes they run on, what they reach and read."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from htcebridge.config.paths import EdgePath, Key
from htcebridge.config.types import (
    Address,
    CondorSource,
    Duration,
    Gres,
    Identifier,
    Line,
    Megabytes,
    Mount,
    NodePath,
    Options,
    Table,
    TemplateName,
    Text,
    Word,
)
from htcebridge.units import format_megabytes, parse_megabytes


class PilotSettings(Table):
    """What every pilot is made of. A resource may override any of it."""

    condor: Annotated[
        CondorSource, Field(description='Where HTCondor comes from: "system", "cvmfs:/cvmfs/..." or "tarball:/...".')
    ] = "system"
    token_file: Annotated[
        EdgePath,
        Key("token_file"),
        Field(description="The pilots' IDTOKEN: ADVERTISE_STARTD, ADVERTISE_MASTER, READ. Must be 0600."),
    ] = EdgePath("~/.config/htcebridge/pilot.idtoken")
    token_command: Annotated[
        Line,
        Field(
            description="Prints such a token, on the edge node. The controller runs it when it submits pilots, puts "
            "what it prints into token_file, renews it while one waits, and removes it when all have "
            "joined: so a token need live little longer than a pilot. No shell. Empty: token_file is "
            "yours to renew. Each instance of the controller has a token_file of its own then."
        ),
    ] = ""
    shared_dir: Annotated[
        EdgePath,
        Key("shared_dir"),
        Field(description="On the HPC's shared file system: the pilots' logs, drain marks, the kill switch."),
    ] = EdgePath("$WORK/htcebridge")
    scratch: Annotated[NodePath, Field(description="Node-local space for the startd and its jobs.")] = "$TMPDIR"
    job_scratch: Annotated[
        Annotated[EdgePath, Key("job_scratch")] | None,
        Field(
            description="Directory on the parallel file system for the jobs' own directories, where the nodes have no "
            "disk and scratch is memory. Left out: they are in scratch."
        ),
    ] = None
    setup: Annotated[
        tuple[Text, ...],
        Field(
            description="Shell lines run before HTCondor starts: the worker-node environment. Jobs get the variables "
            "that they set."
        ),
    ] = ()
    cvmfs: Annotated[
        tuple[Word, ...], Field(description="CVMFS repositories that must be mounted; a pilot without them ends.")
    ] = ()
    idle_timeout: Annotated[Duration, Field(description="A pilot that runs no job for this long leaves its node.")] = (
        timedelta(minutes=20)
    )
    default_walltime: Annotated[Duration, Field(description="Walltime of jobs that declare none.")] = timedelta(hours=8)
    margin: Annotated[
        Duration, Field(description="Time kept free before the end that Slurm gave, to vacate and clean up.")
    ] = timedelta(minutes=4)
    vacate_time: Annotated[
        Duration, Field(description="How long a job may take to leave when it is told to; under the QOS's GraceTime.")
    ] = timedelta(seconds=20)
    boot_time: Annotated[
        Duration, Field(description="From a pilot's start until it can take a job, as the planner expects it.")
    ] = timedelta(minutes=5)
    memory_reserve: Annotated[Megabytes, Field(description="Memory kept from the jobs, for the pilot itself.")] = 4096
    attributes: Annotated[
        dict[Identifier, Line | bool | int | float],
        Field(description="More attributes for the startd to advertise, as plain values."),
    ] = Field(default_factory=dict)
    template: Annotated[
        TemplateName,
        Field(description="The startd's configuration: generic, leonardo-dcgp, leonardo-booster or one of your own."),
    ] = "generic"
    templates: Annotated[
        Annotated[EdgePath, Key("templates")] | None,
        Field(description="Folder with startd configurations of your own, NAME.conf.j2, on the edge node."),
    ] = None
    checks: Annotated[
        Annotated[EdgePath, Key("checks")] | None,
        Field(description="Folder with checks of your own, on the edge node; they go into each pilot's script."),
    ] = None
    check_interval: Annotated[
        Duration,
        Field(
            ge=timedelta(seconds=10),
            description="How often a running pilot's checks run again; a node that fails takes no job.",
        ),
    ] = timedelta(seconds=30)
    min_scratch: Annotated[
        Megabytes | None,
        Field(
            description="Free space that there must be for the jobs' directories, at the start and later. Left out: "
            "10G, or the pilot's disk if that is less."
        ),
    ] = None
    min_inodes: Annotated[
        int, Field(ge=0, description="Files that can still be made there; a file system without a number passes.")
    ] = 10000
    max_clock_skew: Annotated[
        Duration,
        Field(
            ge=timedelta(seconds=5),
            description="How far a node's clock may be off the collector's: START and tokens go by it.",
        ),
    ] = timedelta(minutes=1)
    gpu_discovery: Annotated[
        Options, Field(description="Options of condor_gpu_discovery, by which the startd finds the GPUs.")
    ] = "-extra"
    apptainer: Annotated[
        Line,
        Field(description="Apptainer for jobs that bring an image, a name on PATH or a path on the node. Empty: none."),
    ] = "apptainer"
    bind: Annotated[
        tuple[Mount, ...],
        Field(
            description="What jobs, with an image or without, see of the node beside its system (/usr, /etc, /opt) and "
            "their own directory: CVMFS, shared software, data."
        ),
    ] = ("/cvmfs",)
    isolation: Annotated[
        Literal["auto", "namespaces", "container", "none"],
        Field(
            description="What keeps a job from the home, shared_dir, the pilot, its token and other jobs: "
            '"namespaces" of its own, a "container" of Apptainer\'s, "none", or "auto": the first of these that '
            "works on the node. The pilot tries it and advertises what it came to as PilotIsolation."
        ),
    ] = "auto"
    require_isolation: Annotated[
        bool, Field(description="A pilot that cannot isolate its jobs ends instead of joining.")
    ] = False
    apel_scaling: Annotated[
        float | None,
        Field(gt=0, description="ApelScaling: a core's speed against the reference of the CE's accounting."),
    ] = None
    apel_specs: Annotated[
        dict[Identifier, float],
        Field(description="ApelSpecs: a core's power in absolute units, such as { HEPscore23 = 17.4 }."),
    ] = Field(default_factory=dict)
    ssh_to_job: Annotated[
        bool, Field(description="Owners of jobs may use condor_ssh_to_job. Ask the HPC whether that is allowed.")
    ] = False


# Every home, every socket, every job's own.
_NEVER_SHOWN = frozenset(("/", "/home", "/root", "/run", "/var", "/var/run", "/tmp", "/var/tmp", "/dev", "/proc"))  # noqa: S108  names


class Resource(PilotSettings):
    """One kind of node, offered by one partition and QOS."""

    partition: Annotated[Word, Field(description="Slurm partition.")]
    account: Annotated[Word, Field(description="Slurm account.")]
    qos: Annotated[Word, Field(description="Slurm QOS.")]
    cpus: Annotated[int, Field(gt=0, description="Cores of one pilot (--cpus-per-task).")]
    memory: Annotated[Megabytes, Field(description="Memory of one pilot (--mem).")]
    gpus: Annotated[int, Field(ge=0, description="GPUs of one pilot.")] = 0
    disk: Annotated[
        Megabytes | None, Field(description="Scratch of one pilot. Left out: the tmpfs gres, or 10G without one.")
    ] = None
    gres: Annotated[tuple[Gres, ...], Field(description='Slurm gres, such as "tmpfs:3t" or "gpu:4".')] = ()
    walltime: Annotated[Duration, Field(description="Longest life of a pilot (--time).")]
    min_walltime: Annotated[
        Duration | None,
        Field(
            description="Shortest life that is still useful (--time-min): lets backfill shrink it. Better left out: "
            "Slurm 20.02.5 to 25.05.2 gives exactly this and no more, even on a free node (24.11: 2 h of 12 h). Later "
            "ones (26.05) give more, but tell the pilot of this alone in SLURM_JOB_END_TIME: it leaves hours too early."
        ),
    ] = None
    job_name: Annotated[Word, Field(description="Slurm job name.")] = "htcebridge"
    max_running: Annotated[int, Field(ge=0, description="Pilots at a time, pending ones included.")] = 10
    max_pending: Annotated[int, Field(ge=0, description="Pilots that may wait in Slurm at a time.")] = 5
    max_node_hours: Annotated[
        float | None, Field(ge=0, description="Node-hours that this resource's pilots may use since node_hours_since.")
    ] = None
    node_hours_since: Annotated[
        date | None, Field(description="YYYY-MM-DD from which they count. Left out: all that slurmdbd remembers.")
    ] = None
    mode: Annotated[
        Literal["demand", "constant"],
        Field(description='"demand": as many as the jobs need; "constant": keep max_running/max_pending always.'),
    ] = "demand"
    max_hours: Annotated[
        float | None,
        Field(ge=0, description="Start nothing more after this many hours of this controller. 0 stops it."),
    ] = None
    executor: Annotated[
        Annotated[EdgePath, Key("executor")] | None,
        Field(
            description="A site's own pilot script, run in the Slurm job instead of HTCondor's daemons: a manual "
            'glidein. Its startds join another pool, so mode must be "constant".'
        ),
    ] = None
    allow_cpu_jobs: Annotated[
        bool | None, Field(description="Jobs without a GPU may run here. Left out: only where there are no GPUs.")
    ] = None

    cpus_kept_per_gpu: Annotated[
        int,
        Field(ge=0, description="Where allow_cpu_jobs: cores that jobs without a GPU leave free for each free GPU."),
    ] = 0

    @property
    def disk_mb(self) -> int:
        """Scratch that a pilot has for its jobs, MiB."""
        if self.disk is not None:
            return self.disk
        split = (gres.partition(":") for gres in self.gres)
        tmpfs = [parse_megabytes(size) for name, _, size in split if name == "tmpfs"]
        # Leonardo gives a job 10 GB of /tmp when it asks for no tmpfs.
        return sum(tmpfs) or 10 * 1024

    @property
    def min_scratch_mb(self) -> int:
        """Free scratch without which a node is no good, MiB."""
        return min(10 * 1024, self.disk_mb) if self.min_scratch is None else self.min_scratch

    @property
    def takes_cpu_jobs(self) -> bool:
        """GPU nodes are kept for GPU jobs unless the admin says otherwise."""
        return self.gpus == 0 if self.allow_cpu_jobs is None else self.allow_cpu_jobs

    @property
    def longest_job(self) -> timedelta:
        """The longest walltime that a full-length pilot can promise a job."""
        return self.walltime - self.margin - self.boot_time

    @model_validator(mode="after")
    def _fits_together(self) -> Resource:
        if self.min_walltime is not None and self.min_walltime > self.walltime:
            raise ValueError("min_walltime is longer than walltime")
        if (self.min_walltime or self.walltime) <= self.margin + self.boot_time:
            raise ValueError(
                "margin + boot_time leave no time for jobs: they must be shorter than walltime and min_walltime"
            )
        shows_all = {mount.partition(":")[0].rstrip("/") or "/" for mount in self.bind} & _NEVER_SHOWN
        if self.isolation != "none" and shows_all:
            raise ValueError(f"bind: {', '.join(sorted(shows_all))} would show jobs what they must not see: narrow it")
        if self.require_isolation and self.isolation == "none":
            raise ValueError('require_isolation asks for what isolation = "none" forbids')
        if self.executor is not None and self.mode != "constant":
            raise ValueError('an executor\'s startds are not seen here: set mode = "constant"')
        for gres in self.gres:
            name, *rest = gres.split(":")
            count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
            if name == "gpu" and count != self.gpus:
                raise ValueError(f"gres asks for {count} GPUs, gpus says {self.gpus}")
        if self.vacate_time >= self.margin:
            raise ValueError("vacate_time is not within margin: jobs would be killed while they leave")
        if self.cpus_kept_per_gpu and not (self.gpus and self.takes_cpu_jobs):
            raise ValueError("cpus_kept_per_gpu is for GPU nodes with allow_cpu_jobs = true")
        if self.cpus_kept_per_gpu * self.gpus > self.cpus:
            raise ValueError(f"cpus_kept_per_gpu keeps {self.cpus_kept_per_gpu * self.gpus} of {self.cpus} cpus")
        if self.min_scratch is not None and self.min_scratch > self.disk_mb:
            raise ValueError(f"min_scratch is more than the pilot's disk ({format_megabytes(self.disk_mb)})")
        if self.memory_reserve >= self.memory:
            raise ValueError("memory_reserve leaves no memory for jobs")
        for gres in self.gres:
            name, _, size = gres.partition(":")
            if name == "tmpfs":
                parse_megabytes(size)
        return self


class Endpoint(Table):
    """A place on the network that jobs need: looked at from each node, before a pilot joins and later."""

    endpoint: Annotated[Address, Field(description="host:port.")]
    critical: Annotated[
        bool,
        Field(description="A pilot that cannot reach it ends. Otherwise PilotReaches_NAME is advertised, and no more."),
    ] = False
