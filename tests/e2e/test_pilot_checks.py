"""The checks of a pilot's node, each made to fail, before it joins and later. Real CVMFS mounts, real refusals."""

from __future__ import annotations

import re

import pytest

from tests.e2e.chain import CONFIGURATION, IDLE, PLAIN, Chain, never, wait_until
from tests.e2e.pilots import PATIENT, SHARED, accounted, advertised, outcome, ran_once, run, start

pytestmark = [pytest.mark.testbed, pytest.mark.isolates, pytest.mark.one_suite("forky")]

HOME = "/leonardo/home/leo"
GPUS = """
[resource.booster]
partition = "boost_usr_prod"
account = "INF24_lhc_2"
qos = "qos_lowprio"
cpus = 32
memory = "494000M"
gpus = 4
walltime = "2h"
job_name = "BOOST_CVMFS_STARTD"
template = "leonardo-booster"
gpu_discovery = "-simulate:0,2"
"""
# What is wrong -> what is changed in the configuration, and how the pilot ends.
WRONG: dict[str, tuple[str, str, int, str]] = {
    "cvmfs": ('cvmfs = ["cms.cern.ch"]', 'cvmfs = ["no.such.repository"]', 11, "no.such.repository is not mounted"),
    "condor": ("[pilot]\n", '[pilot]\ncondor = "tarball:/leonardo/no.tar"\n', 12, "no HTCondor in /leonardo/no.tar"),
    "scratch": ('min_scratch = "50M"', 'min_scratch = "2T"', 13, r"has \d+ MB free, 2097152 are asked"),
    "inodes": ("[pilot]\n", "[pilot]\nmin_inodes = 100000000000\n", 13, r"can hold \d+ more files"),
    "no token": ("[pilot]\n", '[pilot]\ntoken_file = "/leonardo/none"\n', 14, "/leonardo/none cannot be read"),
    "old token": ("[pilot]\n", f'[pilot]\ntoken_file = "{HOME}/old.token"\n', 15, "expires before this pilot ends"),
    "setup": ("wn-leonardo-setup.sh", "none.sh", 17, "the last of the setup lines failed"),
    "collector": ("example.org:9618", "example.org:9", 23, "the collector .*:9 cannot be reached"),
    "place": ("[pilot]\n", '[connectivity.x]\nendpoint = "tier1:7"\ncritical = true\n[pilot]\n', 24, r"x \(tier1:7\)"),
    "doors": ("[pilot]\n", '[[data.read]]\nname = "d"\nprefix = "root://tier1:1094/"\n[pilot]\n', 24, "every door"),
    "clock": ('setup.sh"]', f'setup.sh", "source {HOME}/late.sh"]', 25, "clock is more than 60 s off"),
    "isolation": (PLAIN, 'bind = ["/leonardo"]\nrequire_isolation = true', 26, "isolated: .*home/leo is there"),
    "GPUs": (CONFIGURATION, CONFIGURATION + GPUS, 27, "2 GPUs are there, 4 are asked"),
    "refused": ("[pilot]\n", f'[pilot]\ntoken_file = "{HOME}/foreign.token"\n', 28, "does not take the token"),
    "own": ("[pilot]\n", f'[pilot]\nchecks = "{HOME}/checks"\n', 29, "licence: no licence here"),
}


@pytest.fixture
def broken(chain: Chain) -> Chain:
    """The testbed with the files that the broken configurations name."""
    bed = chain.bed
    create = ["condor_token_create", "-identity", "leonardo-pilot@cr.example.org", "-lifetime", "60"]
    bed.write("edge", f"{HOME}/old.token", bed.on("tier1", create).stdout, mode=0o600, owner="leo")
    # Of a key that the pool does not have.
    key = "mkdir -p /tmp/keys && head -c 64 /dev/urandom > /tmp/keys/other && chmod 600 /tmp/keys/other"
    other = "condor_token_create -identity leonardo-pilot@cr.example.org -key other"
    where = {"_CONDOR_SEC_PASSWORD_DIRECTORY": "/tmp/keys"}
    token = bed.on("tier1", ["sh", "-c", f"{key} && {other}"], env=where).stdout
    bed.write("edge", f"{HOME}/foreign.token", token, mode=0o600, owner="leo")
    late = 'date() { command date -d "10 minutes" "$@"; }\nexport -f date\n'
    bed.write("edge", f"{HOME}/late.sh", late, owner="leo")
    bed.write("edge", f"{HOME}/checks/35-licence.sh", "#!/bin/sh\necho no licence here >&2\nexit 1\n", 0o755, "leo")
    return chain


def test_each_check_ends_the_pilot_with_its_own_code_and_no_job_lands_there(broken: Chain) -> None:
    waiting = broken.submit()
    wait_until(lambda: broken.states(waiting) == [IDLE], 60, "a job waits that any of them would take")
    pilots: dict[str, str] = {}
    for what, (old, new, _, _) in WRONG.items():
        assert old in CONFIGURATION
        broken.configure(CONFIGURATION.replace(old, new))
        pilots[what] = start(broken, resource="booster" if what == "GPUs" else "dcgp")
    for what, (_, _, code, reason) in WRONG.items():
        said = outcome(broken, pilots[what], seconds=120)
        assert (said.code, said.joined, said.jobs) == (code, False, 0), f"{what}: {said}"
        assert re.search(reason, said.reason), f"{what}: {said}"
        assert accounted(broken, pilots[what]) == f"FAILED|{code}:0", what
        assert f"/{pilots[what]}" not in broken.bed.on("edge", ["squeue", "-h"]).stdout
    assert broken.states(waiting) == [IDLE]
    assert broken.starts(waiting[0]) == 0


def test_a_job_sees_cvmfs_and_the_worker_node_environment(chain: Chain) -> None:
    jobs = chain.submit(seconds=0, does="ls /cvmfs/cms.cern.ch; echo wn is $WN_LEONARDO")
    start(chain)
    wait_until(lambda: chain.done(jobs), 90, "the job has run")
    said = chain.output(jobs[0])
    assert "cmsset_default.sh" in said
    assert "wn is v1" in said


def test_what_lies_in_the_home_or_the_environment_configures_no_pilot(chain: Chain) -> None:
    hostile = 'START = False\nHostile = "yes"\nSTARTD_ATTRS = $(STARTD_ATTRS) Hostile\n'
    chain.bed.write("edge", f"{HOME}/.condor/user_config", hostile, owner="leo")
    knobs = "export _CONDOR_START=False _condor_Hostile=1 _Condor_STARTD_ATTRS=Hostile\n"
    chain.bed.write("edge", f"{HOME}/knobs.sh", knobs, owner="leo")
    old = 'setup.sh"]'
    assert old in PATIENT
    chain.configure(PATIENT.replace(old, f'setup.sh", "source {HOME}/knobs.sh"]'))
    try:
        jobs = chain.submit(count=1, seconds=1, does="ulimit -n")
        start(chain, before="ulimit -S -n 777")
        wait_until(lambda: chain.done(jobs), 120, "the job has run")
        assert "777" not in chain.output(jobs[0]).split()
        assert advertised(chain, "Hostile", "PilotInstance") == ["undefined", "leonardo"]
    finally:
        chain.bed.on("edge", ["rm", f"{HOME}/.condor/user_config", f"{HOME}/knobs.sh"], user="leo")


def test_a_pilot_without_cvmfs_in_its_job_name_is_refused_by_its_checks(chain: Chain) -> None:
    chain.configure(CONFIGURATION.replace("GP_CMS_CVMFS_STARTD", "GP_CMS_STARTD"))
    said = outcome(chain, start(chain), seconds=120)
    assert (said.code, said.reason) == (11, "cvmfs: CVMFS repository cms.cern.ch is not mounted")


def test_a_node_that_turns_bad_takes_no_more_jobs_within_a_minute_and_again_when_it_is_well(chain: Chain) -> None:
    bed = chain.bed
    check = f"#!/bin/sh\n[ ! -e {SHARED}/bad ] || {{ echo 'the licence is $gone' >&2; exit 1; }}\necho Licences = 4\n"
    bed.write("edge", f"{HOME}/checks/35-licence.sh", check, 0o755, "leo")
    chain.configure(PATIENT.replace("[pilot]\n", f'[pilot]\nchecks = "{HOME}/checks"\n'))
    first = chain.submit(gate="never")
    start(chain)
    run(chain, first)
    looked_at = ("NODE_IS_HEALTHY", "PilotCheckFailed", "PilotCheck_licence", "Licences")
    assert advertised(chain, *looked_at) == ["true", "undefined", "true", "4"]

    bed.on("edge", ["touch", f"{SHARED}/bad"], user="leo")
    bad = ["false", "licence: the licence is _gone"]
    wait_until(lambda: advertised(chain, *looked_at[:2]) == bad, 60, "the collector shows that it is bad", 0.5)
    second = chain.submit(seconds=1)
    wait_until(lambda: chain.states(second) == [IDLE], 60, "another job waits")
    never(lambda: chain.states(second) != [IDLE], 20, "a bad node takes a job")
    assert ran_once(chain, first[0]), "what runs there runs on"

    bed.on("edge", ["rm", f"{SHARED}/bad"], user="leo")
    wait_until(lambda: chain.done(second), 90, "a node that is well again takes jobs")
    assert advertised(chain, *looked_at[:2]) == ["true", "undefined"]
