"""The Tier-1's side of demand on real schedds: what counts as waiting, who is busy, what the negotiator says."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from benchmarks.demand_query import submit_idle
from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, HTCEBRIDGE, IDLE, RUNNING, Chain, wait_until

pytestmark = pytest.mark.testbed

PYTHON = HTCEBRIDGE.replace("bin/htcebridge", "bin/python")
HELD, REMOVED, COMPLETED, SUSPENDED = 5, 3, 4, 7
# What a cycle of the controller does with these modules, by itself. What it hands on goes through JSON, as on disk.
LOOK = """
import dataclasses, json, sys, time
from pathlib import Path
from htcebridge import model
from htcebridge.config import file
from htcebridge.pilot import ghost, ghost_view, script
from htcebridge.tier1 import fit, pool as tier1
asked = json.loads(sys.argv[1])
config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml")
grant, timeout_s = config.grant, config.tier1.timeout.total_seconds()
pool = tier1.Pool(config.tier1.collector, Path.home() / ".condor/tokens.d", timeout_s=timeout_s)
tag = tier1.Tag(grant.attribute, grant.value, grant.vo_attribute, config.demand.walltime, grant.provenance)
now = int(time.time())
view = tier1.read_pool(pool, config.pressure.instance, grant.vo_attribute)
ads = {name: script.template_ad(config, name, view.schedds[0].version) for name in config.resources}
if asked.get("advertise"):
    ghost.advertise(config, ads, view.ghosts, now)
if asked.get("withdraw"):
    ghost.withdraw(config)
window = asked.get("window", ghost.window_s(config, view))
started = time.monotonic()
answers = tier1.read_demand(pool, view.schedds, tag, asked.get("known"), now - window)
seconds = time.monotonic() - started
memory = {name: model.Track(**track) for name, track in asked.get("memory", {}).items()}
said, memory = ghost.read(config, view, answers, memory, ads, now)
matcher = fit.Matcher(ads)
groups = []
for answer in answers:
    for group in answer.groups:
        job = fit.evaluate(group.ad, config.demand.walltime, 28800)
        fits, why_not = matcher.fit(group.ad)
        groups.append(model.Group(job.shape, job.walltime_s, group.owner, group.vo, group.idle, group.running,
            now - (group.oldest_qdate or now), fits, why_not, key=group.key, rejected=group.rejected))
confirmed = ghost_view.confirmed(groups, said)
plain = dataclasses.asdict
print(json.dumps({"seconds": seconds, "schedds": [plain(a) for a in answers],
    "startds": [plain(s) for s in view.startds],
    "ghosts": [plain(g) for g in view.ghosts], "known": tier1.qdates(answers), "groups": [plain(g) for g in groups],
    "confirmed": [plain(g) for g in confirmed], "disagreements": ghost_view.disagreements(groups, said),
    "memory": {name: plain(track) for name, track in memory.items()},
    "complete": {name: answer.complete for name, answer in said.answers.items()},
    "jobs": {name: dict(answer.jobs) for name, answer in said.answers.items()}}, default=list))
"""


def look(chain: Chain, **asked: Any) -> dict[str, Any]:
    """One look with the package that is installed on the edge node, as its user."""
    done = chain.bed.on("edge", [PYTHON, "-c", LOOK, json.dumps(asked)], user="leo", timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def follow(
    chain: Chain, until: Callable[[dict[str, Any]], bool] = lambda _: True, looks: int = 40, **asked: Any
) -> dict[str, Any]:
    """Look again and again, as the controller does, until the negotiator has had its time.

    That goes by the clock, and a negotiator may be late: it may look on for as long again, `until` it has told this.
    """
    seen = look(chain, advertise=True, **asked)

    def again() -> bool:
        nonlocal seen
        seen = look(chain, advertise=True, memory=seen["memory"], known=seen["known"], **asked)
        return bool(seen["complete"]) and all(seen["complete"].values())

    wait_until(again, looks * 2, "the negotiator has been asked for a window's time", every=2)
    with suppress(AssertionError):  # who has asked says what is different
        wait_until(lambda: until(seen) or (again() and until(seen)), looks * 2, "it has told", every=2)
    return seen


@dataclass(frozen=True, order=True)
class Kind:
    """What makes jobs equal here."""

    schedd: str
    owner: str
    cpus: int
    walltime_s: int


def counted(seen: dict[str, Any]) -> Counter[Kind]:
    """The idle jobs by our query."""
    idle: Counter[Kind] = Counter()
    groups = iter(seen["groups"])
    for answer in seen["schedds"]:
        for _ in answer["groups"]:
            group = next(groups)
            kind = Kind(answer["schedd"].split(".")[0], group["owner"], group["shape"]["cpus"], group["walltime_s"])
            idle[kind] += group["idle"]
    return +idle


WALLTIMES = (
    ("AllowedExecuteDuration", 1),
    ("AllowedJobDuration", 1),
    ("maxWallTime", 60),
    ("MaxWallTimeMins", 60),
    ("JobDurationHint", 1),
    ("BatchRuntime", 1),
)


def waiting(chain: Chain) -> Counter[Kind]:
    """The idle tagged jobs by condor_q."""
    idle: Counter[Kind] = Counter()
    attributes = ["JobStatus", "OpportunisticSite", "Owner", "RequestCpus", *(name for name, _ in WALLTIMES)]
    for ce in ("ce01", "ce02"):
        for line in chain.bed.on(ce, ["condor_q", "-all", "-af", *attributes]).stdout.splitlines():
            status, site, owner, cpus, *walltimes = line.split()
            first = next(
                int(value) * factor
                for value, (_, factor) in zip(walltimes, WALLTIMES, strict=True)
                if value != "undefined"
            )
            if int(status) == IDLE and site == "leonardo":
                idle[Kind(ce, owner, int(cpus), first)] += 1
    return idle


def submit_with(chain: Chain, walltime: str) -> None:
    """Two grid jobs that say how long they run in this way alone."""
    lines = ["executable = /bin/true", "+xcount = 120", "+WantOpportunistic = True", walltime, "queue 2", ""]
    chain.bed.on("ce01", ["condor_submit", "-"], user="cmspil001", env=CE_ENVIRONMENT, input="\n".join(lines))


def statuses(chain: Chain, ce: str) -> list[int]:
    return [int(row[0]) for row in chain.pool_jobs(ce, "JobStatus").values()]


@contextmanager
def pilot(chain: Chain, configuration: str = CONFIGURATION) -> Iterator[None]:
    """A real pilot in the pool."""
    chain.configure(configuration.replace('idle_timeout = "20s"', 'idle_timeout = "10m"'))
    script = 'mkdir -p pilots/logs && "$1" render script dcgp >p.sh && sbatch --comment htcebridge:leonardo:dcgp:x p.sh'
    chain.bed.on("edge", ["sh", "-c", script, "sh", HTCEBRIDGE], user="leo")
    wait_until(lambda: any("pilot_" in name for name in chain.startds()), 90, "the pilot has joined")
    yield


@pytest.fixture
def ghosts(chain: Chain) -> Iterator[Chain]:
    """The testbed, whose ghosts are taken away at the end."""
    yield chain
    look(chain, withdraw=True)
    wait_until(lambda: not ghost_names(chain), 10, "the ghosts are gone")


def ghost_names(chain: Chain) -> list[str]:
    found = chain.bed.on("tier1", ["condor_status", "-any", "-constraint", "IsGhost =?= True", "-af", "Name"])
    return found.stdout.split()


# --------------------------------------------------------------------------- what waits


def test_only_idle_jobs_count_and_exactly_as_condor_q_counts_them(chain: Chain) -> None:
    """Held, removed, lingering, suspended and running jobs of the same kinds lie beside them, in two schedds."""
    bed = chain.bed
    with pilot(chain):
        run = chain.submit(seconds=600, count=4, cpus=2) + chain.submit(ce="ce02", user="atlpil001", seconds=600)
        wait_until(lambda: chain.states(run) == [RUNNING] * 5, 90, "five jobs run")
        too_wide = partial(chain.submit, cpus=120)
        too_wide(count=7)
        held = too_wide(count=3)
        removed = too_wide(count=2)
        too_wide(count=5, wants=False)
        for walltime in (
            *("+maxWallTime = 61", "+MaxWallTimeMins = 62", "+JobDurationHint = 3780", "+BatchRuntime = 3840"),
            *("allowed_execute_duration = 3900", "allowed_job_duration = 3960", "+Nothing = true"),
        ):
            submit_with(chain, walltime)
        too_wide(ce="ce02", count=4)
        too_wide(ce="ce02", user="atlpil001", count=6)
        wait_until(lambda: len(statuses(chain, "ce01")) == 4 + 7 + 3 + 2 + 5 + 14, 90, "ce01 has all")
        wait_until(lambda: len(statuses(chain, "ce02")) == 1 + 4 + 6, 60, "ce02 has all")
        # Of another user: 25.14 asks for 20 jobs of each, and those in front that match nothing count.
        ending = chain.submit(user="atlpil001", gate="lingers", seconds=1, count=2, cpus=2)
        wait_until(lambda: chain.states(ending) == [RUNNING] * 2, 60, "two more run")
        bed.stop("ce01", "ce-router")  # nobody fetches what is done any more: it lingers
        chain.open("lingers")
        in_pool = chain.pool_jobs("ce01", "ClusterId")
        bed.on("ce01", ["condor_hold", *(in_pool[job.id][0] for job in held)])
        for job in removed:
            bed.on("ce01", ["condor_qedit", in_pool[job.id][0], "LeaveJobInQueue", "true"])
        bed.on("ce01", ["condor_rm", *(in_pool[job.id][0] for job in removed)])
        bed.on("ce01", ["condor_suspend", in_pool[run[0].id][0]])
        wait_until(
            lambda: (
                Counter(statuses(chain, "ce01"))
                == {RUNNING: 3, SUSPENDED: 1, COMPLETED: 2, HELD: 3, REMOVED: 2, IDLE: 7 + 14 + 5}
            ),
            60,
            "every state is there",
        )
        seen = look(chain)
        assert counted(seen) == waiting(chain)
        wide = {kind: count for kind, count in counted(seen).items() if kind.cpus == 120}
        assert wide == {
            Kind("ce01", "cmspil001", 120, 1800): 7,
            **{Kind("ce01", "cmspil001", 120, walltime): 2 for walltime in (3660, 3720, 3780, 3840, 3900, 3960)},
            Kind("ce01", "cmspil001", 120, 28800): 2,
            Kind("ce02", "cmspil001", 120, 1800): 4,
            Kind("ce02", "atlpil001", 120, 1800): 6,
        }
        assert sum(group["running"] for group in seen["groups"]) == 4
        bed.start("ce01", "ce-router")


@pytest.mark.one_suite("trixie")
def test_a_schedd_that_hangs_delays_nobody(chain: Chain) -> None:
    chain.submit(count=3, cpus=120)
    wait_until(lambda: statuses(chain, "ce01") == [IDLE] * 3, 60, "three jobs wait")
    # The schedd gives jobs that have just come new autoclusters: two groups of the same, for a moment.
    one_group = lambda: [group["idle"] for group in look(chain)["schedds"][0]["groups"]] == [3]  # noqa: E731
    wait_until(one_group, 60, "they are one group")
    known = look(chain)["known"]
    chain.configure(re.sub('\ntimeout = ".*"', '\ntimeout = "6s"', CONFIGURATION))
    chain.bed.kill("ce02", "schedd", signal.SIGSTOP)
    try:
        seen = look(chain, known={**known, "ce02.cr.example.org": {"1.0": 5}})
    finally:
        chain.bed.kill("ce02", "schedd", signal.SIGCONT)
    fast, hanging = seen["schedds"]
    assert (fast["schedd"], fast["error"]) == ("ce01.cr.example.org", None)
    assert fast["seconds"] < 4
    assert [group["idle"] for group in fast["groups"]] == [3]
    assert hanging["error"] == "no answer in 6 s"
    assert 5.5 < seen["seconds"] < 10
    assert seen["known"]["ce02.cr.example.org"] == {"1.0": 5}


# --------------------------------------------------------------------------- a schedd that is busy


BUSY_JOBS = int(os.environ.get("HTCEBRIDGE_BUSY_JOBS", "3000"))
# Twenty jobs a second come in from here, of five shapes, and the shapes change: none runs, no node has their memory.
SUBMITTER = """
cd "$(mktemp -d)"
i=0
while [ ! -e /tmp/enough ]; do
    i=$((i + 1))
    printf '%s\\n' 'executable = /bin/true' '+OpportunisticSite = "leonardo"' '+OpportunisticVO = "cms"' \
        "+BatchRuntime = $((3600 * (i % 3 + 1)))" "request_cpus = $((i % 5 + 1))" \
        "request_memory = $((600000 + i / 100))" 'queue 4' | condor_submit -terse - > /dev/null || exit 1
    sleep 0.1
done
"""
# Reads the demand again and again; before and after each read the schedd's jobs are counted one by one.
READS = """
import collections, json, sys
from pathlib import Path
import classad2, htcondor2
from htcebridge.config import file
from htcebridge.tier1 import pool
config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml")
view = pool.read_pool(pool.pool_of(config), config.pressure.instance)
(ce,) = [schedd for schedd in view.schedds if "ce01" in schedd.name]
schedd = htcondor2.Schedd(classad2.ClassAd({"MyAddress": ce.address, "CondorVersion": ce.version}))
ours = 'OpportunisticSite =?= "leonardo" && (JobStatus == 1 || JobStatus == 2)'
def count():
    ads = schedd.query(ours, ["RequestCpus", "BatchRuntime"])
    return collections.Counter(f"{ad['RequestCpus']} {ad['BatchRuntime']}" for ad in ads)
def read():
    (answer,) = pool.read_demand(pool.pool_of(config), [ce], pool.tag_of(config), known)
    known.update(pool.qdates([answer]))
    found = collections.Counter()
    for group in answer.groups:
        job = classad2.ClassAd(group.ad)
        found[f"{job['RequestCpus']} {job['BatchRuntime']}"] += group.idle + group.running
    return answer.error, found
known, before = {}, count()
for _ in range(int(sys.argv[1])):
    error, found = read()
    after = count()
    print(json.dumps({"error": error, "before": before, "found": found, "after": after}))
    before = after
"""


@contextmanager
def submissions(chain: Chain) -> Iterator[None]:
    """A user who submits without a pause."""
    bed = chain.bed
    bed.on("ce01", ["rm", "-f", "/tmp/enough"])
    with ThreadPoolExecutor() as threads:
        submitter = threads.submit(bed.on, "ce01", ["sh", "-c", SUBMITTER], user="cmspil001", timeout=600)
        try:
            yield
        finally:
            bed.on("ce01", ["touch", "/tmp/enough"])
            submitter.result()
            bed.on("ce01", ["rm", "-f", "/tmp/enough"])


def reads(chain: Chain, times: int) -> list[dict[str, Any]]:
    environment = {
        "CONDOR_CONFIG": "/dev/null",
        "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "_CONDOR_SEC_TOKEN_DIRECTORY": "/leonardo/home/leo/.condor/tokens.d",
    }
    done = chain.bed.on("edge", [PYTHON, "-c", READS, str(times)], user="leo", env=environment, timeout=600)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.one_suite("trixie")
def test_a_busy_schedd_is_counted_exactly_at_every_read(chain: Chain) -> None:
    """Jobs come all the time, and each negotiation gives the new ones their autoclusters."""
    with pilot(chain):
        submit_idle(chain, BUSY_JOBS)
        with submissions(chain):
            seen = reads(chain, 20)
        assert [each["error"] for each in seen if each["error"]] == []
        for each in seen:
            before, found, after = (sum(each[when].values()) for when in ("before", "found", "after"))
            assert BUSY_JOBS <= before <= found <= after
        assert seen[-1]["after"] != seen[0]["before"], "nothing moved"
        (calm,) = reads(chain, 1)
        assert calm["before"] == calm["found"] == calm["after"]


# --------------------------------------------------------------------------- who is busy


@pytest.mark.one_suite("trixie")
def test_the_partitionable_slot_says_how_many_cores_each_vo_holds(chain: Chain) -> None:
    with pilot(chain):
        chain.submit(seconds=600, count=3, cpus=4)
        chain.submit(ce="ce02", user="atlpil001", seconds=600, count=2, cpus=8)
        wait_until(lambda: look(chain)["startds"][0]["busy_by_vo"] == {"cms": 12, "atlas": 16}, 90, "both VOs are busy")
        (startd,) = look(chain)["startds"]
        assert (startd["jobs"], startd["accepting"], startd["draining"]) == (5, True, False)


# --------------------------------------------------------------------------- what the negotiator turned away


def test_jobs_that_the_negotiator_could_not_match_are_told_from_those_it_has_not_tried(chain: Chain) -> None:
    with pilot(chain):
        chain.submit(count=2, cpus=120)
        chain.submit(ce="ce02", user="atlpil001", count=1, seconds=600, cpus=4)
        wait_until(lambda: statuses(chain, "ce02") == [RUNNING], 60, "the job that fits runs")

        def rejected() -> bool:
            return [(g["refused"], g["rejected"]) for g in look(chain)["schedds"][0]["groups"]] == [(True, True)]

        wait_until(rejected, 60, "the negotiator has refused the job that does not fit")
        chain.bed.stop("tier1", "negotiator")
        try:
            chain.submit(count=3, cpus=121)
            wait_until(lambda: len(statuses(chain, "ce01")) == 5, 60, "new jobs wait")
            seen = look(chain, window=600)["schedds"][0]["groups"]
            assert sorted((group["idle"], group["rejected"]) for group in seen) == [(2, True), (3, None)]
            wait_until(
                lambda: all(not g["rejected"] for g in look(chain, window=1)["schedds"][0]["groups"]), 30, "long ago"
            )
        finally:
            chain.bed.start("tier1", "negotiator")


# --------------------------------------------------------------------------- the negotiator as the source


def submit_classes(chain: Chain) -> None:
    """Two kinds that a DCGP node takes, from two schedds and three groups; three kinds that it does not take."""
    small = ["request_memory = 100"]
    chain.submit(count=12, cpus=8, extra=small)
    wait_until(lambda: len(statuses(chain, "ce01")) == 12, 60, "in the queue's order")
    chain.submit(ce="ce02", user="cmspil001", count=15, cpus=1, extra=small)
    chain.submit(ce="ce02", user="atlpil001", count=9, cpus=1, extra=small)
    chain.submit(ce="ce01", user="atlpil001", count=6, walltime="40h", extra=small)
    chain.submit(ce="ce01", count=5, wants=False)
    wait_until(lambda: len(statuses(chain, "ce01")) == 23 and len(statuses(chain, "ce02")) == 24, 90, "all wait")


def test_the_negotiator_confirms_what_it_would_start_and_nothing_else(ghosts: Chain) -> None:
    submit_classes(ghosts)

    def told(seen: dict[str, Any]) -> dict[tuple[str, int, int], int | None]:
        jobs = seen["jobs"]["dcgp"]
        return {(g["owner"], g["shape"]["cpus"], g["walltime_s"]): jobs.get(g["key"]) for g in seen["groups"]}

    right = {
        ("cmspil001", 8, 1800): 12,
        ("cmspil001", 1, 1800): 15,
        ("atlpil001", 1, 1800): 9,
        ("atlpil001", 1, 144000): None,
    }
    seen = follow(ghosts, until=lambda seen: told(seen) == right)
    assert told(seen) == right
    fitting = {(g["owner"], g["shape"]["cpus"], g["walltime_s"]) for g in seen["confirmed"] if g["resources"]}
    assert fitting == {("cmspil001", 8, 1800), ("cmspil001", 1, 1800), ("atlpil001", 1, 1800)}
    assert seen["disagreements"] == []
    assert all(status == IDLE for ce in ("ce01", "ce02") for status in statuses(ghosts, ce))
    matched = ghosts.bed.on("tier1", ["grep", "-c", "(offline)", "/var/log/condor/MatchLog"]).stdout
    assert int(matched) > 0


@pytest.mark.one_suite("forky")
def test_a_quota_of_the_negotiators_is_respected(ghosts: Chain) -> None:
    bed = ghosts.bed
    ghosts.submit(ce="ce02", user="atlpil001", count=9, extra=["request_memory = 100"])
    ghosts.submit(ce="ce01", user="cmspil001", count=4, extra=["request_memory = 100"])
    wait_until(lambda: len(statuses(ghosts, "ce02")) == 9 and len(statuses(ghosts, "ce01")) == 4, 60, "all wait")
    bed.write("tier1", "/etc/condor/config.d/60-quota.conf", "ATLAS_LIMIT = 0\n")
    bed.on("tier1", ["condor_reconfig"])
    try:
        ids = [row[0] for row in ghosts.pool_jobs("ce02", "ClusterId").values()]
        bed.on("ce02", ["condor_qedit", *ids, "ConcurrencyLimits", '"atlas"'])
        seen = follow(ghosts)
        wait_until(lambda: look(ghosts)["schedds"][1]["groups"][0]["refused"], 30, "it was tried")
        seen = look(ghosts, memory=seen["memory"])
        by_owner = {group["owner"]: group for group in seen["confirmed"]}
        assert by_owner["cmspil001"]["resources"] == ["dcgp"]
        assert by_owner["atlpil001"]["resources"] == []
        assert by_owner["atlpil001"]["why_not"]["dcgp"].startswith("the negotiator tried and would start none")
        # Nodes would not help: that is no rejection for want of them.
        assert not seen["schedds"][1]["groups"][0]["rejected"]
    finally:
        bed.on("tier1", ["rm", "/etc/condor/config.d/60-quota.conf"])
        bed.on("tier1", ["condor_reconfig"])


@pytest.mark.one_suite("trixie")
def test_a_ghost_takes_no_job_from_a_real_node_that_is_emptier(ghosts: Chain) -> None:
    """By the default rank the smaller slot is taken first, and a lone job would go to the ghost for ever."""
    with pilot(ghosts):
        small = CONFIGURATION.replace("cpus = 112", "cpus = 8").replace('"494000M"', '"20000M"')
        ghosts.configure(small)
        look(ghosts, advertise=True)
        assert ghost_names(ghosts) == ["ghost-dcgp@leonardo.leonardo.invalid"]
        assert not any("ghost" in startd["name"] for startd in look(ghosts)["startds"])
        (alone,) = ghosts.submit(seconds=1, cpus=2)
        wait_until(lambda: ghosts.done([alone]), 60, "the lone job has run on the real node")


@pytest.mark.one_suite("trixie")
def test_a_withdrawn_ghost_is_gone_and_an_abandoned_one_ends_by_itself(ghosts: Chain) -> None:
    bed = ghosts.bed
    look(ghosts, advertise=True)
    assert ghost_names(ghosts) == ["ghost-dcgp@leonardo.leonardo.invalid"]
    look(ghosts, withdraw=True)
    assert ghost_names(ghosts) == []
    until = 'condor_status -any -l -constraint "IsGhost" | grep -E "^(GhostUntil|ClassAdLifetime|LastHeardFrom) = "'
    look(ghosts, advertise=True)
    facts = dict(line.split(" = ") for line in bed.on("tier1", ["sh", "-c", until]).stdout.splitlines())
    assert facts["ClassAdLifetime"] == "300"
    assert abs(int(facts["GhostUntil"]) - int(facts["LastHeardFrom"]) - 300) <= 2
    # The negotiator's notes must not keep it alive.
    ghosts.submit(count=2)
    wait_until(lambda: look(ghosts)["ghosts"][0]["matched"], 60, "the negotiator writes into it")
    again = dict(line.split(" = ") for line in bed.on("tier1", ["sh", "-c", until]).stdout.splitlines())
    assert again == facts


@pytest.mark.one_suite("trixie")
def test_the_pilots_token_is_used_and_seen_by_nobody(ghosts: Chain) -> None:
    """The controller's own token only reads: with it the collector takes no ghost, and says so."""
    refused = "from pathlib import Path; import time; from htcebridge.config import file; " + (
        "from htcebridge.pilot import ghost, script; "
        'config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml"); '
        'ads = {"dcgp": script.template_ad(config, "dcgp", "$CondorVersion: 23.9.6 x $")}; '
        "ghost.advertise(config, ads, (), int(time.time()))"
    )
    ghosts.configure(CONFIGURATION.replace("[pilot]", '[pilot]\ntoken_file = "~/.condor/tokens.d/tier1"'))
    done = ghosts.bed.on("edge", [PYTHON, "-c", refused], user="leo", check=False)
    assert done.returncode != 0
    assert "took no ads" in done.stderr
    assert "ADVERTISE_STARTD" in done.stderr
    assert ghost_names(ghosts) == []
    ghosts.configure(CONFIGURATION)
    assert ghosts.bed.on("edge", ["sh", "-c", "ls -d /tmp/htcebridge-* 2>/dev/null || true"]).stdout == ""
