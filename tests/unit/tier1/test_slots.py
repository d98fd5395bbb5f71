"""What a pilot's slot is, beside its node and the moment: learnt, shipped, and what jobs find in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import learn, waiting
from htcebridge.controller.observation import Collector
from htcebridge.model import Group, PilotPhase, Shape, Startd
from htcebridge.pilot import script
from htcebridge.plan import packing
from htcebridge.state.memory import Learnt
from htcebridge.tier1 import pool, slots
from htcebridge.tier1.fit import Job, Matcher, bindings
from tests.unit.plan.made import HOUR, jobs, limits
from tests.unit.plan.made import NOW as MADE
from tests.unit.plan.made import pilot as joined
from tests.unit.tier1.test_fit import GPU_RESOURCE, VERSION

NOW = 1_700_000_000
SLOT = """[ MyType = "Machine"; Name = "slot1@pilot_{n}@node{n}"; Machine = "node{n}"; PilotJobId = "{n}_1";
  MyAddress = "<10.0.3.{n}:9618>"; PilotInstance = "leonardo"; PilotResource = "dcgp"; OpportunisticSite = "leonardo";
  PartitionableSlot = true; TotalSlotCpus = 112; TotalSlotMemory = 489904; TotalSlotDisk = 1.2E+07; Cpus = {cpus};
  Memory = 485808; Disk = 12179384; NumDynamicSlots = {jobs}; JobStarts = {jobs}; LoadAvg = 0.{n}; ClockMin = {n};
  LastHeardFrom = {n}; GLIDEIN_ToDie = {n}; GLIDEIN_ToRetire = {n}; PilotDraining = false; NODE_IS_HEALTHY = {healthy};
  Microarch = "x86_64-v4"; HasJobDeferral = true; Arch = "X86_64"; OpSys = "LINUX"; HasFileTransfer = true;
  Start = (TARGET.OpportunisticSite =?= "leonardo") && (NODE_IS_HEALTHY =!= False) && (time() < GLIDEIN_ToRetire);
  WithinResourceLimits = TARGET.RequestCpus <= MY.Cpus; Requirements = Start && WithinResourceLimits ]"""
JOB = (
    '[ OpportunisticSite = "leonardo"; RequestCpus = 8; RequestMemory = 16000; RequestDisk = 1000; Requirements = %s ]'
)


def lasting(n: int = 1, cpus: int = 112, jobs: int = 0, healthy: str = "true") -> dict[str, str]:
    return slots.lasting(bindings().ClassAd(SLOT.format(n=n, cpus=cpus, jobs=jobs, healthy=healthy)))


def startd(ad: Mapping[str, str], n: int = 1, made: str = "m", **changes: object) -> Startd:
    whole = Shape(112, 489904)
    one = Startd(f"{n}_1", f"s{n}", f"node{n}", whole, whole, 0, NOW + 9999, True, kind=slots.kind(ad), made=made)
    return replace(one, **changes)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- what lasts


def test_pilots_of_one_kind_show_the_same_however_busy_they_are() -> None:
    assert lasting(1) == lasting(2, cpus=3, jobs=5)
    assert slots.kind(lasting(1)) == slots.kind(lasting(2, cpus=3, jobs=5))
    assert lasting(1, healthy="false") != lasting(1)


def test_of_the_node_and_the_moment_nothing_is_left() -> None:
    text = repr(lasting(7))
    for gone in ("node7", "pilot_7", "10.0.3", "7_1", "ClockMin", "LastHeardFrom", "LoadAvg", "GLIDEIN_ToDie"):
        assert gone not in text
    assert {"Microarch", "HasJobDeferral", "Start"} <= lasting().keys()
    assert lasting(cpus=3)["Cpus"] == "112"


def test_of_an_attribute_in_several_layers_the_last_counts_whatever_its_case() -> None:
    assert slots.text({"CPUS": "1", "b": "2"}, {"Cpus": "3"}) == "[ Cpus = 3; b = 2; ]"


@pytest.mark.parametrize(
    ("version", "has"), [("$CondorVersion: 25.14.1 x $", True), ("$CondorVersion: 99.0.0 x $", True), ("", None)]
)
def test_a_slot_is_shipped_for_every_version(version: str, has: bool | None) -> None:
    ad = slots.shipped(version)
    assert ad["Requirements"].lower().replace("(", "").replace(")", "") == "start && withinresourcelimits"
    assert not any(slots.is_of_the_node(name) or name.lower().startswith(("pilot", "glidein")) for name in ad)
    if has:
        assert ad["HasCommonFilesTransfer"] == "2"


# --------------------------------------------------------------------------- jobs that were called "nowhere"

REAL_JOBS = {
    "deferral_time": "TARGET.HasJobDeferral",
    "checkpoint_exit_code": "TARGET.HasSelfCheckpointTransfers",
    "https inputs": 'stringListIMember("https", TARGET.HasFileTransferPluginMethods)',
    "encrypt_input_files": "TARGET.HasPerFileEncryption",
    "cvmfs": "TARGET.HAS_CVMFS_cms_cern_ch",
    "an image": "TARGET.HasSIF && TARGET.HasSandboxImage",
}
ONLY_A_NODE_KNOWS = {
    "microarchitecture": 'TARGET.Microarch >= "x86_64-v3"',
    "system": "TARGET.OpSysMajorVer >= 8",
    "strictly": "TARGET.has_avx512f =?= true",
    "instruction set": "(TARGET.has_avx2 == true) && (TARGET.Memory >= RequestMemory)",
}


@pytest.mark.parametrize("asks", [*REAL_JOBS.values(), *ONLY_A_NODE_KNOWS.values()])
def test_what_a_pilot_has_or_may_have_is_no_reason_against_one(config: Config, asks: str) -> None:
    matcher = Matcher({"dcgp": script.template_ad(config, "dcgp", VERSION)})
    assert matcher.fit(JOB % asks) == (("dcgp",), {})


@pytest.mark.parametrize("asks", ["TARGET.HAS_FOO", 'TARGET.GLIDEIN_CMSSite == "T1_IT_CNAF"', "TARGET.HAS_CVMFS_a_b"])
def test_what_the_configuration_would_say_is_known(config: Config, asks: str) -> None:
    matcher = Matcher({"dcgp": script.template_ad(config, "dcgp", VERSION)})
    fits, why_not = matcher.fit(JOB % asks)
    assert fits == ()
    assert "is undefined" in why_not["dcgp"]


def test_once_a_pilot_has_told_the_node_is_known(config: Config) -> None:
    matcher = Matcher({"dcgp": script.template_ad(config, "dcgp", VERSION, lasting())})
    assert matcher.fit(JOB % 'TARGET.Microarch == "x86_64-v4"')[0] == ("dcgp",)
    assert matcher.fit(JOB % 'TARGET.Microarch == "x86_64-v5"')[0] == ()
    assert matcher.fit(JOB % "TARGET.has_avx2")[0] == ()


def test_a_gpu_job_with_properties_opens_the_first_node(load: Callable[[str], Config], design_example: str) -> None:
    config = load(design_example + GPU_RESOURCE)
    matcher = Matcher({name: script.template_ad(config, name, VERSION) for name in config.resources})
    properties = "GlobalMemoryMb >= 40000"
    asks = "(countMatches(MY.RequireGPUs, TARGET.AvailableGPUs) >= RequestGPUs)"
    job = (JOB % asks).replace("Requirements", f"RequestGPUs = 1; RequireGPUs = {properties}; Requirements")
    assert matcher.fit(job)[0] == ("booster",)


# --------------------------------------------------------------------------- what a job takes there


@pytest.mark.parametrize(
    ("request_", "cpus"),
    [
        ("TARGET.Cpus", 112),
        ("TARGET.Cpus / 2", 56),
        ("ifThenElse(TARGET.Cpus is undefined, 1, TARGET.Cpus)", 112),
        ("7.0", 7),
    ],
)
def test_a_request_that_is_an_expression_on_the_machine_counts_as_what_it_takes(
    config: Config, request_: str, cpus: int
) -> None:
    matcher = Matcher({"dcgp": script.template_ad(config, "dcgp", VERSION)})
    job = (JOB % "true").replace("RequestCpus = 8", f"RequestCpus = {request_}")
    assert matcher.judge(job, Job(Shape(1, 1), 1))["dcgp"].job.shape.cpus == cpus


@pytest.mark.parametrize("cpus", ["1.5", "TARGET.Cpus * 0.3", "0.5"])
def test_a_part_of_a_core_is_taken_nowhere(config: Config, cpus: str) -> None:
    """The startd would refuse what the negotiator has matched, in each cycle, and others would get nothing there."""
    ad = script.template_ad(config, "dcgp", VERSION)
    job = (JOB % "true").replace("RequestCpus = 8", f"RequestCpus = {cpus}")
    found = Matcher({"dcgp": ad}).judge(job, Job(Shape(1, 1), 1))["dcgp"]
    assert re.match(r"RequestCpus is [\d.]+: slots have whole ones", found.why_not)
    parse = bindings().ClassAd
    assert not parse(job).symmetricMatch(parse(ad))


@pytest.mark.parametrize(
    ("asked", "gets"), [(1, 128), (128, 128), (129, 256), (16000, 16000), (489900, 489904), (489904, 489904)]
)
def test_memory_is_given_in_steps(config: Config, asked: int, gets: int) -> None:
    matcher = Matcher({"dcgp": script.template_ad(config, "dcgp", VERSION)})
    there = script.node_shape(config.resources["dcgp"]).memory_mb
    job = (JOB % "true").replace("16000", str(min(asked, there)))
    shape = matcher.judge(job, Job(Shape(1, 1), 1))["dcgp"].job.shape
    assert shape.memory_mb == (gets if gets <= there else there)


# --------------------------------------------------------------------------- pilots that are there


def groups(config: Config, *kinds: Mapping[str, str]) -> list[object]:
    there = {slots.kind(ad): ad for ad in kinds}
    startds = [startd(ad, n) for n, ad in enumerate(kinds, 1)]
    answers = [pool.ScheddGroups("ce01", 0.1, (pool.JobGroup(JOB % "true", "a", "cms", 3, 0, NOW),))]
    standing = waiting.There(config, startds, there)
    return list(waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW, standing))


def test_a_pilot_that_would_refuse_says_so(config: Config) -> None:
    good, sick = lasting(), lasting(healthy="false")
    (group,) = groups(config, good, sick)
    assert group.resources == ("dcgp",)
    assert list(group.refused_by) == [slots.kind(sick)]
    assert "NODE_IS_HEALTHY" in group.refused_by[slots.kind(sick)]
    assert group.shape_on(slots.kind(good)) == group.shape_on("dcgp") == Shape(8, 16000, 0, 1)


def test_equal_pilots_are_matched_once(config: Config) -> None:
    (group,) = groups(config, *(lasting(n, cpus=n, jobs=n) for n in range(1, 9)))
    assert group.refused_by == {}


def half_full(config: Config, asks: str = "true", cpus: str = "8") -> Group:
    """A group beside one pilot that has 40 of 112 cores free."""
    ad = lasting()
    there = replace(startd(ad, jobs=3), total=Shape(112, 490_000, 0, 3_000), free=Shape(40, 100_000, 0, 1_000))
    there = replace(there, to_die=MADE + 10 * HOUR)
    job = (JOB % asks).replace("RequestCpus = 8", f"RequestCpus = {cpus}")
    answers = [pool.ScheddGroups("ce01", 0.1, (pool.JobGroup(job, "a", "cms", 3, 0, NOW),))]
    standing = waiting.There(config, [there], {slots.kind(ad): ad})
    (group,) = waiting.matched(config, waiting.slot_ads(config, [], {}), answers, NOW, standing)
    caps = {"dcgp": limits(node=Shape(112, 490_000, 0, 3_000))}
    pilot = replace(joined(1, PilotPhase.JOINED), startd=there)
    (bin_,) = packing.supply([pilot], caps, MADE)
    return replace(group, idle=packing.fits(group, bin_), shape=bin_.shape_of(group))


@pytest.mark.parametrize(
    ("cpus", "takes"), [("TARGET.Cpus / 2", 20), ("TARGET.Cpus", 40), ("MY.RequestMemory / 2000", 8)]
)
def test_a_part_of_the_machine_is_one_of_what_is_free(config: Config, cpus: str, takes: int) -> None:
    group = half_full(config, cpus=cpus)
    assert (group.shape.cpus, group.idle > 0) == (takes, True)


def test_requirements_on_what_is_free_are_asked_of_that(config: Config) -> None:
    assert half_full(config, "TARGET.Memory >= 90000").idle
    refused = half_full(config, "TARGET.Memory >= 200000")
    assert not refused.idle
    assert refused.resources == ("dcgp",), "a new one would take it"
    for whole in ("TARGET.TotalMemory", "TARGET.TotalSlotMemory"):
        assert half_full(config, f"{whole} >= 200000").idle
        assert not half_full(config, f"{whole} >= 500000").idle
    assert half_full(config, "TARGET.DetectedMemory >= 1000000").idle, "not known, and not no"


def test_looks_at_single_pilots_are_bounded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ad = lasting()
    there = waiting.There(config, [startd(ad)], {slots.kind(ad): ad})
    asks, default = JOB % "TARGET.Memory >= 2", Job(Shape(1, 1), 1)
    monkeypatch.setattr(there, "_left", 1)
    assert [len(there.judge(asks, default)) for _ in range(2)] == [2, 1]


def test_how_long_a_pilot_lives_is_asked_of_that_pilot(config: Config) -> None:
    assert half_full(config, f"TARGET.GLIDEIN_ToDie >= {MADE + 9 * HOUR}").idle
    assert not half_full(config, f"TARGET.GLIDEIN_ToDie >= {MADE + 11 * HOUR}").idle


def test_a_full_pilot_is_no_part_for_anybody(config: Config) -> None:
    group = jobs(3, cpus=1, shapes={f"kind/0/9/0/9/{MADE}": Shape(0, 1)}, walltime_s=0)
    full = joined(1, PilotPhase.JOINED, kind="kind", free=Shape(0, 9, 0, 9), jobs=1, to_die=MADE)
    (bin_,) = packing.supply([full], {"dcgp": limits()}, MADE)
    assert packing.fits(group, bin_) == 0


@pytest.mark.parametrize(
    ("requirements", "cpus", "looks"),
    [
        ("TARGET.Memory >= RequestMemory && (TARGET.Disk >= MY.RequestDisk)", "8", False),
        ('TARGET.Arch == "X86_64"', "8", False),
        ("TARGET.Memory > RequestMemory", "8", True),
        ("TARGET.cpus > 3", "8", True),
        ("true", "TARGET.Cpus / 2", True),
        ("true", "undefined", False),
    ],
)
def test_who_looks_at_what_is_free(requirements: str, cpus: str, looks: bool) -> None:
    job = (JOB % requirements).replace("RequestCpus = 8", f"RequestCpus = {cpus}")
    assert Matcher.looks_at_the_moment(job) is looks


def test_what_is_no_ad_looks_at_nothing() -> None:
    assert not Matcher.looks_at_the_moment("unreadable: ValueError")


# --------------------------------------------------------------------------- learnt


def shown(*seen: tuple[Startd, Mapping[str, str]]) -> Collector:
    return Collector(tuple(each for each, _ in seen), frozenset(), {slots.kind(ad): ad for _, ad in seen})


def test_an_empty_pilot_of_todays_configuration_teaches(config: Config) -> None:
    made = script.slot_fingerprint(config, "dcgp")
    ad = lasting()
    learnt = learn.slots(config, {}, shown((startd(ad, made=made), ad)))
    assert learnt == {"dcgp": Learnt(ad, made)}
    assert waiting.in_force(config, "dcgp", learnt["dcgp"]) == ad
    for of_another in (startd(ad), startd(ad, made=made, jobs=1), startd(ad, made=made, healthy=False)):
        assert learn.slots(config, {}, shown((of_another, ad))) == {}
    assert learn.slots(config, learnt, None) == learnt


def test_what_is_known_stays_as_long_as_a_pilot_shows_it(config: Config) -> None:
    made = script.slot_fingerprint(config, "dcgp")
    old, new = lasting(), {**lasting(), "Microarch": '"x86_64-v3"'}
    known = {"dcgp": Learnt(old, made)}
    both = shown(*((startd(ad, n, made), ad) for n, ad in enumerate((new, new, old), 1)))
    assert learn.slots(config, known, both) == known
    assert learn.slots(config, {}, both)["dcgp"].slot == new, "the commonest"
    assert learn.slots(config, known, shown((startd(new, made=made), new)))["dcgp"].slot == new


def test_another_configuration_makes_another_pilot(load: Callable[[str], Config], design_example: str) -> None:
    before, after = (
        load(design_example.replace('cvmfs = ["cms.cern.ch"]', f"cvmfs = [{repositories}]"))
        for repositories in ('"cms.cern.ch"', '"lhcb.cern.ch"')
    )
    known = Learnt(lasting(), script.slot_fingerprint(before, "dcgp"))
    assert waiting.in_force(before, "dcgp", known) == known.slot
    assert waiting.in_force(after, "dcgp", known) is None
    more = load(design_example.replace("max_running = 100", "max_running = 7"))
    assert script.slot_fingerprint(more, "dcgp") == script.slot_fingerprint(before, "dcgp")
