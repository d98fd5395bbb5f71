"""Pilots submitted by hand on the testbed, as the controller would, and what can be seen of them."""

from __future__ import annotations

from htcebridge.pilot.logs import OutcomeLine, parse_outcome
from tests.e2e.chain import CONFIGURATION, HTCEBRIDGE, RUNNING, Chain, GridJob, wait_until

# So long that no pilot of these tests leaves because it is idle; it updates the collector every 60 to 75 s.
PATIENT = CONFIGURATION.replace('idle_timeout = "20s"', 'idle_timeout = "10m"')
SHARED = "/leonardo/home/leo/pilots"
# Of a job that runs: its starter has said so in this run; the schedd's own RUNNING comes with the shadow.
EXECUTING = "JobCurrentStartExecutingDate >= JobCurrentStartDate"


def start(chain: Chain, *options: str, resource: str = "dcgp", before: str = "true", through: str = "cat") -> str:
    """Submit one pilot as the controller would; its id. `before`: what the shell does first; `through`: a filter that
    its script goes through."""
    sbatch = f"sbatch --parsable --array=1-1 --comment=htcebridge:leonardo:{resource}:by-hand"
    submit = f'{before} && mkdir -p {SHARED}/logs && {HTCEBRIDGE} render script {resource} | {through} | {sbatch} "$@"'
    done = chain.bed.on("edge", ["sh", "-c", submit, "sh", *options], user="leo")
    return done.stdout.strip() + "_1"


def advertised(chain: Chain, *attributes: str) -> list[str]:
    """These attributes of the only pilot's partitionable slot, as the collector has them now."""
    found = chain.bed.on(
        "tier1", ["condor_status", "-constraint", "PartitionableSlot =?= True", "-af:,", *attributes]
    ).stdout
    return [field.strip() for field in found.strip().split(",")] if found.strip() else []


def ran_once(chain: Chain, job: GridJob) -> bool:
    """Whether a job runs, and has from its first start on. NumJobStarts is 0 for minutes (23.9, 25.14)."""
    return chain.pool_jobs(job.ce, "JobStatus", "NumShadowStarts").get(job.id) == [str(RUNNING), "1"]


def executing(chain: Chain, jobs: list[GridJob]) -> bool:
    """Whether the starters of all these jobs have said that they execute, in their present run."""
    rows = {ce: chain.pool_jobs(ce, EXECUTING) for ce in {job.ce for job in jobs}}
    return all(rows[job.ce].get(job.id) == ["true"] for job in jobs)


def run(chain: Chain, jobs: list[GridJob]) -> None:
    wait_until(lambda: chain.states(jobs) == [RUNNING] * len(jobs), 60, "the jobs run")


def outcome(chain: Chain, pilot: str, seconds: float = 60) -> OutcomeLine:
    """What a pilot says of itself once it has ended."""
    wait_until(lambda: pilot not in chain.slurm_jobs(), seconds, f"pilot {pilot} has ended")
    text = chain.bed.read("edge", f"{SHARED}/logs/{pilot}.out")
    assert text.splitlines()[-1].split()[1] == "htcebridge-outcome", text
    said = parse_outcome(text)
    assert said is not None
    return said


def accounted(chain: Chain, pilot: str) -> str:
    """State and exit code of an ended pilot in slurmdbd."""
    look = ["sacct", "-X", "-n", "-P", "-j", pilot, "-o", "State,ExitCode"]
    ended = lambda: [  # noqa: E731
        line for line in chain.bed.on("edge", look, user="leo").stdout.split("\n") if line and "RUNNING" not in line
    ]
    return wait_until(ended, 30, "slurmdbd knows the end")[0]


def left_on(chain: Chain, node: str) -> str:
    """Processes of pilots and their directories on a node."""
    look = "ps -u leo -o args= | grep -E 'condor_|htcebridge'; ls -d /scratch_local/*/htcebridge-* 2> /dev/null; true"
    return chain.bed.on(node, ["sh", "-c", look]).stdout
