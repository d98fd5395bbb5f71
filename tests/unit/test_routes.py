from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import pytest
import tomli_w

from htcebridge.config import Config
from htcebridge.errors import ConfigError
from htcebridge.routes import render_routes, requirements, route_name

CMS = {"name": "cms", "issuers": ["https://cms-auth.cern.ch/"], "owners": ["cmspil*"], "request": "always"}
ATLAS = {"name": "atlas", "owners": ["atl.prod-1", "*@it"], "request": "flag", "placement": "only"}


@pytest.fixture
def make(load: Callable[[str], Config], design_example: str) -> Callable[..., Config]:
    def with_vos(*vos: dict[str, object], site: str = "leonardo") -> Config:
        raw = tomllib.loads(design_example)
        raw["vo"] = list(vos)
        raw["grant"]["value"] = site
        return load(tomli_w.dumps(raw))

    return with_vos


def routes_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^JOB_ROUTER_ROUTE_(\w+) @=jrt\n(.*?)^@jrt$", text, re.MULTILINE | re.DOTALL))


def test_each_vo_has_its_route_and_each_route_is_listed(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS, ATLAS))
    assert list(routes_of(text)) == ["HTCEBridge_leonardo_cms", "HTCEBridge_leonardo_atlas"]
    assert "\nJOB_ROUTER_ROUTE_NAMES = HTCEBridge_leonardo_cms HTCEBridge_leonardo_atlas " in text


@pytest.mark.parametrize("site", ["leonardo", "leo-nardo", "leo.nardo+2"])
def test_route_names_have_no_dash(make: Callable[..., Config], site: str) -> None:
    config = make(CMS, site=site)
    assert re.fullmatch(r"\w+", route_name(config, config.vos[0]))
    for name in re.findall(r"JOB_ROUTER_(?:ROUTE|TRANSFORM)_(\S+) @=", render_routes(config)):
        assert re.fullmatch(r"\w+", name)


def test_requirements_hold_literals_only(make: Callable[..., Config]) -> None:
    text = render_routes(make(CMS, ATLAS))
    found = re.findall(r"^\s*REQUIREMENTS (.*)$", text, re.MULTILINE)
    assert len(found) == 2
    for line in found:
        assert "$(" not in line
        assert "TARGET." not in line


def test_the_placement_either_widens_nothing_but_the_ces_own_gpu_clause(make: Callable[..., Config]) -> None:
    (route,) = routes_of(render_routes(make({**CMS, "placement": "either"}))).values()
    changes = [line.strip() for line in route.splitlines() if line.strip().startswith("SET Requirements")]
    assert changes == ['SET Requirements ($(bridge_requirements)) || (TARGET.OpportunisticSite =?= "leonardo")']
    before = route[: route.index("SET Requirements")].splitlines()
    assert before[-2].strip() == "if $(bridge_gpu_clause)"


def test_the_placement_only_always_asks_for_the_site(make: Callable[..., Config]) -> None:
    (route,) = routes_of(render_routes(make({**CMS, "placement": "only"}))).values()
    changes = [line.strip() for line in route.splitlines() if line.strip().startswith("SET Requirements")]
    assert sorted(changes) == [
        'SET Requirements ($(bridge_requirements)) && (TARGET.OpportunisticSite =?= "leonardo")',
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


def test_retries_are_on_for_the_routed_jobs_alone(make: Callable[..., Config]) -> None:
    config = make(CMS, ATLAS)
    (line,) = re.findall(r"^ENABLE_JOB_RETRIES = (.*)$", render_routes(config), re.MULTILINE)
    assert line == f"(({requirements(config.vos[0])}) || ({requirements(config.vos[1])}))"


def test_no_vo_means_no_route_and_says_so(make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"no \[\[vo\]\]"):
        render_routes(make())


# --------------------------------------------------------------------------- REQUIREMENTS as ClassAds


def accepts(config: Config, **job: object) -> bool:
    import classad2

    return classad2.ExprTree(requirements(config.vos[0])).eval(classad2.ClassAd(job)) is True


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
        ("*", "anybody", True),
    ],
)
def test_an_account_pattern_matches_the_whole_account(
    make: Callable[..., Config], pattern: str, owner: str, matches: bool
) -> None:
    config = make({"name": "vo", "owners": [pattern], "request": "always"})
    assert accepts(config, Owner=owner) is matches


def test_the_flag_is_needed_where_the_vo_says_so(make: Callable[..., Config]) -> None:
    flagged = make({"name": "vo", "owners": ["leo"], "request": "flag"})
    assert not accepts(flagged, Owner="leo")
    assert not accepts(flagged, Owner="leo", WantOpportunistic=False)
    assert not accepts(flagged, Owner="leo", WantOpportunistic="true")
    assert accepts(flagged, Owner="leo", WantOpportunistic=True)
    assert not accepts(flagged, Owner="eve", WantOpportunistic=True)
