"""What squeue, sacct and sbatch print, on the real outputs of Slurm 22.05, 24.11 and 26.05 and on everything else."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import UnknownState
from htcebridge.model import SlurmJob
from htcebridge.slurm.answers import classify
from htcebridge.slurm.states import Stage, stage_of
from htcebridge.slurm.text import (
    QUEUE_FORMAT,
    QUEUE_HEADER,
    Answer,
    Ended,
    Queue,
    Submitted,
    comment,
    expand_ids,
    format_minutes,
    parse_ended,
    parse_queue,
    parse_sbatch,
    parse_submitted,
    parse_time_limit,
)
from htcebridge.slurm.waits import is_known, wait_of

OUTPUTS = Path(__file__).parents[2] / "slurm_outputs"
VERSIONS = ("22.05", "24.11", "26.05")
LEO, LEO2 = 30001, 30002
HEADER = QUEUE_HEADER + "|;\n"
RUNNING = {
    "%i": "13_1",
    "%T": "RUNNING",
    "%P": "dcgp_usr_prod",
    "%q": "qos_lowprio",
    "%a": "inf24_lhc_2",
    "%U": "30001",
    "%V": "1795366011",
    "%S": "1795366012",
    "%e": "1795395351",
    "%l": "8:09:00",
    "%N": "lrdn0002",
    "%D": "1",
    "%r": "None",
    "%k": "htcebridge:leonardo:dcgp:6b031c7a15c2",
}
PENDING = {**RUNNING, "%i": "20_2", "%T": "PENDING", "%S": "N/A", "%e": "N/A", "%N": "", "%r": "Priority"}


def line(job: dict[str, str], **changes: str) -> str:
    """A line of squeue's in the format that is asked for."""
    fields = {**job, **{f"%{key}": value for key, value in changes.items()}}
    return re.sub(r"%\w", lambda match: fields[match[0]], QUEUE_FORMAT) + "\n"


def queue(*lines: str) -> Queue:
    return parse_queue(HEADER + "".join(lines), "leonardo", LEO)


def real(version: str, name: str) -> str:
    return (OUTPUTS / version / name).read_text()


def real_queue(version: str, name: str) -> dict[str, SlurmJob]:
    return {job.id: job for job in parse_queue(real(version, name), "leonardo", LEO).ours}


def scenes(version: str) -> dict[str, str]:
    """Scene -> the id of its (first) job."""
    lines = [entry.split() for entry in real(version, "jobs.txt").splitlines()]
    return {scene: id_ for id_, scene in reversed(lines)}


def blocks(text: str) -> list[tuple[str, int, str]]:
    """(name, exit code, what the command said) of a captured file."""
    found = re.findall(r"^### (\S+) (-?\d+)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    return [(name, int(code), said) for name, code, said in found]


# --------------------------------------------------------------------------- squeue, as it really is


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["squeue_queue.txt", "squeue_ended.txt"])
def test_every_line_of_a_real_squeue_is_a_job(version: str, name: str) -> None:
    text = real(version, name)
    ids = [entry.split("|")[0] for entry in text.splitlines()[1:]]
    jobs = real_queue(version, name)
    # But the rests of cancelled arrays, which squeue lists under the array's own id.
    left_out = {id_ for id_ in ids if id_ not in jobs}
    waiting = {id_ for id_ in left_out if re.search(rf"^{id_}\|(CANCELLED|DEADLINE)\|.*\|\|1\|", text, re.MULTILINE)}
    assert left_out == waiting
    assert len(jobs) >= 20


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_queue_shows_what_runs_and_what_waits(version: str) -> None:
    jobs, by_name = real_queue(version, "squeue_queue.txt"), scenes(version)
    running = jobs[by_name["preempted"]]
    assert (running.state, running.node, running.reason) == ("RUNNING", "lrdn0001", "None")
    assert (running.partition, running.qos, running.account) == ("dcgp_usr_prod", "qos_lowprio", "inf24_lhc_2")
    assert running.plan_id == "preempted"
    assert running.started is not None
    assert running.submitted is not None
    assert running.ends is not None
    assert running.submitted <= running.started < running.ends
    assert running.time_limit_s == 20 * 60
    array = by_name["array_apart"]
    assert [job.id for job in jobs.values() if job.plan_id == "array_apart" and job.state == "PENDING"] == [
        f"{array}_{task}" for task in (3, 7, 10, 11, 12)
    ]
    assert all(jobs[f"{array}_{task}"].started is None for task in (3, 7, 10, 11, 12))
    assert jobs[by_name["requeued_held"]].reason == "job requeued in held state"
    assert jobs[by_name["suspended"]].state == "SUSPENDED"
    assert jobs[by_name["normal"]].qos == "normal"


@pytest.mark.parametrize("version", VERSIONS)
def test_slurms_estimate_of_a_start_is_read(version: str) -> None:
    pending = [job for job in real_queue(version, "squeue_ended.txt").values() if job.state == "PENDING"]
    pending += [job for job in real_queue(version, "squeue_queue.txt").values() if job.state == "PENDING"]
    estimates = [job for job in pending if job.starts is not None]
    assert estimates
    assert all(job.starts > job.submitted for job in estimates if job.starts and job.submitted)
    assert any(job.starts is None for job in pending)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_job_that_ended_while_it_waited_never_started(version: str) -> None:
    jobs, array = real_queue(version, "squeue_ended.txt"), scenes(version)["array_never_started"]
    assert jobs[f"{array}_3"].state == "CANCELLED"
    assert jobs[f"{array}_3"].started is None
    assert jobs[f"{array}_3"].ends is not None
    assert f"{array}_2" not in jobs  # cancelled alone while it waited: nobody ever hears of it again


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_queue_is_no_jobs(version: str) -> None:
    assert parse_queue(real(version, "squeue_empty.txt"), "leonardo", LEO) == Queue((), ())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_queue_cut_anywhere_within_a_line_is_unknown(version: str) -> None:
    text = real(version, "squeue_queue.txt")
    for end in range(len(text)):
        if end and text[:end].endswith("|;\n"):
            continue  # cut between two lines: the command's exit code tells, see test_slurm
        with pytest.raises(UnknownState):
            parse_queue(text[:end], "leonardo", LEO)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reason_that_was_provoked_is_read_and_understood(version: str) -> None:
    known = dict(entry.split() for entry in (OUTPUTS / "reasons.txt").read_text().splitlines())
    jobs = parse_queue(HEADER + real(version, "squeue_reasons.txt"), "leonardo", LEO).ours
    seen = set()
    for job in jobs:
        assert job.state == "PENDING"
        assert is_known(job.reason), job.reason
        if job.reason in known:
            assert wait_of(job.reason, job.state) == known[job.reason]
            seen.add(job.reason)
    assert len(seen) >= 30


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["slurmctld_down.txt", "sbatch_refusals.txt", "slurmdbd_down.txt"])
def test_what_a_daemon_that_is_down_leaves_is_no_queue(version: str, name: str) -> None:
    for _, _, said in blocks(real(version, name)):
        with pytest.raises(UnknownState):
            parse_queue(said, "leonardo", LEO)


# --------------------------------------------------------------------------- squeue, as it might be


def test_jobs_of_others_are_listed_beside_ours() -> None:
    found = queue(
        line(RUNNING),
        line(RUNNING, i="30", k="(null)", q="normal", N="lrdn[0001-0004]", D="4"),
        line(PENDING, i="31_4", k="htcebridge:marconi:dcgp:1", D="1K"),
        line(RUNNING, i="32", T="COMPLETED"),
        line(RUNNING, i="33", T="COMPLETED", k=""),
        line(RUNNING, i="34", T="COMPLETING", k=""),
    )
    assert [job.id for job in found.ours] == ["13_1", "32"]
    assert [(job.id, job.qos, job.state, job.nodes) for job in found.others] == [
        ("30", "normal", "RUNNING", 4),
        ("31_4", "qos_lowprio", "PENDING", None),
        ("34", "qos_lowprio", "COMPLETING", 1),
    ]


def test_another_users_instance_of_the_same_name_is_not_ours() -> None:
    found = queue(line(RUNNING, U=str(LEO2)))
    assert found.ours == ()
    assert [(job.id, job.user) for job in found.others] == [("13_1", LEO2)]


@pytest.mark.parametrize(
    "theirs",
    [
        "(null)",
        "",
        "utest:leonardo:dcgp:aa|b",
        "a|b|c|d|e|f|g|h|i|j|k|l|m|n|o",
        "htcebridge:marconi:dcgp:1",
        "htcebridge:leonardo2:dcgp:1",
        "htcebridge:leonardo:dcgp",
        "htcebridge:leonardo:dcgp:1:2",
        "not-htcebridge:leonardo:dcgp:1",
        "see htcebridge:leonardo:dcgp:1",
        "two\nlines",  # sbatch takes it, and squeue prints it so (24.11)
    ],
)
def test_jobs_with_other_comments_are_others(theirs: str) -> None:
    found = queue(line(PENDING, k=theirs), line(RUNNING))
    assert [job.id for job in found.ours] == ["13_1"]
    assert [job.id for job in found.others] == ["20_2"]


def test_a_reason_with_a_separator_hides_no_pilot() -> None:
    (job,) = queue(line(PENDING, r="burst_buffer/lua: a|b: failed")).ours
    assert (job.reason, job.plan_id) == ("burst_buffer/lua: a|b: failed", "6b031c7a15c2")


def test_a_state_of_a_later_slurm_is_kept_as_it_is() -> None:
    assert [job.state for job in queue(line(RUNNING, T="HIBERNATING")).ours] == ["HIBERNATING"]


def test_what_is_left_of_a_cancelled_array_is_no_pilot() -> None:
    assert queue(line(PENDING, i="20", T="CANCELLED")) == Queue((), ())


@pytest.mark.parametrize(
    "foreign",
    [
        "Welcome to Leonardo, your budget is 95% used\n",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        "\n",
        '{"errors": [], "jobs": []}\n',
        "CLUSTER: leonardo\n",
        "1|2|3|4|5|6|7|8|9|10|11|12|13|14|;\n",
        line(RUNNING, i="x"),
        line(RUNNING, U="leo"),
        line(RUNNING, D="many"),
        line(RUNNING, T="not a state"),
        HEADER,
    ],
)
def test_a_line_that_squeue_did_not_print_makes_all_unknown(foreign: str) -> None:
    for output in (
        foreign + HEADER,
        HEADER + foreign,
        HEADER + foreign + line(RUNNING),
        HEADER + line(RUNNING) + foreign,
    ):
        with pytest.raises(UnknownState):
            parse_queue(output, "leonardo", LEO)


@pytest.mark.parametrize("output", ["", "\n", line(RUNNING)])
def test_a_queue_without_its_header_is_unknown_and_not_empty(output: str) -> None:
    with pytest.raises(UnknownState, match="its own header"):
        parse_queue(output, "leonardo", LEO)


def test_ten_thousand_lines_are_read_at_once() -> None:
    lines = [line(RUNNING, i=f"13_{number}") for number in range(10_000)]
    started = time.process_time()
    jobs = queue(*lines).ours
    assert time.process_time() - started < 2
    assert [jobs[0].id, jobs[-1].id, len(jobs)] == ["13_0", "13_9999", 10_000]


@given(st.integers(1, 40), st.integers(min_value=0))
def test_a_queue_cut_anywhere_is_unknown_or_ends_with_a_whole_line(length: int, cut: int) -> None:
    lines = [HEADER, *(line(PENDING, i=f"7_{number}") for number in range(length))]
    text = "".join(lines)
    end = cut % len(text)
    if text[:end] and text[:end].endswith("|;\n"):
        assert len(queue(*lines[1:]).ours) == length
    else:
        with pytest.raises(UnknownState):
            parse_queue(text[:end], "leonardo", LEO)


@given(st.text(max_size=200))
def test_any_output_is_unknown(output: str) -> None:
    with pytest.raises(UnknownState):
        parse_queue(output, "leonardo", LEO)


@given(*[st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True) for _ in range(3)])
def test_a_comment_that_was_written_is_found_again(instance: str, resource: str, plan_id: str) -> None:
    text = HEADER + line(PENDING, k=comment(instance, resource, plan_id))
    (job,) = parse_queue(text, instance, LEO).ours
    assert (job.resource, job.plan_id) == (resource, plan_id)


def test_every_ended_state_that_was_provoked_counts_as_ended() -> None:
    states = {job.state for version in VERSIONS for job in real_queue(version, "squeue_ended.txt").values()}
    alive = {state for state in states if stage_of(state) is not Stage.ENDED}
    assert alive <= {"PENDING", "RUNNING", "SUSPENDED"}
    assert {"CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT"} <= states


# --------------------------------------------------------------------------- sacct


def real_ends(version: str) -> dict[str, Ended]:
    text = real(version, "sacct_ended.txt")
    ids = [id_ for entry in text.splitlines() for id_ in expand_ids(entry.split("|")[0])]
    by_id = {id_: scene for scene, id_ in scenes(version).items()}
    return {by_id.get(end.id, end.id): end for end in parse_ended(text, ids)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("scene", "state", "by", "code", "signal", "node"),
    [
        ("preempted", "PREEMPTED", None, 0, 0, "lrdn0001"),
        ("completed", "COMPLETED", None, 0, 0, "lrdn0003"),
        ("failed", "FAILED", None, 3, 0, "lrdn0003"),
        ("killed", "FAILED", None, 0, 9, "lrdn0003"),
        ("timeout", "TIMEOUT", None, 0, 0, "lrdn0003"),
        ("cancelled_by_leo", "CANCELLED", LEO, 0, 0, "lrdn0003"),
        ("cancelled_by_root", "CANCELLED", 0, 0, 0, "lrdn0003"),
    ],
)
def test_each_real_end_is_read_exactly(
    version: str, scene: str, state: str, by: int | None, code: int, signal: int, node: str
) -> None:
    end = real_ends(version)[scene]
    assert (end.state, end.cancelled_by, end.exit_code, end.signal, end.node) == (state, by, code, signal, node)
    assert end.started is not None
    assert end.submitted is not None
    assert end.submitted <= end.started < end.ended
    assert end.elapsed_s == end.ended - end.started == end.node_seconds


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_that_failed_is_named(version: str) -> None:
    end = real_ends(version)["node_failed"]
    assert (end.state, end.node, end.nodes) == ("NODE_FAIL", "lrdn1001", 1)


@pytest.mark.parametrize("version", ["24.11", "26.05"])
def test_a_job_whose_deadline_passed_while_it_waited_never_started(version: str) -> None:
    end = real_ends(version)["deadline"]
    assert (end.state, end.started, end.node, end.node_seconds) == ("DEADLINE", None, "", 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_tasks_that_never_started_have_one_end_each(version: str) -> None:
    ends, by_name = real_ends(version), scenes(version)
    for task in (1, 3, 4, 5):
        end = ends[f"{by_name['array_never_started']}_{task}"]
        assert (end.state, end.cancelled_by, end.started, end.node) == ("CANCELLED", LEO, None, "")
        assert end.node_seconds == 0
    assert f"{by_name['array_never_started']}_2" not in ends
    for task in (3, 7, 10, 11, 12):  # printed with its throttle: 30_[3,7,10-12%1]
        assert ends[f"{by_name['array_apart']}_{task}"].cancelled_by == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_without_an_end_are_left_out(version: str) -> None:
    ends = real_ends(version)
    assert not {"suspended", "requeued_held"} & set(ends)
    assert all(end.ended > 1_700_000_000 for end in ends.values())


def test_only_what_was_asked_for_is_answered() -> None:
    text = "2_1|COMPLETED|0:0|1|2|3|1|1|lrdn0001|None\n2_[1-6]|CANCELLED by 30001|0:0|1|None|3|0|0|None assigned|None\n"
    ends = {end.id: end for end in parse_ended(text, ["2_1", "2_5", "9_9"])}
    assert {id_: end.state for id_, end in ends.items()} == {"2_1": "COMPLETED", "2_5": "CANCELLED"}


def test_a_task_with_a_line_of_its_own_is_not_what_its_array_is() -> None:
    # 26.05 lists a running task in its array's line, too: 2_1|RUNNING and 2_[1-6]|PENDING.
    text = "2_[1-6]|CANCELLED by 1|0:0|1|None|3|0|0|None assigned|None\n2_1|RUNNING|0:0|1|2|Unknown|7|1|n|None\n"
    assert [end.id for end in parse_ended(text, ["2_1", "2_2"])] == ["2_2"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12+1", ["12+1"]),
        ("12_[3-5]", ["12_3", "12_4", "12_5"]),
        ("12_[3,7-8%2]", ["12_3", "12_7", "12_8"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
        ("12_[1,3-...]", []),
        ("12_[]", []),
        ("12_[a]", []),
        ("x", []),
        ("", []),
    ],
)
def test_ids_of_array_tasks_are_expanded(text: str, ids: list[str]) -> None:
    assert expand_ids(text) == ids


@pytest.mark.parametrize(
    "foreign",
    [
        "Welcome\n",
        "12|COMPLETED\n",
        "\n",
        "12_[1-...]|PENDING|0:0|1|2|3|0|0|n|None\n",
        "12|COMPLETED|0:0|1|2|3|x|1|n|None\n",
        "12|COMPLETED|0:0|1|2|3|1|x|n|None\n",
    ],
)
def test_a_line_that_sacct_did_not_print_makes_all_unknown(foreign: str) -> None:
    with pytest.raises(UnknownState, match="sacct printed a line"):
        parse_ended("12|COMPLETED|0:0|1|2|3|1|1|n|None\n" + foreign, ["12"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_sacct_cut_anywhere_within_its_fields_is_unknown_or_knows_fewer_ends(version: str) -> None:
    text, whole = real(version, "sacct_ended.txt"), real_ends(version)
    ids = [end.id for end in whole.values()]
    by_id = {end.id: end for end in whole.values()}
    for end in range(len(text)):
        try:
            found = parse_ended(text[:end], ids)
        except UnknownState:
            continue
        # The reason is the last field, and free text: it may be cut short, nothing else.
        for each in found:
            assert (each.state, each.ended, each.node_seconds) == (
                by_id[each.id].state,
                by_id[each.id].ended,
                by_id[each.id].node_seconds,
            )


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_ids_of_ended_jobs_are_in_slurmdbd_and_those_of_live_ones_are_not(version: str) -> None:
    by_name = scenes(version)
    found = {job.id: job for job in parse_submitted(real(version, "sacct_submitted.txt"), "leonardo")}
    assert found[by_name["completed"]].plan_id == "completed"
    assert found[by_name["suspended"]].plan_id is None
    assert found[by_name["completed"]].submitted == real_ends(version)["completed"].submitted


def test_somebody_elses_submissions_are_not_ours() -> None:
    text = "1|100|htcebridge:marconi:dcgp:x\n2|200|\n3|300|htcebridge:leonardo:dcgp:y\n4|400|hello|there\n"
    assert parse_submitted(text, "leonardo") == [Submitted("2", 200, None), Submitted("3", 300, "y")]
    with pytest.raises(UnknownState):
        parse_submitted("Welcome\n", "leonardo")


# --------------------------------------------------------------------------- sbatch

MEANINGS = {
    "no_such_account": Answer.CONFIG,
    "somebody_elses_account": Answer.CONFIG,
    "no_such_qos": Answer.CONFIG,
    "no_such_partition": Answer.CONFIG,
    "too_many_cpus": Answer.CONFIG,
    "too_much_memory": Answer.CONFIG,
    "no_such_gres": Answer.CONFIG,
    "gpu_where_is_none": Answer.CONFIG,
    "no_such_feature": Answer.CONFIG,
    "no_such_node_excluded": Answer.CONFIG,
    "all_nodes_excluded": Answer.CONFIG,
    "array_too_big": Answer.CONFIG,
    "time_min_above_time": Answer.CONFIG,
    "time_is_no_time": Answer.CONFIG,
    "no_such_reservation": Answer.CONFIG,
    "no_such_option": Answer.CONFIG,
    "no_such_script": Answer.CONFIG,
    "partition_drained": Answer.OUTAGE,
    "partition_inactive": Answer.OUTAGE,
    "walltime_above_partitions": Answer.CONFIG,
    "account_not_in_partition": Answer.CONFIG,
    "qos_not_in_partition": Answer.CONFIG,
    "group_not_in_partition": Answer.CONFIG,
    "submit_limit_of_qos_user": Answer.LIMIT,
    "submit_limit_of_qos_account": Answer.LIMIT,
    "submit_limit_of_qos": Answer.LIMIT,
    "submit_limit_of_user": Answer.LIMIT,
    "submit_limit_of_account": Answer.LIMIT,
    "walltime_denied_by_qos": Answer.CONFIG,
    "size_denied_by_qos": Answer.CONFIG,
    "slurmctld_down": Answer.OUTAGE,
    "slurmctld_hangs": Answer.UNKNOWN,
    "munge_down": Answer.OUTAGE,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_real_refusal_is_classed(version: str) -> None:
    found = {name: (code, said) for name, code, said in blocks(real(version, "sbatch_refusals.txt"))}
    assert set(found) == set(MEANINGS)
    assert all(code != 0 for code, _ in found.values())
    assert {name: classify(said) for name, (_, said) in found.items()} == MEANINGS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_slurmctld_that_is_down_is_an_outage_for_every_command(version: str) -> None:
    for _, code, said in blocks(real(version, "slurmctld_down.txt")):
        assert code != 0
        assert classify(said) is Answer.OUTAGE


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Answer.UNKNOWN),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", Answer.UNKNOWN),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (receive failure)",
            Answer.UNKNOWN,
        ),
        ("", Answer.UNKNOWN),
        (" \n", Answer.UNKNOWN),
        ("sbatch: error: Batch job submission failed: Rate limit exceeded, please retry momentarily", Answer.BACK_OFF),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", Answer.BACK_OFF),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", Answer.BACK_OFF),
        (
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            Answer.OUTAGE,
        ),
        (
            "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            Answer.UNKNOWN,
        ),
        ("sbatch: error: Batch job submission failed: I/O error writing script/environment to file", Answer.TRANSIENT),
        ("sbatch: error: something never seen before", Answer.TRANSIENT),
        ("Your project has ended, ask superc@example.org", Answer.TRANSIENT),
    ],
)
def test_what_could_not_be_provoked_is_classed_by_slurms_source(said: str, answer: Answer) -> None:
    assert classify(said) is answer


@given(st.text(min_size=1))
def test_an_unknown_text_is_never_fatal(said: str) -> None:
    assert classify(f"sbatch: error: {said}") in (Answer.TRANSIENT, Answer.UNKNOWN)


@pytest.mark.parametrize(
    ("output", "job_id"),
    [
        ("123\n", "123"),
        ("123", "123"),
        ("123;leonardo\n", "123"),
        ("your budget is nearly used up\n4711\n", "4711"),
        ("99 bottles\n4711;leonardo\n", "4711"),
    ],
)
def test_the_job_id_is_in_sbatchs_last_line(output: str, job_id: str) -> None:
    assert parse_sbatch(output) == job_id


@pytest.mark.parametrize("output", ["", "\n", "Submitted batch job 12\n", "12 34\n", "12\nbye\n", "12_1\n", "abc;x\n"])
def test_sbatch_without_a_job_id_is_an_unknown_outcome(output: str) -> None:
    with pytest.raises(UnknownState, match="sbatch printed no job id"):
        parse_sbatch(output)


# --------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10:00", 600),
        ("2:00", 120),
        ("8:09:00", 29340),
        ("3-01:00:00", 262800),
        ("1-00:00:00", 86400),
        ("0:30", 30),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_time_limits_as_slurm_writes_them(text: str, seconds: int | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize(("seconds", "minutes"), [(60, "1"), (61, "2"), (0, "0"), (43200, "720"), (43201, "721")])
def test_minutes_for_slurm_are_rounded_up(seconds: int, minutes: str) -> None:
    assert format_minutes(seconds) == minutes
