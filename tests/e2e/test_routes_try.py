"""`routes try` and `explain` on both suites: a corpus of job ads through the real router, golden results, invariants.

HTCEBRIDGE_WRITE_GOLDEN=1 writes tests/routes/golden.json anew; read what changed before committing it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from htcebridge.tier1.fit import bindings
from tests import schema
from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, PROJECT, Answer, Chain, wait_until
from tests.testbed.files import File
from tests.testbed.wheels import wheelhouse

CORPUS = PROJECT / "tests" / "routes" / "jobs"
GOLDEN = PROJECT / "tests" / "routes" / "golden.json"
HTCEBRIDGE = "/opt/htcebridge/bin/htcebridge"
CONFIG = "/etc/htcebridge/htcebridge.toml"
WORKER = "Tier-1 worker"
ISSUERS = {"https://cms-auth.cern.ch/": "cms", "https://lhcb-auth.cern.ch/": "lhcb"}
OWNERS = {"cmspil*": "cms", "atlpil*": "atlas"}
RANDOM_JOBS = 500

# CMS by token or account, with a flag, Tier-1 or HPC; ATLAS by account, always, HPC only; LHCb by token, with a flag.
TRIED = (
    CONFIGURATION.replace(
        "[pressure]",
        '[[vo]]\nname = "lhcb"\nissuers = ["https://lhcb-auth.cern.ch/"]\nrequest = "flag"\nplacement = "only"\n\n'
        "[pressure]",
        1,
    )
    + """
[resource.boost]
partition = "boost_usr_prod"
account = "INF24_lhc_0"
qos = "qos_lowprio"
cpus = 32
memory = "494000M"
gpus = 4
walltime = "12h"
allow_cpu_jobs = true
"""
)


@dataclass(frozen=True)
class CEHost:
    """ce01 with htcebridge for root."""

    chain: Chain

    def run(self, *arguments: str, expect: int | None = 0) -> Answer:
        done = self.chain.bed.on("ce01", [HTCEBRIDGE, *arguments], check=False, timeout=300)
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in answer.said, answer.said
        assert expect is None or answer.code == expect, f"{arguments}: {answer.code}\n{answer.said}"
        return answer

    def json(self, *arguments: str, expect: int | None = 0) -> Any:
        document = json.loads(self.run(*arguments, "--json", expect=expect).stdout)
        schema.check_command(arguments, document)
        return document

    def write(self, path: str, text: str) -> str:
        self.chain.bed.write("ce01", path, text)
        return path

    def configure(self, text: str) -> None:
        self.write(CONFIG, text)


@pytest.fixture(scope="session")
def installed_ce(installed: Chain) -> CEHost:
    wheels = wheelhouse(PROJECT, installed.bed.suite)
    installed.bed.install_wheels("ce01", wheels, "/opt/htcebridge", "root", "htcebridge")
    files = [File(f"/tmp/jobs/{path.name}", path.read_bytes()) for path in sorted(CORPUS.glob("*.ad"))]
    installed.bed.unpack("ce01", files)
    return CEHost(installed)


@pytest.fixture
def ce(installed_ce: CEHost) -> Iterator[CEHost]:
    """ce01, configured with the VOs of the corpus."""
    installed_ce.configure(TRIED)
    yield installed_ce
    installed_ce.configure(CONFIGURATION)


def corpus(ce: CEHost) -> dict[str, Any]:
    """Ad -> its part of `routes try --json`."""
    found = ce.json("routes", "try", *(f"/tmp/jobs/{path.name}" for path in sorted(CORPUS.glob("*.ad"))))
    return {Path(job["job"]).stem: job for job in found["jobs"]}


def attribute(job: Any, name: str) -> str | None:
    """An attribute of the routed ad as it is written there, whatever the case of its name."""
    return next((value for key, value in job["ad"].items() if key.lower() == name.lower()), None)


def golden(job: Any) -> dict[str, Any]:
    return {
        "route": job["route"],
        "grant": attribute(job, "OpportunisticSite"),
        "vo": attribute(job, "OpportunisticVO"),
        "runs_on": job["runs_on"],
    }


def test_the_corpus_is_routed_as_it_should_be(ce: CEHost) -> None:
    found = {name: golden(job) for name, job in corpus(ce).items()}
    if os.environ.get("HTCEBRIDGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_no_job_of_the_corpus_makes_a_transform_fail(ce: CEHost) -> None:
    assert {name: job["errors"] for name, job in corpus(ce).items() if job["errors"]} == {}


def test_nothing_forged_survives_and_nobody_else_is_granted(ce: CEHost) -> None:
    for name, job in corpus(ce).items():
        if name.startswith(("forged", "made_up", "alice", "nobody", "issuer_", "owner_")) and name != "forged_vo":
            assert attribute(job, "OpportunisticSite") is None, name
            assert attribute(job, "OpportunisticVO") is None, name
            assert job["runs_on"] == [WORKER], name
        if name.startswith("forged"):
            assert [key for key in job["ad"] if key.lower().startswith("orig_authtoken")] == [], name


def test_a_job_on_the_hpc_only_never_gets_to_the_tier1(ce: CEHost) -> None:
    for name, job in corpus(ce).items():
        if attribute(job, "OpportunisticVO") in ('"atlas"', '"lhcb"'):
            assert WORKER not in job["runs_on"], name


# --------------------------------------------------------------------------- 500 random ads

_ISSUER = st.sampled_from([None, None, *ISSUERS, "https://cms-auth.cern.ch", "http://cms-auth.cern.ch/", "https://x/"])
_OWNER = st.sampled_from(["cmspil001", "cmspil", "atlpil002", "Xcmspil1", "bob001", "CMSPIL001", "atlpi", "nobody"])
_FLAG = st.sampled_from([None, "true", "false", '"true"', "1", "undefined", "TRUE", "error", "(1 == 1)"])
_MACHINE = st.sampled_from(
    [
        'TARGET.Arch == "X86_64"',
        'TARGET.Arch == "ARM"',
        "TARGET.Cpus >= 8",
        "TARGET.Cpus > 500",
        "TARGET.Nowhere",
        "TARGET.HasFileTransfer",
        "TARGET.OpportunisticSite =?= undefined",
        'TARGET.OpportunisticSite =!= "leonardo"',
        'stringListMember("a", "a,b")',
        'regexp("^x$(HOME)", "x")',
        'regexp("$(MY.Escape)", "x")',
        "false",
        "error",
        "true",
    ]
)
_REQUIREMENTS = st.one_of(
    st.none(),
    st.sampled_from(["true", "undefined", '"true"', '"true) || (true"', '""', '"$(MY.Escape)"', "1"]),
    # With this one a job leaves the parentheses of a route that pastes its text.
    st.just('regexp("$(MY.Escape)", "x")'),
    st.recursive(
        _MACHINE,
        lambda inner: st.builds("({}) {} ({})".format, inner, st.sampled_from(["&&", "||"]), inner),
        max_leaves=4,
    ),
)
_FORGED = st.dictionaries(
    st.sampled_from(["OpportunisticSite", "opportunisticsite", "OpportunisticVO", "orig_AuthTokenIssuer"])
    | st.sampled_from(["ORIG_authtokensubject", "RouteName", "RoutedBy", "RoutedFromJobId", "Managed", "RoutedJob"])
    | st.sampled_from(["x509UserProxyVOName", "x509UserProxyFirstFQAN", "AccountingGroup", "AcctGroup", "queue"]),
    st.sampled_from(['"leonardo"', '"cms"', '"https://cms-auth.cern.ch/"', "true", 'ifThenElse(true, "leonardo", 1)']),
    max_size=4,
)
_SIZES = st.fixed_dictionaries(
    {},
    optional={
        "xcount": st.integers(1, 200),
        "maxMemory": st.integers(1, 600_000),
        "maxWallTime": st.integers(1, 5000),
        "RequestCpus": st.integers(1, 200),
        "RequestGPUs": st.integers(0, 5),
        "RequestDisk": st.integers(1, 10**9),
        "WantWholeNode": st.sampled_from(["true", "false"]),
    },
)


@st.composite
def job_ads(draw: st.DrawFn) -> dict[str, str]:
    ad = {"Owner": f'"{draw(_OWNER)}"', "Escape": '"x\\", \\"x\\")) || (true || regexp(\\"x"'}
    for name, value in {"WantOpportunistic": draw(_FLAG), "Requirements": draw(_REQUIREMENTS)}.items():
        if value is not None:
            ad[name] = value
    issuer = draw(_ISSUER)
    if issuer is not None:
        ad |= {"AuthTokenIssuer": f'"{issuer}"', "AuthTokenSubject": '"real"'}
    return ad | draw(_FORGED) | {name: str(value) for name, value in draw(_SIZES).items()}


def random_ads(count: int) -> list[dict[str, str]]:
    """The same ads every time."""
    ads: list[dict[str, str]] = []

    @settings(
        max_examples=count + 50,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(job_ads())
    def collect(ad: dict[str, str]) -> None:
        ads.append(ad)

    while len(ads) < count:
        collect()
    return ads[:count]


def vos(ad: dict[str, str]) -> set[str]:
    """Whose job it is, by what cannot be made up."""
    owner = ad["Owner"].strip('"')
    named = {vo for issuer, vo in ISSUERS.items() if ad.get("AuthTokenIssuer") == f'"{issuer}"'}
    return named | {vo for pattern, vo in OWNERS.items() if fnmatchcase(owner, pattern)}


def asks(ad: dict[str, str]) -> bool:
    return ad.get("WantOpportunistic") in ("true", "TRUE", "(1 == 1)")


def test_500_random_jobs_keep_the_invariants(ce: CEHost) -> None:
    ads = random_ads(RANDOM_JOBS)
    text = "\n".join("".join(f"{name} = {value}\n" for name, value in ad.items()) for ad in ads)
    began = time.monotonic()
    found = ce.json("routes", "try", ce.write("/tmp/random.ads", text), expect=None)
    print(f"{len(ads)} random jobs: {time.monotonic() - began:.2f} s, the router and matching {found['seconds']} s")
    assert len(found["jobs"]) == RANDOM_JOBS
    granted = 0
    for ad, job in zip(ads, found["jobs"], strict=True):
        site, vo = attribute(job, "OpportunisticSite"), attribute(job, "OpportunisticVO")
        may = {name for name in vos(ad) if name == "atlas" or asks(ad)}
        if job["route"] is None:
            assert vos(ad) & {"lhcb"}, (ad, job)
            assert not may, "it asks in a way that no route understands: it waits, and never leaks to the Tier-1"
            continue
        assert (site, bool(vo)) == (('"leonardo"', True) if may else (None, False)), (ad, job)
        assert vo is None or vo.strip('"') in may, (ad, job)
        granted += site is not None
        if site is None:
            assert set(job["runs_on"]) <= {WORKER}, (ad, job)
        if vo in ('"atlas"', '"lhcb"'):
            assert WORKER not in job["runs_on"], (ad, job)
        kept = {key.lower(): value for key, value in job["ad"].items() if key.lower().startswith("orig_authtoken")}
        real = {f"orig_{key.lower()}": value for key, value in ad.items() if key.startswith("AuthToken")}
        assert kept == real, (ad, job)
        for machine in ("dcgp", "boost"):
            if not wanted(ad, machine):
                assert machine not in job["runs_on"], (ad, job)
    assert 50 < granted < RANDOM_JOBS - 50, "the strategy makes both kinds"


def wanted(ad: dict[str, str], machine: str) -> bool:
    """Whether the job's own Requirements, as it came, is true for a pilot."""
    classad2 = bindings()
    cpus = {"dcgp": 112, "boost": 32}[machine]
    pilot = (
        f'[ Arch = "X86_64"; OpSys = "LINUX"; Cpus = {cpus}; HasFileTransfer = true; OpportunisticSite = "leonardo" ]'
    )
    own = ad.get("Requirements")
    if own is None:
        return True
    value = classad2.ExprTree(own).eval(classad2.ClassAd('[ Escape = "x" ]'), classad2.ClassAd(pilot))
    return value is True or value == 1


# --------------------------------------------------------------------------- a queue, and one job


def test_from_queue_says_how_many_jobs_would_change_route(chain: Chain, ce: CEHost) -> None:
    ce.configure(CONFIGURATION.replace('request = "flag"', 'request = "always"'))
    moves = chain.submit(user="cmspil001", wants=False, count=3)
    stays = chain.submit(user="cmspil001", count=1) + chain.submit(user="bob001", wants=False, count=2)
    wait_until(lambda: None not in chain.states(moves + stays), 60, "the jobs are routed as today")
    found = ce.json("routes", "try", "--from-queue")
    assert found["totals"] == {"jobs": 6, "change_route": 3, "failed": 0}
    assert {job["job"] for job in found["jobs"] if job["route_before"] != job["route"]} == {job.id for job in moves}
    text = ce.run("routes", "try", "--from-queue").stdout
    assert "3 of 6 jobs would change route; 0 fail." in text
    assert max(map(len, text.splitlines())) <= 100

    chain.bed.on("ce01", ["condor_rm", "-all"], env=CE_ENVIRONMENT)
    wait_until(lambda: not chain.ce_queue("ce01"), 60, "the CE queue is empty")
    assert ce.run("routes", "try", "--from-queue").stdout == "No job to try.\n"
    assert ce.json("routes", "try", "--from-history", "2")["totals"]["jobs"] == 2


def test_try_touches_nothing_of_the_ce(ce: CEHost) -> None:
    bed = ce.chain.bed
    bed.on("ce01", ["touch", "/tmp/before-try"])
    (job,) = ce.json("routes", "try", "/tmp/jobs/atlas_always.ad")["jobs"]
    assert "CONDORCE_COLLECTOR_HOST=" in job["ad"]["environment"], "what a script in LOCAL_CONFIG_FILE says is read too"
    changed = ["find", "/etc/condor-ce", "/var/lib/condor-ce", "/usr/share/condor-ce", "-newer", "/tmp/before-try"]
    files = [*changed, "-type", "f", "-not", "-name", "*.log", "-not", "-name", ".*"]
    assert bed.on("ce01", files).stdout == ""
    assert bed.on("ce01", ["sh", "-c", "ls -d /tmp/htcebridge-* 2>/dev/null || true"]).stdout == ""


def test_a_set_that_fails_is_an_error_although_the_job_is_routed(ce: CEHost) -> None:
    path = "/etc/condor-ce/config.d/99-broken.conf"
    ce.write(path, "JOB_ROUTER_TRANSFORM_Cleanup @=jrt\n  SET Broken (1 +\n@jrt\n")
    try:
        found = ce.json("routes", "try", "/tmp/jobs/atlas_always.ad", expect=1)
        assert found["jobs"][0]["errors"] == ["SET Broken invalid expression : (1 +"]
        assert found["jobs"][0]["route"] == "HTCEBridge_leonardo_atlas"
        ce.write(path, "JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES) Nowhere\n")
        disabled = ce.run("routes", "try", "/tmp/jobs/atlas_always.ad", expect=1)
        assert "JOB_ROUTER_TRANSFORM_Nowhere not found" in disabled.stderr
        ce.write(path, "BROKEN @=end\n")
        broken = ce.run("routes", "try", "/tmp/jobs/atlas_always.ad", expect=2)
        assert len(broken.stderr.strip().splitlines()) == 1
    finally:
        ce.chain.bed.on("ce01", ["rm", path])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["routes", "try"], "nothing to try"),
        (["routes", "try", "/tmp/nowhere.ad"], "/tmp/nowhere.ad: cannot be read"),
        (["routes", "try", "/etc/hosts"], "/etc/hosts, line 1"),
        (["routes", "try", "/tmp/jobs/new_form.ad", "--ce-config", "/nowhere"], "/nowhere: no CE configuration"),
        (["explain", "4711.0"], "4711.0: not in the CE's queue"),
        (["explain", "/tmp/nowhere.ad"], "/tmp/nowhere.ad: cannot be read"),
    ],
)
def test_bad_input_is_named(ce: CEHost, arguments: list[str], says: str) -> None:
    answer = ce.run(*arguments, expect=2)
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_explain_follows_jobs_of_the_queue(chain: Chain, ce: CEHost) -> None:
    ce.configure(CONFIGURATION)
    (goes,) = chain.submit(user="atlpil001")
    (nobody,) = chain.submit(user="bob001", wants=False)
    (silent,) = chain.submit(user="cmspil001", wants=False)
    (wide,) = chain.submit(user="cmspil001", cpus=200)
    wait_until(lambda: None not in chain.states([goes, nobody, silent, wide]), 60, "the jobs are routed")
    assert ce.run("explain", goes.id).stdout.endswith(f"\n{goes.id} goes to leonardo (dcgp).\n")
    said = {job.id: ce.json("explain", job.id, expect=1) for job in (nobody, silent, wide)}
    assert "no VO of the configuration knows this account or token" in said[nobody.id]["sentence"]
    assert "does not ask" in said[silent.id]["sentence"]
    assert "dcgp: asks 200 cpus, a pilot has 112" in said[wide.id]["sentence"]
    text = ce.run("explain", wide.id, expect=1).stdout
    assert "in the Tier-1 queue" in text
    assert max(map(len, text.splitlines())) <= 100


def test_explain_names_a_full_route(chain: Chain, ce: CEHost) -> None:
    ce.configure(CONFIGURATION.replace('name = "atlas"', 'name = "atlas"\nmax_idle = 1'))
    path = "/etc/condor-ce/config.d/60-htcebridge.conf"
    before = chain.bed.read("ce01", path)
    ce.write(path, ce.run("routes", "show").stdout)
    chain.bed.on("ce01", ["condor_reconfig"], env=CE_ENVIRONMENT)
    try:
        (first,) = chain.submit(user="atlpil001")
        wait_until(lambda: chain.states([first]) != [None], 60, "the first job is routed")
        found = ce.json("explain", "/tmp/jobs/atlas_always.ad", expect=1)
        assert "takes no more jobs now: 1 of its jobs wait, MaxIdleJobs is 1" in found["sentence"]
        # A trial is about the routes, not about how many jobs came before.
        text = "\n".join((CORPUS / "atlas_always.ad").read_text() for _ in range(5))
        tried = ce.json("routes", "try", ce.write("/tmp/five.ads", text))
        assert [job["route"] for job in tried["jobs"]] == ["HTCEBridge_leonardo_atlas"] * 5
    finally:
        ce.write(path, before)
        chain.bed.on("ce01", ["condor_reconfig"], env=CE_ENVIRONMENT)
