"""`make demo`: the whole chain on real HTCondor and Slurm, told as it happens."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from tests.e2e.chain import COMPLETED, CONFIGURATION, IDLE, PROJECT, RUNNING, Chain, wait_until
from tests.testbed import Testbed, TestbedError
from tests.testbed.pace import scaled

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
BEGAN = time.monotonic()
PAGE = PROJECT / "build" / "demo-report.html"


def main() -> int:
    """Run the demo. Returns 0, or 1 with what went wrong."""
    try:
        with Testbed.up("trixie", nodes=2, name="demo", say=tell) as bed:
            tell("installing htcebridge on the edge node, its routes on both CEs")
            chain = Chain(bed, isolates=True)
            chain.install()
            summary = story(chain)
    except (TestbedError, AssertionError) as error:
        console.print(f"[bold]The demo failed:[/bold] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("Ended; nothing is left behind.")
        return 130
    step("Summary")
    for line in summary:
        tell(line)
    tell("the testbed is gone: no process, mount or network interface is left")
    return 0


def story(chain: Chain) -> list[str]:
    """The chain, step by step; what it came to."""
    # A job waits 15 minutes for a node of its own in production; here it may open one at once.
    chain.configure(CONFIGURATION.replace('interval = "4s"', 'interval = "5s"'))
    step("Two Tier-1 CEs get grid jobs. Some ask for opportunistic resources, one is nobody's, one forges the grant")
    granted = chain.submit(ce="ce01", user="cmspil001", count=12, cpus=8, seconds=15, walltime="1h")
    granted += chain.submit(ce="ce02", user="atlpil001", count=6, cpus=1, seconds=15, wants=False)
    forged = chain.submit(ce="ce02", user="bob001", wants=False, extra=['+OpportunisticSite = "leonardo"'])
    wide = chain.submit(ce="ce01", user="cmspil002", cpus=200)
    everyone = granted + forged + wide
    wait_until(lambda: None not in chain.states(everyone), 60, "the CEs have routed the jobs")
    waiting = time.monotonic()
    show(chain, "The route that each job took, in the Tier-1 schedds", "condor_q", routes)

    step("On the edge node of the HPC: what waits, and what would be done about it")
    show_command(chain, "demand")
    show_command(chain, "pressure", "plan")

    step("htcebridge pressure run: the controller starts pilots in the free, low-priority QOS")
    stop = run_controller(chain)
    try:
        wait_until(chain.slurm_jobs, 60, "a pilot is in Slurm")
        show(chain, "Slurm", "squeue", squeue)
        wait_until(chain.startds, 90, "its startd has joined the Tier-1 pool through CCB, from behind a firewall")
        wait_until(lambda: RUNNING in chain.states(granted), 90, "a job runs")
        tell(f"first job running {time.monotonic() - waiting:.0f} s after it was in the Tier-1 schedd")
        show_command(chain, "pilots")
        wait_until(
            lambda: set(chain.states(granted)) <= {None, RUNNING, COMPLETED}, 90, "all granted jobs have started"
        )

        step("The jobs end, their output is back on the CEs, the idle pilot leaves its node")
        wait_until(lambda: chain.done(granted), 180, "the jobs have ended")
        tell(f"{len(granted)} jobs ended well; one says: {' | '.join(chain.output(granted[0]).split())}")
        wait_until(lambda: not chain.slurm_jobs(), 120, "the pilot has gone")
        show(chain, "Slurm's account of it", "sacct", sacct)
    finally:
        log = stop()
    kept_out = chain.states(forged + wide) == [IDLE, IDLE]
    assert kept_out, "a job ran on Leonardo that must not"
    nodes = sorted({chain.node_of(job) for job in granted})
    page = keep_report(chain)
    return [
        f"{len(granted)} of {len(granted)} granted jobs ran on {', '.join(nodes)} in a qos_lowprio Slurm job",
        "the forged grant was scrubbed by the CE; the 200-core job started no pilot, and `demand` says why",
        f"the controller said {log} lines in all; {time.monotonic() - BEGAN:.0f} s from the first step to the last",
        f"what the cores were used for, with plots: {page}",
    ]


def keep_report(chain: Chain) -> Path:
    """The page that `htcebridge report` makes of this run, for a browser."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(chain.htcebridge("report", "--since", "1h", "--format", "html").stdout, encoding="utf-8")
    return PAGE


def run_controller(chain: Chain) -> Callable[[], int]:
    """Start `pressure run`; its lines are shown as they come. Returns what ends it and counts them."""
    import subprocess

    from tests.e2e.chain import HTCEBRIDGE

    process = chain.bed.popen("edge", [HTCEBRIDGE, "pressure", "run"], user="leo", stderr=subprocess.PIPE, text=True)
    lines: list[str] = []

    def follow() -> None:
        for line in process.stderr or ():
            lines.append(line)
            console.print(f"  controller: {line.rstrip()}", markup=False, style="cyan")

    reader = threading.Thread(target=follow)
    reader.start()

    def stop() -> int:
        chain.bed.on("edge", ["pkill", "-TERM", "-f", "pressure run"], user="leo", check=False)
        process.wait(timeout=scaled(60))
        reader.join(timeout=scaled(10))
        return len(lines)

    return stop


def routes(chain: Chain) -> str:
    attributes = ("Owner", "RequestCpus", "RouteName", "OpportunisticSite")
    lines = [f"{'CE job':<12}{'owner':<12}{'cpus':>5}  {'route':<34}grant"]
    for ce in ("ce01", "ce02"):
        rows = chain.pool_jobs(ce, *attributes)
        many = {tuple(row) for row in rows.values()}
        for row in sorted(many):
            ids = [job for job, other in rows.items() if tuple(other) == row]
            owner, cpus, route, grant = row
            where = f"{ce} {ids[0].split('.')[0]}.*"
            lines.append(f"{where:<12}{owner:<12}{cpus:>5}  {route:<34}{grant}  ({len(ids)} jobs)")
    return "\n".join(lines)


def squeue(chain: Chain) -> str:
    return chain.bed.on("edge", ["squeue", "-r", "-o", "%.8i %.14P %.12q %.9T %.20j %R"], user="leo").stdout


def sacct(chain: Chain) -> str:
    fields = "JobID%8,QOS%12,State%10,Elapsed%9,AllocCPUS%9,NodeList%10"
    return chain.bed.on("edge", ["sacct", "-X", "-o", fields], user="leo").stdout


def step(title: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{title}", align="left"))


def tell(line: object) -> None:
    console.print(f"  {line}", markup=False)


def show(chain: Chain, title: str, command: str, look: Callable[[Chain], str]) -> None:
    console.print(f"  [bold]{title}[/bold] ({command})")
    for line in look(chain).rstrip().splitlines():
        console.print(f"    {line}", markup=False)


def show_command(chain: Chain, *arguments: str) -> None:
    console.print(f"  [bold]$ htcebridge {' '.join(arguments)}[/bold]")
    for line in chain.htcebridge(*arguments, env={"COLUMNS": "106"}).stdout.rstrip().splitlines():
        console.print(f"    {line.rstrip()}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
