"""What the real router said, in recordings of both versions; job ads as people have them; what `routes try` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.cli import routes_try
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.routes import RouteFile, jobad, trial
from htcebridge.routes.ce import CE
from htcebridge.routes.jobad import JobAd, parse_ads
from htcebridge.routes.stage import OURS, staged, unlimited
from htcebridge.routes.trial import WORKER, Routed, Trial, differences, parse_routing
from htcebridge.tier1 import fit
from htcebridge.tier1.fit import Matcher
from tests import schema

VERSION = "$CondorVersion: 25.14.1 2026-10-16 PackageID: 25.14.1+dfsg-1 $"

# condor_job_router_info -route-jobs - -jobads - -ignore-prior-routing -log-steps, stderr merged; 5 jobs, 4 routes:
# Good, FailsSet ("SET Requirements (bad"), FailsRoute ("SET X=1"), CutsAd ("SET B= 1"). Counters of the ads and the
# umbrella constraint are left out; ~ stands for a blank at the end of a line. It exits 0.
SAID_23_9 = """\

Matching jobs against routes to find candidate jobs.

Checking for candidate jobs. routing table is:
Route Name               Source      Submitted/Max        Idle/Max     Throttle
Good                     Good              0/  10000       0/   2000     none
FailsSet                 FailsSet          0/  10000       0/   2000     none
FailsRoute               FailsRoute        0/  10000       0/   2000     none
CutsAd                   CutsAd            0/  10000       0/   2000     none

Checking Job src=1.0 against all routes
	Route Matches: Good
Found candidate job src=1.0,route=Good
Checking Job src=2.0 against all routes
	Route Matches: FailsSet
Found candidate job src=2.0,route=FailsSet
Checking Job src=3.0 against all routes
	Route Matches: FailsRoute
Found candidate job src=3.0,route=FailsRoute
Checking Job src=4.0 against all routes
	Route Matches: CutsAd
Found candidate job src=4.0,route=CutsAd
4 candidate jobs found
(src=2.0,route=FailsSet): claimed job
	Applying pre-route transform: Scrub
	Applying route: FailsSet
SET Requirements to (bad
ERROR: SET Requirements invalid expression : (bad
submit_job as set@ to ce01.cr.example.org pool:tier1.cr.example.org:9618:
JobStatus = 1
Owner = "set"
RouteName = "FailsSet"
RoutedBy = "htcondor-ce"
RoutedFromJobId = "2.0"

(src=2.0,dest=-1.-1,route=FailsSet): submitted job
(src=4.0,route=CutsAd): claimed job
	Applying pre-route transform: Scrub
	Applying route: CutsAd
SET B to 1
submit_job as cut@ to ce01.cr.example.org pool:tier1.cr.example.org:9618:
B
(src=4.0,dest=-1.-1,route=CutsAd): submitted job
(src=1.0,route=Good): claimed job
	Applying pre-route transform: Scrub
	Applying route: Good
SET OpportunisticSite to "leonardo"
submit_job as good@ to ce01.cr.example.org pool:tier1.cr.example.org:9618:
JobStatus = 1
OpportunisticSite = "leonardo"
Owner = "good"
RouteName = "Good"
RoutedBy = "htcondor-ce"
RoutedFromJobId = "1.0"

(src=1.0,dest=-1.-1,route=Good): submitted job
(src=3.0,route=FailsRoute): claimed job
	Applying pre-route transform: Scrub
	Applying route: FailsRoute
Transform of ad  failed!
failure (route=FailsRoute): SET needs 2 arguments.
failure (src=3.0,route=FailsRoute): failed to apply route ClassAd modifications to target ad.
"""

SAID_25_14 = """\

Matching jobs against routes to find candidate jobs.

Checking for candidate jobs. routing table is:
Route Name               Source      Submitted/Max        Idle/Max     Throttle
Good                     Good              0/  10000       0/   2000     none
FailsSet                 FailsSet          0/  10000       0/   2000     none
FailsRoute               FailsRoute        0/  10000       0/   2000     none
CutsAd                   CutsAd            0/  10000       0/   2000     none

Checking Job src=1.0 against all routes
	Route Matches: Good
Found candidate job src=1.0,route=Good
Checking Job src=2.0 against all routes
	Route Matches: FailsSet
Found candidate job src=2.0,route=FailsSet
Checking Job src=3.0 against all routes
	Route Matches: FailsRoute
Found candidate job src=3.0,route=FailsRoute
Checking Job src=4.0 against all routes
	Route Matches: CutsAd
Found candidate job src=4.0,route=CutsAd
4 candidate jobs found
(src=1.0,route=Good): claimed job
	Applying pre-route transform: Scrub
ERROR in transform Scrub :~
	Applying route: Good
SET OpportunisticSite to "leonardo"
ERROR in transform Good :~
ERROR in route Good :~
submit_job as good@ to schedd ce01.cr.example.org at pool tier1.cr.example.org:9618:
JobStatus = 1
OpportunisticSite = "leonardo"
Owner = "good"
RouteName = "Good"
RoutedBy = "htcondor-ce"
RoutedFromJobId = "1.0"

(src=1.0,dest=-1.-1,route=Good): submitted job
(src=2.0,route=FailsSet): claimed job
	Applying pre-route transform: Scrub
ERROR in transform Scrub :~
	Applying route: FailsSet
SET Requirements to (bad
ERROR: SET Requirements invalid expression : (bad
ERROR in transform FailsSet :~
ERROR in route FailsSet :~
submit_job as set@ to schedd ce01.cr.example.org at pool tier1.cr.example.org:9618:
JobStatus = 1
Owner = "set"
RouteName = "FailsSet"
RoutedBy = "htcondor-ce"
RoutedFromJobId = "2.0"

(src=2.0,dest=-1.-1,route=FailsSet): submitted job
(src=3.0,route=FailsRoute): claimed job
	Applying pre-route transform: Scrub
ERROR in transform Scrub :~
	Applying route: FailsRoute
ERROR in transform FailsRoute :~
Transform of ad  failed!
ERROR in route FailsRoute :~
failure (route=FailsRoute): SET needs 2 arguments.
failure (src=3.0,route=FailsRoute): failed to apply route ClassAd modifications to target ad.
(src=4.0,route=CutsAd): claimed job
	Applying pre-route transform: Scrub
ERROR in transform Scrub :~
	Applying route: CutsAd
SET B to 1
ERROR in transform CutsAd :~
ERROR in route CutsAd :~
submit_job as cut@ to schedd ce01.cr.example.org at pool tier1.cr.example.org:9618:
B
(src=4.0,dest=-1.-1,route=CutsAd): submitted job
""".replace(" :~", " : ")

# A transform is listed and not defined. It exits 0.
DISABLED = """\
Following source schedd (SCHEDD1): job_router_info
Destination schedd (SCHEDD2) not configured, using source schedd as destintation also
ERROR: JOB_ROUTER_TRANSFORM_Nowhere not found
JobRouter: route Good converted to :
	NAME Good
	REQUIREMENTS Owner == "good"
	TargetUniverse = 5
	SET OpportunisticSite "leonardo"
JobRouter: route FailsSet converted to :
	NAME FailsSet
	REQUIREMENTS Owner == "set"
	TargetUniverse = 5
	SET Requirements (bad
JobRouter: route FailsRoute converted to :
	NAME FailsRoute
	REQUIREMENTS Owner == "route"
	TargetUniverse = 5
	SET X=1
JobRouter: route CutsAd converted to :
	NAME CutsAd
	REQUIREMENTS Owner == "cut"
	TargetUniverse = 5
	SET B= 1
JobRouter is disabled.

Matching jobs against routes to find candidate jobs.
"""
RECORDED = [pytest.param(SAID_23_9, id="23.9.6"), pytest.param(SAID_25_14, id="25.14.1")]


@pytest.mark.parametrize("said", RECORDED)
def test_a_routed_job_has_its_route_its_ad_and_no_error(said: str) -> None:
    good = parse_routing(said)["1.0"]
    assert good.route == "Good"
    assert good.attributes["OpportunisticSite"] == '"leonardo"'
    assert good.attributes["RoutedFromJobId"] == '"1.0"'
    assert good.errors == (), "the empty ERROR lines of 25.14 are noise"


@pytest.mark.parametrize("said", RECORDED)
def test_a_failed_set_is_the_error_of_its_own_job(said: str) -> None:
    routed = parse_routing(said)
    assert routed["2.0"].errors == ("SET Requirements invalid expression : (bad",)
    assert routed["2.0"].text, "it is routed all the same"
    assert [key for key, each in routed.items() if each.errors] == [k for k in routed if k in {"2.0", "3.0", "4.0"}]


@pytest.mark.parametrize("said", RECORDED)
def test_a_route_that_fails_makes_no_ad(said: str) -> None:
    failed = parse_routing(said)["3.0"]
    assert (failed.route, failed.text) == ("FailsRoute", "")
    assert failed.errors == ("failure (route=FailsRoute): SET needs 2 arguments.",)


@pytest.mark.parametrize("said", RECORDED)
def test_an_ad_that_a_nul_cuts_is_an_error(said: str) -> None:
    cut = parse_routing(said)["4.0"]
    assert (cut.route, cut.text) == ("CutsAd", "")
    assert "SET X= 1" in cut.errors[0]


@pytest.mark.parametrize("said", RECORDED)
def test_a_job_that_no_route_takes_is_not_in_it(said: str) -> None:
    assert "5.0" not in parse_routing(said)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (DISABLED, "JOB_ROUTER_TRANSFORM_Nowhere not found"),
        (
            "Can't open file of job ads: jobs\n\nMatching jobs against routes\nThere are no jobs to match\n",
            "Can't open",
        ),
        ("Configuration Error Line 28 while reading config source 99.conf\n", "Configuration Error Line 28"),
        ("", "it says nothing"),
    ],
)
def test_a_router_that_routes_nothing_is_an_error(said: str, why: str) -> None:
    with pytest.raises(BridgeError, match=why):
        parse_routing(said)


@pytest.mark.parametrize(
    "text",
    [
        'Owner = "a"\nCmd = "/bin/sh"\n\nOwner = "b"\n',
        '\n\n# two ads\nOwner = "a"\n\n\nOwner = "b"\n*** Offset = 0 ClusterId = 1\n',
        '[ Owner = "a"; Cmd = "x[y" ]\n\n[ Owner = "b" ]',
        '# a comment\n[\n  Owner = "a";\n]\n[ Owner = "b"; ]\n',
    ],
)
def test_ads_are_read_in_both_forms(text: str) -> None:
    assert [job.owner for job in parse_ads(text, "x")] == ["a", "b"]


def test_what_is_missing_is_filled_in_and_said() -> None:
    (job,) = parse_ads('User = "cmspil001@users.htcondor.org"', "x.ad")
    assert job.filled == ("ClusterId = 1", "ProcId = 0", "JobStatus = 1", "JobUniverse = 5", 'Owner = "cmspil001"')
    assert (job.id, job.label, job.owner) == ("1.0", "x.ad", "cmspil001")
    (nobody,) = parse_ads("clusterid = 7\nPROCID = 2\nJobStatus = 4\nJobUniverse = 5", "x.ad")
    assert nobody.filled == ('Owner = "nobody"',)
    assert nobody.id == "7.2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no job ad in it"),
        ("# nothing\n\n", "no job ad in it"),
        ('Owner = "a"\nthis is no ad\n', 'line 2: not "Attribute = value"'),
        ('Owner = "a"\nRequirements = ((true\n', r"not a ClassAd expression: Requirements = \(\(true"),
        ("Owner =?= 3\n", "line 1"),
        ("[ Owner = ; ]", "not ClassAds"),
        ('[ Owner = "a" ] [ Owner = "b"', "not ClassAds"),
        ('ClusterId = "x"\n', "a job's id is two numbers"),
        ("ClusterId = -1\n", "a job's id is two numbers"),
    ],
)
def test_what_is_no_job_ad_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_ads(text, "x.ad")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        jobad.read_files([tmp_path / "none"])
    with pytest.raises(ConfigError, match="Is a directory"):
        jobad.read_files([tmp_path])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        jobad.read_files([tmp_path / "binary"])


def test_every_job_gets_an_id_of_its_own() -> None:
    jobs = jobad.numbered(parse_ads('Owner = "a"\n\nOwner = "b"\n\nClusterId = 5\nOwner = "c"\n\nOwner = "d"', "x"))
    assert len({job.id for job in jobs}) == 4
    for job in jobs:
        assert f"{job.attributes['ClusterId']}.{job.attributes['ProcId']}" == job.id
    assert [job.owner for job in jobs] == ["a", "b", "c", "d"]


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(_TEXT)
def test_a_string_survives_the_way_into_the_long_form_and_back(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    (job,) = parse_ads(f'[ Owner = "a"; Args = "{escaped}" ]', "x")
    assert fit.bindings().ClassAd(jobad.new_form(job.text))["Args"] == text


def test_a_backslash_of_the_long_form_is_a_character() -> None:
    (job,) = parse_ads('Owner = "a"\nArgs = "x\\y \\"q\\""\n', "x")
    assert fit.bindings().ClassAd(jobad.new_form(job.text))["Args"] == 'x\\y "q"'


def test_differences_begin_with_the_grant_and_ignore_case(config: Config) -> None:
    before = {"Alpha": "1", "requestcpus": "1", "Gone": "2", "Requirements": "true"}
    after = {"Alpha": "2", "RequestCpus": "1", "OpportunisticSite": '"leonardo"', "Requirements": "false"}
    changes = [(change.name, change.before, change.after) for change in differences(before, after, config)]
    assert changes == [
        ("OpportunisticSite", None, '"leonardo"'),
        ("Requirements", "true", "false"),
        ("Alpha", "1", "2"),
        ("Gone", "2", None),
    ]


WANTS = 'Requirements = TARGET.Arch == "X86_64"\nRequestMemory = 2000\nBatchRuntime = 3600\n'


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (WANTS + 'OpportunisticSite = "leonardo"\nRequestCpus = 8', {"dcgp", WORKER}),
        (WANTS + "RequestCpus = 8", {WORKER}),
        (WANTS + 'OpportunisticSite = "leonardo"\nRequestCpus = 100', {"dcgp"}),
        (WANTS + "RequestCpus = 65", set()),
        (WANTS + "RequestCpus = 1\nRequestGPUs = 1", set()),
        (WANTS.replace("X86_64", "ARM"), set()),
    ],
)
def test_a_worker_takes_what_fits_and_a_pilot_what_is_granted(config: Config, text: str, fits: set[str]) -> None:
    matched, why_not = trial.fit(Matcher(trial.templates(config, VERSION)), Routed("T", text))
    assert set(matched) == fits
    assert set(why_not) == {"dcgp", WORKER} - fits
    assert all(why_not.values())


def test_a_job_without_requirements_matches_nothing_and_the_reason_is_told(config: Config) -> None:
    _, why_not = trial.fit(Matcher(trial.templates(config, VERSION)), Routed("T", "RequestCpus = 1"))
    assert "no Requirements" in why_not[WORKER]


# --------------------------------------------------------------------------- the stage


@pytest.fixture
def ce(tmp_path: Path, fake_command: Callable[..., Path]) -> CE:
    """A CE of files; condor_config_val says what LOCAL_CONFIG_DIR is in the file that it is asked about."""
    fake_command(
        "condor_config_val",
        first='[ "$1" = LOCAL_CONFIG_DIR ] && { sed -n "s/^LOCAL_CONFIG_DIR = //p" "$CONDOR_CONFIG"; exit 0; }\n'
        "printf 'JOB_ROUTER_ROUTE_A @=end\\n   MaxJobs = 3\\n@end\\n # at: x, line 1\\n'; exit 0",
    )
    (tmp_path / "share.d").mkdir()
    (tmp_path / "config.d").mkdir()
    for name in ("02-ce.conf", "60-htcebridge.conf", "61-htcebridge-old.conf", "98-site.conf"):
        (tmp_path / "config.d" / name).write_text("A = 1\n")
    config = tmp_path / "condor_config"
    config.write_text(f"LOCAL_CONFIG_DIR = {tmp_path}/share.d,{tmp_path}/config.d\n")
    return CE(config)


def test_a_stage_has_the_new_files_in_place_of_an_older_set(ce: CE, tmp_path: Path) -> None:
    files = [RouteFile("ce", "60-htcebridge.conf", "NEW = 1\n"), RouteFile("pool", "60-htcebridge.conf", "POOL = 1\n")]
    with staged(ce, files) as stage:
        folder = stage.config.parent / "config.d"
        assert sorted(path.name for path in folder.iterdir()) == ["02-ce.conf", "60-htcebridge.conf", "98-site.conf"]
        assert (folder / "60-htcebridge.conf").read_text() == "NEW = 1\n"
        assert (folder / "98-site.conf").read_text() == f"include : {tmp_path}/config.d/98-site.conf\n"
        assert f"include : {ce.config}" in stage.config.read_text()
        assert "SPOOL = " in (stage.config.parent / "last.d" / "redirect.conf").read_text()
    assert not stage.config.exists()


def test_a_stage_without_files_is_the_ce_without_ours(ce: CE) -> None:
    with staged(ce, []) as stage:
        names = {path.name for path in (stage.config.parent / "config.d").iterdir()}
    assert names == {"02-ce.conf", "98-site.conf"}


def test_a_trial_of_the_present_configuration_keeps_our_files_and_lifts_the_limits(ce: CE) -> None:
    with unlimited(ce, None) as stage:
        assert (stage.config.parent / "config.d" / "60-htcebridge.conf").exists()
        limits = (stage.config.parent / "last.d" / "limits.conf").read_text()
    assert limits.index("MaxJobs = 3") < limits.index("MaxJobs = 1000000000"), "the last one counts"
    assert "MaxIdleJobs = -1" in limits


def test_a_ce_that_cannot_be_staged_is_named(ce: CE, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CE configuration that can be read"), staged(CE(tmp_path / "no"), []):
        pass
    ce.config.write_text("\n")
    with pytest.raises(ConfigError, match="no LOCAL_CONFIG_DIR"), staged(ce, []):
        pass
    ce.config.write_text(f"LOCAL_CONFIG_DIR = {tmp_path}/nowhere.d\n")
    with pytest.raises(ConfigError, match=r"nowhere\.d: .*No such file"), staged(ce, []):
        pass


@pytest.mark.parametrize(
    ("name", "ours"), [("60-htcebridge.conf", True), ("60-htcebridge-leo.conf", True), ("02-ce-condor.conf", False)]
)
def test_only_our_own_names_are_ours(name: str, ours: bool) -> None:
    assert bool(OURS.fullmatch(name)) is ours


# --------------------------------------------------------------------------- the command


def _trial(route: str | None, before: str | None = "Condor_Pool", errors: tuple[str, ...] = ()) -> Trial:
    job = JobAd("7.0", "7.0", 'Owner = "cmspil001"', ("ClusterId = 7",))
    text = f'OpportunisticSite = "leonardo"\nRouteName = "{route}"\nRequirements = {"x" * 150} && true'
    after = Routed(route, text if route else "", errors)
    changes = (trial.Change("OpportunisticSite", None, '"leonardo"'), trial.Change("Requirements", "true", "x " * 90))
    return Trial(job, Routed(before, "A = 1"), after, changes, ("dcgp",), {WORKER: "asks 100 cpus, a pilot has 64"})


@pytest.fixture
def said_by_try(
    htcebridge_command: Callable[..., Any], tmp_path: Path, design_example: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs `routes try` on what a made-up router answers."""
    from htcebridge.cli import routes as group

    if "try" not in group.command.commands:  # type: ignore[attr-defined]
        group.command.add_command(routes_try.try_)  # type: ignore[attr-defined]
    config = tmp_path / "h.toml"
    config.write_text(design_example)

    def run(trials: Sequence[Trial], *arguments: str) -> Any:
        monkeypatch.setattr(trial, "try_routes", lambda *_: list(trials))
        monkeypatch.setattr(jobad, "from_queue", lambda _: [each.job for each in trials])
        monkeypatch.setattr(jobad, "from_history", lambda _, count: [each.job for each in trials][:count])
        return htcebridge_command("--config", config, "routes", "try", *arguments)

    return run


def test_try_shows_the_route_the_changes_and_who_takes_it(said_by_try: Callable[..., Any], tmp_path: Path) -> None:
    ad = tmp_path / "a.ad"
    ad.write_text('Owner = "a"\n')
    said = said_by_try([_trial("HTCEBridge_leonardo_cms")], str(ad))
    assert said.code == 0
    assert "Condor_Pool -> HTCEBridge_leonardo_cms" in said.out
    assert said.out.index("OpportunisticSite") < said.out.index("Requirements")
    assert "dcgp                   matches" in said.out
    assert "asks 100 cpus, a pilot has 64" in said.out
    assert max(map(len, said.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("trials", "code"),
    [
        ([_trial("T")], 0),
        ([_trial(None)], 1),
        ([_trial("T", errors=("SET X invalid expression : (",))], 1),
        ([], 0),
    ],
)
def test_try_fails_if_a_job_is_not_routed_or_a_set_failed(
    said_by_try: Callable[..., Any], trials: list[Trial], code: int
) -> None:
    assert said_by_try(trials, "--from-queue").code == code
    assert said_by_try(trials, "--from-history", "5").code == code


def test_from_queue_counts_who_would_change_route(said_by_try: Callable[..., Any]) -> None:
    trials = [_trial("T")] * 3 + [_trial("Condor_Pool")] * 2 + [_trial(None, before="T")]
    said = said_by_try(trials, "--from-queue")
    assert "4 of 6 jobs would change route; 1 fail." in said.out
    document = json.loads(said_by_try(trials, "--from-queue", "--json").out)
    schema.check("routes-try", document)
    assert document["schema"] == 1
    assert document["totals"] == {"jobs": 6, "change_route": 4, "failed": 1}
    moves = {(move["before"], move["after"]): move["jobs"] for move in document["moves"]}
    assert moves == {("Condor_Pool", "T"): 3, ("Condor_Pool", "Condor_Pool"): 2, ("T", None): 1}


def test_try_without_a_job_is_a_usage_error(said_by_try: Callable[..., Any]) -> None:
    said = said_by_try([])
    assert said.code == 2
    assert "nothing to try" in said.err


def test_attributes_are_found_whatever_their_case() -> None:
    attributes: Mapping[str, str] = JobAd("1", "1.0", 'OWNER = "x"').attributes
    assert jobad.attribute(attributes, "Owner") == '"x"'
