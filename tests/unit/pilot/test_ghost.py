from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from htcebridge.config.tables import Config
from htcebridge.controller import ads, observe
from htcebridge.doctor import judge
from htcebridge.doctor.checks import Status
from htcebridge.errors import BridgeError, ConfigError, UnknownState
from htcebridge.model import Group, Shape, Track
from htcebridge.pilot import ghost, ghost_view
from htcebridge.pilot.ghost_view import Answer, GhostView, confirmed, disagreements
from htcebridge.pilot.script import template_ad
from htcebridge.state.memory import Memory
from htcebridge.tier1 import pool as tier1_pool
from htcebridge.tier1.pool import Ghost, JobGroup, Matches, Negotiation, PoolView, Schedd, ScheddGroups

VERSION = "$CondorVersion: 25.14.1 2026-10-16 PackageID: 25.14.1+dfsg-1 $"


def slots_of(config: Config) -> dict[str, str]:
    return {name: template_ad(config, name, VERSION) for name in config.resources}


NOW = 1_000_000
SECRET = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl"
JOB = '[ OpportunisticSite = "leonardo"; RequestCpus = 8; RequestMemory = 1000; RequestDisk = 1; Requirements = true ]'
BOOSTER = (
    '[resource.booster]\npartition = "b"\naccount = "a"\nqos = "q"\ncpus = 32\nmemory = "494000M"\nwalltime = "12h"\n'
)


@pytest.fixture
def two(load: Callable[[str], Config], design_example: str) -> Config:
    return load(design_example + BOOSTER)


# --------------------------------------------------------------------------- the ad


def parsed(text: str) -> Any:
    import classad2
    import htcondor2  # noqa: F401  its functions

    return classad2.ClassAd(text)


def test_a_ghost_is_an_offline_slot_that_shows_what_it_is(config: Config) -> None:
    ad = parsed(ghost.ad_text(config, "dcgp", slots_of(config)["dcgp"], NOW))
    assert (ad["Name"], ad["IsGhost"], ad["Offline"]) == ("ghost-dcgp@leonardo.leonardo.invalid", True, True)
    assert (ad["WantAdRevaluate"], ad["GhostMultiplier"], ad["SlotWeight"]) == (True, 500, 1)
    assert (ad["PilotInstance"], ad["PilotResource"], ad["PartitionableSlot"]) == ("leonardo", "dcgp", True)
    assert (ad["Cpus"], ad["State"], ad["ClassAdLifetime"]) == (112, "Unclaimed", 300)
    assert ad["SlotID"] != 1, "the collector makes up a startd for a slot 1, and does not take that away again"
    assert ad.eval("Rank") < -100_000


@pytest.mark.parametrize(
    ("job", "until_s", "fits"),
    [
        (JOB, 300, True),
        (JOB, 0, False),
        (JOB.replace("leonardo", "elsewhere"), 300, False),
        (JOB.replace("Cpus = 8", "Cpus = 113"), 300, False),
        (JOB.replace("[ ", "[ BatchRuntime = 144000; "), 300, False),
    ],
)
def test_a_ghost_takes_what_its_pilots_take_until_its_time_is_over(
    config: Config, job: str, until_s: int, fits: bool
) -> None:
    import time

    ad = parsed(ghost.ad_text(config, "dcgp", slots_of(config)["dcgp"], int(time.time()) - 300 + until_s))
    assert ad.symmetricMatch(parsed(job)) is fits


def test_a_ghost_lives_for_five_cycles(load: Callable[[str], Config], design_example: str) -> None:
    slow = load(design_example.replace('interval = "60s"', 'interval = "10m"'))
    assert parsed(ghost.ad_text(slow, "dcgp", slots_of(slow)["dcgp"], NOW))["ClassAdLifetime"] == 3000


# --------------------------------------------------------------------------- sending


class Sent:
    """What was sent to the collector, and what the child could see of the token."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.directories: list[Path] = []
        self.modes: list[tuple[int, int]] = []
        self.error: str = ""

    def ask(self, pool: tier1_pool.Pool, request: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.append(json.loads(json.dumps(dict(request))))
        (token,) = pool.token_directory.iterdir()
        assert token.read_text() == SECRET
        self.directories.append(pool.token_directory)
        self.modes.append(tuple(stat.S_IMODE(path.stat().st_mode) for path in (pool.token_directory, token)))  # type: ignore[arg-type]
        if self.error:
            raise BridgeError(self.error)
        return {}

    @property
    def advertised(self) -> list[str]:
        return [parsed(text)["PilotResource"] for request in self.requests for text in request["ads"]]

    @property
    def gone(self) -> list[str]:
        return [request["gone"] for request in self.requests if request["gone"]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> Sent:
    token = own_home / ".config/htcebridge/pilot.idtoken"
    token.parent.mkdir(parents=True)
    token.write_text(SECRET)
    token.chmod(0o600)
    record = Sent()
    monkeypatch.setattr(tier1_pool, "ask", record.ask)
    return record


def there(config: Config, name: str = "dcgp", age_s: int = 0, **changes: Any) -> Ghost:
    values = {"digest": ghost.digest(slots_of(config)[name]), "sent": NOW - age_s, "matched": 0, **changes}
    return Ghost(resource=name, **values)


def test_every_resource_that_follows_demand_gets_a_ghost(two: Config, sent: Sent) -> None:
    ghost.advertise(two, slots_of(two), [], NOW)
    assert sorted(sent.advertised) == ["booster", "dcgp"]
    assert len(sent.requests) == 1


def test_a_resource_in_constant_mode_gets_none(load: Callable[[str], Config], design_example: str, sent: Sent) -> None:
    constant = load(design_example + BOOSTER + 'mode = "constant"\n')
    ghost.advertise(constant, slots_of(constant), [], NOW)
    assert sent.advertised == ["dcgp"]


@pytest.mark.parametrize(("age_s", "renewed"), [(0, False), (100, False), (101, True), (-1, True)])
def test_a_ghost_is_renewed_when_a_third_of_its_life_is_over(
    config: Config, sent: Sent, age_s: int, renewed: bool
) -> None:
    ghost.advertise(config, slots_of(config), [there(config, age_s=age_s)], NOW)
    assert sent.advertised == (["dcgp"] if renewed else [])


def test_a_ghost_of_another_configuration_is_replaced_at_once(config: Config, sent: Sent) -> None:
    ghost.advertise(config, slots_of(config), [there(config, digest="of before")], NOW)
    assert sent.advertised == ["dcgp"]


def test_the_ghost_of_a_resource_that_is_no_more_is_taken_away(config: Config, sent: Sent) -> None:
    ghost.advertise(config, slots_of(config), [there(config), Ghost("old", "d", NOW, 0)], NOW)
    assert sent.advertised == []
    assert sent.gone == ['IsGhost =?= true && PilotInstance =?= "leonardo" && (PilotResource =?= "old")']


def test_withdrawing_takes_this_instances_ghosts_and_no_others(config: Config, sent: Sent) -> None:
    ghost.withdraw(config)
    assert sent.gone == ['IsGhost =?= true && PilotInstance =?= "leonardo"']
    assert sent.advertised == []


def test_the_pilots_token_is_lent_in_a_private_directory_and_taken_back(config: Config, sent: Sent) -> None:
    ghost.advertise(config, slots_of(config), [], NOW)
    assert sent.modes == [(0o700, 0o600)]
    assert SECRET not in json.dumps(sent.requests)
    sent.error = "DENIED"
    with pytest.raises(UnknownState, match=r"DENIED; does .*pilot\.idtoken allow ADVERTISE_STARTD"):
        ghost.withdraw(config)
    assert not any(directory.exists() for directory in sent.directories)


def test_a_token_that_others_can_read_is_not_used(config: Config, sent: Sent, own_home: Path) -> None:
    (own_home / ".config/htcebridge/pilot.idtoken").chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        ghost.advertise(config, slots_of(config), [], NOW)
    assert sent.requests == []


# --------------------------------------------------------------------------- which negotiator


@pytest.mark.parametrize(
    ("version", "crashes"),
    [
        *[("10.3.0", False), ("23.0.28", False), ("23.9.6", False), ("23.10.0", False), ("23.10.1", True)],
        *[("23.10.18", True), ("23.10.29", True), ("23.10.30", False)],
        *[("24.0.0", False), ("24.0.1", True), ("24.0.3", True), ("24.0.4", False), ("24.0.17", False)],
        *[("24.1.0", False), ("24.1.1", True), ("24.2.2", True), ("24.3.0", True), ("24.3.1", False)],
        *[("24.4.0", False), ("24.12.4", False), ("25.0.1", False), ("25.14.1", False), ("123.10.1", False)],
    ],
)
def test_a_negotiator_that_an_offline_match_crashes_is_not_asked(version: str, crashes: bool) -> None:
    text = f"$CondorVersion: {version} 2024-12-20 BuildID: 773315 $"
    refusal = ghost.refusal([VERSION, text])
    assert bool(refusal) is crashes
    if crashes:
        assert f"HTCondor {version} of the Tier-1's negotiator crashes" in refusal


@pytest.mark.parametrize("versions", [[], [""], [VERSION, ""], ["24"], ["$CondorVersion: 25 $"], ["25.14.1"]])
def test_a_negotiator_of_unknown_version_is_not_asked(versions: list[str]) -> None:
    assert ghost.refusal(versions).endswith("it is not asked")


@pytest.mark.parametrize(
    ("version", "source", "there_already", "advertised", "withdrawn", "problem"),
    [
        (VERSION, "negotiator", False, ["dcgp"], False, ""),
        ("$CondorVersion: 24.0.3 2024-12-20 $", "negotiator", False, [], False, "crashes"),
        ("$CondorVersion: 24.0.3 2024-12-20 $", "negotiator", True, [], True, "crashes"),
        ("", "negotiator", True, [], True, "does not say its version"),
        (None, "negotiator", True, [], True, "shows no negotiator"),
        ("$CondorVersion: 24.0.3 2024-12-20 $", "query", True, [], True, ""),
    ],
)
def test_a_cycle_shows_ghosts_only_to_a_negotiator_that_lives_through_it(
    load: Callable[[str], Config],
    design_example: str,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    source: str,
    there_already: bool,
    advertised: list[str],
    withdrawn: bool,
    problem: str,
) -> None:
    config = load(design_example.replace("[pressure]", f'[pressure]\ndemand_source = "{source}"'))
    negotiators = () if version is None else (Negotiation(NOW, 60, version),)
    old = (there(config),) if there_already else ()
    pool = PoolView((Schedd("ce01", "<1>", VERSION),), (), old, negotiators)
    monkeypatch.setattr(tier1_pool, "read_pool", lambda *_: pool)
    monkeypatch.setattr(tier1_pool, "read_demand", lambda *_: [ScheddGroups("ce01", 0.1)])
    seen = observe._waiting(config, pool, Memory(), {}, NOW)
    assert ads.keep_ghosts(config, seen.negotiator, NOW) == []
    assert sent.advertised == advertised
    assert bool(sent.gone) is withdrawn
    assert seen.negotiator is not None
    assert problem in " ".join(seen.negotiator.alarms)
    assert bool(seen.negotiator.alarms) is bool(problem)


@pytest.mark.parametrize(("version", "status"), [("25.14.1", Status.OK), ("24.3.0", Status.FAIL)])
def test_the_doctor_says_it_too(version: str, status: Status) -> None:
    found = judge.negotiator([f"$CondorVersion: {version} 2026-10-16 $"])
    assert (found.check, found.status, bool(found.fix)) == ("negotiator", status, status is Status.FAIL)


# --------------------------------------------------------------------------- reading

SCHEDDS = (Schedd("ce01", "<1>", VERSION), Schedd("ce02", "<2>", VERSION))
WINDOW_S = 180


def waits(key: str, idle: int, autoclusters: Mapping[int, int], refused: bool | None = False) -> JobGroup:
    return JobGroup("[ ]", "cmspil", "cms", idle, 0, NOW, key, refused, refused, autoclusters)


def answers(*groups: JobGroup, second: tuple[JobGroup, ...] = ()) -> list[ScheddGroups]:
    return [ScheddGroups("ce01", 0.1, groups), ScheddGroups("ce02", 0.1, second)]


def view(config: Config, *matches: Matches, matched: int = NOW - 5, ended: int = NOW - 10, **changes: Any) -> PoolView:
    spirit = there(config, matches=matches, matched=matched, **changes)
    return PoolView(SCHEDDS, (), (spirit,), (Negotiation(ended, 60),))


def long_asked(config: Config, **counts: tuple[tuple[int, int], ...]) -> dict[str, Track]:
    return {"dcgp": Track(ghost.digest(slots_of(config)["dcgp"]), NOW - 5000, NOW - 60, counts)}


def read(
    config: Config, seen: PoolView, groups: list[ScheddGroups], memory: Mapping[str, Track], now: int = NOW
) -> tuple[GhostView, dict[str, Track]]:
    return ghost.read(config, seen, groups, memory, slots_of(config), now)


def test_autoclusters_are_resolved_to_the_groups_of_their_schedd(config: Config) -> None:
    seen = view(config, Matches("<1>", 4, 40), Matches("<2>", 4, 7), Matches("<1>", 9, 5), Matches("<3>", 4, 5))
    groups = answers(waits("a", 40, {4: 40}), waits("b", 3, {5: 3}), second=(waits("c", 7, {4: 7}),))
    said, _ = read(config, seen, groups, long_asked(config))
    assert said.answers["dcgp"].jobs == {"a": 40, "c": 7}


def test_groups_of_one_autocluster_share_its_count(config: Config) -> None:
    groups = answers(waits("a", 30, {4: 30}), waits("b", 10, {4: 10}))
    said, _ = read(config, view(config, Matches("<1>", 4, 20)), groups, long_asked(config))
    assert said.answers["dcgp"].jobs == {"a": 15, "b": 5}


@pytest.mark.parametrize(("runs", "jobs"), [((1, 1, 10), 12), ((40, 40), 40), ((90,), 90)])
def test_runs_of_an_autocluster_add_up_to_what_waits(config: Config, runs: tuple[int, ...], jobs: int) -> None:
    seen = view(config, *(Matches("<1>", 4, run) for run in runs))
    said, _ = read(config, seen, answers(waits("a", 40, {4: 40})), long_asked(config))
    assert said.answers["dcgp"].jobs == {"a": jobs}


def test_a_look_in_the_middle_of_a_negotiation_takes_nothing_back(config: Config) -> None:
    groups = answers(waits("a", 40, {4: 40}), waits("b", 3, {5: 3}))
    _, memory = read(config, view(config, Matches("<1>", 4, 40), Matches("<1>", 5, 3)), groups, long_asked(config))
    partly = view(config, Matches("<1>", 4, 2), matched=NOW + 55)
    said, memory = read(config, partly, groups, memory, NOW + 60)
    assert said.answers["dcgp"].jobs == {"a": 40, "b": 3}
    nothing = view(config, matched=NOW + 55)
    for later in (120, 180, 240):
        said, memory = read(config, nothing, groups, memory, NOW + later)
    assert said.answers["dcgp"].jobs == {}
    assert said.answers["dcgp"].silent_s("b") == 245
    assert said.answers["dcgp"].silent_s("a") == 185


def test_what_is_remembered_survives_json_and_is_bounded_to_what_waits(config: Config) -> None:
    memory = long_asked(config, a=((NOW - 3000, 9), (NOW - 2000, 8)), left=((NOW - 3000, 9),), new=((NOW - 9, 1),))
    _, memory = read(config, view(config), answers(waits("a", 40, {4: 40})), memory)
    assert memory["dcgp"].counts == {"a": ((NOW - 2000, 8),), "new": ((NOW - 9, 1),)}
    again = TypeAdapter(dict[str, Track]).validate_python(json.loads(json.dumps({"dcgp": asdict(memory["dcgp"])})))
    assert again == memory


def complete(config: Config, seen: PoolView, memory: Mapping[str, Track], now: int = NOW) -> bool:
    return read(config, seen, answers(), memory, now)[0].answers["dcgp"].complete


def test_an_answer_is_complete_after_a_windows_time_of_looks(config: Config) -> None:
    assert ghost.window_s(config, view(config)) == WINDOW_S
    memory: dict[str, Track] = {}
    for second, whole in ((0, False), (60, False), (120, False), (180, True)):
        said, memory = read(config, view(config), answers(), memory, NOW + second)
        assert said.answers["dcgp"].complete is whole


def test_what_may_be_out_of_date_is_not_complete(config: Config) -> None:
    asked = long_asked(config)
    assert complete(config, view(config), asked)
    assert not complete(config, view(config, ended=NOW - 901), asked), "the negotiator has ended no cycle for long"
    assert not complete(config, PoolView(SCHEDDS, (), view(config).ghosts), asked), "there is no negotiator"
    assert not complete(config, PoolView(SCHEDDS, (), (), (Negotiation(NOW, 60),)), asked), "the ghost is not there"
    assert not complete(config, view(config, digest="of before"), asked), "it was judged by another START"
    assert not complete(config, view(config), asked, NOW + WINDOW_S), "nobody has looked meanwhile"


# --------------------------------------------------------------------------- what follows


def group(key: str = "a", idle: int = 10, oldest_s: int = 10_000, **changes: Any) -> Group:
    values: dict[str, Any] = {"resources": ("dcgp", "booster"), "why_not": {}, **changes}
    return Group(Shape(8, 1000), 3600, "cmspil", "cms", idle, 0, oldest_s, key=key, **values)


def says(
    *refused: str, complete: bool = True, jobs: Mapping[str, int] | None = None, silent_s: int = 5000
) -> GhostView:
    answer = Answer(complete, jobs or {}, {"": silent_s})
    return GhostView(WINDOW_S, {"dcgp": answer, "booster": Answer()}, frozenset(refused))


def test_a_group_that_the_negotiator_turned_down_loses_the_resource_and_says_why() -> None:
    (left,) = confirmed([group(why_not={"half": "too small"})], says("a"))
    assert left.resources == ("booster",)
    assert left.why_not["half"] == "too small"
    assert left.why_not["dcgp"].startswith("the negotiator tried and would start none of these there for 3m")


@pytest.mark.parametrize(
    ("unknown", "seen"),
    [
        (group(), says("b")),
        (group(), says("a", complete=False)),
        (group(), says("a", jobs={"a": 1})),
        (group(), GhostView(WINDOW_S, {}, frozenset("a"))),
        (group(key=""), says("a")),
        (group(idle=0), says("a")),
    ],
    ids=["not refused", "asked too short", "matched", "no ghost", "merged", "nothing waits"],
)
def test_what_is_not_known_is_left_as_it_is(unknown: Group, seen: GhostView) -> None:
    assert confirmed([unknown], seen) == [unknown]


def test_what_a_ghost_was_given_for_found_nothing_else_free() -> None:
    lone, other = confirmed([group(rejected=False), group("b", rejected=False)], says(jobs={"a": 1}))
    assert (lone.rejected, other.rejected) == (True, False)
    (not_asked,) = confirmed([group()], says(jobs={"a": 1}))
    assert not_asked.rejected is None


def test_sources_that_agree_give_no_alarm() -> None:
    groups = [group(), group("b", resources=(), why_not={"dcgp": "too wide"})]
    assert disagreements(groups, says(jobs={"a": 1})) == [], "a lower count is no disagreement"
    assert disagreements(groups, says(jobs={"a": 10})) == []


def test_a_group_that_the_negotiator_has_turned_down_for_long_is_an_alarm() -> None:
    (said,) = disagreements([group()], says("a"))
    assert (
        said == "dcgp: 10 jobs of cmspil (cms, 8 cpus) fit by the query; the negotiator would start none for 1h23m20s"
    )
    assert disagreements([group(oldest_s=100)], says("a")) == []
    assert disagreements([group()], says("a", silent_s=300)) == []
    assert disagreements([group()], says("a", complete=False)) == []
    assert disagreements([group()], says()) == []


def test_a_group_that_only_the_negotiator_would_start_is_an_alarm_with_our_reason() -> None:
    (said,) = disagreements([group(resources=(), why_not={"dcgp": "too wide"})], says(jobs={"a": 3}))
    assert said == "dcgp: the negotiator would start 3 jobs of cmspil (cms, 8 cpus); by the query: too wide"


def test_more_jobs_than_all_schedds_together_count_is_an_alarm() -> None:
    (said,) = disagreements([group()], says(jobs={"a": 90}))
    assert said == "dcgp: 10 jobs of cmspil (cms, 8 cpus) wait by the query; the negotiator counts 90"
    assert disagreements([group(), group(idle=80)], says(jobs={"a": 90})) == []


def test_a_count_is_the_most_of_the_window(config: Config) -> None:
    memory = long_asked(config, a=((NOW - 170, 30), (NOW - 60, 20)))
    said, _ = read(config, view(config, Matches("<1>", 4, 10)), answers(waits("a", 40, {4: 40})), memory)
    assert said.answers["dcgp"].jobs == {"a": 30}


def test_refusals_are_taken_from_the_schedds_answers(config: Config) -> None:
    groups = answers(waits("a", 1, {1: 1}, refused=True), waits("b", 1, {2: 1}, refused=None), waits("c", 1, {3: 1}))
    assert read(config, view(config), groups, {})[0].refused == frozenset("a")


def test_a_track_of_another_ghost_begins_anew() -> None:
    track = Track("old", NOW - 5000, NOW - 1, {"a": ((NOW - 1, 5),)})
    assert ghost_view.follow(track, Ghost("dcgp", "new", NOW, 0), {}, ["a"], NOW, WINDOW_S) == Track(
        "new", NOW, NOW, {}
    )
