"""The Tier-1's side: jobs that wait, and the negotiator that puts them into pilots."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from htcebridge.model import Group, Limits, Pilot, PilotPhase, Shape
from htcebridge.simulation.workload import Job

# START also wants time() < GLIDEIN_ToRetire, so long before GLIDEIN_ToDie (slurm_scripts/pilot-functions.sh).
RETIRE_BEFORE_DEATH_S = 60


@dataclass
class SimPilot:
    """One pilot, from sbatch to its end. Times in seconds since the epoch."""

    id: str
    resource: str
    size: Shape
    """What it has for jobs."""
    submitted: int
    walltime_s: int
    time_min_s: int | None = None
    exclude: frozenset[str] = frozenset()
    phase: PilotPhase = PilotPhase.PENDING
    reason: str = "Priority"
    started: int | None = None
    joined: int | None = None
    ends: int = 0
    to_die: int = 0
    node: int = -1
    node_name: str = ""
    free: Shape = field(init=False)
    running: dict[int, Run] = field(default_factory=dict)
    jobs_run: int = 0
    draining: bool = False
    bad: bool = False
    """It is on a node on which pilots fail."""
    idle_since: int = 0
    accounted: int = 0
    """Until when its free cores were written into the meter."""
    shown: Pilot | None = None
    """What a controller saw of it last; None since it changed."""

    def __post_init__(self) -> None:
        self.free = self.size

    def takes(self, shape: Shape, walltime_s: int, now: int) -> bool:
        """START and the slot's size."""
        free = self.free
        return (
            shape.cpus <= free.cpus
            and shape.memory_mb <= free.memory_mb
            and not self.draining
            and now + walltime_s <= self.to_die
            and now < self.to_die - RETIRE_BEFORE_DEATH_S
            and shape.times_in(free) > 0
        )


@dataclass(frozen=True)
class Run:
    """One start of a job."""

    number: int
    job: Job
    pilot: str
    began: int


@dataclass
class Cluster:
    """Jobs that the negotiator treats alike (an autocluster), first come first."""

    shape: Shape
    walltime_s: int
    owner: str
    vo: str
    resources: tuple[str, ...]
    why_not: Mapping[str, str]
    idle: list[tuple[int, int, Job]] = field(default_factory=list)
    """A heap of (when it came, number, job); a preempted job keeps the time when it came."""
    running: int = 0

    @property
    def oldest(self) -> int:
        return self.idle[0][0]


class Pool:
    """Idle jobs in clusters. `begin` is the simulation's midnight, seconds since the epoch."""

    def __init__(self, limits: Mapping[str, Limits], cpu_jobs: Mapping[str, bool], begin: int) -> None:
        self._limits = limits
        self._cpu_jobs = cpu_jobs
        self._begin = begin
        self._clusters: dict[object, Cluster] = {}

    def submit(self, number: int, job: Job) -> None:
        """A new job, or one that was preempted. `number` tells jobs of equal age apart."""
        heapq.heappush(self.cluster(job).idle, (self._begin + job.submitted_s, number, job))

    def cluster(self, job: Job) -> Cluster:
        key = (job.shape, job.walltime_s, job.owner, job.vo)
        found = self._clusters.get(key)
        if found is None:
            why_not = {name: why for name in self._limits if (why := self._why_not(job, name))}
            fitting = tuple(name for name in self._limits if name not in why_not)
            found = self._clusters[key] = Cluster(*key, resources=fitting, why_not=why_not)
        return found

    def negotiate(self, pilots: Iterable[SimPilot], now: int, start: Callable[[int, Job, SimPilot], None]) -> None:
        """One cycle: each job, oldest first, into the pilot that the pool's rank likes best.

        NEGOTIATOR_PRE_JOB_RANK as shipped (25.14) prefers the fewest free cpus, then the least free memory. A cluster
        that finds no place is left for this cycle.
        """
        slots = list(pilots)
        open_clusters = [cluster for cluster in self._clusters.values() if cluster.idle and cluster.resources]
        while open_clusters:
            cluster = min(open_clusters, key=lambda each: each.idle[0][:2])
            shape, wall, names = cluster.shape, cluster.walltime_s, cluster.resources
            fitting = [pilot for pilot in slots if pilot.resource in names and pilot.takes(shape, wall, now)]
            if not fitting:
                open_clusters.remove(cluster)
                continue
            best = min(fitting, key=lambda pilot: (pilot.free.cpus, pilot.free.memory_mb, pilot.id))
            # Filled while these jobs are the oldest: NEGOTIATOR_DEPTH_FIRST, and the schedd takes the leftovers.
            others = min((each.idle[0][:2] for each in open_clusters if each is not cluster), default=None)
            while cluster.idle and (others is None or cluster.idle[0][:2] < others) and best.takes(shape, wall, now):
                _, number, job = heapq.heappop(cluster.idle)
                start(number, job, best)
            if not cluster.idle:
                open_clusters.remove(cluster)

    def groups(self, now: int) -> tuple[Group, ...]:
        """What the controller would see in the schedds."""
        return tuple(
            Group(
                shape=cluster.shape,
                walltime_s=cluster.walltime_s,
                owner=cluster.owner,
                vo=cluster.vo,
                idle=len(cluster.idle),
                running=cluster.running,
                oldest_s=now - cluster.oldest if cluster.idle else 0,
                resources=cluster.resources,
                why_not=cluster.why_not,
            )
            for cluster in self._clusters.values()
            if cluster.idle or cluster.running
        )

    def waiting_cpus(self, before: int | None = None, fitting: bool = True) -> int:
        """Cores that idle jobs ask for: those that came before a time, and (`fitting`) that some resource takes."""
        total = 0
        for cluster in self._clusters.values():
            if cluster.resources or not fitting:
                jobs = len(cluster.idle) if before is None else sum(came < before for came, _, _ in cluster.idle)
                total += jobs * cluster.shape.cpus
        return total

    def still_waiting_s(self, now: int) -> list[int]:
        """How long each job waits that some resource takes."""
        return [now - came for cluster in self._clusters.values() if cluster.resources for came, _, _ in cluster.idle]

    def fits_somewhere(self, job: Job) -> bool:
        """Whether any resource would take such a job."""
        return bool(self.cluster(job).resources)

    def _why_not(self, job: Job, name: str) -> str:
        limit = self._limits[name]
        if not job.shape.times_in(limit.node):
            return "larger than a pilot"
        if job.walltime_s > limit.job_life_s:
            return "longer than a pilot lives"
        if not job.shape.gpus and not self._cpu_jobs[name]:
            return "kept for GPU jobs"
        return ""
