"""What a cycle leaves behind, and that nothing of it can stop the controller."""

from __future__ import annotations

import re

import pytest

from tests.e2e.chain import CONFIGURATION, IDLE, STATE, Chain, controller, wait_until
from tests.e2e.pilots import PATIENT

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("forky")]

HISTORY = f"{STATE}/leonardo.history.sqlite"
LOG = "/leonardo/home/leo/htcebridge.log"
PYTHON = "/leonardo/home/leo/htcebridge-venv/bin/python"


def asked(chain: Chain, query: str, path: str = HISTORY) -> list[str]:
    """The rows of a query as the edge's own SQLite gives them, a line each."""
    program = (
        "import sqlite3, sys\n"
        "for row in sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).execute(sys.argv[2]): print(*row)"
    )
    return chain.bed.on("edge", [PYTHON, "-c", program, path, query], user="leo", check=False).stdout.splitlines()


def said(chain: Chain) -> str:
    """What the controller's log has of the history."""
    return chain.bed.on("edge", ["sh", "-c", f"grep history.sqlite {LOG} || true"]).stdout


def test_a_plan_has_one_id_in_log_history_and_slurm(chain: Chain) -> None:
    chain.configure(PATIENT + '\n[log]\nformat = "json"\nfile = "' + LOG + '"\n')
    jobs = chain.submit(count=3, cpus=8, seconds=1)
    wait_until(lambda: chain.states(jobs) == [IDLE] * 3, 60, "the jobs wait")
    chain.htcebridge("pressure", "once")
    comment = chain.bed.on("edge", ["squeue", "-h", "-o", "%k"], user="leo").stdout.strip()
    plan = comment.rpartition(":")[2]
    assert re.fullmatch(r"[0-9a-f]{12}", plan), comment
    assert asked(chain, "SELECT plan_id, held IS NULL FROM cycles") == [f"{plan} 1"]
    assert asked(chain, "SELECT resource, needed, submit, reasons FROM plans") == [
        'dcgp 1 1 ["1 new node for 3 more jobs"]'
    ]
    assert asked(chain, "SELECT vo, idle_jobs, idle_cpus FROM demand") == ["cms 3 24"]
    log = chain.bed.read("edge", LOG)
    assert log.count(f'"plan": "{plan}"') == len(log.splitlines()) == 2, log
    assert '"event": "decided"' in log
    assert '"event": "submitted"' in log


def test_a_history_that_cannot_be_written_stops_nothing(chain: Chain) -> None:
    """Damaged, then on a full disk that empties again, under a controller that runs; then kill -9 in the middle."""
    chain.bed.on("edge", ["rm", "-f", LOG])
    chain.htcebridge("pressure", "once")
    chain.bed.write("edge", HISTORY, "not what it was\n" * 1000, owner="leo")
    answer = chain.htcebridge("pressure", "once", expect=1)
    assert f"{HISTORY}: is damaged or no history" in answer.stderr
    assert chain.bed.read("edge", HISTORY).startswith("not what it was"), "left for whoever wants to save it"

    disk = "/leonardo/home/leo/small"
    small, cycles = f"{disk}/history.sqlite", "SELECT count(*) FROM cycles"
    chain.bed.on("edge", ["sh", "-c", f"mkdir {disk}; mount -t tmpfs -o size=200k none {disk}; chown leo {disk}"])
    try:
        fast = CONFIGURATION.replace('interval = "4s"', 'interval = "1s"')
        chain.configure(fast + f'\n[history]\nfile = "{small}"\n[log]\nfile = "{LOG}"\n')
        with controller(chain):
            wait_until(lambda: asked(chain, cycles, small) not in ([], ["0"]), 30, "the history is begun", every=2)
            chain.bed.on("edge", ["sh", "-c", f"cat /dev/zero > {disk}/fill 2> /dev/null || true"])
            wait_until(lambda: said(chain), 30, "the controller says that it cannot be written")
            assert re.search(
                r"problem plan=\w+ why=\".*/small/history.sqlite: (the disk is full|cannot be used)", said(chain)
            )
            jobs = chain.submit(seconds=1)
            wait_until(lambda: chain.done(jobs), 90, "it goes on: a pilot was started, the job has run")
            chain.bed.on("edge", ["rm", f"{disk}/fill"])
            before = int(asked(chain, cycles, small)[0])
            wait_until(lambda: int(asked(chain, cycles, small)[0]) > before, 30, "it records again")
            chain.bed.on("edge", ["pkill", "-KILL", "-f", "pressure run"])
        assert asked(chain, "PRAGMA integrity_check", small) == ["ok"]
        chain.htcebridge("pressure", "once")
    finally:
        chain.bed.on("edge", ["sh", "-c", f"umount -l {disk}; rmdir {disk}"])
