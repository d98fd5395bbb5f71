"""What waits in one schedd, from its answers: scripted ones, and those of a queue that moves between the questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import classad2
import htcondor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htcebridge.tier1 import query_demand


def ad(text: str) -> Any:
    return classad2.ClassAd(text)


# --------------------------------------------------------------------------- a job as text


def test_equal_jobs_are_equal_text_whatever_the_order_of_their_attributes() -> None:
    row = '[ JobStatus = 1; Owner = "cmspil"; BatchRuntime = 7200; JobCount = 3; JobIds = "1.0"; AutoClusterId = 4 ]'
    turned = '[ AutoClusterId = 9; JobIds = "7.0"; JobCount = 9; BatchRuntime = 7200; Owner = "cmspil"; JobStatus = 2 ]'
    cluster = '[ RequestCpus = 8; RequestMemory = 2000 * 8; Requirements = (TARGET.Arch == "X86_64") ]'
    turned_cluster = (
        '[ Id = 9; JobIds = "7.0"; Requirements = (TARGET.Arch == "X86_64"); '
        "RequestMemory = 2000 * 8; RequestCpus = 8 ]"
    )
    text = query_demand.job_part(ad(row), ad(cluster))
    assert text == query_demand.job_part(ad(turned), ad(turned_cluster))
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
    changed[name] = classad2.ExprTree(other)
    assert query_demand.job_part(ad("[ ]"), job) != query_demand.job_part(ad("[ ]"), changed)


def test_strings_with_quotes_survive_the_way_through_text() -> None:
    row = ad(r'[ Owner = "a\"b\\c; d = 1 ]" ]')
    assert ad(query_demand.job_part(row, ad("[ ]")))["Owner"] == 'a"b\\c; d = 1 ]'


@pytest.mark.parametrize(
    ("ids", "jobs"), [("1.0", [(1, 0)]), ("12.3 ... 14.39999", [(12, 3), (14, 39999)]), ("", []), ("none", [])]
)
def test_a_row_names_its_first_and_its_last_job(ids: str, jobs: list[tuple[int, int]]) -> None:
    assert query_demand._listed_jobs(ad(f'[ JobIds = "{ids}" ]')) == jobs


# --------------------------------------------------------------------------- scripted answers


class AskedSchedd:
    """A schedd with scripted answers, one list of ads for each question of a kind."""

    questions: ClassVar[list[tuple[str, str, list[str]]]] = []
    answers: ClassVar[dict[str, list[list[str]]]] = {}

    def __init__(self, location: object) -> None:
        pass

    def query(self, constraint: str, projection: list[str], opts: object = None, limit: int = -1) -> list[object]:
        kind = "AnyJob" if projection == ["AutoClusterAttrs"] else str(getattr(opts, "name", "Default"))
        if kind != "AnyJob":
            AskedSchedd.questions.append((kind, constraint, projection))
        answers = AskedSchedd.answers[kind]
        return [ad(text) for text in (answers.pop(0) if len(answers) > 1 else answers[0])]


CLUSTERS = ["[ AutoClusterId = 1; RequestCpus = 8 ]", "[ AutoClusterId = 2; RequestCpus = 1 ]"]


def row(**attributes: object) -> str:
    pairs = {"JobStatus": 1, "AutoClusterId": 1, "Owner": '"a"', "OpportunisticVO": '"cms"', **attributes}
    return "[ " + " ".join(f"{name} = {value};" for name, value in pairs.items() if value is not None) + " ]"


def ask_schedd(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[list[str]]], **request: object) -> dict:
    """What `answer_demand` makes of a schedd's answers (GroupBy, AutoCluster, Default)."""
    monkeypatch.setattr(htcondor2, "Schedd", AskedSchedd)
    AskedSchedd.questions, AskedSchedd.answers = (
        [],
        {"AutoCluster": [CLUSTERS], "Default": [[]], "AnyJob": [[]], **answers},
    )
    fixed = {"address": "<1>", "version": "$CondorVersion: 25.14.1 2026-10-16 $", "attribute": "OpportunisticSite"}
    fixed |= {"value": "leonardo", "vo_attribute": "OpportunisticVO", "walltime": ["BatchRuntime"]}
    return query_demand.answer_demand({**fixed, "known": {}, **request})


def kinds() -> list[str]:
    return [kind for kind, _, _ in AskedSchedd.questions]


IDLE_ROW = row(JobCount=5, JobIds='"3.0 ... 3.4"')
RUNNING_ROW = row(JobStatus=2, JobCount=2, JobIds='"2.0 ... 2.1"')


def test_a_schedd_walks_its_jobs_once_where_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW, RUNNING_ROW]]}, known={"3.0": 77, "1.0": 5})
    assert kinds() == ["AutoCluster", "GroupBy", "AutoCluster"]
    (group,) = answer["groups"]
    assert (group["idle"], group["running"], group["oldest_qdate"], group["autoclusters"]) == (5, 2, 77, {1: 5})
    assert answer["qdates"] == {"3.0": 77}, "what is remembered is no larger than the groups of this answer"


def test_a_row_that_the_schedd_sends_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = row(AutoClusterId=2, JobCount=3, JobIds='"4.0 ... 4.2"')
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW, other, IDLE_ROW]]}, known={"3.0": 77, "4.0": 78})
    assert sorted(group["idle"] for group in answer["groups"]) == [3, 5]
    nameless = row(JobCount=1)
    answer = ask_schedd(monkeypatch, {"GroupBy": [[nameless, nameless]]})
    assert [group["idle"] for group in answer["groups"]] == [2], "without ids nobody can tell"


def test_one_more_question_is_about_the_unknown_first_jobs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    new = row(AutoClusterId=2, JobCount=1, JobIds='"9.1"')
    answers = {"GroupBy": [[IDLE_ROW, new]], "Default": [["[ ClusterId = 9; ProcId = 1; QDate = 99 ]"]]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 77})
    assert AskedSchedd.questions[3:] == [
        ("Default", "(ClusterId == 9 && (ProcId == 1))", ["ClusterId", "ProcId", "QDate"])
    ]
    assert answer["qdates"] == {"3.0": 77, "9.1": 99}
    assert sorted(group["oldest_qdate"] for group in answer["groups"]) == [77, 99]


def test_a_first_job_that_is_gone_by_now_is_remembered_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW]]})
    assert answer["qdates"] == {}
    assert answer["groups"][0]["oldest_qdate"] is None


def test_an_autocluster_that_is_new_since_the_first_question_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {"AutoCluster": [["[ AutoClusterId = 7; RequestCpus = 8 ]"], CLUSTERS], "GroupBy": [[IDLE_ROW]]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 77})
    assert kinds() == ["AutoCluster", "GroupBy", "AutoCluster"], "the jobs are counted once"
    assert answer["groups"][0]["idle"] == 5
    assert "RequestCpus = 8" in answer["groups"][0]["ad"]


def test_an_autocluster_that_is_another_one_by_now_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers begin at 1 again where a new startd refers to an attribute that none did before."""
    asked = ["[ JobStatus = 1; AutoClusterId = 2; ClusterId = 3; ProcId = 0; RequestCpus = 8; JobCount = 1 ]"]
    clusters = [["[ AutoClusterId = 1; RequestCpus = 64 ]"], ["[ AutoClusterId = 1; RequestCpus = 8 ]"]] * 2
    answers = {"AutoCluster": clusters, "GroupBy": [[IDLE_ROW], [IDLE_ROW], asked]}
    answer = ask_schedd(monkeypatch, answers, known={"3.0": 77})
    (group,) = answer["groups"]
    assert group["idle"] == 5
    assert "RequestCpus = 8" in group["ad"]
    assert "(ClusterId == 3 && (ProcId == 0 || ProcId == 4))" in AskedSchedd.questions[-1][1]


def test_jobs_that_nobody_knows_any_more_are_a_group_that_fits_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask_schedd(
        monkeypatch, {"AutoCluster": [["[ AutoClusterId = 7 ]"]], "GroupBy": [[IDLE_ROW], [IDLE_ROW], []]}
    )
    (group,) = answer["groups"]
    assert (group["idle"], group["ad"]) == (5, "unreadable: left the queue")


@pytest.mark.parametrize(
    ("count", "parts"),
    [(3, {16: 3}), (2, {16: 2}), (9, {16: 9})],
)
def test_new_jobs_that_come_or_go_meanwhile_change_no_count(
    monkeypatch: pytest.MonkeyPatch, count: int, parts: dict[int, int]
) -> None:
    new = row(AutoClusterId=None, JobCount=count, JobIds='"8.0 ... 8.2"')
    asked = row(AutoClusterId=None, JobCount=3, JobIds='"8.0 ... 8.2"', RequestCpus=16)
    answer = ask_schedd(monkeypatch, {"GroupBy": [[IDLE_ROW, new], [asked]]}, known={"3.0": 1, "8.0": 2})
    found = {ad(group["ad"])["RequestCpus"]: group["idle"] for group in answer["groups"]}
    assert found == {8: 5, **parts}


@given(st.sets(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1), st.integers(1, 30), st.integers(0, 3))
def test_a_constraint_for_some_jobs_means_these_and_no_other(
    jobs: set[tuple[int, int]], cluster: int, proc: int
) -> None:
    constraint = classad2.ExprTree(query_demand._any_of(sorted(jobs)))
    assert constraint.eval(ad(f"[ ClusterId = {cluster}; ProcId = {proc} ]")) is ((cluster, proc) in jobs)


@given(whole=st.integers(0, 10**6), weights=st.lists(st.integers(1, 10**5), min_size=1, max_size=20))
def test_what_is_shared_out_adds_up(whole: int, weights: list[int]) -> None:
    parts = query_demand.in_proportion(whole, weights)
    assert sum(parts) == whole
    assert all(abs(part - whole * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))


def test_jobs_without_an_autocluster_are_counted_by_their_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    new = row(AutoClusterId=None, JobCount=3, JobIds='"8.0 ... 8.2"')
    asked = row(AutoClusterId=None, JobCount=3, JobIds='"8.0 ... 8.2"', RequestCpus=16)
    answer = ask_schedd(
        monkeypatch, {"GroupBy": [[IDLE_ROW, new], [asked]]}, known={"3.0": 1, "8.0": 2}, refused_since=0
    )
    assert kinds() == ["AutoCluster", "GroupBy", "AutoCluster", "GroupBy", "Default"]
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
    (kind, constraint, _) = AskedSchedd.questions[3]
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


# --------------------------------------------------------------------------- a queue that moves


class MovingQueue:
    """A schedd's queue, by HTCondor's rules for GroupBy and autoclusters. Before each question something happens."""

    def __init__(self, events: Iterable[Callable[[MovingQueue], None]] = (), signature: Sequence[str] = ()) -> None:
        self.jobs: dict[tuple[int, int], Any] = {}
        self.clusters: dict[str, int] = {}
        self.events = iter(events)
        self.signature = ("RequestCpus", "Requirements", *signature)
        self.seen: list[Counter[tuple[int, str]]] = []

    def submit(self, cpus: int, jobs: int, owner: str = "a", walltime: int | None = None) -> None:
        cluster = max((cluster for cluster, _ in self.jobs), default=0) + 1
        for proc in range(jobs):
            text = f"ClusterId = {cluster}; ProcId = {proc}; JobStatus = 1; QDate = {cluster}; RequestCpus = {cpus}"
            job = ad(f'[ {text}; Owner = "{owner}"; Site = "here"; Requirements = true ]')
            if walltime is not None:
                job["BatchRuntime"] = walltime
            self.jobs[cluster, proc] = job

    def negotiate(self) -> None:
        for job in self.jobs.values():
            if "AutoClusterId" not in job:
                signature = "; ".join(f"{name} = {job.lookup(name)}" for name in self.signature if name in job)
                job["AutoClusterId"] = self.clusters.setdefault(signature, len(self.clusters) + 1)
                job["AutoClusterAttrs"] = ",".join(self.signature)

    def renumber(self) -> None:
        self.clusters.clear()
        for job in self.jobs.values():
            job.pop("AutoClusterId", None)
        self.jobs = dict(reversed(self.jobs.items()))
        self.negotiate()

    def start(self, jobs: int) -> None:
        for job in [job for job in self.jobs.values() if job["JobStatus"] == 1][:jobs]:
            job["JobStatus"] = 2

    def remove(self, jobs: int) -> None:
        for id_ in sorted(self.jobs)[:jobs]:
            del self.jobs[id_]

    def counted(self) -> Counter[tuple[int, str]]:
        return Counter((job["JobStatus"], job["Owner"]) for job in self.jobs.values())

    def query(self, constraint: str, projection: list[str], opts: Any = None, limit: int = -1) -> list[Any]:
        next(self.events, lambda _: None)(self)
        if opts is htcondor2.QueryOpt.AutoCluster:
            return [ad(f"[ AutoClusterId = {number}; {text} ]") for text, number in self.clusters.items()]
        jobs = [job for job in self.jobs.values() if classad2.ExprTree(constraint).eval(job) is True]
        if opts is None:
            return [ad(str(job)) for job in jobs][: limit if limit > 0 else None]
        if "AutoClusterId =?=" not in constraint and "ClusterId ==" not in constraint:
            self.seen.append(self.counted())
        groups: dict[str, list[Any]] = {}
        for job in jobs:
            text = " ".join(f"{name} = {job.lookup(name)};" for name in projection if name in job)
            groups.setdefault(text, []).append(f"{job['ClusterId']}.{job['ProcId']}")
        rows = []
        for text, ids in groups.items():
            listed = ids[0] if len(ids) == 1 else f"{ids[0]} ... {ids[-1]}"
            row = ad(f'[ {text} JobCount = {len(ids)}; JobIds = "{listed}" ]')
            if classad2.ExprTree(constraint).eval(row) is True:
                rows.append(row)
        return rows


def ask_queue(monkeypatch: pytest.MonkeyPatch, queue: MovingQueue) -> list[dict[str, Any]]:
    monkeypatch.setattr(htcondor2, "Schedd", lambda _: queue)
    request = {"address": "<1>", "version": "x", "attribute": "Site", "value": "here", "vo_attribute": "VO"}
    asked = {**request, "walltime": ["BatchRuntime"], "known": {}}
    groups: list[dict[str, Any]] = json.loads(json.dumps(query_demand.answer_demand(asked)))["groups"]
    return groups


def totals(groups: list[dict[str, Any]]) -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    for group in groups:
        found[1, group["owner"]] += group["idle"]
        found[2, group["owner"]] += group["running"]
    return +found


EVENTS = st.one_of(
    st.builds(
        lambda *job: lambda queue: queue.submit(*job),
        st.sampled_from([1, 8, 64]),
        st.integers(1, 5),
        st.sampled_from("ab"),
        st.sampled_from([None, 60, 3600]),
    ),
    st.builds(lambda jobs: lambda queue: queue.start(jobs), st.integers(1, 5)),
    st.builds(lambda jobs: lambda queue: queue.remove(jobs), st.integers(1, 5)),
    st.just(MovingQueue.negotiate),
    st.just(MovingQueue.renumber),
    st.just(lambda queue: None),
)


# The walltime is part of the autocluster, or it is not.
SIGNATURES = st.sampled_from([(), ("BatchRuntime",)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(EVENTS, max_size=6), meanwhile=st.lists(EVENTS, max_size=8), signature=SIGNATURES)
def test_whatever_moves_between_the_questions_the_counts_are_those_of_one_moment(
    before: list[Callable[[MovingQueue], None]],
    meanwhile: list[Callable[[MovingQueue], None]],
    signature: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = MovingQueue(meanwhile, signature)
    for event in before:
        event(queue)
    groups = ask_queue(monkeypatch, queue)
    assert totals(groups) == queue.seen[-1]
    assert len(queue.seen) <= 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(EVENTS, max_size=8), signature=SIGNATURES)
def test_where_nothing_moves_each_shape_is_exact_and_the_jobs_are_walked_once(
    before: list[Callable[[MovingQueue], None]], signature: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = MovingQueue((), signature)
    for event in before:
        event(queue)
    found: Counter[tuple[Any, ...]] = Counter()
    for group in ask_queue(monkeypatch, queue):
        job = ad(group["ad"])
        what = (group["owner"], job["RequestCpus"], job.get("BatchRuntime"))
        found[1, *what] += group["idle"]
        found[2, *what] += group["running"]
    right = Counter((j["JobStatus"], j["Owner"], j["RequestCpus"], j.get("BatchRuntime")) for j in queue.jobs.values())
    assert +found == right
    assert len(queue.seen) == 1


def test_an_owner_who_forges_what_is_in_the_autocluster_hides_nobody_elses_walltime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = MovingQueue()
    queue.submit(8, 1, "a", 60)
    queue.submit(8, 1, "b", 3600)
    queue.negotiate()
    queue.jobs[1, 0]["AutoClusterAttrs"] = "BatchRuntime"
    groups = ask_queue(monkeypatch, queue)
    assert {group["owner"]: ad(group["ad"]).get("BatchRuntime") for group in groups}["b"] == 3600


@pytest.mark.parametrize("forged", ['"x"', "{ 1 }", "-7", "[ a = 1 ]", "1 / 0", "1.5"])
def test_an_owner_who_forges_an_autocluster_is_counted_by_what_the_job_asks(
    monkeypatch: pytest.MonkeyPatch, forged: str
) -> None:
    queue = MovingQueue()
    queue.submit(8, 1, "a")
    queue.submit(64, 1, "b")
    queue.negotiate()
    queue.jobs[1, 0]["AutoClusterId"] = classad2.ExprTree(forged)
    groups = ask_queue(monkeypatch, queue)
    assert sorted((group["owner"], ad(group["ad"])["RequestCpus"], group["idle"]) for group in groups) == [
        ("a", 8, 1),
        ("b", 64, 1),
    ]
