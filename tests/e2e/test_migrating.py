"""From the old tool's files to manual glideins in Slurm jobs: docs/migrating.md on real Slurm."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from htcebridge.pilot.logs import parse_outcome
from tests.e2e.chain import Chain, wait_until

pytestmark = pytest.mark.testbed

OLD = "/leonardo/work/leo/old tool"
LOGS = "/leonardo/work/leo/htcebridge/logs"
JSON = {
    "jobexecutor": "./dcgp_lowprio.job",
    "log_prefix": "logs/dcgp_",
    "jobname": "GP_VO_CVMFS_JOB",
    "max_running": 2,
    "max_idle": 1,
    "max_hours": 20,
}
SCRIPT = """\
#!/bin/bash
export account=INF24_lhc_2
export partition=dcgp_usr_prod
export length=720   # in minutes
export cpus=112
export jobname=GP_VO_CVMFS_JOB
export space='tmpfs:3t'
export SCRIPTS="$WORK/old tool"
export EXE="$SCRIPTS/wrapper"
export TOKEN=$SCRIPTS/vo.idtoken

echo starting at `date`
srun -A $account --qos=qos_lowprio -J $jobname -p $partition -t $length --gres=$space --ntasks=1 \\
    --cpus-per-task=$cpus "$EXE"
echo ended with code $?
exit 0
"""
# As sites write them: no trap, a file beside it by its relative name, a daemon left behind.
WRAPPER = """\
#!/bin/sh
export TEMPDIR=$TMPDIR/slurm/$SLURM_JOBID
mkdir -p $TEMPDIR
setsid sleep 3000 &
echo "executor on $(hostname -s) with $TOKEN, $WORK, $SLURM_CPUS_PER_TASK cpus"
./inner "$TEMPDIR"
code=$?
echo "executor ends with $code"
exit $code
"""
INNER = """\
#!/bin/bash
trap 'echo inner heard TERM; exit 0' TERM
echo "in $1" > from-inner
cat from-inner
for _ in {1..300}; do
  [ ! -e /leonardo/work/leo/end ] || exit "$(cat /leonardo/work/leo/end)"
  sleep 1 & wait $!
done
"""


@dataclass(frozen=True)
class OldTool:
    """The old tool's files on the edge node, and what came of them."""

    chain: Chain

    def configure(self, **keys: str) -> str:
        """Import the JSON file and fill in what it does not say; what the import printed on the way."""
        said = self.chain.htcebridge("config", "import", f"{OLD}/dcgp_lowprio.json")
        text = said.stdout
        # Not the job's own directory, which Slurm's epilog would clean.
        filled = {"collector": '"tier1.cr.example.org:9618"', "memory": '"494000M"', **keys}
        for key, value in filled.items():
            text = re.sub(rf'^{key} = ("" # FILL IN.*|\d+)$', f"{key} = {value}", text, flags=re.MULTILINE)
        own = 'scratch = "/scratch_local"\nmin_scratch = "50M"\nvacate_time = "8s"\n'
        self.chain.configure(f'{text}{own}[pressure]\nmin_interval = "1s"\n')
        self.chain.htcebridge("config", "check")
        return said.stderr

    def submit(self) -> str:
        """`render script | sbatch` by hand; the job's id."""
        script = self.chain.htcebridge("render", "script", "dcgp_lowprio").stdout
        self.chain.bed.on("edge", ["mkdir", "-p", LOGS], user="leo")
        submitted = self.chain.bed.on("edge", ["sbatch", "--parsable", "--array=1"], user="leo", input=script)
        return f"{submitted.stdout.strip()}_1"

    def log(self, job: str) -> str:
        return self.chain.bed.on("edge", ["sh", "-c", f"cat {LOGS}/{job}.out 2>/dev/null || true"], user="leo").stdout

    def ended(self, job: str) -> list[str] | None:
        """[state, exit code] once slurmdbd knows that the job has ended."""
        if job in self.chain.slurm_jobs():
            return None
        said = self.chain.bed.on("edge", ["sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode"], user="leo")
        fields = said.stdout.strip().split("|")
        return fields if fields[0] not in ("", "RUNNING", "PENDING", "COMPLETING") else None

    def left_on(self, node: str) -> str:
        """Files and processes of leo on a node."""
        look = "ls -A /scratch_local; ps -o args= -u leo | grep -v '^ps '; true"
        return self.chain.bed.on(node, ["sh", "-c", look]).stdout

    def let_end(self, code: int) -> None:
        """The inner script ends with this code."""
        self.chain.bed.write("edge", "/leonardo/work/leo/end", f"{code}\n", owner="leo")


@pytest.fixture
def old(chain: Chain) -> OldTool:
    chain.bed.on("edge", ["rm", "-rf", OLD, "/leonardo/work/leo/end", "/leonardo/work/leo/htcebridge"], user="leo")
    chain.bed.write("edge", f"{OLD}/dcgp_lowprio.json", json.dumps(JSON), owner="leo")
    for name, text in (("dcgp_lowprio.job", SCRIPT), ("wrapper", WRAPPER), ("inner", INNER)):
        chain.bed.write("edge", f"{OLD}/{name}", text, mode=0o755, owner="leo")
    return OldTool(chain)


def outcome(log: str) -> str:
    """What the pilot says of its own end."""
    said = parse_outcome(log)
    assert said, log
    assert (said.joined, said.jobs) == (False, 0)
    return f"{said.code}: {said.reason}"


@pytest.mark.one_suite("forky")
def test_an_imported_executor_runs_in_a_slurm_job_and_its_exit_code_is_kept(old: OldTool) -> None:
    assert old.configure() == ""
    job = old.submit()
    wait_until(lambda: "in /" in old.log(job), 60, "the executor runs")
    log = old.log(job)
    assert f"executor on lrdn0001 with {OLD}/vo.idtoken, /leonardo/work/leo, 112 cpus" in log
    assert f"in /scratch_local/htcebridge-{job}/tmp/slurm/" in log
    assert "from-inner" not in old.chain.bed.on("edge", ["ls", OLD], user="leo").stdout

    old.let_end(111)
    assert wait_until(lambda: old.ended(job), 60, "the pilot has ended") == ["FAILED", "111:0"]
    assert "executor ends with 111\n" in old.log(job)
    assert outcome(old.log(job)) == "111: the executor ended by itself with code 111"
    assert old.left_on("lrdn0001") == ""


@pytest.mark.parametrize(
    ("how", "reason", "state"),
    [
        (["--batch", "--signal=USR1"], "the end of the walltime is near", "COMPLETED"),
        ([], "Slurm takes the node back", "CANCELLED"),
    ],
)
def test_told_to_leave_the_executor_ends_in_order(old: OldTool, how: list[str], reason: str, state: str) -> None:
    old.configure()
    job = old.submit()
    wait_until(lambda: "in /" in old.log(job), 60, "the executor runs")
    old.chain.bed.on("edge", ["scancel", *how, job], user="leo")
    ended = wait_until(lambda: old.ended(job), 60, "the pilot has ended")
    assert ended[0].startswith(state)
    assert "inner heard TERM\n" in old.log(job)
    said = outcome(old.log(job))
    assert re.fullmatch(rf"0: ({reason}|Slurm announced the end at \S+)", said)
    assert old.left_on("lrdn0001") == ""


def test_a_preempted_executor_hears_it_when_the_grace_begins(old: OldTool) -> None:
    old.configure()
    job = old.submit()
    wait_until(lambda: "in /" in old.log(job), 60, "the executor runs")
    old.chain.occupy(nodes=2)
    ended = wait_until(lambda: old.ended(job), 90, "the pilot has ended")
    assert ended[0] == "PREEMPTED"
    assert "inner heard TERM\n" in old.log(job)
    assert re.match(r"0: Slurm announced the end at ", outcome(old.log(job)))


@pytest.mark.one_suite("forky")
def test_the_controller_keeps_as_many_as_the_old_tool_did(old: OldTool) -> None:
    """max_running pilots at a time, whatever waits; max_running = 0 starts no more; nothing running is touched."""
    old.configure()
    for _ in range(2):
        old.chain.htcebridge("pressure", "once")
        wait_until(lambda: set(old.chain.slurm_jobs().values()) == {"RUNNING"}, 60, "the pilots run")
    assert len(old.chain.slurm_jobs()) == 2
    old.chain.htcebridge("pressure", "once")
    assert len(old.chain.slurm_jobs()) == 2

    old.configure(max_running="0")
    old.chain.htcebridge("pressure", "once")
    assert len(old.chain.slurm_jobs()) == 2
    old.let_end(0)
    wait_until(lambda: not old.chain.slurm_jobs(), 60, "both have ended")
    old.chain.htcebridge("pressure", "once")
    assert not old.chain.slurm_jobs()
