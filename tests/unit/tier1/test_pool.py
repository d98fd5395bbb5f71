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
from htcebridge.tier1.asking import quote
from htcebridge.tier1.pool import CONDOR_CONFIG, Pool, Schedd, Tag
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
        'LastNegotiationCyclePeriod1 = 90; LastNegotiationCyclePeriod2 = -1; CondorVersion = "v"; MyAddress = "<3>" ]',
    ]
    request = {"collector": "c", "schedds": ["ce01", "ce02"], "constraint": "true || x", "instance": "leonardo"}
    answer = tier1_query.answer_pool({**request, "vo_attribute": "OpportunisticVO"})
    ((_, constraint, projection),) = collector.questions
    assert '(true || x) && (Name == "ce01" || Name == "ce02")' in constraint
    assert projection == [], "all of a slot: jobs may ask for anything"
    assert [schedd["name"] for schedd in answer["schedds"]] == ["ce01", "ce02"]
    assert [startd["pilot_id"] for startd in answer["startds"]] == ["7"]
    assert answer["negotiators"] == [{"ended": 100, "period_s": 90, "version": "v", "name": "n", "address": "<3>"}]
    (ghost,) = answer["ghosts"]
    assert (ghost["resource"], ghost["sent"], ghost["matched"]) == ("dcgp", 7, 9)
    assert [(match["autocluster"], match["jobs"]) for match in ghost["matches"]] == [(4, 40), (5, 1)]


def test_a_silent_schedds_qdates_are_kept_for_the_next_time(tokens: Path, closed_port: int) -> None:
    schedd = Schedd("gone", "", "")
    answers = tier1_pool.read_demand(
        pool(tokens, closed_port), [schedd], TAG, known={"gone": {"1.0": 5}, "other": {"2.0": 6}}
    )
    assert tier1_pool.qdates(answers) == {"gone": {"1.0": 5}}
