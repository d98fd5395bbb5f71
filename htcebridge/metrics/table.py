"""Every metric that the controller exports: its name, its labels and what it says. `samples` fills them in.

Names follow https://prometheus.io/docs/practices/naming/: base units, a counter ends in `_total`. docs/metrics.md and
the `# HELP` lines are made from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

# Users write how many cores their jobs ask for; these words are all that a label ever says of it.
SHAPES = ("1", "2-4", "5-8", "9-16", "17+", "gpu")
OTHER, NOBODY = "other", "none"

LABELS = {
    "controller": "`pressure.instance`. Every metric has it; Prometheus' own `instance` is the address that it scrapes",
    "vo": f"a `[[vo]]`; `{OTHER}` for jobs of none of them; `{NOBODY}` for cores that no job holds",
    "shape": "how many cores a job asks for, " + ", ".join(f"`{shape}`" for shape in SHAPES[:-1]) + "; `gpu` if it "
    "asks for GPUs, too",
    "resource": f"a `[resource.NAME]`; `{OTHER}` for pilots of one that is no longer in the configuration",
    "state": "see the metric",
    "use": "what a held core does: `busy`, `boot`, `idle`, `fragmentation` (jobs wait, and it takes none), `tail` "
    "(nothing waits, other cores of its pilot are busy), `drained`, `elsewhere` (a manual glidein: its own pool "
    "knows). `lost` is counted besides: it was busy, and the job had to leave with the pilot",
    "reason": "the kind of limit: `max_running`, `max_pending`, `per_cycle`, `rate` (max_new_per_hour and "
    "max_new_per_day), `budget` (max_node_hours), `max_hours`, `slurm_limit`, `slurm_refused`, `unsettled` (a "
    "submission in doubt), `stuck` (pending for a reason that does not pass), `back_off`, `disabled`, `drained`, "
    "`other`",
    "outcome": "what became of a pilot: `never_started`, `never_joined`, `never_matched`, `ran`, `preempted`, "
    "`timed_out`, `node_failed`, `cancelled_by_us`, `cancelled_by_others`, `unknown`; "
    "`other`: a word of another version",
    "result": "`ok`, `problem` (it acted, and something needs a person), `held` (something could not be observed, so "
    "nothing was done)",
    "call": "a Slurm command, or the kind of question to the Tier-1",
    "token": "`controller`, or `pilot` (then `resource` says whose)",
    "version": "of htcebridge",
}


class Kind(StrEnum):
    """Prometheus' metric types."""

    GAUGE = "gauge"
    COUNTER = "counter"
    SUMMARY = "summary"


@dataclass(frozen=True)
class Metric:
    """One metric. `name` is the one to query; a summary's series are NAME_sum and NAME_count."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    says: str

    def of(self, *labels: str, value: float, count: float = 0) -> Sample:
        """One series of it. `count` is a summary's, whose sum `value` is then."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
        return Sample(self, labels, value, count)


@dataclass(frozen=True)
class Sample:
    """A number with its labels, in the order of `metric.labels`."""

    metric: Metric
    labels: tuple[str, ...]
    value: float
    count: float = 0


TABLE: list[Metric] = []
"""In the order in which they are exported."""


def _kind(kind: Kind) -> Callable[..., Metric]:
    def declare(name: str, *labels: str, says: str) -> Metric:
        metric = Metric(f"htcebridge_{name}", kind, labels, says)
        TABLE.append(metric)
        return metric

    return declare


_gauge, _counter, _summary = (_kind(kind) for kind in Kind)

# --- the controller itself
BUILD_INFO = _gauge("build_info", "version", says="Always 1; the version is a label.")
HELD = _gauge("held", says="1 if the last cycle could not observe something and so decided nothing.")
STOPPED = _gauge("stopped", says="1 while the kill switch (`pressure stop`) is on.")
LAST_CYCLE = _gauge("last_cycle_timestamp_seconds", says="When a cycle was last begun.")
LAST_SUCCESS = _gauge("last_success_timestamp_seconds", says="When a cycle last saw all it needs and decided.")
LAST_DURATION = _gauge("last_cycle_duration_seconds", says="How long the last cycle took.")
PROBLEMS = _gauge("last_cycle_problems", says="Problems that the last cycle named for a person; the log has them.")
CYCLES = _counter("cycles_total", "result", says="Cycles.")
CALLS = _counter("calls_total", "call", says="Commands given to Slurm and questions asked of the Tier-1.")
SCHEDDS = _gauge("schedds", "state", says="Schedds that were asked what waits, `answering` or `silent`.")
TOKEN = _gauge(
    "token_expiration_timestamp_seconds",
    "token",
    "resource",
    says="When an IDTOKEN expires; the first of several. One without an expiry has no series.",
)

# --- demand
DEMAND_JOBS = _gauge(
    "demand_jobs",
    "vo",
    "shape",
    "state",
    says="Granted jobs in the schedds, `idle` or `running`. A lower bound while a schedd is silent.",
)
DEMAND_CORES = _gauge("demand_cores", "vo", "shape", "state", says="Cores that these jobs ask for.")
UNMATCHED = _gauge("demand_unmatched_jobs", "vo", says="Idle granted jobs that fit no resource: they start no pilot.")
OLDEST = _gauge("demand_oldest_wait_seconds", "vo", says="How long the longest-waiting idle granted job has waited.")

# --- pilots
PILOTS = _gauge(
    "pilots",
    "resource",
    "state",
    says="Pilots in Slurm: `pending`, `booting` (running, not joined yet), `joined`, `lost` (not joined within "
    "boot_timeout), `leaving`. While the kill switch is on nobody looks who has joined.",
)
DRAINING = _gauge("draining_pilots", "resource", says="Joined pilots that take no new jobs.")
NEEDED = _gauge("needed_pilots", "resource", says="Pilots that the demand needs beyond those that have joined.")
MAX_RUNNING = _gauge("max_running_pilots", "resource", says="`max_running` of the configuration.")
QUARANTINED = _gauge("quarantined_nodes", "resource", says="Nodes on which pilots fail, and which new ones avoid.")
BLOCKED = _gauge(
    "resource_blocked",
    "resource",
    "reason",
    says="1 while this kind of limit lets no pilot in, wanted or not.",
)
CUT_PILOTS = _gauge(
    "cut_pilots", "resource", "reason", says="Pilots that the demand wants and that the last cycle did not submit."
)
CUTS = _counter(
    "plan_cuts_total", "resource", "reason", says="Pilots wanted and not submitted, counted anew in every cycle."
)
SUBMITTED = _counter("pilots_submitted_total", "resource", says="Pilots that plans submitted.")
CANCELLED = _counter("pilots_cancelled_total", "resource", says="Pending pilots that plans cancelled.")
ENDED = _counter("pilots_ended_total", "resource", "outcome", says="Pilots that have ended.")
QUEUE_TIME = _summary(
    "pilot_queue_duration_seconds", "resource", says="From submission to start, of ended pilots that started."
)
BOOT_TIME = _summary(
    "pilot_boot_duration_seconds", "resource", says="From start to joining the pool, of ended pilots that joined."
)

# --- cores
CORES = _gauge("cores", "resource", "vo", "use", says="Cores that pilots hold now, by what they do.")
CORE_SECONDS = _counter(
    "core_seconds_total",
    "resource",
    "vo",
    "use",
    says="Core-seconds that pilots held, by what they were used for. All uses but `lost` add up to what was held.",
)
