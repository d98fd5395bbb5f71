"""The negotiator agrees: of many random jobs those run of which the plan said so, before and after pilots joined."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.chain import CONFIGURATION, HTCEBRIDGE, IDLE, Chain, wait_until
from tests.e2e.pilots import SHARED, start
from tests.e2e.test_pressure import plan, waiting

pytestmark = pytest.mark.testbed

HOME = "/leonardo/home/leo"
PYTHON = HTCEBRIDGE.replace("bin/htcebridge", "bin/python")
JOBS = int(os.environ.get("HTCEBRIDGE_ORACLE_JOBS") or 60)
AGREE = 0.99
# So many of the negotiator's cycles leave nothing untried, one that began before and one that was cut short included.
CYCLES = 5
SMALL = (
    CONFIGURATION.replace("cpus = 112", "cpus = 16")
    .replace('"494000M"', '"40000M"')
    .replace('idle_timeout = "20s"', 'idle_timeout = "10m"\nmemory_reserve = "1000M"')
    .replace('gres = ["tmpfs:3t"]', 'disk = "2G"')
)
# Beside the first resource: one whose pilots are short, one whose check can fail, one that is drained, one with GPUs.
ALL_KINDS = SMALL + "".join(
    f"""
[resource.{name}]
partition = "{partition}"
account = "INF24_lhc_2"
qos = "qos_lowprio"
cpus = 16
memory = "40000M"
disk = "2G"
job_name = "GP_CMS_CVMFS_STARTD"
{more}
"""
    for name, partition, more in (
        ("brief", "dcgp_usr_prod", 'template = "leonardo-dcgp"\nwalltime = "75m"'),
        ("sick", "dcgp_usr_prod", f'template = "leonardo-dcgp"\nwalltime = "12h"\nchecks = "{HOME}/checks"'),
        ("drained", "dcgp_usr_prod", 'template = "leonardo-dcgp"\nwalltime = "12h"'),
        (
            *("booster", "boost_usr_prod"),
            'template = "leonardo-booster"\nwalltime = "2h"\ngpus = 2\ngpu_discovery = "-simulate:0,2"',
        ),
    )
)
KINDS = ("dcgp", "dcgp", "brief", "sick", "drained", "booster")
# What the controller says of every group, with the number of its job: of new pilots, and of those that are there.
SAYS = """
import json, re, sys, time
from htcebridge.config import file
from htcebridge.controller import learn, observe, situation, waiting
from htcebridge.controller.observation import Collector
from htcebridge.controller.pilots import pilots_of
from htcebridge.plan import packing
from htcebridge.state.memory import recall
from pathlib import Path
config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml")
now, memory = int(time.time()), recall(config)
view = observe.read_collector(config)
answers = waiting.ask_schedds(config, view.schedds, memory.schedds, now)
assert all(answer.error is None for answer in answers), answers
ads = observe.slot_ads(config, view, view.schedds, memory, {})
seen = observe.observe(config, memory, observe.near(config, memory))
pilots = pilots_of(config, seen, memory.pilots)
plan = situation.build(config, learn.learn(config, memory, pilots, seen), pilots, seen)[0]
bins = packing.supply(plan.pilots, plan.limits, now)
names = {startd.pilot_id: startd.name.partition("@")[2] for startd in view.startds}
found = []
asked = [group for answer in answers for group in answer.groups]
there = waiting.There(config, view.startds, view.kinds)
for raw, group in zip(asked, waiting.matched(config, ads, answers, now, there), strict=True):
    number = re.search(r"OracleNumber = (\\d+);", raw.ad)
    takes = [names[bin_.pilots[0]] for bin_ in bins if bin_.kind and packing.would_fit(group, bin_)]
    found.append({"number": int(number[1]) if number else -1, "idle": group.idle, "new": list(group.resources),
        "there": takes, "why_not": dict(group.why_not), "refused_by": dict(group.refused_by), "ad": raw.ad})
print(json.dumps({"groups": found, "joined": len(view.startds), "learnt": sorted(
    learn.slots(config, memory.slots, Collector(view.startds, frozenset(), view.kinds)))}))
"""
CPUS = (
    *("1", "1", "2", "8", "16", "17", "TARGET.Cpus", "TARGET.Cpus / 2", "ifThenElse(TARGET.Cpus > 4, 4, 1)"),
    *("undefined", "error", '"8"', "-1", "1.5", "10000000000000000"),
)
MEMORY = ("128", "2000", "2001", "38900", "39000", "39001", "10000000", "TARGET.Memory / 4", "undefined", 'real("NaN")')
DISK = ("1000", "1000", "500000", "2000000", "2200000", "undefined", "{ 1 }", 'real("INF")')
GPUS = ("", "", "", "0", "undefined", "1")
WALLTIMES = ("60", "3600", "36000", "43000", "50000", "undefined", '"long"', "-5", "{ }")
REQUIREMENTS = (
    *("true", "true", "true", "TARGET.HAS_CVMFS_cms_cern_ch", "TARGET.HAS_CVMFS_none_example_org", "TARGET.HAS_FOO"),
    *('TARGET.OpSys == "LINUX"', 'TARGET.OpSys == "WINDOWS"', 'TARGET.Arch == "X86_64" && TARGET.HasFileTransfer'),
    *('TARGET.PilotResource == "dcgp"', 'TARGET.PilotResource == "booster"', "TARGET.HasJobDeferral"),
    *('stringListIMember("https", TARGET.HasFileTransferPluginMethods)', "TARGET.HasSelfCheckpointTransfers"),
    *("TARGET.Memory >= 30000", "TARGET.TotalMemory >= 30000", "TARGET.TotalCpus > 20", "TARGET.IS_GLIDEIN =?= true"),
    *('versionGE(split(TARGET.CondorVersion)[1], "23.0.0")', 'versionGE(split(TARGET.CondorVersion)[1], "99.0.0")'),
    *(
        'regexp("^leonardo", TARGET.GLIDEIN_Site)',
        "TARGET.GLIDEIN_ToDie - time() > 7200",
        "TARGET.Microarch =!= undefined",
    ),
    *(
        'TARGET.Microarch == "none"',
        "TARGET.OpSysMajorVer >= 99",
        "false",
        "undefined",
        "error",
        "size(TARGET.Nothing) > 3",
    ),
)


@dataclass(frozen=True)
class Random:
    """A job by its number, and what it asks as lines of a submit description."""

    number: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number}: " + "; ".join(self.lines)


def jobs(count: int, seed: int = 11, first: int = 0) -> list[Random]:
    """Most are broken in one way at most: else nothing would run. They are numbered from `first` on."""
    chance = random.Random(seed)  # noqa: S311
    made = []
    for number in range(first, first + count):
        plain = {"RequestCpus": "1", "RequestMemory": "128", "RequestDisk": "1000", "BatchRuntime": "600"}
        choices = {"RequestCpus": CPUS, "RequestMemory": MEMORY, "RequestDisk": DISK, "BatchRuntime": WALLTIMES}
        for name in chance.sample(sorted(choices), chance.choice((0, 1, 1, 2))):
            plain[name] = chance.choice(choices[name])
        gpus = chance.choice(GPUS)
        requirements = chance.choice(REQUIREMENTS)
        lines = [f"+{name} = {value}" for name, value in plain.items()] + ([f"+RequestGPUs = {gpus}"] if gpus else [])
        lines += [f"+OracleNumber = {number}", f"+Requirements = ({requirements}) && OracleNumber >= 0"]
        made.append(Random(number, tuple(lines)))
    return made


@pytest.fixture
def offering(chain: Chain) -> Iterator[Chain]:
    """The testbed, whose schedds offer all jobs of a user: since 25.11 they stop after some that match nothing."""
    path = "/etc/condor/config.d/61-oracle.conf"
    chain.bed.write("ce01", path, "MAX_CONCURRENT_UPLOADS_PER_USER = 0\n")
    chain.bed.on("ce01", ["condor_reconfig"])
    yield chain
    chain.bed.on("ce01", ["rm", path])
    chain.bed.on("ce01", ["condor_reconfig"])


def submit(chain: Chain, some: list[Random]) -> None:
    """Straight to the Tier-1's schedd, each a cluster of its own."""
    lines = ["universe = vanilla", "executable = /bin/true", "transfer_executable = False"]
    lines += ["should_transfer_files = YES", '+OpportunisticSite = "leonardo"']
    for job in some:
        text = "\n".join([*lines, *job.lines, "queue", ""])
        chain.bed.on("ce01", ["condor_submit", "-terse", "-"], user="cmspil001", input=text)


def says(chain: Chain) -> dict[str, Any]:
    done = chain.bed.on("edge", [PYTHON, "-c", SAYS], user="leo")
    return dict(json.loads(done.stdout))


def idle(chain: Chain) -> set[int]:
    waits = ["condor_q", "-all", "-constraint", f"JobStatus == {IDLE}", "-af", "OracleNumber"]
    return {int(row) for row in chain.bed.on("ce01", waits).stdout.split()}


def runs(chain: Chain) -> bool:
    return bool(chain.bed.on("ce01", ["condor_q", "-all", "-constraint", "JobStatus == 2", "-af", "ClusterId"]).stdout)


def test_the_negotiator_agrees_with_the_plan(offering: Chain) -> None:
    chain = offering
    chain.configure(SMALL.replace("[resource.dcgp]", '[resource.dcgp]\nmode = "constant"\nmax_running = 2'))
    made = jobs(JOBS)
    submit(chain, made)
    wait_until(lambda: len(idle(chain)) == JOBS, 120, "all jobs are in the schedd")
    before = {each["number"]: each for each in says(chain)["groups"]}
    assert len(before) == JOBS
    chain.htcebridge("pressure", "once")
    wait_until(lambda: len(chain.startds()) == 2, 180, "two pilots have joined")
    waits = settle(chain, 60 + 8 * JOBS)
    after = says(chain)
    assert after["learnt"] == ["dcgp"], "empty pilots have shown what they are"
    assert {each["number"] for each in after["groups"] if each["idle"]} == waits
    still = [each for each in after["groups"] if each["idle"] and (each["there"] or each["new"])]
    assert not still, "\n".join(
        f"waits, and fits {each['there'] or each['new']}: {made[each['number']]}" for each in still
    )
    wrong = [
        f"{'waits' if job.number in waits else 'ran'}, was said to fit {said['new'] or said['why_not']}: {job}"
        for job in made
        if bool((said := before[job.number])["new"]) is (job.number in waits) and not excused(said, job)
    ]
    print(f"{JOBS} jobs, {JOBS - len(waits)} ran, {len(wrong)} otherwise than said")
    assert len(wrong) <= (1 - AGREE) * JOBS, "\n".join(wrong)
    assert 0.2 * JOBS < len(waits) < 0.8 * JOBS, "the jobs are no test"


def settle(chain: Chain, seconds: float) -> set[int]:
    """The jobs that wait once nothing has started, or ended, within several of the negotiator's cycles."""
    waits: set[int] = set()
    cycles: set[str] = set()

    def settled() -> bool:
        nonlocal waits
        now = set() if runs(chain) else idle(chain)
        if now != waits:
            cycles.clear()
        waits = now
        look = ["condor_status", "-negotiator", "-af", "LastNegotiationCycleEnd0"]
        cycles.add(chain.bed.on("tier1", look).stdout.strip())
        return bool(waits) and len(cycles) > CYCLES

    wait_until(settled, seconds, "the negotiator has tried all of them", every=2)
    return waits


def excused(said: dict[str, Any], job: Random) -> bool:
    """HTCondor starts a job of -1 cores, for which nobody can plan; what a node is was not known before the first."""
    unplanned = any("not a number from" in why for why in said["why_not"].values())
    return unplanned or "Microarch" in str(job) or "OpSysMajorVer" in str(job)


# --------------------------------------------------------------------------- pilots that are there


# The history of the schedd has those of the other test, too.
THERE = 10_000


def busy(chain: Chain, resource: str, cpus: int, memory_mb: int, gpus: int = 0) -> None:
    """A job that stays on a pilot of this resource, so that it stays."""
    lines = ["universe = vanilla", "executable = /bin/sleep", "arguments = 3600", "transfer_executable = False"]
    lines += ["should_transfer_files = YES", '+OpportunisticSite = "leonardo"', "request_disk = 10M"]
    lines += [f"request_cpus = {cpus}", f"request_memory = {memory_mb}", "+BatchRuntime = 3700"]
    lines += [f"request_gpus = {gpus}"] if gpus else []
    lines += ["+OracleNumber = -2", f'requirements = TARGET.PilotResource == "{resource}"', "queue", ""]
    chain.bed.on("ce02", ["condor_submit", "-terse", "-"], user="cmspil001", input="\n".join(lines))


def slots(chain: Chain, *attributes: str) -> dict[str, list[str]]:
    """PilotResource -> these attributes, of each one's last pilot."""
    look = ["condor_status", "-constraint", "PartitionableSlot =?= True", "-af", "PilotResource", *attributes]
    rows = [line.split() for line in chain.bed.on("tier1", look).stdout.splitlines()]
    return {row[0]: row[1:] for row in rows}


def pinned(some: list[Random], seed: int = 12) -> list[Random]:
    """Some jobs want one kind of pilot alone: else the same would take all."""
    chance = random.Random(seed)  # noqa: S311
    made = []
    for job in some:
        kind = chance.choice((*[""] * 8, *KINDS[1:]))
        only = f'+Requirements = (TARGET.PilotResource == "{kind}") && (' if kind else "+Requirements = ("
        lines = [line.replace("+Requirements = (", only, 1) for line in job.lines]
        if kind == "booster" and not any("RequestGPUs" in line for line in lines):
            lines.append(f"+RequestGPUs = {chance.choice((1, 1, 2, 3))}")
        made.append(Random(job.number, tuple(lines)))
    return made


def ran_on(chain: Chain) -> dict[int, str]:
    """Job number -> the pilot that it ran on."""
    look = ["condor_history", "-constraint", f"OracleNumber >= {THERE}", "-af", "OracleNumber", "LastRemoteHost"]
    rows = [line.split() for line in chain.bed.on("ce01", look).stdout.splitlines()]
    return {int(number): host.partition("@")[2] for number, host in rows if host != "undefined"}


def test_the_negotiator_gives_what_is_said_of_pilots_that_are_there(offering: Chain) -> None:
    chain = offering
    chain.bed.write("edge", f"{HOME}/checks/35-mood.sh", f"#!/bin/sh\n[ ! -e {HOME}/ill ]\n", 0o755, "leo")
    chain.configure(ALL_KINDS)
    for resource in KINDS:
        start(chain, resource=resource)
    wait_until(lambda: len(chain.startds()) == len(KINDS), 240, "all pilots have joined")
    busy(chain, "dcgp", 9, 25_000)
    busy(chain, "booster", 1, 1000, gpus=1)
    for resource in ("sick", "drained"):
        busy(chain, resource, 1, 1000)
    wait_until(lambda: chain.busy_slots() == 4, 120, "one is half full, three have a job each")
    chain.bed.on("edge", ["mkdir", "-p", f"{SHARED}/drain"], user="leo")
    chain.bed.on("edge", ["touch", f"{HOME}/ill", f"{SHARED}/drain/leonardo.drained"], user="leo")
    wait_until(lambda: slots(chain, "NODE_IS_HEALTHY")["sick"] == ["false"], 120, "a check fails on one")
    wait_until(lambda: slots(chain, "PilotDraining")["drained"] == ["true"], 120, "one drains")
    made = pinned(jobs(JOBS, seed=13, first=THERE))
    chain.bed.stop("tier1", "negotiator")
    try:
        submit(chain, made)
        wait_until(lambda: len(idle(chain)) == JOBS, 120, "all jobs are in the schedd")
        said = {each["number"]: each for each in says(chain)["groups"] if each["number"] >= THERE}
    finally:
        chain.bed.start("tier1", "negotiator")
    assert len(said) == JOBS
    waits = settle(chain, 60 + 8 * JOBS)
    ran = ran_on(chain)
    assert ran.keys() | waits == {job.number for job in made}
    wrong = [
        f"{ran.get(job.number, 'waits')}, was said to run on {said[job.number]['there']} "
        f"({said[job.number]['refused_by']}): {job}"
        for job in made
        if not excused(said[job.number], job)
        and (ran[job.number] not in said[job.number]["there"] if job.number in ran else said[job.number]["there"])
    ]
    print(f"{JOBS} jobs, {len(ran)} ran on {len(set(ran.values()))} pilots, {len(wrong)} otherwise than said")
    assert len(wrong) <= (1 - AGREE) * JOBS, "\n".join(wrong)
    assert 0.2 * JOBS < len(waits) < 0.9 * JOBS, "the jobs are no test"
    assert len(set(ran.values())) >= 3, "the jobs are no test"


@pytest.mark.one_suite("forky")
def test_requests_are_rounded_as_a_sites_own_template_has_it(chain: Chain) -> None:
    own = (
        '{% extends "startd_configs/generic.conf.j2" %}\n{% block own %}\n'
        "MODIFY_REQUEST_EXPR_REQUESTCPUS = quantize(RequestCpus, {4})\n{% endblock %}\n"
    )
    chain.bed.on("edge", ["mkdir", "-p", f"{HOME}/templates"], user="leo")
    chain.bed.write("edge", f"{HOME}/templates/fours.conf.j2", own, owner="leo")
    chain.configure(SMALL.replace('template = "leonardo-dcgp"', f'template = "fours"\ntemplates = "{HOME}/templates"'))
    jobs = waiting(chain, count=5, gate="rounded", seconds=1)
    assert plan(chain)["submit"] == 2, "four of one core fill sixteen"
    start(chain)
    wait_until(
        lambda: sorted(map(str, chain.states(jobs))) == ["1", "2", "2", "2", "2"], 90, "four run, and no more fit"
    )
    found = plan(chain)
    assert (found["running"], found["submit"]) == (1, 1)
