"""The checks of route configuration on text alone; what the real router does is in tests/e2e/test_routes_check.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.cli.routes_check import WIDTH, as_text
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.routes import render_routes
from htcebridge.routes.ce import Knob
from htcebridge.routes.lint import GRANTS, RULES, Finding, Report, check_file, lint
from htcebridge.routes.lint.classads import parses, rests_on_x509
from htcebridge.routes.lint.source import Files, assignments
from htcebridge.routes.lint.unreadable import unreadable
from htcebridge.routes.lint.view import View

BROKEN = Path(__file__).parents[2] / "routes" / "broken"
CE = """\
JOB_ROUTER_ROUTE_Condor_Pool @=end
  TargetUniverse = 5
@end
JOB_ROUTER_ROUTE_NAMES = Condor_Pool
JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = Base OrigRequests
JOB_ROUTER_TRANSFORM_Base = SET RoutedJob True
JOB_ROUTER_TRANSFORM_OrigRequests @=end
  RENAME /^AuthToken.*$/ orig_\\0
@end
JOB_ROUTER_POST_ROUTE_TRANSFORM_NAMES = WholeNode Memory
JOB_ROUTER_TRANSFORM_WholeNode = EVALMACRO whole $(MY.WantWholeNode:False) && $(TargetUniverse)==5
JOB_ROUTER_TRANSFORM_Memory = EVALSET RequestMemory maxMemory ?: ($(default_maxMemory:2000))
"""


@pytest.fixture
def view(tmp_path: Path) -> Callable[..., View]:
    """view(FILE=text, ...): the configuration that these files make, in that order, after the CE's own."""

    def make(alone: bool = False, **texts: str) -> View:
        files = {} if alone else {"01-ce-router": CE}
        files.update({name.strip("_").replace("_", "-"): text for name, text in texts.items()})
        knobs: dict[str, Knob] = {}
        for name, text in files.items():
            path = tmp_path / f"{name}.conf"
            path.write_text(text, encoding="utf-8")
            for one in assignments(text):
                before = knobs.get(one.name.upper())
                value = one.value.replace(f"$({one.name})", before.value if before else "")
                knobs[one.name.upper()] = Knob(one.name, value, str(path), one.last)
        return View(knobs, tuple(f"{tmp_path}/{name}.conf" for name in files), Files(), GRANTS, alone=alone)

    return make


@pytest.fixture
def codes(view: Callable[..., View]) -> Callable[..., list[str]]:
    """The findings of a route with these statements, as CODE:LINE; the first statement is on line 2."""

    def of(*statements: str, universe: str = "TargetUniverse = 5") -> list[str]:
        text = "\n".join(["JOB_ROUTER_ROUTE_Opp @=jrt", *statements, universe, "@jrt"])
        names = "\nJOB_ROUTER_ROUTE_NAMES = Opp $(JOB_ROUTER_ROUTE_NAMES)\n"
        found = lint(view(_70=text + names)).findings
        return [f"{one.code}:{one.where.rpartition(':')[2]}" for one in found]

    return of


def test_the_ce_as_it_comes_has_no_finding(view: Callable[..., View]) -> None:
    assert lint(view()) == Report((), 1, 4)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("Requirements = true", "R01"),
        ("REQUIREMENTS=true", "R01"),
        ('REQUIREMENTS stringListMember(VO, "$(VOS)")', "R02"),
        ("REQUIREMENTS target . Owner == 1", "R03"),
        ("REQUIREMENTS Owner ==", "R04"),
        ("REQUIREMENTS", "R04"),
        ("SET X (1", "R05"),
        ("SET X", "R05"),
        ("EVALMACRO m (1", "R05"),
        ("EVALSET X 1 # why", "R06"),
        ("MaxIdleJobs = 5 # few", "R06"),
        ("COPY A B # why", "R06"),
        ("MaxIdleJobs = 5;", "R07"),
        ("SET X=1", "R08"),
        ("SET X= 1", "R08"),
        ("DEFAULT X =1", "R08"),
        ("EVALSET X == 1", "R08"),
        ('set_X = "1"', "R09"),
        ("eval_set_X = 1", "R09"),
        ("+X = 1", "R09"),
        ("MY.X = 1", "R09"),
        ("SETT X 1", "R11"),
        ("&& X", "R11"),
        ("if $(a) && $(b)", "R12"),
        ("elif X > 1", "R12"),
        ('SET X "$(MY.Queue)"', "R13"),
        ("EVALSET X $(MY.Queue:1)", "R13"),
        ("MaxJobs = 0", "R15"),
        ('MaxJobs = "7"', "R15"),
        ("DEFAULT RequestMemory 1", "R16"),
        ('REQUIREMENTS x509UserProxyVOName == "cms"', "R17"),
        ('REQUIREMENTS orig_AuthTokenIssuer == "x"', "R18"),
        ("EVALSET X AuthTokenIssuer", "R18"),
        ('SET OpportunisticSite "leonardo"', "R19"),
        ("SET PeriodicRemove true", "R23"),
        ('REQUIREMENTS userMap("M", Owner) == "cms"', "R24"),
        ('REQUIREMENTS "True" == Flag', "R28"),
        ('REQUIREMENTS Flag =?= "false"', "R28"),
        ("REQUIREMENTS Owner == 'cms'", "R42"),
    ],
)
def test_each_mistake_has_its_code_and_line(codes: Callable[..., list[str]], statement: str, code: str) -> None:
    assert f"{code}:3" in codes("SET Before 1", statement)


@pytest.mark.parametrize(
    "statement",
    [
        'REQUIREMENTS regexp("^cmspil.*$", Owner) && (WantOpportunistic =?= true)',
        'REQUIREMENTS Owner == "TARGET.x # y;"',
        'REQUIREMENTS x509UserProxyVOName == "cms" && Owner == "cmspil001"',
        'REQUIREMENTS (AuthTokenIssuer == "a" || Owner == "b") && x509UserProxyVOName =!= "c"',
        "REQUIREMENTS WantOpportunistic",
        "set X 1",
        "SET X = 1",
        'SET X "$$([TotalCpus ?: JobCpus])"',
        'SET X "a # b;"',
        "SET X $(default_x:5) + 1",
        "SET X int($(n)) > $INT(m)",
        'SET X unparse(Y) == "true"',
        "EVALMACRO m $(MY.X:1) > 1",
        'EVALMACRO m UserMap(Name, Owner) ?: ""',
        "MaxIdleJobs = -1",
        "MaxJobs = $(CONDORCE_MAX_JOBS)",
        "SET RequestCpus 8",
        "default_maxMemory = 4000",
        "DELETE /^Opp.*$/ # comment",
        "RENAME /^A(.*)$/ B\\1",
        "COPY A B",
        "NAME Something Else",
        "GridResource = x",
        "if defined MY.xcount",
        "if ! $(test)",
        "if version >= 24.0",
        "elif $(x:$(y))",
        "else",
        "if",
        "environment @=env\nset_X = 1\n@env",
        "set_gpus = 1\nSET Gpus $(set_gpus)",
        "SET JobIsRunning true\nSET JobIsRunning $(MY.JobIsRunning) && Good",
    ],
)
def test_what_is_right_has_no_finding(codes: Callable[..., list[str]], statement: str) -> None:
    assert codes(statement) == []


def test_a_route_needs_a_universe_that_the_transforms_can_read(codes: Callable[..., list[str]]) -> None:
    assert codes("UNIVERSE VANILLA", universe="") == ["R14:2"]
    assert codes("SET X 1", universe="") == ["R14:1"]
    assert codes("TargetUniverse = 9", universe='GridResource = "batch slurm"') == []


def test_lines_are_those_of_the_file(codes: Callable[..., list[str]]) -> None:
    assert codes("# comment", "", "SET X \\", "  (1", "", "SET Y=1") == ["R05:4", "R08:7"]


def test_a_comment_inside_a_continued_statement(codes: Callable[..., list[str]]) -> None:
    assert "R41:3" in codes("REQUIREMENTS a && \\", "  # why", "  b")


def test_requirements_twice_is_the_second_one(codes: Callable[..., list[str]]) -> None:
    assert codes("REQUIREMENTS a", "REQUIREMENTS b") == ["R40:3"]


# --------------------------------------------------------------------------- lists and files


def found(view: View) -> list[str]:
    return [f"{one.code} {one.where.rpartition('/')[2]}" for one in lint(view).findings]


ROUTE = "JOB_ROUTER_ROUTE_Opp = TargetUniverse = 5\n"
LISTED = "JOB_ROUTER_ROUTE_NAMES = Opp $(JOB_ROUTER_ROUTE_NAMES)\n"


@pytest.mark.parametrize(
    ("files", "findings"),
    [
        ({"_70": ROUTE + LISTED}, []),
        ({"_70": ROUTE}, ["R31 70.conf:1"]),
        ({"_70": LISTED}, ["R30 70.conf:1"]),
        ({"_70": "JOB_ROUTER_ROUTE_NAMES = Opp\n" + ROUTE}, ["R31 01-ce-router.conf:1", "R35 70.conf:1"]),
        (
            {"_70": "JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = No $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES)\n"},
            ["R34 70.conf:1"],
        ),
        ({"_70": "JOB_ROUTER_POST_ROUTE_TRANSFORM_NAMES = Memory\n"}, ["R35 70.conf:1"]),
        ({"_70": ROUTE + LISTED, "_80": ROUTE.replace("5", "9")}, ["R36 70.conf:1"]),
        ({"_70": ROUTE + LISTED, "_80": ROUTE}, []),
        ({"_70": "JOB_ROUTER_PRE_ROUTE_TRANSFORMS = Base\n"}, ["R37 70.conf:1"]),
        ({"_70": "# \n\nCOMPELTED_JOB_EXPIRATION = 30\n"}, ["R37 70.conf:3"]),
        ({"_70": "JOB_ROUTER_VOS = cms\nFOO = $(JOB_ROUTER_VOS)\n"}, []),
        ({"_70": "JOB_ROUTER_DEBUG = D_FULLDEBUG\nJOB_ROUTER.UPDATE_INTERVAL = 5\n"}, []),
        ({"_70": "JOB_ROUTER.JOB_ROUTER_MAX_JOBS = 5\n"}, ["R25 70.conf:1"]),
        ({"_70": "JOB_ROUTER_ENTRIES = [ ]\nJOB_ROUTER_DEFAULTS = [ ]\n"}, ["R38 70.conf:1", "R38 70.conf:2"]),
        ({"_70": "JOB_ROUTER_ROUND_ROBIN_SELECTION = True\n"}, ["R22 70.conf:1"]),
        ({"_70": "SECURE_JOB_ATTRS = Foo, opportunisticsite\n"}, ["R21 70.conf:1"]),
        ({"_70": "SYSTEM_PERIODIC_HOLD = $(JobStatus != 3) && $(CLAUSE)\n"}, ["R27 70.conf:1"]),
        ({"_70": "SYSTEM_PERIODIC_HOLD = (JobStatus != 3) && $(CLAUSE) || $(OTHER:a b)\n"}, []),
        ({"_70": "JOB_ROUTER_SOURCE_JOB_CONSTRAINT = (a\n"}, ["R26 70.conf:1"]),
        ({"_70": "JOB_ROUTER_SOURCE_JOB_CONSTRAINT = target.JobUniverse =?= 5 \\\n  || b\n"}, []),
    ],
)
def test_lists_and_settings(view: Callable[..., View], files: dict[str, str], findings: list[str]) -> None:
    assert found(view(**files)) == findings


def test_a_list_that_a_packaged_file_sets_anew_is_the_early_files_fault(view: Callable[..., View]) -> None:
    assert "R36 00.conf:2" in found(view(_00=ROUTE + LISTED, _02_ce_condor="JOB_ROUTER_ROUTE_NAMES = Condor_Pool\n"))


def test_a_setting_inside_an_if_may_not_be_in_force(view: Callable[..., View]) -> None:
    text = "if version > 99.0\nJOB_ROUTER_ROUTE_Opp = TargetUniverse = 9\nendif\n"
    assert found(view(_70=ROUTE + LISTED, _80=text)) == []


def test_all_broken_configurations_are_named_without_a_ce_too(view: Callable[..., View]) -> None:
    """All but the one that only the names of a CE's other files put in the wrong."""
    silent = {path.stem for path in BROKEN.glob("*.conf") if not found(view(_70=path.read_text(encoding="utf-8")))}
    assert silent == {"00-overridden"}


def scrubbed(transform: str, names: str = "Scrub $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES)") -> str:
    return (
        'JOB_ROUTER_ROUTE_Opp @=r\nTargetUniverse = 5\nSET OpportunisticSite "leonardo"\n@r\n'
        f"{LISTED}JOB_ROUTER_TRANSFORM_Scrub @=t\n{transform}\n@t\nJOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = {names}\n"
    )


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        (scrubbed("DELETE opportunisticsite"), []),
        (scrubbed("DELETE /^(Foo|Opportunistic.*)$/"), []),
        (scrubbed("DELETE /^Other$/"), ["R19 70.conf:3"]),
        (scrubbed("REQUIREMENTS Owner == 1\nDELETE OpportunisticSite"), ["R19 70.conf:3"]),
        (scrubbed("if defined MY.X\nDELETE OpportunisticSite\nendif"), ["R19 70.conf:3"]),
        (scrubbed("DELETE OpportunisticSite", "$(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES) Scrub"), ["R20 70.conf:9"]),
        (scrubbed("DELETE OpportunisticSite\nDELETE /^orig_AuthToken/", "Base OrigRequests Scrub"), ["R20 70.conf:10"]),
    ],
)
def test_the_grant_is_taken_away_first(view: Callable[..., View], text: str, findings: list[str]) -> None:
    assert found(view(_70=text)) == findings


# --------------------------------------------------------------------------- one file alone


def test_our_own_routes_alone_have_no_finding(view: Callable[..., View], config: Config) -> None:
    assert lint(view(alone=True, _60=render_routes(config))).findings == ()


def test_a_route_that_extends_its_earlier_text(view: Callable[..., View]) -> None:
    text = "JOB_ROUTER_ROUTE_Condor_Pool @=r\n  REQUIREMENTS a\n$(JOB_ROUTER_ROUTE_Condor_Pool)\n  SET X=1\n@r\n"
    assert found(view(_70=text)) == ["R08 70.conf:4"]
    assert found(view(alone=True, _70=text)) == ["R08 70.conf:4"]
    earlier = "JOB_ROUTER_ROUTE_Condor_Pool @=r\n  REQUIREMENTS b\n  TargetUniverse = 5\n@r\n"
    assert found(view(_60=earlier, _70=text)) == ["R36 01-ce-router.conf:1", "R40 70.conf:1", "R08 70.conf:4"]


def test_alone_the_shipped_names_count_as_defined(view: Callable[..., View]) -> None:
    text = ROUTE + "JOB_ROUTER_ROUTE_NAMES = Opp Condor_Pool Other\nJOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = Base\n"
    assert found(view(alone=True, _70=text)) == ["R30 70.conf:2", "R35 70.conf:3"]


# --------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("expression", "alone"),
    [
        ('x509UserProxyVOName == "cms"', True),
        ('Owner == "a" || x509UserProxyVOName == "cms"', True),
        ('Owner == "a" && x509UserProxyVOName == "cms"', False),
        ('(AuthTokenIssuer == "a") && (x509UserProxyVOName == "b" || x509UserProxyEmail == "c")', False),
        ('WantX && (Owner == "a" || x509UserProxyVOName == "cms")', True),
        ('Owner == "x509UserProxyVOName"', False),
    ],
)
def test_what_rests_on_a_proxy_alone(expression: str, alone: bool) -> None:
    assert rests_on_x509(expression) is alone


def test_an_expression_with_macros_is_given_the_benefit_of_the_doubt() -> None:
    assert parses("$(a) && 60*$(b) > $(c:1)")
    assert parses("5$(zeros)")
    assert not parses("$(a) && (b")


def test_htcondors_own_complaints(tmp_path: Path) -> None:
    said = 'Config source Error "/c/70.conf", Line 3: Illegal Identifier: <A-B>\nConfiguration Error Line 5'
    assert unreadable(said, "/c").where == "/c/70.conf:3"
    assert "Illegal Identifier: <A-B>" in unreadable(said, "/c").message
    path = tmp_path / "70.conf"
    path.write_text("# x\nA @=jrt\n B\n@end\n")
    open_ended = f"Config source Found end-of-file while scanning for '@jrt' in {path}\nConfiguration Error Line 4"
    assert unreadable(open_ended, "/c").where == f"{path}:2"
    assert unreadable("Configuration Error Line 7 while reading config source /c/70.conf", "/c").where == "/c/70.conf:7"
    assert unreadable("no idea", "/c").where == "/c"


def test_the_text_fits_a_terminal() -> None:
    text = as_text(Report((Finding("R01", "/" + "x" * 90 + ":1", "word " * 50, "word " * 50),), 1, 2))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.endswith("1 error, 0 warnings; 1 route and 2 transforms looked at")


def test_a_finding_is_json() -> None:
    assert json.loads(json.dumps(Finding("R01", "f:1", "m", "x").as_dict()))["name"] == RULES["R01"]


def test_missing_tools_of_htcondor_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "x.conf").write_text("")
    with pytest.raises(ConfigError, match="condor_config_val: not on PATH"):
        check_file(tmp_path / "x.conf")
