from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable

import pytest
import tomli_w

from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.routes import policy, render_files, render_routes

CMS = {"name": "cms", "issuers": ["https://cms-auth.cern.ch/"], "owners": ["cmspil*"], "request": "always"}
ATLAS = {"name": "atlas", "owners": ["atl.prod-1", "*@it"], "request": "flag", "placement": "only"}


@pytest.fixture
def make(load: Callable[[str], Config], design_example: str) -> Callable[..., Config]:
    def with_vos(
        *vos: dict[str, object],
        site: str = "leonardo",
        sites: list[dict[str, object]] | None = None,
        routes: dict[str, object] | None = None,
    ) -> Config:
        raw = tomllib.loads(design_example)
        raw["site"], raw["routes"] = sites or [], routes or {}
        raw["vo"] = list(vos)
        raw["grant"]["value"] = site
        return load(tomli_w.dumps(raw))

    return with_vos


def routes_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^JOB_ROUTER_ROUTE_(HTCEBridge_\w+) @=jrt\n(.*?)^@jrt$", text, re.MULTILINE | re.DOTALL))


def holds(expression: str, own: dict[str, object] | None = None, **job: object) -> bool:
    """Whether an expression is true for a job: in the job's own ad, or with the job as TARGET where `own` is given."""
    os.environ.setdefault("CONDOR_CONFIG", "/dev/null")
    import htcondor2  # noqa: F401  registers stringListMember() and the like
    from classad2 import ClassAd, ExprTree

    ad = ClassAd(job)
    return (ExprTree(expression).eval(ad) if own is None else ExprTree(expression).eval(ClassAd(own), ad)) is True


def test_each_vo_has_its_route_and_each_route_is_listed(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS, ATLAS))
    assert list(routes_of(text)) == ["HTCEBridge_leonardo_cms", "HTCEBridge_leonardo_atlas"]
    assert "\nJOB_ROUTER_ROUTE_NAMES = HTCEBridge_leonardo_cms HTCEBridge_leonardo_atlas " in text


@pytest.mark.parametrize("site", ["leonardo", "leo-nardo", "leo.nardo+2"])
def test_route_names_have_no_dash(make: Callable[..., Config], site: str) -> None:
    config = make(CMS, site=site)
    assert re.fullmatch(r"\w+", policy.routes(config)[0].name)
    for name in re.findall(r"JOB_ROUTER_(?:ROUTE|TRANSFORM)_(\S+) @=", render_routes(config)):
        assert re.fullmatch(r"\w+", name)


def test_requirements_hold_literals_only(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS, ATLAS))
    found = re.findall(r"^\s*REQUIREMENTS (.*)$", text, re.MULTILINE)
    assert len(found) == 3, "two routes and the guard of the default route"
    for line in found:
        assert "$(" not in line
        assert "TARGET." not in line


def test_the_placement_either_widens_nothing_but_the_ces_own_gpu_clause(make: Callable[..., Config]) -> None:
    (route,) = routes_of(render_routes(make({**CMS, "placement": "either"}))).values()
    changes = [line.strip() for line in route.splitlines() if line.strip().startswith("SET Requirements")]
    assert changes == [
        'SET Requirements ($(bridge_requirements)) || (TARGET.OpportunisticSite =?= "leonardo")',
        "SET Requirements true",
    ]
    before = route[: route.index("SET Requirements")].splitlines()
    assert before[-2].strip() == "if $(bridge_gpu_clause)"


def test_the_placement_only_always_asks_for_the_site(make: Callable[..., Config]) -> None:
    (route,) = routes_of(render_routes(make({**CMS, "placement": "only"}))).values()
    changes = [line.strip() for line in route.splitlines() if line.strip().startswith("SET Requirements")]
    assert sorted(changes) == [
        'SET Requirements ($(bridge_requirements)) && (TARGET.OpportunisticSite =?= "leonardo")',
        'SET Requirements (MY.HTCEBridge_Requirements) && (TARGET.OpportunisticSite =?= "leonardo")',
        'SET Requirements (TARGET.OpportunisticSite =?= "leonardo")',
        'SET Requirements (TARGET.OpportunisticSite =?= "leonardo")',
    ]


@pytest.mark.parametrize("placement", ["only", "either"])
def test_every_if_of_a_route_ends(make: Callable[..., Config], placement: str) -> None:
    (route,) = routes_of(render_routes(make({**CMS, "placement": placement}))).values()
    words = [line.split()[0] for line in route.splitlines() if line.strip()]
    assert words.count("if") == words.count("endif") > 0


def test_a_route_sets_the_grant_and_the_vo(make: Callable[..., Config]) -> None:
    (route,) = routes_of(render_routes(make(CMS))).values()
    for line in ('SET OpportunisticSite "leonardo"', 'SET OpportunisticVO "cms"', "TargetUniverse = 5"):
        assert f"  {line}\n" in route


def test_a_grant_that_a_job_brings_along_is_deleted_before_any_route(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS))
    (deleted,) = re.findall(r"DELETE /(.*)/", text)
    for name in ("OpportunisticSite", "OpportunisticVO", "orig_AuthTokenIssuer"):
        assert re.search(deleted, name)
    for name in ("MyOpportunisticSite", "OpportunisticSites", "WantOpportunistic", "AuthTokenIssuer"):
        assert not re.search(deleted, name)
    assert re.search(r"PRE_ROUTE_TRANSFORM_NAMES = HTCEBridge_Scrub \$\(", text)


def test_retries_are_on_for_the_jobs_that_ask_and_bounded(make: Callable[..., Config]) -> None:
    config = make(CMS, ATLAS)
    (line,) = re.findall(r"^ENABLE_JOB_RETRIES = (.*)$", render_routes(config), re.MULTILINE)
    retries = line.replace("$(ENABLE_JOB_RETRIES:False)", "False")
    assert line != retries, "the site's own setting stays in force"
    assert holds(retries, Owner="cmspil001", NumJobStarts=3)
    assert holds(retries, Owner="atl.prod-1", WantOpportunistic=True)
    assert not holds(retries, Owner="atl.prod-1", WantOpportunistic=False)
    assert not holds(retries, Owner="bob", WantOpportunistic=True)
    assert not holds(retries, Owner="cmspil001", NumJobStarts=config.routes.max_starts + 1)


def test_the_guard_keeps_only_jobs_from_the_default_route_and_no_others(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS, ATLAS))
    guard = re.search(r"^JOB_ROUTER_ROUTE_Condor_Pool @=jrt\n  REQUIREMENTS (.*)\n\$\(", text, re.MULTILINE)
    assert guard
    assert not holds(guard[1], Owner="atl.prod-1", WantOpportunistic=True)
    for job in ({"Owner": "atl.prod-1"}, {"Owner": "cmspil001"}, {"Owner": "bob", "WantOpportunistic": True}):
        assert holds(guard[1], **job)
    assert "JOB_ROUTER_ROUTE_Condor_Pool" not in render_routes(make(CMS)), "no VO is bound to the HPC: no guard"


def test_a_job_waiting_for_room_on_its_only_route_is_not_held(make: Callable[..., Config]) -> None:
    (line,) = re.findall(r"^SYSTEM_PERIODIC_HOLD = (.*)$", render_routes(make(CMS, ATLAS)), re.MULTILINE)
    hold = line.replace("$(HOLD_CLAUSE_1:False)", "False").replace("$(HOLD_CLAUSE_2:False)", "JobStatus =?= 1")
    assert not holds(hold, Owner="atl.prod-1", WantOpportunistic=True, JobStatus=1)
    assert holds(hold, Owner="bob", JobStatus=1)
    assert not holds(hold, Owner="bob", JobStatus=3)


def test_who_may_not_ask_is_refused_at_submission(make: Callable[..., Config]) -> None:
    allowed = policy.may_ask(make(CMS, ATLAS))
    for job in ({"Owner": "bob"}, {"Owner": "bob", "WantOpportunistic": False}):
        assert holds(allowed, {}, **job)
    assert holds(allowed, {}, Owner="atl.prod-1", WantOpportunistic=True)
    assert holds(allowed, {}, Owner="x", AuthTokenIssuer="https://cms-auth.cern.ch/", WantOpportunistic="lumi")
    assert not holds(allowed, {}, Owner="bob", WantOpportunistic=True)
    assert not holds(allowed, {}, Owner="bob", WantOpportunistic="yes")


def test_bounds_keep_the_grant_from_jobs_that_are_too_large(make: Callable[..., Config]) -> None:
    config = make({**CMS, "max_walltime": "12h", "max_cpus": 8, "max_memory": "16G"})
    assert accepts(config, Owner="cmspil1", maxWallTime=720, xcount=8, maxMemory=16384)
    assert accepts(config, Owner="cmspil1"), "what is not given is not too large"
    for job in ({"maxWallTime": 721}, {"xcount": 9}, {"RequestCpus": 9}, {"maxMemory": 16385}, {"BatchRuntime": 43201}):
        assert not accepts(config, Owner="cmspil1", **job)


def test_a_tokens_subject_and_group_are_asked_for_where_given(make: Callable[..., Config]) -> None:
    config = make({**CMS, "owners": [], "subjects": ["robot"], "groups": ["/cms/pilot"]})
    token = {"AuthTokenIssuer": "https://cms-auth.cern.ch/", "AuthTokenSubject": "robot", "Owner": "x"}
    assert accepts(config, **token, AuthTokenGroups="/cms,/cms/pilot")
    assert not accepts(config, **token, AuthTokenGroups="/cms")
    assert not accepts(config, **token)
    assert not accepts(config, **{**token, "AuthTokenSubject": "eve"}, AuthTokenGroups="/cms/pilot")


def test_one_more_site_is_one_more_table(make: Callable[..., Config]) -> None:
    raw = {"value": "lumi", "vos": ["cms"], "max_idle": 7}
    config = make(CMS, ATLAS, sites=[raw])
    names = [route.name for route in policy.routes(config)]
    assert names == ["HTCEBridge_leonardo_cms", "HTCEBridge_leonardo_atlas", "HTCEBridge_lumi_cms"]
    text = routes_of(render_routes(config))["HTCEBridge_lumi_cms"]
    assert 'SET OpportunisticSite "lumi"' in text
    assert "MaxIdleJobs = 7" in text
    first, _, lumi = (route.requirements for route in policy.routes(config))
    assert holds(lumi, Owner="cmspil1", WantOpportunistic="lumi")
    assert not holds(first, Owner="cmspil1", WantOpportunistic="lumi")
    assert holds(first, Owner="cmspil1")
    assert holds(lumi, Owner="cmspil1"), "the second site takes what the first has no room for"


@pytest.mark.parametrize("part", ["scrub", "retries", "hold", "submit_requirement", "immutable", "sigterm_guard"])
def test_each_part_can_be_switched_off(make: Callable[..., Config], part: str) -> None:
    mark = {
        "scrub": "HTCEBridge_Scrub",
        "retries": "ENABLE_JOB_RETRIES",
        "hold": "SYSTEM_PERIODIC_HOLD",
        "submit_requirement": "SUBMIT_REQUIREMENT",
        "immutable": "IMMUTABLE_JOB_ATTRS",
        "sigterm_guard": "SET OnExitRemove",
    }[part]
    assert mark in render_routes(make(CMS, ATLAS))
    assert mark not in render_routes(make(CMS, ATLAS, routes={part: False}))


def test_the_pools_part_keeps_the_grant_and_the_place_of_work(make: Callable[..., Config]) -> None:
    text = {file.side: file.text for file in render_files(make(CMS))}["pool"]
    assert "IMMUTABLE_JOB_ATTRS = $(IMMUTABLE_JOB_ATTRS) OpportunisticSite OpportunisticVO RoutedBy RouteName" in text
    assert "SYSTEM_JOB_MACHINE_ATTRS = $(SYSTEM_JOB_MACHINE_ATTRS) OpportunisticSite" in text


def test_no_vo_means_no_route_and_says_so(make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"no \[\[vo\]\]"):
        render_routes(make())


# --------------------------------------------------------------------------- REQUIREMENTS as ClassAds


def accepts(config: Config, **job: object) -> bool:
    return holds(policy.routes(config)[0].requirements, **job)


def test_a_token_of_the_issuer_is_enough(make: Callable[..., Config]) -> None:
    config = make(CMS)
    assert accepts(config, AuthTokenIssuer="https://cms-auth.cern.ch/", Owner="nobody")
    assert not accepts(config, AuthTokenIssuer="https://cms-auth.cern.ch/evil", Owner="nobody")
    assert not accepts(config, AuthTokenIssuer="https://CMS-AUTH.cern.ch/", Owner="nobody")


def test_what_the_submitter_wrote_is_no_authority(make: Callable[..., Config]) -> None:
    assert not accepts(
        make(CMS), Owner="nobody", x509UserProxyVOName="cms", orig_AuthTokenIssuer="https://cms-auth.cern.ch/"
    )


@pytest.mark.parametrize(
    ("pattern", "owner", "matches"),
    [
        ("cmspil*", "cmspil001", True),
        ("cmspil*", "cmspil", True),
        ("cmspil*", "xcmspil001", False),
        ("cmspil*", "cmspi", False),
        ("atl.prod-1", "atl.prod-1", True),
        ("atl.prod-1", "atlxprod-1", False),
        ("atl.prod-1", "atl.prod-12", False),
        ("atl.prod-1", "xatl.prod-1", False),
        ("*@it", "leo@it", True),
        ("*@it", "leo@it.evil", False),
        ("a*b*c", "a1b2c", True),
        ("a*b*c", "a1c2b", False),
    ],
)
def test_an_account_pattern_matches_the_whole_account(
    make: Callable[..., Config], pattern: str, owner: str, matches: bool
) -> None:
    config = make({"name": "vo", "owners": [pattern], "request": "always"})
    assert accepts(config, Owner=owner) is matches


def test_an_account_pattern_for_everybody_is_refused(make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="would grant every account"):
        make({"name": "vo", "owners": ["*"]})


def test_the_flag_is_needed_where_the_vo_says_so(make: Callable[..., Config]) -> None:
    flagged = make({"name": "vo", "owners": ["leo"], "request": "flag"})
    assert not accepts(flagged, Owner="leo")
    assert not accepts(flagged, Owner="leo", WantOpportunistic=False)
    assert not accepts(flagged, Owner="leo", WantOpportunistic="true")
    assert accepts(flagged, Owner="leo", WantOpportunistic=True)
    assert not accepts(flagged, Owner="eve", WantOpportunistic=True)
