"""Makes the outputs in this directory again, from the real Slurm of a running testbed.

    python3 -m tests.testbed up --name out --suite trixie --nodes 3 --gpu-nodes 1
    python3 -m tests.slurm_outputs.capture --name out

About six minutes. It changes limits, states and daemons of that bed and puts them back as they were.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from htcebridge.slurm.levels import ASSOC_FIELDS, QOS_FIELDS
from htcebridge.slurm.text import ENDED_FIELDS, QUEUE_FORMAT, SUBMITTED_FIELDS
from tests.slurm_outputs.scenes import REASONS, REFUSALS, Change, Scene
from tests.testbed.bed import Testbed

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
PILOT = ("-A", "INF24_lhc_2", "-p", "dcgp_usr_prod", "--qos=qos_lowprio", "-c", "112", "--mem=1000M", "-t", "20")
REASON_TIMEOUT_S = 40.0
ENDS_TIMEOUT_S = 180.0


class Capture:
    """One bed's outputs on their way into the directory of its Slurm version."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        version = self.leo("squeue", "--version").stdout.split()[-1]
        self.directory = HERE / ".".join(version.split(".")[:2])
        self.directory.mkdir(exist_ok=True)
        self.names: dict[str, str] = {}
        (self.directory / "version.txt").write_text(f"{version}\n")

    def root(self, *command: str, check: bool = True) -> str:
        return self.bed.on("hpcctl", command, check=check).stdout

    def leo(self, *command: str, user: str = "leo", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return self.bed.on("edge", command, user=user, env=ENVIRONMENT, timeout=timeout, check=False)

    def save(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def submit(self, scene: str, *arguments: str, wrap: str = "sleep 900", user: str = "leo") -> str:
        mark = ["-J", "pilot", f"--comment=htcebridge:leonardo:dcgp:{scene}", "-o", "/dev/null", "--no-requeue"]
        done = self.leo("sbatch", "--parsable", *PILOT, *mark, *arguments, f"--wrap={wrap}", user=user)
        if done.returncode != 0:
            print(f"  {scene}: not taken: {' '.join(done.stderr.split())}")
            return ""
        id_ = done.stdout.strip()
        self.names[id_] = scene
        return id_

    def cancel_all(self) -> None:
        for user in ("leo", "leo2"):
            self.root("scancel", "-u", user)
        self.until(lambda: not self.squeue("-t", "PD,R,CG,S").strip(), "an empty queue", 120)

    def squeue(self, *more: str) -> str:
        return self.leo("squeue", "-h", "-r", "-o", QUEUE_FORMAT, *more).stdout

    def waiting(self, id_: str) -> list[str]:
        """Its lines of squeue, or those of its tasks, while they wait for a reason."""
        lines = self.squeue("-t", "PENDING", "-j", id_).splitlines(keepends=True)
        return [line for line in lines if line.split("|")[12] != "None"]

    def until(self, true: Callable[[], bool], what: str, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                print(f"  gave up waiting for {what}")
                return False
            time.sleep(0.5)
        return True

    @contextmanager
    def changed(self, change: Change | None) -> Iterator[None]:
        if change is None:
            yield
            return
        for command in change.do:
            done = self.bed.on("hpcctl", command, check=False)
            if done.returncode != 0:
                print(f"  {' '.join(command)}: {' '.join((done.stdout + done.stderr).split())}")
        try:
            yield
        finally:
            for command in change.undo:
                self.root(*command, check=False)


def reasons(capture: Capture) -> None:
    """A line of squeue for each pending reason that can be provoked."""
    lines = []
    for scene in REASONS:
        lines += reason_lines(capture, scene)
    capture.save("squeue_reasons.txt", "".join(lines))


def reason_lines(capture: Capture, scene: Scene) -> list[str]:
    with capture.changed(None if scene.change_after else scene.change):
        fillers = [capture.submit("filler", *scene.filler) for _ in range(scene.fillers)]
        first = fillers[0] if fillers else ""
        id_ = capture.submit(scene.name, *(word.format(first=first) for word in scene.arguments))
        if not id_:
            return []
        reason = scene.reason or scene.name
        with capture.changed(scene.change if scene.change_after else None):
            capture.until(lambda: f"|{reason}" in "".join(capture.waiting(id_)), scene.name, REASON_TIMEOUT_S)
            lines = capture.waiting(id_)
            print(f"  {scene.name}: {sorted({line.split('|')[12] for line in lines})}")
            capture.cancel_all()  # a reservation in use cannot be deleted
            return lines


def refusals(capture: Capture) -> None:
    """What sbatch says on standard error, for each refusal that can be provoked."""
    blocks = []
    for scene in REFUSALS:
        with capture.changed(scene.change):
            blocks.append(refusal(capture, scene.name, scene.arguments))
        capture.cancel_all()
    blocks += list(without_daemons(capture))
    capture.save("sbatch_refusals.txt", "".join(blocks))


def refusal(capture: Capture, name: str, arguments: Sequence[str]) -> str:
    script = () if any(word.startswith("/") for word in arguments) else ("--wrap=sleep 900",)
    done = capture.leo("sbatch", "--parsable", *PILOT, "-o", "/dev/null", *arguments, *script, timeout=180)
    print(f"  {name}: {done.returncode} {' '.join(done.stderr.split())}")
    return f"### {name} {done.returncode}\n{done.stderr}"


def without_daemons(capture: Capture) -> Iterator[str]:
    """Slurm's commands while a daemon of it is down, or does not answer."""
    bed = capture.bed
    bed.stop("hpcctl", "slurmctld")
    yield refusal(capture, "slurmctld_down", ())
    down = [("squeue", "-r", "-o", QUEUE_FORMAT), ("scontrol", "show", "config"), ("scancel", "1")]
    answers = [f"### {words[0]} {done.returncode}\n{done.stderr}" for words in down for done in [capture.leo(*words)]]
    capture.save("slurmctld_down.txt", "".join(answers))
    bed.start("hpcctl", "slurmctld")
    bed.kill("hpcctl", "slurmctld", signal.SIGSTOP)
    yield refusal(capture, "slurmctld_hangs", ())
    bed.kill("hpcctl", "slurmctld", signal.SIGCONT)
    bed.stop("edge", "munge")
    yield refusal(capture, "munge_down", ())
    bed.start("edge", "munge")
    bed.stop("hpcctl", "slurmdbd")
    down = [("sacct", "-j", "1"), ("sacctmgr", "-n", "-P", "show", "qos")]
    answers = [f"### {words[0]} {done.returncode}\n{done.stderr}" for words in down for done in [capture.leo(*words)]]
    capture.save("slurmdbd_down.txt", "".join(answers))
    bed.start("hpcctl", "slurmdbd")


def endings(capture: Capture) -> None:
    """Jobs that end in each way that can be provoked, as squeue and sacct show them."""
    capture.names.clear()
    submit, small = capture.submit, ("-c", "1")
    # The low-priority pilots fill two nodes; a normal job that needs a whole one takes it.
    victims = [submit("preempted", "-w", f"lrdn000{number}") for number in (1, 2)]
    third = ("-w", "lrdn0003", *small)
    submit("completed", *third, wrap="sleep 3")
    submit("failed", *third, wrap="sleep 2; exit 3")
    submit("killed", *third, wrap="sleep 2; kill -9 $$")
    submit("timeout", *third, "-t", "1")
    by_self, by_root = submit("cancelled_by_leo", *third), submit("cancelled_by_root", *third)
    paused, held = submit("suspended", *third), submit("requeued_held", *third, "--requeue")
    lost = submit("node_failed", "-p", "boost_usr_prod", "-c", "32")
    capture.until(lambda: "|RUNNING|" in capture.squeue("-j", held), "the small jobs", 60)
    submit("deadline", f"--dependency=afterok:{victims[1]}", "--deadline=now+90seconds", "-t", "1")
    waiting = submit("array_never_started", "--array=1-5")
    apart = submit("array_apart", "--array=3,7,10-12%1")
    capture.until(lambda: "|RUNNING|" in capture.squeue("-j", lost), "the job on lrdn1001", 60)
    normal = submit("normal", "--qos=normal", "-w", "lrdn0001", wrap="sleep 5")
    capture.root("scontrol", "suspend", paused)
    capture.root("scontrol", "requeuehold", held)
    capture.save("squeue_queue.txt", capture.leo("squeue", "--me", "-r", "-t", "all", "-o", QUEUE_FORMAT).stdout)
    capture.root("scontrol", "update", "nodename=lrdn1001", "state=down", "reason=capture")
    capture.root("scontrol", "update", "nodename=lrdn1001", "state=idle")
    capture.leo("scancel", by_self)
    capture.leo("scancel", f"{waiting}_2")
    capture.leo("scancel", waiting)
    capture.root("scancel", by_root)
    capture.root("scancel", apart)
    ended = ("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT")

    def all_ended() -> bool:
        listed = capture.leo("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(capture.names)).stdout
        states = dict(line.split("|") for line in listed.splitlines() if line)
        return all(
            any(state.startswith(ended) for id_, state in states.items() if id_.split("_")[0] == wanted)
            for wanted in capture.names
            if wanted not in (paused, held, victims[1])
        )

    capture.until(all_ended, "all to end", ENDS_TIMEOUT_S)
    print(f"  normal job {normal}, preempted {victims[0]}")
    capture.save("squeue_ended.txt", capture.leo("squeue", "--me", "-r", "-t", "all", "-o", QUEUE_FORMAT).stdout)
    sacct = ["sacct", "-X", "-n", "-P", "-j", ",".join(capture.names), "-o"]
    capture.save("sacct_ended.txt", capture.leo(*sacct, ENDED_FIELDS).stdout)
    capture.save("sacct_submitted.txt", capture.leo(*sacct, SUBMITTED_FIELDS).stdout)
    capture.save("jobs.txt", "".join(f"{id_} {scene}\n" for id_, scene in capture.names.items()))
    capture.cancel_all()
    capture.save("squeue_empty.txt", capture.leo("squeue", "--me", "-r", "-o", QUEUE_FORMAT).stdout)


QOS_LIMITS = (  # with what takes them back
    ("MaxWall=12:00:00", "-1"),
    ("MaxJobsPerUser=40", "-1"),
    ("MaxSubmitJobsPerUser=50", "-1"),
    ("GrpTRES=cpu=11200,node=100", "cpu=-1,node=-1"),
    ("MaxTRESPerJob=cpu=224,mem=1T", "cpu=-1,mem=-1"),
    ("MaxTRESPerUser=node=60", "node=-1"),
    ("UsageFactor=0", "1"),
    ("Flags=OverPartQOS", "-1"),
)
ACCOUNT_LIMITS = ("GrpJobs=80", "GrpSubmitJobs=90", "MaxJobs=30", "MaxWall=1-00:00:00")


def limits(capture: Capture) -> None:
    """What scontrol and sacctmgr say with limits on the QOS and on the account."""
    capture.root("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", *(limit for limit, _ in QOS_LIMITS))
    capture.root("sacctmgr", "-i", "modify", "account", "INF24_lhc_2", "set", *ACCOUNT_LIMITS)
    show = ("sacctmgr", "-n", "-P", "show")
    for name, command in (
        ("scontrol_config.txt", ("scontrol", "show", "config")),
        ("scontrol_partition.txt", ("scontrol", "show", "partition", "-o", "dcgp_usr_prod")),
        ("sacctmgr_qos.txt", (*show, "qos", f"format={QOS_FIELDS}")),
        ("sacctmgr_own.txt", (*show, "assoc", "where", "cluster=leonardo", "user=leo", f"format={ASSOC_FIELDS}")),
        (
            "sacctmgr_account.txt",
            (*show, "assoc", "where", "cluster=leonardo", "account=INF24_lhc_2", "user=", f"format={ASSOC_FIELDS}"),
        ),
    ):
        capture.save(name, capture.leo(*command).stdout)
    absent = capture.leo("scontrol", "show", "partition", "-o", "nowhere")
    capture.save("scontrol_no_partition.txt", f"### {absent.returncode}\n{absent.stdout}{absent.stderr}")
    for limit, nothing in QOS_LIMITS:
        capture.root("sacctmgr", "-i", "modify", "qos", "qos_lowprio", "set", f"{limit.split('=')[0]}={nothing}")
    for limit in ACCOUNT_LIMITS:
        capture.root("sacctmgr", "-i", "modify", "account", "INF24_lhc_2", "set", f"{limit.split('=')[0]}=-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--name", required=True, help="the running testbed")
    parser.add_argument("part", nargs="*", help="limits, endings, reasons, refusals (all)")
    given = parser.parse_args()
    capture = Capture(Testbed.attach(given.name))
    for part in (limits, endings, reasons, refusals):
        if not given.part or part.__name__ in given.part:
            print(part.__name__)
            part(capture)


if __name__ == "__main__":
    main()
