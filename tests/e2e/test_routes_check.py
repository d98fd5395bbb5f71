"""Each mistake of tests/routes/broken: `routes check` names it at its line, and the real router really goes wrong.

The CE's own configuration is copied to a stage directory, the broken file is added, and the router's own code routes
a job with it. The same file mended routes the job as meant, and has no finding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.chain import PROJECT, Chain
from tests.testbed.files import File
from tests.testbed.wheels import wheelhouse

BROKEN = PROJECT / "tests" / "routes" / "broken"
VENV = "/opt/htcebridge-check"
STAGE = "/root/routes-check"
TOKEN = {"AuthTokenIssuer": '"https://cms-auth.cern.ch/"'}
ON_OPP: dict[str, str | None] = {"RouteName": '"Opp"', "HpcTag": "true"}
ON_POOL: dict[str, str | None] = {"RouteName": '"Condor_Pool"', "HpcTag": None}
NOT_ROUTED: dict[str, str | None] = {"RouteName": None}
WITHOUT: dict[str, str | None] = {**ON_OPP, "HpcSite": None}
ALL_ON_POOL: dict[str, str | None] = {"RouteName": '"Condor_Pool"'}


@dataclass(frozen=True)
class Case:
    """`old` is the line at fault and `new` what mends it; `wrong` and `right` what becomes of `job` (attribute: text).

    "routes" stands for the routes of all `jobs` jobs, "said" for what the router complains about.
    """

    code: str
    old: str
    new: str
    wrong: Mapping[str, str | None]
    right: Mapping[str, str | None] = field(default_factory=lambda: ON_OPP)
    job: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 1
    file: str = "70-site.conf"
    severity: str = "error"
    at: str = ""  # what the line has on which it is found, where that is not `old`
    old_wrong: Mapping[str, str | None] | None = None  # HTCondor before 24.10


def sets(value: str = "1") -> dict[str, str | None]:
    return {**ON_OPP, "HpcSite": value}


CASES = {
    "requirements-equals": Case("R01", "REQUIREMENTS = Owner", "REQUIREMENTS Owner", ON_OPP, ON_POOL),
    "requirements-macro": Case("R02", "$(OPP_OWNER)", "cmspil001", ON_POOL),
    "requirements-target": Case("R03", "TARGET.Owner", "Owner", ON_POOL),
    "requirements-syntax": Case("R04", '1"))', '1")', ON_POOL),
    "requirements-twice": Case(
        "R40",
        "\n  REQUIREMENTS WantOpportunistic",
        " && WantOpportunistic",
        ON_OPP,
        ON_POOL,
        {"WantOpportunistic": "true"},
    ),
    "requirements-comment": Case("R06", " # CMS pilots\n", "\n", ON_POOL),
    "requirements-semicolon": Case("R07", '";', '"', ON_POOL),
    "boolean-string": Case("R28", '== "true"', "=?= true", ON_POOL, job={"WantOpportunistic": "true"}),
    "single-quotes": Case("R42", "'cmspil001'", '"cmspil001"', ON_POOL),
    "x509-only": Case(
        *("R17", 'robot"\n', 'robot" && Owner == "cmspil002"\n', ON_OPP, ON_POOL),
        job={"x509UserProxySubject": '"/DC=ch/DC=cern/CN=cmspilot robot"'},
    ),
    "token-renamed-route": Case("R18", "REQUIREMENTS orig_", "REQUIREMENTS ", ON_POOL, job=TOKEN),
    "set-syntax": Case(
        *("R05", "=?= true\n", "=?= true)\n"),
        *({**ON_OPP, "Requirements": "Arch == 1"}, {**ON_OPP, "Requirements": "(TARGET.Leonardo =?= true)"}),
        job={"Requirements": "Arch == 1"},
    ),
    "set-comment": Case("R06", " # the site\n", "\n", WITHOUT, sets('"leonardo"')),
    "set-semicolon": Case("R07", ";\n", "\n", WITHOUT, sets('"leonardo"')),
    "set-no-blanks": Case("R08", "HpcSite=1", "HpcSite 1", NOT_ROUTED, sets()),
    "set-blank-before": Case("R08", "HpcSite =1", "HpcSite = 1", WITHOUT, sets()),
    "set-double-equals": Case("R08", "HpcSite == 1", "HpcSite 1", WITHOUT, sets()),
    "old-set": Case("R09", "set_HpcSite = 1", "SET HpcSite 1", WITHOUT, sets()),
    "old-plus": Case("R09", "+HpcSite = 1", "SET HpcSite 1", WITHOUT, sets()),
    "old-my": Case("R09", "MY.HpcSite = 1", "SET HpcSite 1", WITHOUT, sets()),
    "old-delete": Case(
        *("R09", "delete_WantOpportunistic = true", "DELETE WantOpportunistic"),
        *({**ON_OPP, "WantOpportunistic": "true"}, {**ON_OPP, "WantOpportunistic": None}),
        {"WantOpportunistic": "true"},
    ),
    "old-copy": Case("R09", 'copy_Owner = "HpcSite"', "COPY Owner HpcSite", WITHOUT, sets('"cmspil001"')),
    "old-eval-set": Case("R09", "eval_set_HpcSite = 1 + 1", "EVALSET HpcSite 1 + 1", WITHOUT, sets("2")),
    "old-classad": Case(
        *("R10", "Opp = [ TargetUniverse = 5; set_HpcTag = true; ]"),
        *("Opp @=jrt\n  TargetUniverse = 5\n  SET HpcTag true\n@jrt", ON_POOL),
        old_wrong=ON_OPP,  # still converted there; the upgrade breaks it
    ),
    "unknown-keyword": Case("R11", "SETT ", "SET ", ON_POOL, sets()),
    "no-backslash": Case("R11", "\n    && Want", " \\\n    && Want", ON_POOL, job={"WantOpportunistic": "true"}),
    "continued-comment": Case("R41", "    # the flag\n", "", ON_POOL, job={"WantOpportunistic": "true"}),
    "complex-if": Case(
        *("R12", "if $(big) && defined MY.WantOpportunistic", "if $(big)", ON_POOL, sets()), job={"RequestCpus": "8"}
    ),
    "transform-macro": Case("R02", "$(OPP_OWNER)", "cmspil001", {"HpcSite": None}, {"HpcSite": "1"}),
    "transform-keyword": Case("R11", "SETT ", "SET ", NOT_ROUTED, {"HpcSite": "1"}),
    "transform-syntax": Case("R04", '1"))', '1")', NOT_ROUTED, {"HpcSite": "1"}),
    "transform-if": Case(
        "R12",
        "if $(big) && defined MY.WantOpportunistic",
        "if $(big)",
        NOT_ROUTED,
        {"HpcSite": "1"},
        {"RequestCpus": "8"},
    ),
    "set-no-value": Case("R05", "SET HpcSite\n", "SET HpcSite 1\n", NOT_ROUTED, sets()),
    "macro-injection": Case(
        *("R13", "SET Requirements ($(MY.Requirements))"),
        *("EVALMACRO safe unparse(Requirements)\n  SET Requirements ($(safe))",),
        {**ON_OPP, "Requirements": "(true) || (true) && (TARGET.Leonardo =?= true)"},
        {**ON_OPP, "Requirements": '("true) || (true") && (TARGET.Leonardo =?= true)'},
        {"Requirements": '"true) || (true"'},
    ),
    "universe-only": Case(
        *("R14", "UNIVERSE VANILLA", "TargetUniverse = 5"),
        *({**ON_OPP, "OriginalCpus": None}, {**ON_OPP, "OriginalCpus": "1"}, {"WantWholeNode": "true"}),
    ),
    "no-universe": Case(
        *("R14", "JOB_ROUTER_ROUTE_Opp @=jrt\n", "JOB_ROUTER_ROUTE_Opp @=jrt\n  TargetUniverse = 5\n"),
        *({**ON_OPP, "JobUniverse": "9"}, {**ON_OPP, "JobUniverse": "5"}),
    ),
    "max-jobs": Case("R15", "MaxJobs = -1", "MaxJobs = 1000", ON_POOL),
    "max-jobs-text": Case("R15", "MaxJobs = 0 # closed for maintenance", "MaxIdleJobs = 10", ON_OPP),
    "memory-overruled": Case(
        *("R16", "SET RequestMemory 16000", "SET maxMemory 16000"),
        *({**ON_OPP, "RequestMemory": "2000"}, {**ON_OPP, "RequestMemory": "16000"}),
    ),
    "token-renamed-transform": Case(
        *("R18", "  REQUIREMENTS AuthToken", "  REQUIREMENTS orig_AuthToken"),
        *({"HpcSite": None, **ALL_ON_POOL}, {"HpcSite": "1", **ALL_ON_POOL}, TOKEN),
    ),
    "grant-forgeable": Case(
        *("R19", '  SET OpportunisticSite "leonardo"\n@jrt\n'),
        '  SET OpportunisticSite "leonardo"\n@jrt\nJOB_ROUTER_TRANSFORM_Scrub @=jrt\n  DELETE OpportunisticSite\n@jrt\n'
        "JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES = Scrub $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES)\n",
        {**ON_POOL, "OpportunisticSite": '"leonardo"'},
        {**ON_POOL, "OpportunisticSite": None},
        {"OpportunisticSite": '"leonardo"'},
    ),
    "scrub-order": Case(
        *("R20", "$(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES) Scrub", "Scrub $(JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES)"),
        {"orig_AuthTokenIssuer": None},
        {"orig_AuthTokenIssuer": TOKEN["AuthTokenIssuer"]},
        TOKEN,
    ),
    "round-robin": Case(
        *("R22", "SELECTION = true", "SELECTION = false", {"routes": "Condor_Pool Opp"}, {"routes": "Opp Opp"}), jobs=2
    ),
    "user-map": Case(
        *("R24", "JOB_ROUTER_ROUTE_NAMES = Opp", "TOOL_CLASSAD_USER_MAP_NAMES = OppVOs\nJOB_ROUTER_ROUTE_NAMES = Opp"),
        ON_POOL,
        at="REQUIREMENTS userMap",
    ),
    "prefixed-knob": Case("R25", "JOB_ROUTER.JOB", "JOB", ON_POOL),
    "source-constraint": Case("R26", "(target.JobUniverse", "target.JobUniverse", NOT_ROUTED, ALL_ON_POOL),
    "undefined-route": Case("R30", "= Op ", "= Opp ", ALL_ON_POOL, {"RouteName": '"Opp"'}),
    "unlisted": Case(
        *(
            "R31",
            "JOB_ROUTER_ROUTE_Opp",
            "JOB_ROUTER_ROUTE_NAMES = Opp $(JOB_ROUTER_ROUTE_NAMES)\nJOB_ROUTER_ROUTE_Opp",
        ),
        *(ON_POOL,),
        severity="warning",
    ),
    "no-route": Case("R33", "= Opp", "= Condor_Pool", NOT_ROUTED, ALL_ON_POOL),
    "undefined-transform": Case("R34", "= Scrub ", "= ", NOT_ROUTED, ALL_ON_POOL),
    "names-dropped": Case(
        "R35", "NAMES = Opp", "NAMES = Opp $(JOB_ROUTER_ROUTE_NAMES)", NOT_ROUTED, ON_POOL, {"Owner": '"atlpil001"'}
    ),
    "transforms-dropped": Case(
        *("R35", "= Mine", "= $(JOB_ROUTER_POST_ROUTE_TRANSFORM_NAMES) Mine"),
        *(
            {"HpcSite": "1", "RequestCpus": "1"},
            {"HpcSite": "1", "RequestCpus": "8"},
            {"xcount": "8", "RequestCpus": "1"},
        ),
    ),
    "00-overridden": Case("R36", "JOB_ROUTER_ROUTE_NAMES", "JOB_ROUTER_ROUTE_NAMES", ON_POOL, file="00-site.conf"),
    "unknown-knob": Case(
        *("R37", "JOB_ROUTER_PRE_ROUTE_TRANSFORMS", "JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES"),
        *({"HpcSite": None}, {"HpcSite": "1"}),
    ),
    "unknown-knob-route": Case("R37", "JOB_ROUTER_Opp", "JOB_ROUTER_ROUTE_Opp", ON_POOL),
    "removed-knob": Case(
        *("R38", 'JOB_ROUTER_ENTRIES = [ name = "Opp"; TargetUniverse = 5; set_HpcTag = true; ]'),
        *("JOB_ROUTER_ROUTE_Opp @=jrt\n  TargetUniverse = 5\n  SET HpcTag true\n@jrt", ON_POOL),
    ),
    "route-name": Case("R39", "Opp-HPC", "Opp", NOT_ROUTED, {"RouteName": '"Opp"'}),
    "open-document": Case("R39", "Opp @=jrt", "Opp @=end", NOT_ROUTED, {"RouteName": '"Opp"'}),
    "no-equals": Case("R39", "Opp @jrt", "Opp @=jrt", NOT_ROUTED, {"RouteName": '"Opp"'}),
    "commented-document": Case("R39", " # for HPC", "", NOT_ROUTED, {"RouteName": '"Opp"'}),
}


# Run in the CE's host. The router, for one stage directory; and the checks of all of them in one process.
ROUTE = """
cd "$1" || exit
CONDOR_CONFIG="$1/condor_config" condor_job_router_info -route-jobs - -jobads job.ad -ignore-prior-routing > routed 2>&1
exit 0
"""
CHECK = """
import contextlib, io, json, pathlib, sys
from htcebridge import cli
results = {}
for stage in (path.parent for path in pathlib.Path(sys.argv[1]).glob("*/*/condor_config")):
    said, sys.argv = io.StringIO(), ["htcebridge", "routes", "check", "--config-dir", str(stage), "--json"]
    with contextlib.redirect_stdout(said):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    routed = (stage / "routed").read_text(errors="replace")
    results[str(stage)] = {"code": code, "check": said.getvalue(), "routed": routed}
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Outcome:
    """What was said about one stage directory."""

    code: int
    findings: list[dict[str, str]]
    jobs: list[dict[str, str]]

    def about(self, names: Mapping[str, str | None]) -> dict[str, str | None]:
        """These attributes of the routed job, None where it has not got one or is not routed."""
        seen: dict[str, str | None] = dict(self.jobs[0]) if self.jobs else {}
        seen["routes"] = " ".join(sorted(job["RouteName"].strip('"') for job in self.jobs))
        return {name: seen.get(name) for name in names}


@pytest.fixture(scope="session")
def outcomes(installed: Chain) -> dict[str, Outcome]:
    """Every case and its mended twin, through the check and the router: all at once, several at a time."""
    bed = installed.bed
    bed.install_wheels("ce01", wheelhouse(PROJECT, bed.suite), VENV, "root", "htcebridge")
    root = bed.read("ce01", "/etc/condor-ce/condor_config")
    site = bed.on("ce01", ["sh", "-c", "cd /etc/condor-ce/config.d; ls | grep -v htcebridge"]).stdout.split()
    files = {name: bed.read("ce01", f"/etc/condor-ce/config.d/{name}") for name in site}
    entries = []
    stages = []
    for name, case in CASES.items():
        text = (BROKEN / f"{name}.conf").read_text(encoding="utf-8")
        assert case.old in text, f"{name}.conf does not have {case.old!r}"
        mended = case.file if case.file.startswith("7") else "70-site.conf"
        for kind, at, body in (("broken", case.file, text), ("mended", mended, text.replace(case.old, case.new))):
            stage = f"{STAGE}/{name}/{kind}"
            stages.append(stage)
            entries += [File(f"{stage}/config.d/{file}", content) for file, content in files.items()]
            entries.append(File(f"{stage}/config.d/{at}", body))
            entries.append(File(f"{stage}/job.ad", job_ads(case)))
            entries.append(
                File(f"{stage}/condor_config", root.replace(",/etc/condor-ce/config.d", f",{stage}/config.d"))
            )
    bed.unpack("ce01", entries)
    bed.write("ce01", f"{STAGE}/route.sh", ROUTE)
    each = ["xargs", "-P", "4", "-n", "1", "sh", f"{STAGE}/route.sh"]
    bed.on("ce01", each, input="\n".join(stages), timeout=600)
    said = json.loads(bed.on("ce01", [f"{VENV}/bin/python", "-c", CHECK, STAGE], timeout=600).stdout)
    return {stage.removeprefix(f"{STAGE}/"): outcome(said[stage]) for stage in stages}


def job_ads(case: Case) -> str:
    """The job of a case, as often as it asks, in the form that the router's tool reads."""
    usual = {"Owner": '"cmspil001"', "JobStatus": "1", "JobUniverse": "5", "Cmd": '"/bin/true"', "ProcId": "0"}
    ads = [{**usual, "ClusterId": str(number), **case.job} for number in range(1, case.jobs + 1)]
    return "\n".join("".join(f"{name} = {value}\n" for name, value in ad.items()) for ad in ads)


def outcome(said: dict[str, Any]) -> Outcome:
    assert said["code"] in (0, 1), said["check"]
    return Outcome(said["code"], json.loads(said["check"])["findings"], routed(said["routed"]))


def routed(text: str) -> list[dict[str, str]]:
    """`condor_job_router_info -route-jobs -` -> the jobs that it would submit."""
    ads = re.split(r"^submit_job as .*\n", text, flags=re.MULTILINE)[1:]
    return [dict(line.split(" = ", 1) for line in ad.splitlines() if " = " in line) for ad in ads]


def real(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the one true finding about the CE as it comes."""
    return [one for one in findings if one["code"] != "R27"]


@pytest.mark.parametrize("name", CASES)
def test_the_router_goes_wrong_and_the_check_says_where(outcomes: dict[str, Outcome], suite: str, name: str) -> None:
    case, broken = CASES[name], outcomes[f"{name}/broken"]
    text = (BROKEN / f"{name}.conf").read_text(encoding="utf-8")
    assert broken.about(case.wrong) == (case.old_wrong if suite == "trixie" and case.old_wrong else case.wrong)
    found = [one for one in broken.findings if one["code"] == case.code]
    assert found, broken.findings
    assert {one["severity"] for one in found} == {case.severity}
    assert broken.code == (case.severity == "error")
    place = f"/{name}/broken/config.d/{case.file}:{line_at_fault(text, case)}"
    assert any(one["where"].endswith(place) for one in found), (place, found)


@pytest.mark.parametrize("name", CASES)
def test_mended_it_routes_as_meant_and_nothing_is_found(outcomes: dict[str, Outcome], name: str) -> None:
    mended = outcomes[f"{name}/mended"]
    assert mended.about(CASES[name].right) == dict(CASES[name].right)
    assert (mended.code, real(mended.findings)) == (0, [])


def test_every_broken_configuration_has_its_case() -> None:
    assert {path.stem for path in BROKEN.glob("*.conf")} == set(CASES)


def line_at_fault(text: str, case: Case) -> int:
    """The line at fault, from 1; where `old` begins with a line's end, the line after it."""
    fault = case.at or case.old
    return text[: text.index(fault) + len(fault) - len(fault.lstrip("\n"))].count("\n") + 1


def check(chain: Chain, *arguments: str) -> tuple[int, str]:
    """The command as an admin runs it on the CE."""
    done = chain.bed.on("ce01", [f"{VENV}/bin/htcebridge", "routes", "check", *arguments], check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.usefixtures("outcomes")
def test_the_running_ce_with_our_routes_has_no_finding(installed: Chain) -> None:
    code, said = check(installed)
    assert code == 0, said
    assert re.fullmatch(r"no finding; [1-9]\d* routes and 13 transforms looked at\n", said)


def test_the_ce_as_it_comes_has_one_true_finding(outcomes: dict[str, Outcome]) -> None:
    (finding,) = outcomes["old-set/mended"].findings
    assert (finding["code"], finding["severity"]) == ("R27", "warning")
    assert finding["where"] == "/usr/share/condor-ce/config.d/01-policy.conf:19"


@pytest.mark.usefixtures("outcomes")
def test_our_route_file_alone_has_no_finding(installed: Chain) -> None:
    code, said = check(installed, "--file", "/etc/condor-ce/config.d/60-htcebridge.conf")
    assert (code, said.startswith("no finding; ")) == (0, True), said


@pytest.mark.usefixtures("outcomes")
@pytest.mark.parametrize("name", ["requirements-equals", "open-document", "transforms-dropped"])
def test_a_broken_file_alone_is_named_too(installed: Chain, name: str) -> None:
    path = f"{STAGE}/{name}/broken/config.d/70-site.conf"
    code, said = check(installed, "--file", path)
    assert code == 1
    assert f"{path}:{line_at_fault((BROKEN / f'{name}.conf').read_text(), CASES[name])}" in said
    assert CASES[name].code in said


@pytest.mark.usefixtures("outcomes")
def test_what_cannot_be_looked_at_is_an_error_of_use(installed: Chain) -> None:
    assert check(installed, "--file", "/nowhere.conf") == (2, "htcebridge: /nowhere.conf: No such file or directory\n")
    code, said = check(installed, "--config-dir", "/nowhere")
    assert (code, said) == (2, "htcebridge: /nowhere/condor_config: No such file or directory\n")
    hidden = ["env", "PATH=/nowhere", f"{VENV}/bin/htcebridge", "routes", "check"]
    done = installed.bed.on("ce01", hidden, check=False)
    assert done.returncode == 2
    assert "condor_config_val: not on PATH" in done.stderr


OLD_ROUTES = """
JOB_ROUTER_ENTRIES @=jre
[
  name = "Leonardo-HPC";
  TargetUniverse = 5;
  Requirements = TARGET.WantOpportunistic is true && regexp("cms.*", TARGET.Owner);
  set_OppTag = true;
  set_requirements = (TARGET.Leonardo =?= true);
  OverrideRoutingEntry = true;
]
@jre
"""


@pytest.mark.usefixtures("outcomes")
def test_old_routes_are_converted_and_what_needs_a_hand_is_said(installed: Chain) -> None:
    bed = installed.bed
    bed.write("ce01", "/tmp/old-routes.conf", OLD_ROUTES)
    done = bed.on("ce01", [f"{VENV}/bin/htcebridge", "routes", "convert", "/tmp/old-routes.conf"])
    bed.write("ce01", "/tmp/new-routes.conf", done.stdout)
    assert "  TargetUniverse = 5\n" in done.stdout
    assert re.search(r"REQUIREMENTS WantOpportunistic (=\?=|is) true && regexp\(\"cms.*\",\s?Owner\)", done.stdout)
    for note in (
        "it was called Leonardo-HPC",
        "OverrideRoutingEntry has no effect",
        "replaces the job's own Requirements",
    ):
        assert note in done.stderr
    assert check(installed, "--file", "/tmp/new-routes.conf")[0] == 0
    assert bed.on("ce01", [f"{VENV}/bin/htcebridge", "routes", "convert", "/etc/hostname"], check=False).returncode == 2
