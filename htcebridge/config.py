"""What the admin writes, as frozen values with units.

One file feeds the CE routes, the controller and the pilots, so that grant, demand and START cannot drift.
`config_file` reads it from disk; each field's `description` is what `config init` and the docs print.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from htcebridge.units import format_duration, format_megabytes, parse_duration, parse_megabytes

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(lambda value: format_duration(value.total_seconds()), return_type=str),
]
Megabytes = Annotated[
    int,
    BeforeValidator(parse_megabytes),
    Field(gt=0),
    PlainSerializer(format_megabytes, return_type=str),
]


def _one_line(text: str) -> str:
    """Values end up in shell scripts, ClassAds and #SBATCH lines: one line, no control characters."""
    if any(not character.isprintable() for character in text):
        raise ValueError(f"{text!r} has a line break or a control character in it")
    return text


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


Line = Annotated[str, AfterValidator(_one_line)]
Text = Annotated[Line, Field(min_length=1)]
# A word that Slurm takes for an account, partition, QOS, job name or gres without quoting.
Word = Annotated[Line, _matching(r"[A-Za-z0-9_.+-]+", "a plain word (letters, digits, '_', '.', '+', '-')")]
# Route names with '-' make the whole CE configuration unreadable (HTCondor 23.9 and 25.14).
Identifier = Annotated[Line, _matching(r"[A-Za-z][A-Za-z0-9_]*", "a name (a letter, then letters, digits or '_')")]
Gres = Annotated[Line, _matching(r"\w+(:[\w.-]+)*", "a Slurm gres such as 'tmpfs:3t' or 'gpu:4'")]
HostPort = Annotated[Line, _matching(r"[A-Za-z0-9_.-]+(:\d+)?", "a host or host:port")]
Issuer = Annotated[Line, _matching(r"https?://[^\s\"\\$]+", "a token issuer's URL (https://...)")]
Pattern = Annotated[Line, _matching(r"[A-Za-z0-9_.@*-]+", "an account name or pattern such as 'cmspil*'")]
Subject = Annotated[Line, _matching(r"[\w.:@/=+-]+", "a token's subject or group")]
Identity = Annotated[Line, _matching(r"[\w.-]+@[\w.-]+", "an identity such as 'condor@cr.example.org'")]
GroupName = Annotated[Line, _matching(r"[A-Za-z]\w*(\.\w+)*", "an accounting group such as 'opp_cms'")]
Walltime = Annotated[Line, _matching(r"[A-Za-z_]\w*( \* \d+)?", "a job attribute in seconds, or 'Attribute * factor'")]
# A shell variable in front is expanded where the path is used: shared ones on the edge node, scratch on the node.
Path = Annotated[Line, _matching(r"(~|/|\$\w+|\$\{\w+\}).*", "an absolute path (it may begin with ~ or $VARIABLE)")]
# A path on the worker node: only a variable of the node's environment in front is expanded there.
NodePath = Annotated[
    Line, _matching(r"(/|\$[A-Za-z_]\w*(/|$)|\$\{[A-Za-z_]\w*\})[^$`~]*", "an absolute path (/... or $VARIABLE/...)")
]
CondorSource = Annotated[
    Line, _matching(r"system|cvmfs:/cvmfs/.+|tarball:/.+", "system, cvmfs:/cvmfs/... or tarball:/...")
]


class Table(BaseModel):
    """A TOML table: frozen, and a key that it doesn't know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)


class Tier1(Table):
    """Where the Tier-1 pool is, and with which right it is read."""

    collector: Annotated[HostPort, Field(description="The Tier-1 collector, host:port (9618 if no port is given).")]
    schedds: Annotated[
        tuple[HostPort, ...],
        Field(description="Schedds to ask, by name. Empty: every schedd that schedd_constraint accepts."),
    ] = ()
    schedd_constraint: Annotated[Text, Field(description="ClassAd constraint on the schedds' ads.")] = "true"
    remember_schedds: Annotated[
        Duration, Field(description="A schedd that left the collector counts as silent, not as empty, for this long.")
    ] = timedelta(days=1)
    token_directory: Annotated[
        Path, Field(description="Directory of the controller's IDTOKEN; READ is enough. Files must be 0600.")
    ] = "~/.condor/tokens.d"
    timeout: Annotated[Duration, Field(description="How long one daemon may take to answer.")] = timedelta(seconds=20)


class Grant(Table):
    """What the CE route sets, the controller counts and the startd accepts."""

    attribute: Annotated[Identifier, Field(description="Job attribute that carries the grant.")] = "OpportunisticSite"
    value: Annotated[Word, Field(description="Its value: the name of the HPC.")] = "leonardo"
    vo_attribute: Annotated[Identifier, Field(description="Job attribute in which the route leaves the VO's name.")] = (
        "OpportunisticVO"
    )
    provenance: Annotated[
        Identity | None,
        Field(
            description="Identity of the CE router's IDTOKEN at the Tier-1 schedd (condor@UID_DOMAIN). Given: only "
            "jobs that came in with it are counted and run, so that a direct submitter's grant is worth nothing."
        ),
    ] = None


class VO(Table):
    """Who may have the grant. A job's own WantOpportunistic is a request and grants nothing."""

    name: Annotated[Identifier, Field(description="The VO's name; it is part of the route's name.")]
    issuers: Annotated[
        tuple[Issuer, ...], Field(description="Token issuers; AuthTokenIssuer cannot be forged by a submitter.")
    ] = ()
    owners: Annotated[
        tuple[Pattern, ...], Field(description="Local accounts that the CE's mapfile gives; * stands for any text.")
    ] = ()
    subjects: Annotated[
        tuple[Subject, ...], Field(description="Token subjects; given: only these of the issuers' tokens.")
    ] = ()
    groups: Annotated[
        tuple[Subject, ...], Field(description="Token groups such as /cms/pilot; given: a token must carry one.")
    ] = ()
    request: Annotated[
        Literal["always", "flag"],
        Field(description='"always": every job of this VO; "flag": only jobs with WantOpportunistic = true.'),
    ] = "flag"
    placement: Annotated[
        Literal["only", "either"],
        Field(description='"only": the HPC and nothing else; "either": Tier-1 or HPC, whichever is free first.'),
    ] = "either"
    max_idle: Annotated[
        int, Field(ge=1, description="Routed jobs of this VO that may wait at a time, per CE (MaxIdleJobs).")
    ] = 500
    max_jobs: Annotated[int, Field(ge=1, description="Routed jobs of this VO at a time, per CE (MaxJobs).")] = 10000

    max_walltime: Annotated[
        Duration | None, Field(description="Longer jobs do not get the grant. Left out: no bound.")
    ] = None
    max_cpus: Annotated[int | None, Field(ge=1, description="Wider jobs do not get the grant.")] = None
    max_memory: Annotated[Megabytes | None, Field(description="Jobs that ask more do not get the grant.")] = None
    max_total_cpus: Annotated[
        int | None,
        Field(ge=0, description="Cores that this VO's jobs may hold in all pilots together; more start no pilot."),
    ] = None
    accounting_group: Annotated[
        GroupName | None, Field(description="Accounting group of the granted jobs, so that pledges are not charged.")
    ] = None

    @model_validator(mode="after")
    def _someone_is_named(self) -> VO:
        if any(not owner.strip("*") for owner in self.owners):
            raise ValueError(
                'owners = ["*"] would grant every account; name the accounts that the mapfile gives this VO'
            )
        if not self.issuers and not self.owners:
            raise ValueError("names nobody: give issuers, owners or both")
        if (self.subjects or self.groups) and not self.issuers:
            raise ValueError("subjects and groups are a token's: give its issuers too")
        return self


class Site(Table):
    """One more HPC that the same CE serves: its own value of the grant, and the VOs that may go there."""

    value: Annotated[Word, Field(description="The grant's value: the name of this HPC.")]
    vos: Annotated[tuple[Identifier, ...], Field(min_length=1, description="Names of [[vo]] tables.")]
    max_idle: Annotated[int, Field(ge=1, description="Routed jobs per VO that may wait at a time, per CE.")] = 500
    max_jobs: Annotated[int, Field(ge=1, description="Routed jobs per VO at a time, per CE.")] = 10000


class Routes(Table):
    """The parts of the CE's policy. Each can be switched off; docs/routes.md says what each is for."""

    scrub: Annotated[bool, Field(description="Take away a grant that a job brings along.")] = True
    guarded_routes: Annotated[
        tuple[Identifier, ...],
        Field(
            description='Routes to the Tier-1 that jobs of a placement "only" must not fall through to. Empty: none.'
        ),
    ] = ("Condor_Pool",)
    retries: Annotated[bool, Field(description="Let preempted jobs run again instead of removing them.")] = True
    max_starts: Annotated[int, Field(ge=1, description="Starts after which a job is not tried again.")] = 20
    hold: Annotated[
        bool, Field(description="Repair the CE's SYSTEM_PERIODIC_HOLD, which holds nothing as shipped.")
    ] = True
    submit_requirement: Annotated[
        bool, Field(description="Refuse, with a reason, a request of somebody who may not have the grant.")
    ] = True
    immutable: Annotated[bool, Field(description="Request and grant cannot be edited after submission.")] = True
    job_lease: Annotated[
        Duration | None, Field(description="JobLeaseDuration of granted jobs: what a vanished node costs them.")
    ] = timedelta(minutes=10)
    sigterm_guard: Annotated[bool, Field(description="A job that a SIGTERM ended has not completed.")] = True
    machine_attributes: Annotated[
        bool, Field(description="Keep in each job's history where it really ran, for accounting.")
    ] = True


class Demand(Table):
    """How waiting jobs are read."""

    walltime: Annotated[
        tuple[Walltime, ...],
        Field(
            min_length=1,
            description="Job attributes that say how long a job runs, first defined wins; seconds, or with a factor.",
        ),
        # BatchRuntime last: HTCondor-CE makes one for every job, from maxWallTime or else from the route's default.
    ] = (
        "AllowedExecuteDuration",
        "AllowedJobDuration",
        "maxWallTime * 60",
        "MaxWallTimeMins * 60",
        "JobDurationHint",
        "BatchRuntime",
    )


class Pressure(Table):
    """How hard the controller pushes, whatever the resource."""

    interval: Annotated[Duration, Field(description="Time between cycles of `pressure run`, give or take a tenth.")] = (
        timedelta(seconds=60)
    )
    min_interval: Annotated[
        Duration, Field(description="Slurm is never asked more often than this, whoever starts the cycles.")
    ] = timedelta(seconds=20)
    instance: Annotated[Identifier, Field(description="This controller's name, in every pilot's comment.")] = "leonardo"
    min_fill: Annotated[
        float, Field(ge=0, le=1, description="Open a node only if this part of it would be used ...")
    ] = 0.25
    max_wait: Annotated[Duration, Field(description="... or its job has waited this long.")] = timedelta(minutes=15)
    max_new_per_cycle: Annotated[int, Field(ge=1, description="Pilots submitted in one cycle, per resource.")] = 20
    max_new_per_hour: Annotated[
        int, Field(ge=0, description="Pilots submitted in any hour, all resources together, whatever the plan says.")
    ] = 500
    max_new_per_day: Annotated[
        int, Field(ge=0, description="Pilots submitted in any 24 hours, all resources together.")
    ] = 5000
    demand_cycles: Annotated[
        int, Field(ge=1, description="Cycles in a row that a new node must be wanted before it is opened.")
    ] = 1
    surplus_cycles: Annotated[
        int, Field(ge=1, description="Cycles that a pending pilot must be unneeded before it is cancelled.")
    ] = 3
    either_min_age: Annotated[
        Duration,
        Field(
            description='Jobs of a placement "either" open nodes once the oldest of their group has waited this long: '
            "sooner the Tier-1 itself may take them."
        ),
    ] = timedelta(minutes=5)
    either_only_rejected: Annotated[
        bool, Field(description='Of "either" jobs count only groups that the negotiator has tried and could not match.')
    ] = False
    demand_source: Annotated[
        Literal["query", "negotiator"],
        Field(
            description='"negotiator": advertise an offline slot per resource and let the negotiator say which jobs '
            "would match it; needs the Tier-1 admins' consent, see docs/how-it-decides.md."
        ),
    ] = "query"
    start_horizon: Annotated[
        Duration, Field(description="A pending pilot is supply as far as it is likely to start within this time.")
    ] = timedelta(hours=2)
    drain_fill: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="When nothing waits, joined pilots that use no more than this part of their node take no new "
            "jobs if their work would fit elsewhere. 0: never.",
        ),
    ] = 0.5
    outcome_window: Annotated[
        Duration, Field(description="How far back failures and preemptions count for back-off and quarantine.")
    ] = timedelta(hours=24)
    quarantine: Annotated[
        Duration, Field(description="How long a node on which pilots fail is excluded at first. 0: never.")
    ] = timedelta(hours=12)
    boot_timeout: Annotated[
        Duration, Field(description="A running pilot that has not joined after this long is no supply any more.")
    ] = timedelta(minutes=15)
    state_dir: Annotated[Path, Field(description="Lock and small state of the controller, on the edge node.")] = (
        "~/.local/state/htcebridge"
    )


class PilotSettings(Table):
    """What every pilot is made of. A resource may override any of it."""

    condor: Annotated[
        CondorSource, Field(description='Where HTCondor comes from: "system", "cvmfs:/cvmfs/..." or "tarball:/...".')
    ] = "system"
    token_file: Annotated[
        Path, Field(description="The pilots' IDTOKEN: ADVERTISE_STARTD, ADVERTISE_MASTER, READ. Must be 0600.")
    ] = "~/.config/htcebridge/pilot.idtoken"
    shared_dir: Annotated[
        Path, Field(description="On the HPC's shared file system: the pilots' logs, drain marks, the kill switch.")
    ] = "$WORK/htcebridge"
    scratch: Annotated[NodePath, Field(description="Node-local space for the startd and its jobs.")] = "$TMPDIR"
    setup: Annotated[
        tuple[Text, ...], Field(description="Shell lines run before HTCondor starts: the worker-node environment.")
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
    ] = {}


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
        Duration | None, Field(description="Shortest life that is still useful (--time-min): lets backfill shrink it.")
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
        Path | None,
        Field(
            description="A site's own pilot script, run in the Slurm job instead of HTCondor's daemons: a manual "
            'glidein. Its startds join another pool, so mode must be "constant".'
        ),
    ] = None
    allow_cpu_jobs: Annotated[
        bool | None, Field(description="Jobs without a GPU may run here. Left out: only where there are no GPUs.")
    ] = None

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
        if self.executor is not None and self.mode != "constant":
            raise ValueError('an executor\'s startds are not seen here: set mode = "constant"')
        if self.memory_reserve >= self.memory:
            raise ValueError("memory_reserve leaves no memory for jobs")
        for gres in self.gres:
            name, _, size = gres.partition(":")
            if name == "tmpfs":
                parse_megabytes(size)
        return self


class Config(Table):
    """The whole file."""

    tier1: Tier1
    grant: Grant = Grant()
    vos: Annotated[tuple[VO, ...], Field(alias="vo")] = ()
    sites: Annotated[tuple[Site, ...], Field(alias="site")] = ()
    routes: Routes = Routes()
    demand: Demand = Demand()
    pressure: Pressure = Pressure()
    pilot: PilotSettings = PilotSettings()
    resources: Annotated[dict[Identifier, Resource], Field(alias="resource")] = {}

    @model_validator(mode="before")
    @classmethod
    def _resources_inherit_the_pilot(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        pilot, resources = raw.get("pilot", {}), raw.get("resource", {})
        if not isinstance(pilot, dict) or not isinstance(resources, dict):
            return raw
        known = {key: value for key, value in pilot.items() if key in PilotSettings.model_fields}
        merged = {name: {**known, **own} if isinstance(own, dict) else own for name, own in resources.items()}
        return {**raw, "resource": merged}

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        names = [vo.name.lower() for vo in self.vos]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two [[vo]] tables have the name {', '.join(sorted(twice))}")
        values = [self.grant.value, *(site.value for site in self.sites)]
        if len(set(values)) != len(values):
            raise ValueError("two sites have the same grant value")
        unknown = {vo for site in self.sites for vo in site.vos if vo.lower() not in names}
        if unknown:
            raise ValueError(f"[[site]] names VOs that no [[vo]] table has: {', '.join(sorted(unknown))}")
        return self
