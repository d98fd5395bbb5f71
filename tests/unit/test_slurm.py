from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.errors import BridgeError, ConfigError, ExitCode, UnknownState
from htcebridge.slurm import (
    SQUEUE_FORMAT,
    Billing,
    Slurm,
    SlurmRefused,
    Submission,
    comment,
    format_minutes,
    parse_node_hours,
    parse_sbatch,
    parse_squeue,
    parse_time_limit,
)

Fake = Callable[..., Path]

# As squeue 24.11 prints %i|%A|%T|%r|%P|%q|%a|%V|%S|%e|%l|%N|%k with SLURM_TIME_FORMAT=%s, except where a test says so.
# slurmdbd keeps accounts in small letters, however they were written at submission.
PENDING_TASK = {
    "%i": "20_2",
    "%A": "21",
    "%T": "PENDING",
    "%r": "Priority",
    "%P": "dcgp_usr_prod",
    "%q": "qos_lowprio",
    "%a": "inf24_lhc_2",
    "%V": "1795365989",
    "%S": "N/A",
    "%e": "N/A",
    "%l": "12:00:00",
    "%N": "",
    "%k": "htcebridge:leonardo:dcgp:6b031c7a15c2",
}
RUNNING_TASK = {
    **PENDING_TASK,
    "%i": "13_1",
    "%A": "13",
    "%T": "RUNNING",
    "%r": "None",
    "%V": "1795366011",
    "%S": "1795366011",
    "%e": "1795395351",
    "%l": "8:09:00",
    "%N": "lrdn0002",
}


def squeue(*jobs: dict[str, str], **changes: str) -> str:
    """squeue's output for these jobs in the format that slurm.py asks for."""
    lines = []
    for job in jobs:
        line = SQUEUE_FORMAT
        for field, value in {**job, **{f"%{key}": value for key, value in changes.items()}}.items():
            line = line.replace(field, value)
        lines.append(line + "\n")
    return "".join(lines)


# --------------------------------------------------------------------------- squeue


def test_a_running_array_task_is_read_whole() -> None:
    (job,) = parse_squeue(squeue(RUNNING_TASK), "leonardo")
    assert (job.id, job.resource, job.plan_id) == ("13_1", "dcgp", "6b031c7a15c2")
    assert (job.state, job.reason, job.node) == ("RUNNING", "None", "lrdn0002")
    assert (job.partition, job.qos, job.account) == ("dcgp_usr_prod", "qos_lowprio", "inf24_lhc_2")
    assert (job.submitted, job.started, job.ends) == (1795366011, 1795366011, 1795395351)
    assert job.time_limit_s == 8 * 3600 + 9 * 60


def test_a_pending_tasks_estimates_are_not_taken_for_facts() -> None:
    (job,) = parse_squeue(squeue(PENDING_TASK, S="1795369589", e="1795370189"), "leonardo")
    assert (job.started, job.ends, job.submitted) == (None, None, 1795365989)


def test_times_that_slurm_does_not_know_are_none() -> None:
    (job,) = parse_squeue(squeue(PENDING_TASK, V="N/A"), "leonardo")
    assert (job.submitted, job.started, job.ends) == (None, None, None)


@pytest.mark.parametrize(
    "reason", ["BeginTime", "JobHeldUser", "PartitionTimeLimit", "QOSMaxJobsPerUserLimit", "Resources", "SomethingNew"]
)
def test_a_pending_reason_is_kept_in_slurms_words(reason: str) -> None:
    (job,) = parse_squeue(squeue(PENDING_TASK, r=reason), "leonardo")
    assert job.reason == reason


def test_a_state_of_a_later_slurm_is_kept_as_it_is() -> None:
    (job,) = parse_squeue(squeue(RUNNING_TASK, T="HIBERNATING"), "leonardo")
    assert job.state == "HIBERNATING"


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
    ],
)
def test_jobs_with_other_comments_are_others(theirs: str) -> None:
    jobs = parse_squeue(squeue(PENDING_TASK, k=theirs) + squeue(RUNNING_TASK), "leonardo")
    assert [job.id for job in jobs] == ["13_1"]


def test_another_jobs_comment_with_a_line_break_hides_nothing() -> None:
    # sbatch --comment $'two\nlines' is accepted, and squeue prints it so (24.11).
    output = squeue(PENDING_TASK, k="two\nlines") + squeue(RUNNING_TASK)
    assert [job.id for job in parse_squeue(output, "leonardo")] == ["13_1"]


def test_an_empty_queue_is_no_jobs() -> None:
    assert parse_squeue("", "leonardo") == []


def test_ten_thousand_lines_are_read_at_once() -> None:
    output = "".join(squeue(RUNNING_TASK, i=f"13_{number}") for number in range(10_000))
    started = time.process_time()
    jobs = parse_squeue(output, "leonardo")
    assert time.process_time() - started < 2
    assert [jobs[0].id, jobs[-1].id, len(jobs)] == ["13_0", "13_9999", 10_000]


@pytest.mark.parametrize(
    "foreign",
    [
        "Welcome to Leonardo, your budget is 95% used\n",
        "JOBID|STATE\n",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        "\n",
        '{"errors": [], "jobs": []}\n',
        "CLUSTER: leonardo\n",
        "a|b|c|d|e|f|g|h|i|j|k|l|m\n",
    ],
)
def test_a_line_that_squeue_did_not_print_makes_all_unknown(foreign: str) -> None:
    for output in (foreign, foreign + squeue(RUNNING_TASK)):
        with pytest.raises(UnknownState) as error:
            parse_squeue(output, "leonardo")
        assert foreign.strip()[:20] in str(error.value)


def test_output_cut_short_is_unknown_wherever_it_is_cut() -> None:
    whole = squeue(RUNNING_TASK, PENDING_TASK)
    first = len(squeue(RUNNING_TASK))
    for end in range(first + 1, len(whole) - 1):
        with pytest.raises(UnknownState):
            parse_squeue(whole[:end], "leonardo")


@given(st.text(max_size=200))
def test_any_output_is_jobs_or_unknown(output: str) -> None:
    try:
        jobs = parse_squeue(output, "leonardo")
    except UnknownState:
        return
    assert jobs == []


@given(*[st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True) for _ in range(3)])
def test_a_comment_that_was_written_is_found_again(instance: str, resource: str, plan_id: str) -> None:
    (job,) = parse_squeue(squeue(PENDING_TASK, k=comment(instance, resource, plan_id)), instance)
    assert (job.resource, job.plan_id) == (resource, plan_id)


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


# --------------------------------------------------------------------------- sbatch


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


# --------------------------------------------------------------------------- sacct

AS = Billing(job_name="GP_CMS_CVMFS_STARTD", account="INF24_lhc_2", partition="dcgp_usr_prod", qos="qos_lowprio")


def test_node_hours_of_ended_pilots_add_up() -> None:
    # The first three as sacct 24.11 prints them; a preempted pilot used its hours too.
    output = (
        "5400|1|PREEMPTED|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|htcebridge:leonardo:dcgp:6b03\n"
        "1800|2|COMPLETED|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|htcebridge:leonardo:dcgp:6b04\n"
        "37|1|RUNNING|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|\n"
        "0|0|CANCELLED by 30001|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|htcebridge:leonardo:dcgp:6\n"
    )
    assert parse_node_hours(output, "leonardo", "dcgp", AS) == pytest.approx(2.5)


def test_node_hours_of_other_resources_and_controllers_are_not_counted() -> None:
    line = "3600|1|COMPLETED|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|{}\n"
    for theirs in ("htcebridge:leonardo:booster:1", "htcebridge:marconi:dcgp:1", "somebody's own"):
        assert parse_node_hours(line.format(theirs), "leonardo", "dcgp", AS) == 0


def test_a_job_without_a_comment_counts_if_it_looks_like_ours() -> None:
    # As sacct prints it where slurmdbd keeps no comments: the account in small letters.
    ours = "3600|1|COMPLETED|GP_CMS_CVMFS_STARTD|inf24_lhc_2|dcgp_usr_prod|qos_lowprio|\n"
    assert parse_node_hours(ours, "leonardo", "dcgp", AS) == 1
    for theirs in (
        ours.replace("GP_CMS_CVMFS_STARTD", "other"),
        ours.replace("inf24_lhc_2", "paying"),
        ours.replace("dcgp_usr_prod", "boost_usr_prod"),
        ours.replace("qos_lowprio", "normal"),
    ):
        assert parse_node_hours(theirs, "leonardo", "dcgp", AS) == 0


@pytest.mark.parametrize("foreign", ["Welcome\n", "12|x|DONE|a|b|c|d|e\n", "12|1|COMPLETED\n", "\n"])
def test_a_line_that_sacct_did_not_print_makes_the_budget_unknown(foreign: str) -> None:
    with pytest.raises(UnknownState, match="sacct printed a line"):
        parse_node_hours(foreign, "leonardo", "dcgp", AS)


def test_no_jobs_are_no_node_hours() -> None:
    assert parse_node_hours("", "leonardo", "dcgp", AS) == 0


# --------------------------------------------------------------------------- the commands themselves

SUBMISSION = Submission(script="#!/bin/bash\nexit 0\n", count=3, resource="dcgp", plan_id="6b03", time_min_s=14941)


def test_squeue_is_asked_for_our_format_alone(fake_command: Fake) -> None:
    seen = fake_command("squeue", stdout=squeue(RUNNING_TASK))
    assert [job.id for job in Slurm("leonardo").jobs()] == ["13_1"]
    arguments = (seen / "squeue.args").read_text().splitlines()
    assert SQUEUE_FORMAT in arguments
    assert {"--me", "-r"} <= set(arguments)


def test_one_sbatch_submits_an_array_with_comment_script_and_time_min(fake_command: Fake) -> None:
    seen = fake_command("sbatch", stdout="4711;leonardo\n")
    assert Slurm("leonardo").submit(SUBMISSION) == "4711"
    arguments = (seen / "sbatch.args").read_text().splitlines()
    assert arguments == ["--parsable", "--array=1-3", "--comment=htcebridge:leonardo:dcgp:6b03", "--time-min=250"]
    assert (seen / "sbatch.stdin").read_text() == SUBMISSION.script


def test_only_pending_pilots_can_be_cancelled(fake_command: Fake) -> None:
    seen = fake_command("scancel")
    Slurm("leonardo").cancel_pending(["12_1", "12_2"])
    assert (seen / "scancel.args").read_text().splitlines() == ["--state=PENDING", "12_1", "12_2"]


def test_cancelling_nothing_calls_nothing(fake_command: Fake) -> None:
    seen = fake_command("scancel")
    Slurm("leonardo").cancel_pending([])
    assert not (seen / "scancel.args").exists()


OUTAGES = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "slurm_load_jobs error: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    "slurm_load_jobs error: Rate limit exceeded, please retry",
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:hpcctl:6819: "
    "Connection refused",
    'squeue: error: Unable to resolve "hpcctl": Unknown host',
]
REFUSALS = [
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
    "sbatch: error: invalid partition specified: nope\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified",
    "sbatch: error: Batch job submission failed: Invalid qos specification",
    "sbatch: error: CPU count per node can not be satisfied\n"
    "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)",
]


@pytest.mark.parametrize("stderr", OUTAGES)
def test_an_outage_is_unknown_and_says_what_slurm_said(fake_command: Fake, stderr: str) -> None:
    for name, call in (
        ("squeue", Slurm("leonardo").jobs),
        ("sbatch", lambda: Slurm("leonardo").submit(SUBMISSION)),
        ("scancel", lambda: Slurm("leonardo").cancel_pending(["1"])),
        ("sacct", lambda: Slurm("leonardo").node_hours("dcgp", AS, None)),
    ):
        fake_command(name, stderr=stderr + "\n", code=1)
        with pytest.raises(UnknownState) as error:
            call()
        assert error.value.exit_code == ExitCode.TEMPFAIL
        assert str(error.value).startswith(f"{name} failed (exit code 1): ")
        assert " ".join(stderr.split()) in str(error.value)


@pytest.mark.parametrize("stderr", REFUSALS)
def test_a_refusal_is_no_outage_and_keeps_slurms_words(fake_command: Fake, stderr: str) -> None:
    fake_command("sbatch", stderr=stderr + "\n", code=1)
    with pytest.raises(SlurmRefused) as error:
        Slurm("leonardo").submit(SUBMISSION)
    assert error.value.exit_code == ExitCode.PROBLEM
    assert stderr.splitlines()[-1] in str(error.value)


def test_a_failing_squeue_is_never_an_empty_queue(fake_command: Fake) -> None:
    for code, stderr in ((1, ""), (127, "squeue: error while loading shared libraries"), (139, "")):
        fake_command("squeue", stderr=stderr, code=code)
        with pytest.raises(BridgeError):
            Slurm("leonardo").jobs()


def test_a_squeue_that_is_refused_holds_the_cycle_like_one_that_is_silent(fake_command: Fake) -> None:
    # What squeue refuses is unknown all the same: only UnknownState holds a cycle.
    fake_command("squeue", stderr="squeue: error: something never seen before\n", code=1)
    with pytest.raises(UnknownState, match="something never seen before"):
        Slurm("leonardo").jobs()


@pytest.mark.parametrize("name", ["squeue", "sbatch", "scancel", "sacct"])
def test_a_missing_command_is_named_with_where_it_belongs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = Slurm("leonardo")
    call = {
        "squeue": slurm.jobs,
        "sbatch": lambda: slurm.submit(SUBMISSION),
        "scancel": lambda: slurm.cancel_pending(["1"]),
        "sacct": lambda: slurm.node_hours("dcgp", AS, None),
    }[name]
    with pytest.raises(ConfigError, match=f"^{name}: not on PATH; .*edge node"):
        call()


def test_a_command_that_cannot_be_executed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^squeue: "):
        Slurm("leonardo").jobs()


@pytest.mark.parametrize("name", ["squeue", "sbatch"])
def test_a_command_that_hangs_is_unknown_after_its_timeout(fake_command: Fake, name: str) -> None:
    fake_command(name, first="exec sleep 60")
    slurm = Slurm("leonardo", timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(UnknownState, match=rf"^{name}: no answer from Slurm in 0\.3 s"):
        slurm.jobs() if name == "squeue" else slurm.submit(SUBMISSION)
    assert time.monotonic() - started < 10


def test_a_comment_that_is_not_utf8_breaks_nothing(fake_command: Fake) -> None:
    fake_command("squeue", stdout=squeue(PENDING_TASK, k="caf\x01").encode().replace(b"\x01", b"\xe9"))
    assert Slurm("leonardo").jobs() == []


def test_the_environment_is_scrubbed(fake_command: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "paying")
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_EXIT_ERROR", "0")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SACCT_FORMAT", "jobid")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("LC_ALL", "it_IT.UTF-8")
    monkeypatch.setenv("LANGUAGE", "it")
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("SLURM_CONF", "/etc/elsewhere/slurm.conf")
    seen = fake_command("sbatch", stdout="1\n")
    Slurm("leonardo").submit(SUBMISSION)
    passed = dict(line.split("=", 1) for line in (seen / "sbatch.env").read_text().splitlines() if "=" in line)
    slurm_variables = {key for key in passed if key.startswith(("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_"))}
    assert slurm_variables == {"SLURM_CONF", "SLURM_TIME_FORMAT"}
    assert passed["SLURM_CONF"] == "/etc/elsewhere/slurm.conf"
    assert (passed["LC_ALL"], passed["SLURM_TIME_FORMAT"]) == ("C", "%s")
    assert passed["HOME"] == os.environ["HOME"]
    assert not {"MY_TOKEN", "LANGUAGE"} & set(passed)


def test_sbatch_keeps_the_lock_while_it_runs(fake_command: Fake, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The fake tries to take the lock through the descriptor that it inherited: only the same open file allows it.
        fake_command("sbatch", stdout="1\n", first=f"flock -n {lock.fileno()} || exit 7")
        assert Slurm("leonardo").submit(SUBMISSION, lock) == "1"
        with pytest.raises(SlurmRefused, match="exit code 7"):
            Slurm("leonardo").submit(SUBMISSION)


def test_a_script_of_any_size_reaches_sbatch(fake_command: Fake) -> None:
    seen = fake_command("sbatch", stdout="1\n")
    script = "#!/bin/bash\n" + "# filler\n" * 50_000
    Slurm("leonardo").submit(Submission(script, 1, "dcgp", "p"))
    assert (seen / "sbatch.stdin").stat().st_size == len(script)


def test_without_time_min_the_scripts_own_stands(fake_command: Fake) -> None:
    seen = fake_command("sbatch", stdout="1\n")
    Slurm("leonardo").submit(Submission("#!/bin/bash\n", 1, "dcgp", "p"))
    assert "--time-min" not in (seen / "sbatch.args").read_text()
