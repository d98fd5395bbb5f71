"""What the admin writes, as frozen values with units.

One file feeds the CE routes, the controller and the pilots, so that grant, demand and START cannot drift.
`file` reads it from disk; each field's `description` is what `config init` and the docs print.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from htcebridge.config.data import Data
from htcebridge.config.paths import EdgePath, Key
from htcebridge.config.resource import Endpoint, PilotSettings, Resource
from htcebridge.config.types import (
    CollectorAddress,
    Duration,
    GroupName,
    HostPort,
    Identifier,
    Identity,
    Issuer,
    Megabytes,
    Pattern,
    Subject,
    Table,
    Text,
    Walltime,
    Word,
)
from htcebridge.units import format_duration


class Tier1(Table):
    """Where the Tier-1 pool is, and with which right it is read."""

    collector: Annotated[HostPort, Field(description="The Tier-1 collector, host:port (9618 if no port is given).")]
    pilot_collector: Annotated[
        CollectorAddress | None,
        Field(
            description="The collector that pilots join, host:port or host:port?sock=NAME: one of their own behind the "
            "pool's (`htcebridge pool install`, docs/security.md). Left out: `collector`."
        ),
    ] = None
    pilot_identity: Annotated[
        Identity | None,
        Field(description="Whose the pilots' token is, as the pool maps it. `htcebridge pool` alone needs it."),
    ] = None
    schedds: Annotated[
        tuple[HostPort, ...],
        Field(description="Schedds to ask, by name. Empty: every schedd that schedd_constraint accepts."),
    ] = ()
    schedd_constraint: Annotated[Text, Field(description="ClassAd constraint on the schedds' ads.")] = "true"
    remember_schedds: Annotated[
        Duration, Field(description="A schedd that left the collector counts as silent, not as empty, for this long.")
    ] = timedelta(days=1)
    token_directory: Annotated[
        EdgePath,
        Key("tier1.token_directory"),
        Field(description="Directory of the controller's IDTOKEN; READ is enough. Files must be 0600."),
    ] = EdgePath("~/.condor/tokens.d")
    timeout: Annotated[Duration, Field(description="How long one daemon may take to answer.")] = timedelta(seconds=20)

    @property
    def joined(self) -> str:
        """The collector that pilots join."""
        return self.pilot_collector or self.collector


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
        Duration,
        Field(
            description="Slurm is never asked more often than this, whoever starts the cycles: the larger one holds."
        ),
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
    state_dir: Annotated[
        EdgePath,
        Key("pressure.state_dir"),
        Field(description="Lock and small state of the controller, on the edge node."),
    ] = EdgePath("~/.local/state/htcebridge")

    @property
    def cycle_s(self) -> int:
        """From one cycle of `pressure run` to the next, seconds."""
        return int(max(self.interval, self.min_interval).total_seconds())

    @property
    def pace(self) -> str:
        """The same for a person, with what is not heeded."""
        said = f"a cycle every {format_duration(self.cycle_s)}"
        if self.interval >= self.min_interval:
            return said
        interval, least = (format_duration(each.total_seconds()) for each in (self.interval, self.min_interval))
        return f"{said}: interval {interval} is below min_interval {least}"


class History(Table):
    """What is kept of cycles, plans and pilots, for reports."""

    file: Annotated[
        Annotated[EdgePath, Key("history.file")] | None,
        Field(
            description="SQLite file; best on a local disk of the edge node. Left out: INSTANCE.history.sqlite in "
            "pressure.state_dir."
        ),
    ] = None
    detail: Annotated[
        Duration, Field(description="Every cycle is kept this long; older ones are thinned to one in 15 minutes.")
    ] = timedelta(days=35)
    keep: Annotated[Duration, Field(description="Older history is forgotten.")] = timedelta(days=800)


class Metrics(Table):
    """Where Prometheus finds the controller's numbers."""

    textfile_directory: Annotated[
        Annotated[EdgePath, Key("metrics.textfile_directory")] | None,
        Field(
            description="Directory of node_exporter's textfile collector: every cycle writes htcebridge-INSTANCE.prom "
            "there. Left out: no file."
        ),
    ] = None


class Log(Table):
    """How the controller logs."""

    format: Annotated[
        Literal["text", "json"], Field(description='One event a line: "text" is key=value, "json" an object.')
    ] = "text"
    file: Annotated[
        Annotated[EdgePath, Key("log.file")] | None,
        Field(
            description="File to append to; it may be rotated from outside. Left out: standard error, which systemd "
            "hands to the journal."
        ),
    ] = None


class Config(Table):
    """The whole file."""

    tier1: Tier1
    grant: Grant = Grant()
    vos: Annotated[tuple[VO, ...], Field(alias="vo")] = ()
    sites: Annotated[tuple[Site, ...], Field(alias="site")] = ()
    routes: Routes = Routes()
    demand: Demand = Demand()
    pressure: Pressure = Pressure()
    history: History = History()
    metrics: Metrics = Metrics()
    log: Log = Log()
    pilot: PilotSettings = PilotSettings()
    connectivity: dict[Identifier, Endpoint] = Field(default_factory=dict)
    data: Data = Data()
    resources: dict[Identifier, Resource] = Field(alias="resource", default_factory=dict)

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
        both = {name.lower() for name in self.connectivity} & {door.name.lower() for door in self.data.doors}
        if both:
            raise ValueError(f"[connectivity] and [data] both have {', '.join(sorted(both))}; choose another name")
        return self
