"""What a payload could do, and can't where it is isolated: a hostile job on real pilots (docs/security.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.chain import COMPLETED, ISOLATED, PLAIN, Chain, GridJob, wait_until
from tests.e2e.pilots import PATIENT, SHARED, advertised, executing, run, start

pytestmark = pytest.mark.testbed

HOME = "/leonardo/home/leo"
HELD = 5
PAYLOAD = (Path(__file__).parent / "payload.sh").read_text()
# What the tokens of these tests begin with: an IDTOKEN's header, {"alg": ...
TOKEN = "eyJ"


def hostile(chain: Chain) -> GridJob:
    """The payload as a job beside another user's."""
    chain.bed.write("ce01", "/home/cmspil001/payload.sh", PAYLOAD, mode=0o755, owner="cmspil001")
    neighbour = chain.submit(user="atlpil001", gate="neighbour")
    run(chain, neighbour)
    wait_until(lambda: executing(chain, neighbour), 60, "another user's job runs there")
    own = ["executable = payload.sh", f'arguments = "{HOME} {SHARED}"']
    (job,) = chain.submit(extra=own)
    wait_until(lambda: chain.done([job]), 120, "the hostile job has run")
    return job


def could(chain: Chain, job: GridJob) -> dict[str, str]:
    """What it tried -> "yes" and what it got, or "no"."""
    rows = (line.split(" ", 1) for line in chain.output(job).splitlines()[:-1])
    return {name: said.strip() for name, said in rows}


def left_by_it(chain: Chain) -> str:
    return "".join(chain.bed.on(node, ["pgrep", "-f", "sleep 4321"], check=False).stdout for node in chain.bed.nodes)


def in_the_configuration(chain: Chain) -> str:
    """What it wrote into the pilot's configuration."""
    look = ["sh", "-c", "cat /scratch_local/*/htcebridge-*/condor_config 2> /dev/null | grep hostile"]
    return "".join(chain.bed.on(node, look, check=False).stdout for node in chain.bed.nodes)


@pytest.fixture(params=["namespaces", pytest.param("container", marks=pytest.mark.one_suite("forky"))])
def isolated(chain: Chain, request: pytest.FixtureRequest) -> Chain:
    """Each way to isolate jobs, where the nodes have what it needs."""
    if request.param == "container" and chain.bed.on("lrdn0001", ["which", "apptainer"], check=False).returncode != 0:
        pytest.skip("no Apptainer that fits in this root directory")
    chain.configure(PATIENT.replace(PLAIN, f'isolation = "{request.param}"\n{ISOLATED}'))
    return chain


def pilot_that_isolates(chain: Chain) -> str:
    pilot = start(chain)
    proved = ["namespaces"], ["container"]
    wait_until(lambda: advertised(chain, "PilotIsolation") in proved, 60, "a pilot that isolates has joined")
    return pilot


def test_isolated_it_can_do_nothing_of_what_it_can_do_otherwise(isolated: Chain) -> None:
    chain = isolated
    pilot_that_isolates(chain)
    answers = could(chain, hostile(chain))
    assert {name: said for name, said in answers.items() if said != "no"} == {}
    assert len(answers) == PAYLOAD.count("\ncould ")
    wait_until(lambda: not left_by_it(chain), 15, "what it left to run is gone")
    assert not in_the_configuration(chain)


def test_without_isolation_it_can_do_all_of_it(chain: Chain) -> None:
    """So that a "no" above is not just a payload that does not work."""
    chain.configure(PATIENT)
    start(chain)
    wait_until(lambda: advertised(chain, "PilotIsolation") == ["none"], 60, "a pilot that does not isolate has joined")
    answers = could(chain, hostile(chain))
    in_vain = {name for name, said in answers.items() if said == "no"}
    # There is nothing to take away, no file left open, and condor_starter is the system's own.
    assert in_vain <= {"nested-namespace", "open-file", "root-directory", "process-1"}
    assert left_by_it(chain)
    assert in_the_configuration(chain)


# --------------------------------------------------------------------------- what a starter does for a job


def asked(chain: Chain, pilot: str) -> dict[str, str]:
    """Jobs that have their starter fetch, write or run something for them: what each asked for -> what came of it."""
    pilots_own = f"/scratch_local/slurm_job.{pilot.partition('_')[0]}/htcebridge-{pilot}/tokens.d/pilot"
    look = f"#!/bin/sh\nls -A {HOME}/.config\n(ls -A {HOME}/.config; cat {pilots_own}) > pre.out 2> /dev/null\n"
    chain.bed.write("ce01", "/home/cmspil001/pre.sh", look, mode=0o755, owner="cmspil001")
    secret, written = f"{HOME}/.config/htcebridge/pilot.idtoken", f"{HOME}/.written"
    extra: dict[str, tuple[str, list[str]]] = {
        "file of the home": ("true", [f"transfer_output_files = {secret}"]),
        "link to the home": (f"ln -s {secret} link", ["transfer_output_files = link"]),
        "link to the pilot's token": (f"ln -s {pilots_own} own", ["transfer_output_files = own"]),
        "input of the home": ("cat", [f"input = {secret}", "transfer_input = false"]),
        "input of the pilot": ("cat", [f"input = {pilots_own}", "transfer_input = false"]),
        "error into the home": ("ls /nowhere", [f"error = {written}", "transfer_error = false"]),
        "PreCmd": ("cat pre.out", ["transfer_input_files = pre.sh", '+PreCmd = "pre.sh"', '+PreArguments = ""']),
    }
    jobs = {name: chain.submit(does=does, seconds=0, extra=lines)[0] for name, (does, lines) in extra.items()}
    ended = lambda: all(state in (COMPLETED, HELD) for state in chain.states(jobs.values()))  # noqa: E731
    wait_until(ended, 180, "each has run, or is held")
    home = chain.bed.door("ce01").root / "home" / "cmspil001"
    came = {"file of the home": "pilot.idtoken", "link to the home": "link", "link to the pilot's token": "own"}
    got = {name: (home / file).read_text() if (home / file).exists() else "" for name, file in came.items()}
    for file in came.values():
        (home / file).unlink(missing_ok=True)
    got |= {name: chain.output(job) for name, job in jobs.items() if name not in got}
    got["error into the home"] = chain.bed.on(
        "edge", ["sh", "-c", f"cat {written}; rm -f {written}"], check=False
    ).stdout
    return got


def through(got: dict[str, str]) -> set[str]:
    return {name for name, said in got.items() if TOKEN in said or "htcebridge" in said or "nowhere" in said}


def test_isolated_its_starter_can_give_it_nothing_either(isolated: Chain) -> None:
    assert through(asked(isolated, pilot_that_isolates(isolated))) == set()


@pytest.mark.one_suite("trixie")
def test_without_isolation_its_starter_gives_it_what_it_asks_for(chain: Chain) -> None:
    chain.configure(PATIENT)
    pilot = start(chain)
    wait_until(lambda: advertised(chain, "PilotIsolation") == ["none"], 60, "a pilot that does not isolate has joined")
    assert through(asked(chain, pilot)) >= {"file of the home", "link to the home", "link to the pilot's token"}


# --------------------------------------------------------------------------- what a good job keeps


@pytest.mark.one_suite("forky")
def test_what_a_job_is_shown_outlives_it_and_what_is_its_own_does_not(chain: Chain) -> None:
    """Scratch, home and what `bind` names are on one file system here, the last below the second."""
    software, scratch = f"{HOME}/software", "/leonardo/work/leo/scratch"
    chain.bed.on("edge", ["sh", "-c", f"mkdir -p {software} {scratch} && echo kept > {software}/library"], user="leo")
    shown = f'job_scratch = "{scratch}"\n' + ISOLATED.replace("]", f', "{software}"]')
    chain.configure(PATIENT.replace(PLAIN, shown))
    pilot = pilot_that_isolates(chain)
    leaves = f"mkdir -p /tmp/left/x {HOME}/left; chmod 0 /tmp/left/x; echo big > /var/tmp/big; ls -a {HOME} /tmp"
    (job,) = chain.submit(seconds=0, does=f"cat {software}/library; {leaves}")
    wait_until(lambda: chain.done([job]), 90, "the job has run")
    assert {"kept", "left", "software", "big"} <= set(chain.output(job).split())
    look = f"cat {software}/library; find {scratch}/htcebridge-{pilot}/isolated -name left -o -name big"
    gone = lambda: chain.bed.on("edge", ["sh", "-c", look], user="leo", check=False).stdout == "kept\n"  # noqa: E731
    wait_until(gone, 15, "its own is gone, and no more")
