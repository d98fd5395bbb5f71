from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from htcebridge.errors import ConfigError, ExitCode, UnknownState
from htcebridge.tier1 import pool as tier1_pool
from htcebridge.tier1 import query as tier1_query
from htcebridge.tier1.pool import CONDOR_CONFIG, Pool, Schedd, Tag
from htcebridge.tier1.query import quote
from htcebridge.tier1.tokens import check_directory, check_secret

SECRET = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl"
TAG = Tag("OpportunisticSite", "leonardo", "OpportunisticVO", ("BatchRuntime", "MaxWallTimeMins * 60"))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    directory = tmp_path / "tokens.d"
    directory.mkdir()
    (directory / "reader").write_text(SECRET)
    (directory / "reader").chmod(0o600)
    return directory


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        return used.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


def pool(tokens: Path, port: int, timeout_s: float = 20) -> Pool:
    return Pool(f"127.0.0.1:{port}", tokens, timeout_s=timeout_s)


# --------------------------------------------------------------------------- tokens


def test_a_token_of_ones_own_is_accepted(tokens: Path) -> None:
    check_directory(tokens)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o601])
def test_a_token_that_others_may_use_is_refused_with_the_remedy(tokens: Path, mode: int) -> None:
    (tokens / "reader").chmod(mode)
    with pytest.raises(ConfigError) as error:
        check_directory(tokens)
    assert f"(mode {mode:04o})" in str(error.value)
    assert f"chmod 600 {tokens / 'reader'}" in str(error.value)
    assert SECRET not in str(error.value)


def test_one_bad_token_among_good_ones_is_found(tokens: Path) -> None:
    (tokens / "second").write_text(SECRET)
    (tokens / "second").chmod(0o644)
    with pytest.raises(ConfigError, match="second"):
        check_directory(tokens)


def test_a_missing_token_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: no token directory .*tier1\.token_directory"):
        check_directory(tmp_path / "absent")


def test_a_file_in_place_of_the_token_directory_is_named(tokens: Path) -> None:
    with pytest.raises(ConfigError, match="no token directory"):
        check_directory(tokens / "reader")


def test_an_empty_token_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no token in it"):
        check_directory(tmp_path / "empty")


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: token cannot be read"):
        check_secret(tmp_path / "absent")


def test_tokens_are_checked_before_anybody_is_asked(tmp_path: Path, closed_port: int) -> None:
    with pytest.raises(ConfigError, match="no token directory"):
        tier1_pool.read_pool(pool(tmp_path / "absent", closed_port), "leonardo")


# --------------------------------------------------------------------------- the child that asks


@pytest.fixture
def child_environment(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that a question's child really gets: `sys.executable` is a script that writes it down."""
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nenv > {tmp_path}/environment\nprintf '%s ' \"$@\" > {tmp_path}/arguments\n"
        f"cat > {tmp_path}/stdin\n"
        'echo \'{"schedds": [], "startds": []}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS", "CLAIMTOBE")
    monkeypatch.setenv("CONDOR_CONFIG", "/etc/condor/condor_config")
    monkeypatch.setenv("BEARER_TOKEN", SECRET)
    monkeypatch.setenv("_CONDOR_SEC_TOKEN_DIRECTORY", "/elsewhere")
    with pytest.raises(UnknownState, match="has no schedd"):
        tier1_pool.read_pool(Pool("cm.example.org", tokens), "leonardo")
    text = (tmp_path / "environment").read_text()
    for seen in (text, (tmp_path / "arguments").read_text(), (tmp_path / "stdin").read_text()):
        assert SECRET not in seen
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_the_child_sees_no_configuration_of_the_machine(child_environment: dict[str, str], tokens: Path) -> None:
    assert child_environment["CONDOR_CONFIG"] == str(CONDOR_CONFIG)
    assert "USER_CONFIG_FILE =\n" in CONDOR_CONFIG.read_text()
    assert child_environment["_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS"] == "IDTOKENS"
    assert child_environment["_CONDOR_SEC_TOKEN_DIRECTORY"] == str(tokens)
    assert child_environment["_CONDOR_COLLECTOR_HOST"] == "cm.example.org"
    for name in ("AUTHENTICATION", "ENCRYPTION", "INTEGRITY"):
        assert child_environment[f"_CONDOR_SEC_CLIENT_{name}"] == "REQUIRED"


def test_the_child_gets_no_token_but_by_its_directory(child_environment: dict[str, str]) -> None:
    assert "BEARER_TOKEN" not in child_environment
    assert not any("eyJ" in value for value in child_environment.values())


def test_a_question_runs_no_code_of_the_working_directory(
    tokens: Path, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "somebody's"
    folder.mkdir()
    (folder / "json.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(folder)
    with pytest.raises(UnknownState):
        tier1_pool.read_pool(pool(tokens, closed_port), "leonardo")
    assert not (folder / "ran").exists()


# --------------------------------------------------------------------------- daemons that do not answer


def test_a_collector_that_refuses_connections_is_unknown(tokens: Path, closed_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(UnknownState) as error:
        tier1_pool.read_pool(pool(tokens, closed_port), "leonardo")
    assert time.monotonic() - started < 15
    assert error.value.exit_code == ExitCode.TEMPFAIL
    assert str(error.value).startswith(f"collector 127.0.0.1:{closed_port}: ")
    assert "Traceback" not in str(error.value)


def test_a_collector_that_never_answers_is_unknown_at_its_deadline(tokens: Path, silent_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(UnknownState, match=r"no answer in 1\.5 s"):
        tier1_pool.read_pool(pool(tokens, silent_port, timeout_s=1.5), "leonardo")
    assert 1 < time.monotonic() - started < 5


def test_silent_schedds_are_asked_side_by_side_and_each_is_an_error_of_its_own(
    tokens: Path, silent_port: int, closed_port: int
) -> None:
    version = "$CondorVersion: 23.9.6 2024-08-08 BuildID: Debian-23.9.6 $"
    schedds = [
        *(Schedd(f"ce0{number}", f"<127.0.0.1:{silent_port}>", version) for number in range(4)),
        Schedd("ce09", f"<127.0.0.1:{closed_port}>", version),
        Schedd("gone", "", ""),
    ]
    started = time.monotonic()
    answers = tier1_pool.read_demand(pool(tokens, closed_port, timeout_s=1.5), schedds, TAG)
    assert time.monotonic() - started < 5
    assert [answer.schedd for answer in answers] == [schedd.name for schedd in schedds]
    assert all(answer.error and not answer.groups for answer in answers)
    assert [answer.error for answer in answers[:4]] == ["no answer in 1.5 s"] * 4
    assert answers[-1].error.startswith("not in the collector")


# --------------------------------------------------------------------------- pure parts


@pytest.mark.parametrize("text", ["", "plain", 'a"b', "a\\b", 'a\\"b', "a\\", '" || true || "', "é"])
def test_a_quoted_text_evaluates_to_itself(text: str) -> None:
    import classad2

    assert classad2.ExprTree(quote(text)).eval() == text


def ad(text: str):
    import classad2

    return classad2.ClassAd(text)


def test_equal_jobs_are_equal_text_whatever_the_order_of_their_attributes() -> None:
    row = '[ JobStatus = 1; Owner = "cmspil"; BatchRuntime = 7200; JobCount = 3; JobIds = "1.0"; AutoClusterId = 4 ]'
    turned = '[ AutoClusterId = 9; JobIds = "7.0"; JobCount = 9; BatchRuntime = 7200; Owner = "cmspil"; JobStatus = 2 ]'
    cluster = '[ RequestCpus = 8; RequestMemory = 2000 * 8; Requirements = (TARGET.Arch == "X86_64") ]'
    turned_cluster = (
        '[ Id = 9; JobIds = "7.0"; Requirements = (TARGET.Arch == "X86_64"); '
        "RequestMemory = 2000 * 8; RequestCpus = 8 ]"
    )
    text = tier1_query.job_part(ad(row), ad(cluster))
    assert text == tier1_query.job_part(ad(turned), ad(turned_cluster))
    job = ad(text)
    assert (job["Owner"], job["BatchRuntime"], job["RequestCpus"]) == ("cmspil", 7200, 8)
    assert job.eval("RequestMemory") == 16000
    for name in ("JobStatus", "JobCount", "JobIds", "AutoClusterId", "Id"):
        assert name not in job


@pytest.mark.parametrize(
    ("name", "other"), [("RequestCpus", "16"), ("Requirements", "false"), ("BatchRuntime", '"7200"')]
)
def test_jobs_that_differ_are_different_text(name: str, other: str) -> None:
    job = ad("[ RequestCpus = 8; Requirements = true; BatchRuntime = 7200 ]")
    changed = ad("[ RequestCpus = 8; Requirements = true; BatchRuntime = 7200 ]")
    import classad2

    changed[name] = classad2.ExprTree(other)
    assert tier1_query.job_part(ad("[ ]"), job) != tier1_query.job_part(ad("[ ]"), changed)


def test_strings_with_quotes_survive_the_way_through_text() -> None:
    row = ad(r'[ Owner = "a\"b\\c; d = 1 ]" ]')
    assert ad(tier1_query.job_part(row, ad("[ ]")))["Owner"] == 'a"b\\c; d = 1 ]'


@pytest.mark.parametrize(
    ("ids", "first"), [("1.0", (1, 0)), ("12.3 ... 14.39999", (12, 3)), ("", None), ("none", None)]
)
def test_the_first_job_of_a_group_is_its_oldest(ids: str, first: tuple[int, int] | None) -> None:
    assert tier1_query._first_job(ids) == first


def test_walltime_attributes_are_asked_for_without_their_factor() -> None:
    assert TAG.walltime_attributes == ("BatchRuntime", "MaxWallTimeMins")


def startd(text: str = "") -> dict:
    row = (
        'Name = "slot1@pilot_7_1@n"; Machine = "n"; PilotJobId = "7_1"; Cpus = 40; Memory = 1000; Disk = 2048; '
        "TotalSlotCpus = 112; TotalSlotMemory = 490000; TotalSlotDisk = 4096; NumDynamicSlots = 3; "
        "GLIDEIN_ToDie = 2000; GLIDEIN_ToRetire = 1900; MyCurrentTime = 1000; "
    )
    return tier1_query._startd_row(ad(f"[ {row}{text} ]"), "ChildOpportunisticVO", {})


def test_a_partitionable_slots_free_part_is_what_it_advertises() -> None:
    row = startd()
    assert (row["pilot_id"], row["jobs"], row["to_die"], row["accepting"]) == ("7_1", 3, 2000, True)
    assert row["free"] == {"cpus": 40, "memory_mb": 1000, "gpus": 0, "disk_mb": 2}
    assert row["total"] == {"cpus": 112, "memory_mb": 490000, "gpus": 0, "disk_mb": 4}


@pytest.mark.parametrize(
    ("text", "draining"),
    [
        ("PilotDraining = true", True),
        ("PilotDraining = 1 > 0", True),
        ("PilotDraining = false; GLIDEIN_ToRetire = 1000", False),
        ("GLIDEIN_ToRetire = undefined", False),
    ],
)
def test_a_draining_or_retiring_startd_takes_no_jobs(text: str, draining: bool) -> None:
    assert (startd(text)["accepting"], startd(text)["draining"]) == (False, draining)


@pytest.mark.parametrize(
    ("text", "busy"),
    [
        ('ChildOpportunisticVO = { "cms","atlas","cms" }; ChildCpus = { 8,4,1 }', {"cms": 9, "atlas": 4}),
        ('ChildOpportunisticVO = { "cms",undefined }; ChildCpus = { 8,4 }', {"cms": 8}),
        ("ChildOpportunisticVO = { }; ChildCpus = { }", {}),
        ("ChildCpus = { 8,4 }", {}),
        ("", {}),
    ],
)
def test_the_busy_cores_of_each_vo_are_added_up(text: str, busy: dict[str, int]) -> None:
    assert startd(text)["busy_by_vo"] == busy


# --------------------------------------------------------------------------- the questions


class Collector:
    """The ads of a pool; it keeps what it was asked."""

    questions: ClassVar[list[tuple[object, str, list[str]]]] = []
    ads: ClassVar[list[str]] = []

    def __init__(self, address: str) -> None:
        pass

    def query(self, ad_type: object, constraint: str, projection: list[str]) -> list[object]:
        Collector.questions.append((ad_type, constraint, projection))
        return [ad(text) for text in self.ads]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> type[Collector]:
    import htcondor2

    monkeypatch.setattr(htcondor2, "Collector", Collector)
    Collector.questions = []
    return Collector


GHOST = (
    '[ MyType = "Machine"; Name = "ghost-dcgp@leonardo"; IsGhost = true; PilotResource = "dcgp"; GhostDigest = "d"; '
    "GhostSent = 7; MachineLastMatchTime = 9; OfflineMatches = { "
    '[ Scheduler = "<10.0.0.1:9618>"; AutoclusterID = 4; RequestCount = 40 ], '
    '[ Scheduler = "<10.0.0.1:9618>"; AutoclusterID = 5; RequestCount = 1 ] } ]'
)


def test_the_collector_is_asked_once_for_schedds_startds_ghosts_and_negotiator(collector: type[Collector]) -> None:
    collector.ads = [
        '[ MyType = "Scheduler"; Name = "ce02"; MyAddress = "<2>"; CondorVersion = "v" ]',
        '[ MyType = "Scheduler"; Name = "ce01"; MyAddress = "<1>"; CondorVersion = "v" ]',
        '[ MyType = "Machine"; Name = "slot1@pilot_7"; PilotJobId = "7"; TotalSlotCpus = 112 ]',
        GHOST,
        '[ MyType = "Negotiator"; Name = "n"; LastNegotiationCycleEnd0 = 100; LastNegotiationCyclePeriod0 = 60; '
        'CondorVersion = "v" ]',
    ]
    request = {"collector": "c", "schedds": ["ce01", "ce02"], "constraint": "true || x", "instance": "leonardo"}
    answer = tier1_query.answer_pool({**request, "vo_attribute": "OpportunisticVO"})
    ((_, constraint, projection),) = collector.questions
    assert '(true || x) && (Name == "ce01" || Name == "ce02")' in constraint
    assert projection == [], "all of a slot: jobs may ask for anything"
    assert [schedd["name"] for schedd in answer["schedds"]] == ["ce01", "ce02"]
    assert [startd["pilot_id"] for startd in answer["startds"]] == ["7"]
    assert answer["negotiators"] == [{"ended": 100, "period_s": 60, "version": "v"}]
    (ghost,) = answer["ghosts"]
    assert (ghost["resource"], ghost["sent"], ghost["matched"]) == ("dcgp", 7, 9)
    assert [(match["autocluster"], match["jobs"]) for match in ghost["matches"]] == [(4, 40), (5, 1)]


class AskedSchedd:
    """A schedd with scripted answers, one list of ads for each question of a kind."""

    questions: ClassVar[list[tuple[str, str, list[str]]]] = []
    answers: ClassVar[dict[str, list[list[str]]]] = {}

    def __init__(self, location: object) -> None:
        pass

    def query(self, constraint: str, projection: list[str], opts: object = None) -> list[object]:
        kind = str(getattr(opts, "name", "Default"))
        AskedSchedd.questions.append((kind, constraint, projection))
        answers = AskedSchedd.answers[kind]
        return [ad(text) for text in (answers.pop(0) if len(answers) > 1 else answers[0])]


CLUSTERS = ["[ AutoClusterId = 1; RequestCpus = 8 ]", "[ AutoClusterId = 2; RequestCpus = 1 ]"]


def row(**attributes: object) -> str:
    pairs = {"JobStatus": 1, "AutoClusterId": 1, "Owner": '"a"', "OpportunisticVO": '"cms"', **attributes}
    return "[ " + " ".join(f"{name} = {value};" for name, value in pairs.items() if value is not None) + " ]"


def ask_schedd(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[list[str]]], **request: object) -> dict:
    """What `answer_demand` makes of a schedd's answers (GroupBy, AutoCluster, Default)."""
    import htcondor2

    monkeypatch.setattr(htcondor2, "Schedd", AskedSchedd)
    AskedSchedd.questions, AskedSchedd.answers = [], {"AutoCluster": [CLUSTERS], "Default": [[]], **answers}
    fixed = {"address": "<1>", "version": "$CondorVersion: 25.14.1 2026-10-16 $", "attribute": "OpportunisticSite"}
    fixed |= {"value": "leonardo", "vo_attribute": "OpportunisticVO", "walltime": ["BatchRuntime"]}
    return tier1_query.answer_demand({**fixed, "known": {}, **request})


def kinds() -> list[str]:
    return [kind for kind, _, _ in AskedSchedd.questions]


IDLE_ROW = row(JobCount=5, JobIds='"3.0 ... 3.4"')
RUNNING_ROW = row(JobStatus=2, JobCount=2, JobIds='"2.0 ... 2.1"')


def test_a_schedd_is_asked_two_questions_where_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW, RUNNING_ROW]]}, known={"3.0": 77, "1.0": 5})
    assert kinds() == ["AutoCluster", "GroupBy"]
    (group,) = answer["groups"]
    assert (group["idle"], group["running"], group["oldest_qdate"], group["autoclusters"]) == (5, 2, 77, {1: 5})
    assert answer["qdates"] == {"3.0": 77}, "what is remembered is no larger than the groups of this answer"


def test_a_third_question_is_about_the_unknown_first_jobs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    new = row(AutoClusterId=2, JobCount=1, JobIds='"9.1"')
    answers = {"GroupBy": [[IDLE_ROW, new]], "Default": [["[ ClusterId = 9; ProcId = 1; QDate = 99 ]"]]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 77})
    assert AskedSchedd.questions[2:] == [
        ("Default", "(ClusterId == 9 && ProcId == 1)", ["ClusterId", "ProcId", "QDate"])
    ]
    assert answer["qdates"] == {"3.0": 77, "9.1": 99}
    assert sorted(group["oldest_qdate"] for group in answer["groups"]) == [77, 99]


def test_a_first_job_that_is_gone_by_now_is_remembered_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW]]})
    assert answer["qdates"] == {}
    assert answer["groups"][0]["oldest_qdate"] is None


def test_autoclusters_that_are_renumbered_meanwhile_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"AutoCluster": [["[ AutoClusterId = 7; RequestCpus = 8 ]"], CLUSTERS], "GroupBy": [[IDLE_ROW]]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 77})
    assert kinds() == ["AutoCluster", "GroupBy", "AutoCluster", "GroupBy"]
    assert answer["groups"][0]["idle"] == 5


def test_autoclusters_that_never_settle_are_an_error_not_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="changed during each of three reads"):
        ask_schedd(monkeypatch, {"AutoCluster": [["[ AutoClusterId = 7 ]"]], "GroupBy": [[IDLE_ROW]]})


def test_jobs_without_an_autocluster_are_counted_by_their_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    new = row(AutoClusterId=None, JobCount=3, JobIds='"8.0 ... 8.2"')
    asked = row(AutoClusterId=None, JobCount=3, JobIds='"8.0 ... 8.2"', RequestCpus=16)
    answer = ask_schedd(
        monkeypatch, {"GroupBy": [[IDLE_ROW, new], [asked]]}, known={"3.0": 1, "8.0": 2}, refused_since=0
    )
    assert kinds() == ["AutoCluster", "GroupBy", "GroupBy", "Default"]
    found = {group["idle"]: group for group in answer["groups"]}
    assert "RequestCpus = 16" in found[3]["ad"]
    assert (found[3]["autoclusters"], found[3]["refused"], found[3]["rejected"]) == ({}, None, None)


@pytest.mark.parametrize(
    ("reason", "rejected"),
    [
        ("no match found", True),
        ("no match found |1|3.0|", True),
        ("insufficient priority", True),
        ("PREEMPTION_REQUIREMENTS == False", True),
        ("submitter limit exceeded", False),
        ("concurrency limit atlas reached", False),
    ],
)
def test_a_refusal_is_a_rejection_only_if_nothing_was_free(
    monkeypatch: pytest.MonkeyPatch, reason: str, rejected: bool
) -> None:
    other = row(AutoClusterId=2, JobCount=1, JobIds='"4.0"')
    said = [f'[ AutoClusterId = 1; LastRejMatchReason = "{reason}" ]', "[ ClusterId = 3 ]"]
    answers = {"GroupBy": [[IDLE_ROW, other]], "Default": [said]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 1, "4.0": 1}, refused_since=1000)
    (kind, constraint, _) = AskedSchedd.questions[2]
    assert (kind, constraint.rpartition(" && ")[2]) == ("Default", "LastRejMatchTime >= 1000")
    verdicts = {group["idle"]: (group["refused"], group["rejected"]) for group in answer["groups"]}
    assert verdicts == {5: (True, rejected), 1: (False, False)}


def test_a_group_is_known_again_whatever_becomes_of_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW]]})["groups"][0]["key"]
    moved = row(AutoClusterId=2, JobCount=900, JobIds='"70.0"')
    swapped = ["[ AutoClusterId = 2; RequestCpus = 8 ]"]
    assert ask_schedd(monkeypatch, {"AutoCluster": [swapped], "GroupBy": [[moved]]})["groups"][0]["key"] == first
    for other in (
        row(Owner='"b"', JobCount=5),
        row(OpportunisticVO='"lhcb"', JobCount=5),
        row(AutoClusterId=2, JobCount=1),
    ):
        assert ask_schedd(monkeypatch, {"GroupBy": [[other]]})["groups"][0]["key"] != first


def test_a_silent_schedds_qdates_are_kept_for_the_next_time(tokens: Path, closed_port: int) -> None:
    schedd = Schedd("gone", "", "")
    answers = tier1_pool.read_demand(
        pool(tokens, closed_port), [schedd], TAG, known={"gone": {"1.0": 5}, "other": {"2.0": 6}}
    )
    assert tier1_pool.qdates(answers) == {"gone": {"1.0": 5}}
