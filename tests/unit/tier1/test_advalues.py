"""What jobs and startds may put into their ads, and that no value of one stops the others."""

from __future__ import annotations

import json
import math
from typing import Any

import htcondor2
import pytest
from classad2 import ClassAd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htcebridge.config.tables import Config
from htcebridge.controller import waiting
from htcebridge.model import Group, Shape
from htcebridge.pilot.script import template_ad
from htcebridge.tier1 import pool, query_demand, query_history
from htcebridge.tier1 import query as tier1_query
from htcebridge.tier1.advalues import MOST, BadValue, number, number_or, text
from htcebridge.tier1.asking import quote
from htcebridge.tier1.fit import Matcher, evaluate

VERSION = "$CondorVersion: 25.14.1 2026-10-01 BuildID: 1 $"
NOW = 1_800_000_000
WALLTIME = ("BatchRuntime", "MaxWallTimeMins * 60")
REQUESTS = ("RequestCpus", "RequestMemory", "RequestGPUs", "RequestDisk", "BatchRuntime", "MaxWallTimeMins")
BROKEN = [
    *('real("INF")', '-real("INF")', 'real("NaN")', "1e300", "1e18", "1.0e19", "1000000000000000000", "-1", "-1e-3"),
    *("error", "1 / 0", "true", "false", '"8"', '"a\\377b"', "{ 1, 2 }", '{ "\\377" }', "[ a = 1 ]"),
    *('absTime("2020-01-01")', "absTime(99999999999999)", "+".join(["1"] * 2000), "9223372036854775807"),
]
ABSENT = ["undefined", "NotThere", "NotThere * 2", "RequestCpus"]


def ad(value: str, name: str = "RequestCpus") -> ClassAd:
    return ClassAd(f"[ {name} = {value} ]")


# --------------------------------------------------------------------------- one value


@pytest.mark.parametrize(("value", "is_"), [("8", 8), ("8.9", 8), ("0", 0), ("4 * 2", 8), (str(MOST), MOST)])
def test_a_number_is_what_it_is(value: str, is_: int) -> None:
    assert number(ad(value), "RequestCpus") == is_


@pytest.mark.parametrize("value", ABSENT)
def test_what_is_undefined_is_absent_and_not_2(value: str) -> None:
    assert number(ad(value), "RequestCpus", absent=7) == 7
    assert number(ClassAd(), "RequestCpus", absent=7) == 7


@pytest.mark.parametrize("value", BROKEN)
def test_what_is_no_number_is_neither_absent_nor_1(value: str) -> None:
    with pytest.raises(BadValue, match=r"^RequestCpus "):
        number(ad(value), "RequestCpus")
    assert number_or(7, ad(value), "RequestCpus") == 7


@given(st.floats() | st.integers())
def test_every_number_is_bounded_or_refused(value: float) -> None:
    holder = ClassAd()
    holder["X"] = max(-(2**63), min(value, 2**63 - 1)) if isinstance(value, int) else value
    try:
        assert 0 <= number(holder, "X") <= MOST
    except BadValue:
        assert not math.isfinite(value) or not 0 <= value <= MOST


def test_a_text_that_cannot_be_read_is_none() -> None:
    assert text(ad('"a\\377b"', "Name"), "Name") == ""
    assert text(ad('"a"', "Name"), "Name") == "a"


# --------------------------------------------------------------------------- one group among others


@pytest.fixture
def matcher(config: Config) -> Matcher:
    return Matcher({"dcgp": template_ad(config, "dcgp", VERSION)})


def asks(**attributes: str) -> str:
    given = {"RequestCpus": "8", "RequestMemory": "16000", "RequestDisk": "1", "Requirements": "true", **attributes}
    return '[ OpportunisticSite = "leonardo"; ' + " ".join(f"{name} = {value};" for name, value in given.items()) + " ]"


def test_a_request_that_cannot_be_evaluated_is_the_default() -> None:
    undefined = "[ RequestCpus = NotThere; RequestMemory = AlsoNot * 2; RequestGPUs = Neither; RequestDisk = 1 ]"
    assert evaluate(undefined, [], 3600).shape == Shape(cpus=1, memory_mb=1, gpus=0, disk_mb=1)
    broken = "[ RequestCpus = error; RequestMemory = 1 / 0; RequestGPUs = error; BatchRuntime = error ]"
    asked = evaluate(broken, WALLTIME, 3600)
    assert (asked.shape, asked.walltime_s) == (Shape(cpus=1, memory_mb=1), 3600)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REQUESTS[:5] for value in BROKEN])
def test_a_broken_request_fits_nowhere_and_says_why(matcher: Matcher, name: str, value: str) -> None:
    fits, why_not = matcher.fit(asks(**{name: value}))
    assert fits == ()
    assert why_not["dcgp"]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("RequestCpus", 'real("INF")', "RequestCpus is inf, not a number from 0 to 1e+06"),
        ("RequestMemory", "error", "RequestMemory is an error or undefined, not a number"),
        ("RequestGPUs", "-1", "RequestGPUs is -1, not a number from 0 to 1e+06"),
        ("BatchRuntime", 'real("NaN")', "its walltime is nan, not a number from 0 to 1e+15"),
        ("RequestDisk", '"a\\377b"', "RequestDisk cannot be evaluated (UnicodeDecodeError)"),
    ],
)
def test_the_reason_names_the_value(matcher: Matcher, name: str, value: str, why: str) -> None:
    assert matcher.fit(asks(**{name: value}))[1] == {"dcgp": why}


def test_an_ad_that_is_none_fits_nowhere(matcher: Matcher) -> None:
    assert matcher.fit("unreadable: SystemError") == ((), {"dcgp": "its ad cannot be evaluated (ClassAdException)"})
    assert evaluate("unreadable: SystemError", WALLTIME, 3600).shape == Shape(1, 1)


def test_an_undefined_request_counts_as_missing(matcher: Matcher) -> None:
    assert matcher.fit(asks(RequestGPUs="undefined"))[0] == matcher.fit(asks())[0] == ("dcgp",)


literals = st.one_of(
    st.sampled_from(BROKEN + ABSENT),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(quote),
)
hostile = st.dictionaries(
    st.sampled_from([*REQUESTS, "Requirements", "OpportunisticVO", "Owner"]), literals, min_size=1
)
GOOD = {"RequestCpus": "8", "RequestMemory": "16000", "RequestDisk": "1", "Requirements": "true"}


class AskedSchedd:
    """Answers as a schedd does, from jobs without autoclusters. `ads`: one a group."""

    def __init__(self, ads: list[str]) -> None:
        self.ads = ads

    def query(self, constraint: str, projection: list[str], opts: Any = None, limit: int = -1) -> list[Any]:
        if opts is None:
            return [ClassAd('[ ClusterId = 1; ProcId = 0; QDate = real("INF") ]')] if "ClusterId" in projection else []
        return [] if opts.name == "AutoCluster" else [ClassAd(text) for text in self.ads]


def row(number: int, attributes: dict[str, str]) -> str:
    asked = {"OpportunisticSite": '"leonardo"', "OpportunisticVO": '"cms"', "Owner": '"a"', **attributes}
    asked |= {"JobStatus": "1", "JobCount": "3", "JobIds": f'"{number}.0 ... {number}.2"'}
    return "[ " + " ".join(f"{name} = {value};" for name, value in asked.items()) + " ]"


def demand(monkeypatch: pytest.MonkeyPatch, config: Config, *ads: str) -> list[Group]:
    """From a schedd's rows through the child's JSON to the plan's groups."""
    monkeypatch.setattr(htcondor2, "Schedd", lambda _: AskedSchedd(list(ads)))
    request = {"address": "<1>", "version": VERSION, "attribute": "OpportunisticSite", "value": "leonardo"}
    request |= {"vo_attribute": "OpportunisticVO", "walltime": ["BatchRuntime", "MaxWallTimeMins"], "known": {}}
    answer = json.loads(json.dumps(query_demand.answer_demand(request)))
    answers = [pool.ScheddGroups("ce01", 0.1, tuple(map(pool._job_group, answer["groups"])))]
    matched = waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW)
    return list(waiting.demand_of(matched, answers).groups)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=hostile)
def test_one_jobs_values_change_nothing_for_the_others(
    attributes: dict[str, str], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = demand(monkeypatch, config, row(5, GOOD))
    both = demand(monkeypatch, config, row(5, GOOD), row(1, {**GOOD, "RequestCpus": "9", **attributes}))
    others = [group for group in both if group not in alone]
    assert [group for group in both if group in alone] == alone
    assert sum(group.idle for group in others) == 3
    for group in others:
        assert group.resources or group.why_not["dcgp"]
        assert all(0 <= axis <= MOST for axis in (*group.shape.axes, group.walltime_s, group.oldest_s))
        if group.resources:
            assert group.shape.times_in(Shape(112, 490_000, 0, 10**9))


def test_a_row_that_cannot_be_read_is_a_group_that_fits_nowhere(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_part = query_demand.job_part
    monkeypatch.setattr(query_demand, "job_part", lambda *ads: job_part(*ads, *(() if ads[0]["A"] else (None,))))
    fine, unreadable = row(5, {**GOOD, "A": "true"}), row(1, {**GOOD, "A": "false"})
    groups = demand(monkeypatch, config, unreadable, fine)
    assert sorted((group.resources, group.idle) for group in groups) == [((), 3), (("dcgp",), 3)]


@pytest.mark.parametrize("value", BROKEN[:10] + ABSENT)
def test_a_queue_time_that_is_none_is_unknown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    asked = AskedSchedd([])
    monkeypatch.setattr(asked, "query", lambda *_, **__: [ClassAd(f"[ ClusterId = 1; ProcId = 0; QDate = {value} ]")])
    assert query_demand._queued_at(asked, {(1, 0)}, {}) == {}


# --------------------------------------------------------------------------- what a pool shows


SLOT = ("Cpus", "Memory", "GPUs", "Disk", "TotalSlotCpus", "TotalSlotMemory", "NumDynamicSlots", "GLIDEIN_ToDie")
SLOT += ("GLIDEIN_ToRetire", "MyCurrentTime", "PilotDraining", "ChildCpus", "ChildOpportunisticVO", "Machine")
SLOT += ("PilotJobId", "IsGhost", "GhostSent", "MachineLastMatchTime", "OfflineMatches", "PilotResource", "MyAddress")
SLOT += ("MyType", "LastNegotiationCycleEnd0", "CondorVersion")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=st.dictionaries(st.sampled_from(SLOT), literals, min_size=1))
def test_one_ads_values_change_nothing_for_the_others(
    attributes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*texts: str) -> dict[str, Any]:
        class Collector:
            def __init__(self, _: str) -> None:
                pass

            def query(self, *_: object) -> list[ClassAd]:
                return [ClassAd(text) for text in texts]

        monkeypatch.setattr(htcondor2, "Collector", Collector)
        request = {"collector": "c", "schedds": [], "constraint": "true", "instance": "i"}
        said: dict[str, Any] = json.loads(json.dumps(tier1_query.answer_pool({**request, "vo_attribute": "VO"})))
        return said

    good = '[ MyType = "Machine"; Name = "a"; PilotJobId = "7"; TotalSlotCpus = 112; ChildCpus = { 8 } ]'
    pairs = {"MyType": '"Machine"', "ChildOpportunisticVO": '{ "cms", "a" }', **attributes}
    both = answer(good, '[ Name = "b"; ' + " ".join(f"{name} = {value};" for name, value in pairs.items()) + " ]")
    (startd,) = answer(good)["startds"]
    assert startd in both["startds"]
    for each in both["startds"]:
        assert all(0 <= axis <= MOST for axis in (*each["free"].values(), *each["total"].values(), each["to_die"]))


def test_of_a_ghosts_records_only_the_negotiators_own_are_read() -> None:
    good = '[ Scheduler = "<1>"; AutoclusterID = 4; RequestCount = 40 ]'
    bad = ['[ Scheduler = "<1>" ]', "[ AutoclusterID = error; RequestCount = 1 ]", "7", "undefined"]
    bad.append('[ AutoclusterID = 1; RequestCount = real("INF") ]')
    row = tier1_query._ghost_row(ClassAd(f"[ OfflineMatches = {{ {', '.join([*bad, good])} }} ]"))
    assert row["matches"] == [{"address": "<1>", "autocluster": 4, "jobs": 40}]


@pytest.mark.parametrize("value", [*BROKEN, *ABSENT])
def test_a_usage_record_has_no_number_that_is_none(value: str) -> None:
    """What a pilot reports of a job is what its node likes to say."""
    names = ("MachineAttrCpus0", "MemoryUsage", "RemoteUserCpu", "RemoteWallClockTime", "ExitCode", "AcctGroup")
    broken = " ".join(f"{name} = {value};" for name in names)
    specs = f"MachineAttrApelSpecs0 = [ HEPscore = 12.5; x = {value} ]"
    ad = ClassAd(f"[ ClusterId = 1; ProcId = 0; JobStatus = 4; CpusProvisioned = 8; {broken} {specs} ]")
    row = query_history._job_row({"value": "leonardo", "name": "ce01", "vo_attribute": "VO"}, ad)
    assert row["cores"] in (8, MOST)
    assert row["cpu_user_s"] in (0, MOST)
    assert "HEPscore=12.5" in row["apel_specs"]
    if value in ABSENT or "error" in value:
        assert (row["cores"], row["exit_code"], row["apel_specs"]) == (8, None, "HEPscore=12.5")
    json.dumps(row)
