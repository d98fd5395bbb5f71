"""Shows that every part of a testbed works: each step states a fact, tries it, and says how long it took."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from . import data
from .bed import Testbed
from .errors import TestbedError
from .pace import Patience
from .places import ETC, run_dir
from .services import find

Say = Callable[[str], object]
HOME = "/leonardo/home/leo"
BY_TOKEN = {"CONDOR_CONFIG": "/dev/null", "_CONDOR_COLLECTOR_HOST": "tier1.cr.example.org:9618"}
CE = {"CONDOR_CONFIG": "/etc/condor-ce/condor_config"}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"


def selftest(suite: str, ce_config: Path | None, say: Say) -> None:
    """Run all steps on a bed of its own. Raises TestbedError at the first step that fails."""
    name = f"selftest-{suite}"
    with Testbed.up(suite, nodes=2, gpu_nodes=1, name=name, ce_config=ce_config, say=say) as bed:
        for step in (
            token_reads_the_pool,
            slurm_is_like_leonardo,
            firewalls_hold,
            routed_job_runs_in_a_pilot,
            cvmfs_is_there_for_jobs_named_so,
            killed_cvmfs_job_leaves_nothing,
            nodes_read_and_write_the_grids_data,
            preemption_warns_steps,
            slurmctld_stops_and_starts,
            tier1_stops_and_starts,
            cut_node_is_gone_and_comes_back,
            killed_daemons_do_not_end_the_bed,
        ):
            started = time.monotonic()
            step(bed)
            say(f"ok: {step.__name__.replace('_', ' ')} ({time.monotonic() - started:.1f} s)")
        init = bed.init_pid
    expect(not Path(f"/proc/{init}").exists(), f"process {init} of the bed is left")
    expect(not run_dir(name).exists(), f"{run_dir(name)} is left")
    say("ok: nothing is left")


def token_reads_the_pool(bed: Testbed) -> None:
    expect_equal(schedds(bed), ["ce01.cr.example.org", "ce02.cr.example.org"], "schedds seen by token")
    bed.on("edge", ["condor_q", "-global", "-all"], "leo", BY_TOKEN)
    refused = bed.on("edge", ["condor_status", "-schedd"], "leo2", BY_TOKEN, check=False)
    expect(refused.returncode != 0, "a user without a token reads the collector")


def slurm_is_like_leonardo(bed: Testbed) -> None:
    shapes = bed.on("edge", ["sinfo", "-h", "-o", "%P %c %m %G %D"], "leo").stdout.split("\n")
    expect(
        any(s.startswith("dcgp_usr_prod* 112 494000 tmpfs:3") and s.endswith(" 2") for s in shapes), f"DCGP is {shapes}"
    )
    expect(any(s.startswith("boost_usr_prod 32 494000 gpu:4,tmpfs:3") for s in shapes), f"Booster is {shapes}")
    associations = bed.on(
        "edge", ["sacctmgr", "-nP", "show", "assoc", "user=leo", "format=account,qos"], "leo"
    ).stdout.strip()
    expect_equal(associations, "inf24_lhc_2|normal,qos_lowprio", "leo's account")
    where = ["-p", "boost_usr_prod", "-A", "INF24_lhc_2", "--gres=gpu:2"]
    bed.on("edge", ["sbatch", "-W", *where, "-o", "gpu.log", "--wrap", "printenv CUDA_VISIBLE_DEVICES"], "leo")
    expect_equal(bed.read("edge", f"{HOME}/gpu.log").strip(), "0,1", "GPUs of a job")


def firewalls_hold(bed: Testbed) -> None:
    def reaches(source: str, target: str, port: int) -> bool:
        fqdn = bed.host(target).fqdn
        return bed.on(source, ["python3", "-c", CONNECT, fqdn, str(port)], check=False).returncode == 0

    for source, target, port, wanted in (
        ("hpcctl", "lrdn0001", 6818, True),
        ("lrdn0001", "lrdn0002", 6818, True),
        ("tier1", "lrdn0001", 6818, False),
        ("ce01", "lrdn0001", 6818, False),
        ("lrdn0001", "tier1", 9618, True),
        ("lrdn0001", "ce02", 9618, True),
        ("edge", "tier1", 9618, True),
        ("edge", "ce01", 9618, True),
    ):
        expect(
            reaches(source, target, port) == wanted, f"{source} {'can not' if wanted else 'can'} reach {target}:{port}"
        )


def routed_job_runs_in_a_pilot(bed: Testbed) -> None:
    submit_to_ce(bed)
    until(30, "the routed job waits at the Tier-1", lambda: routed(bed) == "1 cmspil001 Condor_Pool")
    bed.write("edge", f"{HOME}/selftest/pilot.conf", (ETC / "selftest" / "pilot.conf").read_text(), owner="leo")
    pilot = sbatch(bed, "pilot.sh", "leo")
    until(
        60,
        "the pilot joins the pool",
        lambda: pilot in bed.on("edge", ["condor_status", "-af", "Name"], "leo", BY_TOKEN).stdout,
    )
    until(
        60,
        "the output is back at the CE",
        lambda: "lrdn0" in bed.on("ce01", ["cat", "out.txt"], "cmspil001", check=False).stdout,
    )
    listed = bed.read("ce01", "/home/cmspil001/out.dat").split()
    expect_equal(listed, ["SITECONF", "cmsset_default.sh"], "what a job in a pilot sees of CVMFS")
    bed.on("edge", ["scancel", pilot], "leo")
    until(60, "the pilot leaves", lambda: slurm_state(bed, pilot).startswith("CANCELLED"))


def cvmfs_is_there_for_jobs_named_so(bed: Testbed) -> None:
    names = {"FIRST_CVMFS": "lrdn0001", "SECOND_CVMFS": "lrdn0001", "PLAIN": "lrdn0002"}
    jobs = {
        name: sbatch(bed, "cvmfs.sh", "leo", f"--job-name={name}", f"--nodelist={node}") for name, node in names.items()
    }

    def said(name: str) -> list[str]:
        return bed.on("edge", ["cat", f"{HOME}/selftest/{name}.log"], check=False).stdout.split("\n")[:-1]

    def end(name: str) -> None:
        bed.write("edge", f"{HOME}/selftest/{name}.end", "", owner="leo")
        until(30, f"{name} is over", lambda: slurm_state(bed, jobs[name]) == "COMPLETED")

    until(30, "the jobs run", lambda: all("started" in said(name) for name in names))
    start = ["cms.cern.ch there", "unknown.cern.ch missing", "setup v1", "started"]
    expect_equal(said("FIRST_CVMFS"), start, "what a CVMFS job sees")
    expect_equal(said("PLAIN"), ["cms.cern.ch missing", "unknown.cern.ch missing", "started"], "what another sees")
    expect_equal(cvmfs_left(bed, "lrdn0002"), [], "CVMFS on a node without such a job")
    end("FIRST_CVMFS")
    end("SECOND_CVMFS")
    still = ["SITECONF", "cmsset_default.sh", "cms.cern.ch there"]
    expect_equal(said("SECOND_CVMFS"), [*start, *still], "what a CVMFS job sees when the first one is over")
    until(10, "nothing of CVMFS is left", lambda: not cvmfs_left(bed, "lrdn0001"))
    bed.on("edge", ["scancel", jobs["PLAIN"]], "leo")


def killed_cvmfs_job_leaves_nothing(bed: Testbed) -> None:
    job = sbatch(bed, "cvmfs.sh", "leo", "--job-name=KILLED_CVMFS", "--nodelist=lrdn0001")
    until(30, "/cvmfs is mounted", lambda: len(cvmfs_left(bed, "lrdn0001")) > 2)
    bed.on("edge", ["scancel", "--signal=KILL", "--full", job], "leo")
    until(30, "nothing of CVMFS is left", lambda: not cvmfs_left(bed, "lrdn0001"))


def cvmfs_left(bed: Testbed, node: str) -> list[str]:
    mounts = [line for line in bed.read(node, "/proc/self/mounts").splitlines() if " fuse." in line]
    processes = [f"process {pid}" for pid in find(("afuse", "squashfuse"), "", bed.door(node))]
    return mounts + processes + bed.on(node, ["find", "/tmp", "-name", "afuse-*"]).stdout.split()


def nodes_read_and_write_the_grids_data(bed: Testbed) -> None:
    def xrdcp(url: str) -> str:
        return bed.on("lrdn0001", ["xrdcp", "--silent", url, "-"], "leo").stdout

    with data.door(bed), data.federation(bed):
        data.put(bed, data.DOOR_HOST, "/store/data/file", "the Tier-1's")
        data.put(bed, data.ORIGIN_HOST, "/store/data/file", "the federation's")
        expect_equal(xrdcp(f"{data.DOOR_URL}/store/data/file"), "the Tier-1's", "the file behind the door")
        expect_equal(xrdcp(f"{data.PROXY_URL}/store/data/file"), "the federation's", "the file behind the proxy")
        upload = [
            "curl",
            "-sS",
            "--fail",
            "--capath",
            data.AUTHORITIES,
            "-T",
            "-",
            f"{data.DAVS_URL}/store/user/new/out",
        ]
        bed.on("lrdn0001", upload, "leo", input="a job's output")
        expect_equal(data.get(bed, data.DOOR_HOST, "/store/user/new/out"), "a job's output", "the file written by davs")
    for host in (data.DOOR_HOST, data.ORIGIN_HOST, data.PROXY_HOST):
        expect_equal(find(("xrootd",), "", bed.door(host)), [], f"xrootd left on {host}")


def preemption_warns_steps(bed: Testbed) -> None:
    victim = sbatch(bed, "victim.sh", "leo")
    log = f"{HOME}/selftest/victim-{victim}.log"
    until(30, "the victim's step runs", lambda: "step start" in bed.on("edge", ["cat", log], check=False).stdout)
    where = ["-p", "dcgp_usr_prod", "-A", "PAYING", "-w", "lrdn0001", "--exclusive"]
    asked = time.time()
    winner = bed.on("edge", ["sbatch", "--parsable", *where, "-t", "5", "--wrap", "sleep 1"], "leo2").stdout.strip()
    until(20, "the step hears of it", lambda: "step TERM" in bed.read("edge", log))
    heard = int(next(line for line in bed.read("edge", log).splitlines() if line.startswith("step TERM")).split()[-1])
    expect(heard - asked < 10, f"the warning took {heard - asked:.0f} s")
    expect("batch TERM" not in bed.read("edge", log), "the batch script was warned too")
    until(90, "the victim is preempted", lambda: slurm_state(bed, victim) == "PREEMPTED")
    until(60, "the paying job runs", lambda: slurm_state(bed, winner) == "COMPLETED")


def slurmctld_stops_and_starts(bed: Testbed) -> None:
    bed.stop("hpcctl", "slurmctld")
    dead = bed.on("edge", ["squeue"], "leo", check=False)
    expect(dead.returncode != 0, "squeue answers without slurmctld")
    bed.start("hpcctl", "slurmctld")
    bed.on("edge", ["squeue"], "leo")


def tier1_stops_and_starts(bed: Testbed) -> None:
    bed.stop("tier1", "collector")
    dead = bed.on("edge", ["condor_status", "-schedd"], "leo", BY_TOKEN, check=False)
    expect(dead.returncode != 0, "condor_status answers without a collector")
    bed.start("tier1", "collector")
    until(60, "both schedds are back", lambda: len(schedds(bed)) == 2)
    bed.stop("ce02", "condor")
    expect_equal(schedds(bed), ["ce01.cr.example.org"], "schedds with ce02's stopped")
    bed.start("ce02", "condor")
    expect_equal(len(schedds(bed)), 2, "schedds with ce02's back")


def cut_node_is_gone_and_comes_back(bed: Testbed) -> None:
    ping = ["ping", "-c1", "-W1", "lrdn0002"]
    bed.on("hpcctl", ping)
    bed.cut("lrdn0002")
    expect(bed.on("hpcctl", ping, check=False).returncode != 0, "a node without a network answers")
    bed.mend("lrdn0002")
    until(20, "the node answers again", lambda: bed.on("hpcctl", ping, check=False).returncode == 0)


def killed_daemons_do_not_end_the_bed(bed: Testbed) -> None:
    bed.kill("hpcctl", "slurmctld", signal.SIGKILL)
    bed.kill("ce02", "condor", signal.SIGKILL)
    until(30, "both are gone", lambda: not bed.pids("hpcctl", "slurmctld") and not bed.pids("ce02", "condor"))
    expect(bed.alive(), "the bed ended with a daemon")
    bed.start("hpcctl", "slurmctld")
    bed.start("ce02", "condor")


def submit_to_ce(bed: Testbed) -> None:
    bed.write("ce01", "/home/cmspil001/job.sub", (ETC / "selftest" / "job.sub").read_text(), owner="cmspil001")
    bed.on("ce01", ["condor_submit", "job.sub"], "cmspil001", CE)


def routed(bed: Testbed) -> str:
    return bed.on("ce01", ["condor_q", "-all", "-af", "JobStatus", "Owner", "RouteName"]).stdout.strip()


def sbatch(bed: Testbed, script: str, user: str, *options: str) -> str:
    bed.write("edge", f"{HOME}/selftest/{script}", (ETC / "selftest" / script).read_text(), owner=user)
    submit = ["sh", "-c", 'cd "$HOME/selftest" && sbatch --parsable "$@"', "sh", *options, script]
    return bed.on("edge", submit, user).stdout.strip()


def slurm_state(bed: Testbed, job: str) -> str:
    return bed.on("edge", ["sacct", "-X", "-n", "-P", "-j", job, "-o", "State"]).stdout.strip()


def schedds(bed: Testbed) -> list[str]:
    return sorted(bed.on("edge", ["condor_status", "-schedd", "-af", "Name"], "leo", BY_TOKEN).stdout.split())


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise TestbedError(f"selftest: {otherwise}")


def expect_equal(found: object, wanted: object, what: str) -> None:
    expect(found == wanted, f"{what}: {found!r} instead of {wanted!r}")


def until(seconds: float, what: str, holds: Callable[[], bool]) -> None:
    patience = Patience(seconds)
    while not holds():
        if patience.over():
            raise TestbedError(f"selftest: not within {patience}: {what}")
        time.sleep(0.5)
