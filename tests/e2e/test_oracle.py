"""The negotiator agrees: of many random jobs those run of which the plan said so, before and after pilots joined."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.chain import CONFIGURATION, HTCEBRIDGE, IDLE, Chain, wait_until

pytestmark = pytest.mark.testbed

PYTHON = HTCEBRIDGE.replace("bin/htcebridge", "bin/python")
JOBS = int(os.environ.get("HTCEBRIDGE_ORACLE_JOBS") or 60)
AGREE = 0.99
SMALL = (
    CONFIGURATION.replace("cpus = 112", "cpus = 16")
    .replace('"494000M"', '"40000M"')
    .replace('idle_timeout = "20s"', 'idle_timeout = "10m"\nmemory_reserve = "1000M"')
    .replace('gres = ["tmpfs:3t"]', 'disk = "2G"')
)
# What the controller says of every group, with the number of its job, before it has seen a pilot and after.
SAYS = """
import json, re, sys, time
from htcebridge.config import file
from htcebridge.controller import learn, observe, waiting
from htcebridge.controller.observation import Collector
from htcebridge.model import Shape
from htcebridge.state.memory import recall
from pathlib import Path
config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml")
now, memory = int(time.time()), recall(config)
view = observe.read_collector(config)
answers = waiting.ask_schedds(config, view.schedds, memory.schedds, now)
assert all(answer.error is None for answer in answers), answers
ads = observe.slot_ads(config, view, view.schedds, memory, {})
standing = waiting.standing_ads(config, view.startds, view.kinds)
found = []
asked = [group for answer in answers for group in answer.groups]
for raw, group in zip(asked, waiting.matched(config, ads, answers, now, standing), strict=True):
    number = re.search(r"OracleNumber = (\\d+);", raw.ad)
    there = [
        startd.pilot_id for startd in view.startds
        if startd.kind not in group.refused_by and group.shape_on(startd.kind).times_in(startd.total)
        and group.walltime_on("dcgp") <= startd.to_die - now
    ]
    found.append({"number": int(number[1]) if number else -1, "idle": group.idle, "new": list(group.resources),
        "there": there, "why_not": dict(group.why_not), "refused_by": dict(group.refused_by), "ad": raw.ad})
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


def jobs(count: int, seed: int = 11) -> list[Random]:
    """Most are broken in one way at most: else nothing would run."""
    chance = random.Random(seed)  # noqa: S311
    made = []
    for number in range(count):
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


def test_the_negotiator_agrees_with_the_plan(chain: Chain) -> None:
    chain.configure(SMALL.replace("[resource.dcgp]", '[resource.dcgp]\nmode = "constant"\nmax_running = 2'))
    made = jobs(JOBS)
    submit(chain, made)
    wait_until(lambda: len(idle(chain)) == JOBS, 120, "all jobs are in the schedd")
    before = {each["number"]: each for each in says(chain)["groups"]}
    assert len(before) == JOBS
    chain.htcebridge("pressure", "once")
    wait_until(lambda: len(chain.startds()) == 2, 180, "two pilots have joined")
    looks: list[frozenset[int]] = []

    def settled() -> bool:
        """Nothing has started within several of the negotiator's cycles."""
        busy = runs(chain)
        looks.append(frozenset(idle(chain)))
        return not busy and len(looks) > 8 and len(set(looks[-8:])) == 1

    wait_until(settled, 60 + 8 * JOBS, "the negotiator has tried all of them", every=2)
    waits = looks[-1]
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


def excused(said: dict[str, Any], job: Random) -> bool:
    """HTCondor starts a job of -1 cores, for which nobody can plan; what a node is was not known before the first."""
    unplanned = any("not a number from" in why for why in said["why_not"].values())
    return unplanned or "Microarch" in str(job) or "OpSysMajorVer" in str(job)
