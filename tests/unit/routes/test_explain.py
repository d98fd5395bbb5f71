"""`explain` on a made-up CE: the router's answers are recordings of 25.14.1, the clauses are evaluated for real."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes import explain, policy
from htcebridge.routes.ce import CE, Knob
from htcebridge.routes.explain import Explanation, Load
from htcebridge.routes.jobad import parse_ads
from tests import schema

CMS = "HTCEBridge_leonardo_cms"
TABLE = f"""
Checking for candidate jobs. routing table is:
Route Name               Source      Submitted/Max        Idle/Max     Throttle
{CMS}  {CMS}       0/  10000       0/    500     none
Condor_Pool              Condor_Pool       0/  10000       0/   2000     none

Umbrella constraint: (target.JobUniverse =?= 5)
"""
GRANTED = f"""
Matching jobs against routes to find candidate jobs.
(src=1.0,route={CMS}): claimed job
SET OpportunisticSite to "leonardo"
submit_job as cmspil001@ to schedd ce01 at pool tier1:
OpportunisticSite = "leonardo"
OpportunisticVO = "cms"
Requirements = TARGET.Arch == "X86_64"
BatchRuntime = 3600
RequestCpus = REQUESTED
RequestMemory = 2000
RouteName = "{CMS}"
RoutedFromJobId = "1.0"

(src=1.0,dest=-1.-1,route={CMS}): submitted job
"""
NOT_GRANTED = """
Matching jobs against routes to find candidate jobs.
(src=1.0,route=Condor_Pool): claimed job
submit_job as bob001@ to schedd ce01 at pool tier1:
Requirements = TARGET.Arch == "X86_64"
RequestCpus = 1
RouteName = "Condor_Pool"
RoutedFromJobId = "1.0"

(src=1.0,dest=-1.-1,route=Condor_Pool): submitted job
"""
FAILED = f"""
Matching jobs against routes to find candidate jobs.
(src=1.0,route={CMS}): claimed job
Transform of ad  failed!
failure (route={CMS}): SET needs 2 arguments.
failure (src=1.0,route={CMS}): failed to apply route ClassAd modifications to target ad.
"""
NO_ROUTE = "\nMatching jobs against routes to find candidate jobs.\n0 candidate jobs found\n"


@dataclass
class FakeCE:
    """What `explain` asks of a CE."""

    requirements: str
    routing: str
    table: str = TABLE
    queue: str = ""
    log: str = "/nowhere"
    constraint: str = "target.JobUniverse =?= 5"
    requirement: str = ""
    tier1_answers: bool = True
    timeout_s: float = 60.0

    def knobs(self, pattern: str = "") -> dict[str, Knob]:
        texts = {CMS: f"  REQUIREMENTS {self.requirements}\n  MaxJobs = 3\n", "Condor_Pool": "TargetUniverse = 5\n"}
        return {f"JOB_ROUTER_ROUTE_{name}".upper(): Knob(name, text, "x", 1) for name, text in texts.items()}

    def value(self, name: str) -> str:
        return {
            "JOB_ROUTER_SOURCE_JOB_CONSTRAINT": self.constraint,
            "SUBMIT_REQUIREMENT_NAMES": "Site" if self.requirement else "",
            "SUBMIT_REQUIREMENT_Site": self.requirement,
            "SUBMIT_REQUIREMENT_Site_REASON": '"not for you"',
            "JOB_ROUTER_LOG": self.log,
            "JOB_ROUTER_SCHEDD2_NAME": "ce01",
            "JOB_ROUTER_SCHEDD2_POOL": "tier1:9618",
        }.get(name, "")

    def said(self, arguments: Sequence[str], stdin: str = "") -> str:
        assert stdin, "the router gets its jobs from standard input"
        return self.table if "-match-jobs" in arguments else self.routing

    def version(self) -> str:
        return self.run(["condor_version"])

    def run(self, arguments: Sequence[str]) -> str:
        if arguments[0] == "condor_version":
            return "$CondorVersion: 25.14.1 2026-10-16 $\n$CondorPlatform: X $\n"
        if not self.tier1_answers:
            raise BridgeError("no answer")
        assert list(arguments[1:5]) == ["-name", "ce01", "-pool", "tier1:9618"]
        return self.queue


@pytest.fixture
def why(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Explanation]:
    """Explains a job of cmspil001 that asks for one cpu, under a FakeCE with these fields."""
    monkeypatch.setattr("htcebridge.routes.trial.replace", lambda ce, **_: ce)

    def run(owner: str = "cmspil001", cpus: int = 1, routing: str = GRANTED, **fields: Any) -> Explanation:
        (requirements,) = [route.requirements for route in policy.routes(config) if route.vo.name == "cms"]
        ce = FakeCE(requirements, routing.replace("REQUESTED", str(cpus)), **fields)
        (job,) = parse_ads(f'Owner = "{owner}"\nRequestCpus = {cpus}\nRequirements = TARGET.Arch == "X86_64"\n', "a.ad")
        return explain.explain(cast(CE, ce), config, job)

    return run


def test_a_job_that_fits_goes_there(why: Callable[..., Explanation]) -> None:
    found = why()
    assert found.goes
    assert found.resources == ("dcgp",)
    assert found.sentence == "a.ad goes to leonardo (dcgp), or to a Tier-1 worker, whichever is free first."
    assert all(step.ok for step in found.steps), [step.title for step in found.steps if not step.ok]


def test_steps_come_in_the_order_in_which_things_happen(why: Callable[..., Explanation]) -> None:
    titles = [step.title for step in why(requirement='TARGET.Owner =!= "bob001"').steps]
    assert titles == [
        "submit requirement Site",
        "who it is and what it asks",
        "JOB_ROUTER_SOURCE_JOB_CONSTRAINT",
        f"route 1, {CMS}",
        "route taken",
        "dcgp: the routed job's Requirements",
        "dcgp: START",
        "dcgp: matches, both ways",
        "Tier-1 worker: the routed job's Requirements",
        "Tier-1 worker: START",
        "Tier-1 worker: matches, both ways",
    ]


@pytest.mark.parametrize(
    ("fields", "because"),
    [
        ({"owner": "bob001", "routing": NOT_GRANTED}, "no VO of the configuration knows this account or token"),
        ({"requirement": "false"}, "the CE refuses it: not for you"),
        ({"cpus": 200}, "dcgp: asks 200 cpus, a pilot has 112"),
        ({"routing": NOT_GRANTED}, "it goes by route Condor_Pool, which grants nothing"),
        ({"routing": NO_ROUTE}, "no route takes it"),
        ({"routing": NO_ROUTE, "constraint": "target.JobUniverse =?= 7"}, "SOURCE_JOB_CONSTRAINT keeps it"),
        ({"routing": FAILED}, f"route {CMS} fails on it: failure (route={CMS}): SET needs 2 arguments."),
        (
            {"routing": NOT_GRANTED, "table": TABLE.replace(CMS, "Other")},
            "none of the routes that grant it is in the CE",
        ),
        (
            {"queue": f"{CMS} 1\n" * 400 + f"{CMS} 5\n" * 100},
            f"route {CMS} takes no more jobs now: 500 of its jobs wait, MaxIdleJobs is 500",
        ),
        ({"queue": f"{CMS} 2\n" * 10000}, "it has 10000 jobs, MaxJobs is 10000"),
    ],
)
def test_the_first_thing_in_the_way_is_named(
    why: Callable[..., Explanation], fields: dict[str, Any], because: str
) -> None:
    found = why(**fields)
    assert not found.goes
    assert found.sentence.startswith("a.ad does not go to leonardo, because ")
    assert because in found.sentence


def test_each_clause_of_a_route_has_its_value(why: Callable[..., Explanation]) -> None:
    (step,) = [step for step in why(owner="bob001", routing=NOT_GRANTED).steps if step.title == f"route 1, {CMS}"]
    assert not step.ok
    assert {clause.value for clause in step.clauses} == {"false"}


def test_a_throttled_route_takes_no_more(why: Callable[..., Explanation], tmp_path: Path) -> None:
    log = tmp_path / "JobRouterLog"
    log.write_text("11/22/26 17:25:43 JobRouter: " + TABLE.strip().replace("500     none", "500     0.02"))
    found = why(log=str(log))
    assert not found.goes
    assert "throttled after failures (0.02)" in found.sentence


def test_a_silent_tier1_schedd_is_not_an_empty_one(why: Callable[..., Explanation]) -> None:
    found = why(tier1_answers=False)
    assert found.goes
    (step,) = [step for step in found.steps if step.title == f"route 1, {CMS}"]
    assert "not known" in step.note


@pytest.mark.parametrize(
    ("load", "full"),
    [
        (Load(5, 5, 10, 5), True),
        (Load(5, 4, 10, 5), False),
        (Load(10, 0, 10, 5), True),
        (Load(5, 5, 10, -1), False),
        (Load(None, None, 1, 1), False),
        (Load(0, 0, 1, 1, "0.03"), True),
        (Load(0, 0, 1, 1, "none"), False),
    ],
)
def test_limits_are_the_routers(load: Load, full: bool) -> None:
    assert bool(load.full) is full


def test_a_requirements_with_an_equals_sign_is_none() -> None:
    knob = Knob("x", "REQUIREMENTS true\n  REQUIREMENTS = false\n", "x", 1)
    assert explain._requirements_of({"JOB_ROUTER_ROUTE_A": knob}, "A") == "true"


def test_a_job_that_left_the_queue_is_named() -> None:
    class Empty(FakeCE):
        def run(self, arguments: Sequence[str]) -> str:
            return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("htcebridge.routes.trial.replace", lambda ce, **_: ce)
        with pytest.raises(ConfigError, match=r"12\.3: not in the CE's queue"):
            explain.find(cast(CE, Empty("true", "")), "12.3")


def test_the_command_prints_lines_of_100_columns_and_json(
    why: Callable[..., Explanation],
    htcebridge_command: Callable[..., Any],
    tmp_path: Path,
    design_example: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from htcebridge import cli

    monkeypatch.setitem(cli._COMMANDS, "explain", ("explain", ""))
    found = {"cmspil001": why(cpus=200), "good": why()}
    monkeypatch.setattr("htcebridge.routes.explain.explain", lambda ce, config, job, routed: found[job.owner])
    (tmp_path / "h.toml").write_text(design_example)
    ads = {owner: tmp_path / owner for owner in found}
    for owner, path in ads.items():
        path.write_text(f'Owner = "{owner}"\n')
    refused = htcebridge_command("--config", tmp_path / "h.toml", "explain", ads["cmspil001"])
    assert refused.code == 1
    assert max(map(len, refused.out.splitlines())) <= 100
    assert refused.out.rstrip().endswith("a pilot has 112.")
    assert htcebridge_command("--config", tmp_path / "h.toml", "explain", ads["good"]).code == 0
    document = json.loads(htcebridge_command("--config", tmp_path / "h.toml", "explain", ads["good"], "--json").out)
    schema.check("explain", document)
    assert (document["schema"], document["goes"], document["resources"]) == (1, True, ["dcgp"])
    both = tmp_path / "two"
    both.write_text('Owner = "a"\n\nOwner = "b"\n')
    two = htcebridge_command("--config", tmp_path / "h.toml", "explain", both)
    assert two.code == 2
    assert "2 job ads in it" in two.err
