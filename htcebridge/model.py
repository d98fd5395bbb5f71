"""What one cycle sees and decides, as plain frozen values. No I/O, no clock, no configuration file.

Units are in the names: MiB of memory and disk, seconds, times as seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Shape:
    """What a job asks of a node, or what a node has to give."""

    cpus: int
    memory_mb: int
    gpus: int = 0
    disk_mb: int = 0

    def times_in(self, free: Shape) -> int:
        """How many of this shape fit into `free`. A shape that asks for nothing fits once."""
        ratios = [have // ask for ask, have in zip(self.axes, free.axes, strict=True) if ask > 0]
        return max(0, min(ratios)) if ratios else 1

    def less(self, other: Shape, times: int = 1) -> Shape:
        """What is left after `times` of `other` were taken out."""
        return Shape(*(have - times * ask for have, ask in zip(self.axes, other.axes, strict=True)))

    def dominant_share(self, whole: Shape) -> float:
        """The largest part of any one of `whole`'s resources that this shape takes (Ghodsi et al., NSDI 2011)."""
        return max((ask / have for ask, have in zip(self.axes, whole.axes, strict=True) if have > 0), default=0.0)

    @property
    def axes(self) -> tuple[int, int, int, int]:
        return (self.cpus, self.memory_mb, self.gpus, self.disk_mb)


@dataclass(frozen=True)
class Group:
    """Tagged jobs of equal shape, owner and Requirements in all schedds together.

    `oldest_s` is how long the longest-waiting idle one has waited. `resources` names the resources that would
    take the jobs; `why_not` gives the reason for each of the others.
    """

    shape: Shape
    walltime_s: int
    owner: str
    vo: str
    idle: int
    running: int
    oldest_s: int
    resources: tuple[str, ...] = ()
    why_not: Mapping[str, str] = field(default_factory=dict)
    either: bool = False
    """The Tier-1 itself may run these jobs (placement "either")."""
    rejected: bool | None = None
    """The negotiator tried these lately and had nothing free for them. None: not asked, or not tried yet."""
    key: str = ""
    """`tier1.pool.JobGroup.key`; empty once several were merged."""
    walltimes: Mapping[str, int] = field(default_factory=dict)
    """Resource -> how long they run there, where that is not `walltime_s`: they declare nothing, and the resource has a
    default of its own."""
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """Resource, kind of slot or slot of this moment (`Startd.moment`) -> what a job takes there, where that is not
    `shape`: HTCondor rounds requests, and they may be expressions on the machine."""
    refused_by: Mapping[str, str] = field(default_factory=dict)
    """Kind of slot (`Startd.kind`), or slot of this moment, -> why pilots that are there would not take the jobs."""
    standing: tuple[str, ...] = ()
    """Resources of which some pilots that are there would take the jobs, as far as their slot goes."""
    refused: bool | None = None
    """The negotiator turned some of these away lately, for whatever reason (`rejected`: because nothing was free)."""
    keys: tuple[str, ...] = ()
    """`tier1.pool.JobGroup.key` of all that were merged into this."""
    waited: int = 0
    """Negotiation cycles that ended while these waited at every look."""

    def walltime_on(self, resource: str) -> int:
        """How long the jobs are taken to run there, seconds: the same as its START takes them."""
        return self.walltimes.get(resource, self.walltime_s)

    def shape_on(self, where: str, moment: str = "") -> Shape:
        """What a job takes on a new pilot of a resource, or on a slot of a kind as it is at this moment."""
        return self.shapes.get(moment) or self.shapes.get(where, self.shape)


@dataclass(frozen=True)
class ScheddAnswer:
    """How one schedd answered: `error` is None where it did. `age_s`: it did not, and is counted as it was then."""

    name: str
    seconds: float
    error: str | None = None
    age_s: int | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Demand:
    """What waits. A lower bound, or what waited lately, where a schedd did not answer."""

    groups: tuple[Group, ...]
    schedds: tuple[ScheddAnswer, ...]

    @property
    def complete(self) -> bool:
        return all(schedd.ok for schedd in self.schedds)


class PilotPhase(StrEnum):
    """Where a pilot stands, from what Slurm and the collector say together."""

    PENDING = "pending"
    BOOTING = "booting"
    JOINED = "joined"
    LOST = "lost"
    """Running in Slurm for longer than boot_timeout without having joined: counts for the caps, not as supply."""
    LEAVING = "leaving"
    """Completing, or in a state that this version does not know: counts for the caps, not as supply."""
    ENDED = "ended"


@dataclass(frozen=True)
class Startd:
    """A joined pilot as the collector shows it: what its partitionable slot has free, and until when.

    `busy_by_vo` is VO -> cpus that its jobs hold now. `kind` names what its ad has in common with those of other pilots
    (`tier1.slots.kind`), `made` the configuration that it was started with (`pilot.script.slot_fingerprint`).
    """

    pilot_id: str
    name: str
    machine: str
    total: Shape
    free: Shape
    jobs: int
    to_die: int
    accepting: bool
    draining: bool = False
    busy_by_vo: Mapping[str, int] = field(default_factory=dict)
    healthy: bool = True
    kind: str = ""
    made: str = ""

    @property
    def moment(self) -> str:
        """Names it as it is now, with what is free and how long it lives, for jobs that look at that."""
        return "/".join((self.kind, *map(str, self.free.axes), str(self.to_die)))


@dataclass(frozen=True)
class SlurmJob:
    """One Slurm job or array task of ours, in Slurm's own words.

    `starts` is Slurm's estimate for a pending job, None where it has none. `time_min_s` is what Slurm may shrink it
    to, None where that is not known (squeue does not show it).
    """

    id: str
    resource: str
    plan_id: str
    state: str
    reason: str
    partition: str
    qos: str
    account: str
    node: str
    submitted: int | None
    started: int | None
    ends: int | None
    time_limit_s: int | None
    starts: int | None = None
    time_min_s: int | None = None


class Wait(StrEnum):
    """What Slurm's reason for a pending job means for whoever waits for it (Slurm's job_reason_codes page)."""

    NORMAL = "normal"
    """It will start when its turn comes."""
    LIMIT = "limit"
    """A limit of the QOS, association or user is reached: it starts when another one ends."""
    BUDGET = "budget"
    """The account's budget is spent."""
    NEVER = "never"
    """Slurm took it, and will never start it as it stands."""
    OUTAGE = "outage"
    """Nodes, partition or a reservation are in the way; nobody can do anything here."""
    MAINTENANCE = "maintenance"
    """It would run into a maintenance that is known: it starts after that, and a shorter one may start before."""
    HELD = "held"
    """Somebody holds it: a message from the HPC's admins."""


@dataclass(frozen=True)
class Pilot:
    """A Slurm job and, once it has joined, its startd.

    `wait` and `chance` are about pending ones: what Slurm's reason means, and how likely (0 to 1) it starts within
    the horizon that counts (`slurm.waits.chance`). `tail_drained`: this controller's own drain mark lies on it.
    `untouched`: negotiation cycles that ended while it took jobs and had the same part free at every look.
    """

    job: SlurmJob
    phase: PilotPhase
    startd: Startd | None = None
    wait: Wait = Wait.NORMAL
    chance: float = 1.0
    tail_drained: bool = False
    untouched: int = 0


class Cut(StrEnum):
    """What kind of limit it was that left fewer pilots than the demand wants: for counting, in a few words."""

    MAX_RUNNING = "max_running"
    MAX_PENDING = "max_pending"
    PER_CYCLE = "max_new_per_cycle"
    RATE = "per hour or day"
    BUDGET = "node-hours"
    MAX_HOURS = "max_hours"
    SLURM_LIMIT = "Slurm's limit"
    SLURM_REFUSED = "refused by Slurm"
    UNSETTLED = "submission in doubt"
    STUCK = "pending for a reason that does not pass"
    BACK_OFF = "back-off"
    DISABLED = "disabled"
    DRAINED = "drained"
    OTHER = "other"


@dataclass(frozen=True)
class Cap:
    """How many pilots may be added, and by what. Caps of one `key` are one cap that several resources share.

    `room` is what is left of what the cap counts: pilots, or cores, MiB and the like, of which one pilot takes `each`.
    """

    key: str
    room: int
    why: str
    in_flight: bool = False
    """`room` is for pending and booting pilots together, those that are there included."""
    kind: Cut = Cut.OTHER
    each: int = 1

    @property
    def pilots(self) -> int:
        """How many pilots fit into `room`."""
        return max(0, self.room // self.each)


@dataclass(frozen=True)
class Limits:
    """One resource, as far as the planner needs to know it.

    `job_life_s` is the longest walltime that a new pilot can promise a job; `overhead_s` what a pilot's own
    walltime must exceed a job's by. `caps` are the limits that are not the configuration's max_running, max_pending
    and max_new_per_cycle: Slurm's, node-hours, back-off. `notes` are facts that changed the numbers here, for the
    plan's reasons. `preemptions_per_hour` is how often a running pilot of this resource is preempted.
    """

    name: str
    node: Shape
    walltime_s: int
    job_life_s: int
    max_running: int
    max_pending: int
    max_new_per_cycle: int
    min_walltime_s: int | None = None
    constant: bool = False
    caps: tuple[Cap, ...] = ()
    notes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Nodes in quarantine."""
    preemptions_per_hour: float = 0.0
    cpus_kept_per_gpu: int = 0
    """Cores that jobs without a GPU leave free for each free GPU."""

    @property
    def overhead_s(self) -> int:
        return self.walltime_s - self.job_life_s


@dataclass(frozen=True)
class Policy:
    """What holds for every resource of one controller. Units in the names; see the configuration's [pressure].

    `vo_cpus` is VO, in small letters, -> cores that its jobs may hold in all pilots together.
    """

    min_fill: float
    max_wait_s: int
    surplus_cycles: int
    demand_cycles: int = 1
    either_min_age_s: int = 0
    either_only_rejected: bool = False
    drain_fill: float = 0.0
    """Joined pilots busier than this part are never drained for the tail; 0 switches the tail drain off."""
    vo_cpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Streaks:
    """For how many cycles in a row something has been so: handed from one plan to the next."""

    surplus: Mapping[str, int] = field(default_factory=dict)
    """Pilot id -> it pends and nobody needs it."""
    wanted: Mapping[str, int] = field(default_factory=dict)
    """Resource -> new nodes wanted."""
    sparse: Mapping[str, int] = field(default_factory=dict)
    """Resource -> nothing waits, and the work would fit onto fewer pilots."""
    promised: int = 0
    """Not a streak: how many jobs were to find a place in joined pilots, in the last cycle."""


@dataclass(frozen=True)
class Situation:
    """All that a plan rests on: the planner sees nothing else. `now` in seconds since the epoch.

    `stop` says why nothing may run at all, while the kill switch is on.
    """

    now: int
    demand: Demand
    pilots: tuple[Pilot, ...]
    limits: Mapping[str, Limits]
    policy: Policy
    streaks: Streaks = Streaks()
    stop: str | None = None


@dataclass(frozen=True)
class ResourcePlan:
    """What one cycle decides for one resource, with its reasons.

    `needed` counts the pilots that the demand needs beyond what has joined: booting, pending and new ones.
    `walltime_s` and `time_min_s` are --time and --time-min of what is submitted: the shortest walltime with which a
    pilot still serves the jobs it is meant for. `drain` and `undrain` are joined pilots whose drain mark is to be
    set or taken away. `lower_bound` is how few new nodes any packing of the same jobs could do with.
    """

    needed: int
    running: int
    booting: int
    pending: int
    submit: int = 0
    cancel: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    time_min_s: int | None = None
    walltime_s: int | None = None
    exclude: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    undrain: tuple[str, ...] = ()
    lower_bound: int = 0
    cuts: Mapping[Cut, int] = field(default_factory=dict)
    """Pilots that the demand wants and that were not submitted, by the limit that cut them."""


@dataclass(frozen=True)
class Plan:
    """What one cycle decides. `held` says why nothing was decided, where that is so; `alarms` are for a person."""

    resources: Mapping[str, ResourcePlan]
    streaks: Streaks = Streaks()
    held: str | None = None
    alarms: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of an ended pilot."""

    NEVER_STARTED = "never started"
    NEVER_JOINED = "started, never joined"
    NEVER_MATCHED = "joined, never matched"
    RAN = "ran"
    PREEMPTED = "preempted"
    TIMED_OUT = "timed out"
    NODE_FAILED = "node failed"
    CANCELLED_BY_US = "cancelled by us"
    CANCELLED_BY_OTHERS = "cancelled by others"
    UNKNOWN = "unknown"


class Fault(StrEnum):
    """Who is to blame for the end of a pilot."""

    NODE = "the node"
    """Another one may do."""
    CONFIGURATION = "the configuration"
    """This resource's, its token's or the cluster's: no other node would change it."""
    POOL = "the pool"
    """The Tier-1: no other node would change it."""
    UNCLEAR = "unclear"
    NOBODY = "nobody"


@dataclass(frozen=True)
class EndedPilot:
    """An ended pilot and what became of it. Times in seconds since the epoch; None: it never came to that.

    `exit_code` is the pilot script's (pilot/exit_codes.py lists them), `said` its own last line or Slurm's state where
    it is one that this version does not know.
    """

    id: str
    resource: str
    plan_id: str
    outcome: Outcome
    submitted: int | None
    started: int | None
    ended: int
    joined: int | None = None
    node: str = ""
    exit_code: int = 0
    said: str = ""
    starved: bool = False
    """It joined and got no job, while jobs waited that it should have taken."""
    jobs: int = 0
    evicted: int = 0
    core_s: int = 0
    lost_core_s: int = 0
    """Jobs that it started, those that ran when it had to leave; core-seconds of all jobs, of the evicted."""


@dataclass(frozen=True)
class LivePilot:
    """A pilot that runs now, as evidence: when it started and when it joined (None: not yet)."""

    id: str
    resource: str
    node: str
    started: int
    joined: int | None = None


Count = tuple[int, int]
"""When (seconds since the epoch), and how many idle jobs."""


@dataclass(frozen=True)
class Track:
    """What is kept of one ghost from cycle to cycle; JSON-able. Times in seconds since the epoch.

    `since`: from when on every reading found it with this `digest`. `counts`: group key -> counts of the window, and
    the last one however old.
    """

    digest: str
    since: int
    read: int
    counts: Mapping[str, tuple[Count, ...]] = field(default_factory=dict)
