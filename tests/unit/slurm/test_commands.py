"""Slurm's commands: what they are asked, and what their failures mean. Their output is in test_slurm_text."""

from __future__ import annotations

import fcntl
import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.errors import BridgeError, ConfigError, ExitCode, UnknownState
from htcebridge.slurm.commands import (
    Billing,
    OutcomeUnknown,
    Slurm,
    SlurmRefused,
    Submission,
    parse_node_hours,
)
from htcebridge.slurm.levels import ASSOC_FIELDS, QOS_FIELDS
from htcebridge.slurm.text import ENDED_FIELDS, QUEUE_FORMAT, QUEUE_HEADER, Answer

Fake = Callable[..., Path]

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

ME = pwd.getpwuid(os.getuid()).pw_name
SUBMISSION = Submission(script="#!/bin/bash\nexit 0\n", count=3, resource="dcgp", plan_id="6b03", time_min_s=14941)
EMPTY = QUEUE_HEADER + "|;\n"


def arguments(seen: Path, name: str) -> list[str]:
    return (seen / f"{name}.args").read_text().splitlines()


def test_squeue_is_asked_once_for_this_user(fake_command: Fake) -> None:
    ours = f"13_1|RUNNING|p|q|a|{os.getuid()}|1|2|3|8:09:00|lrdn0002|1|None|htcebridge:leonardo:dcgp:6b03|;\n"
    seen = fake_command("squeue", stdout=EMPTY + ours)
    assert [job.id for job in Slurm("leonardo").queue().ours] == ["13_1"]
    assert arguments(seen, "squeue") == ["--me", "-r", "-t", "all", "-o", QUEUE_FORMAT]


def test_squeue_is_asked_once_for_whole_accounts_and_ours_are_told_by_user(fake_command: Fake) -> None:
    line = "13_1|RUNNING|p|q|a|{}|1|2|3|8:09:00|lrdn0002|1|None|htcebridge:leonardo:dcgp:6b03|;\n"
    uid = os.getuid()
    seen = fake_command("squeue", stdout=EMPTY + line.format(uid) + line.format(uid + 1).replace("13_1", "14_1"))
    queue = Slurm("leonardo").queue(accounts=("inf24_lhc_2", "paying"))
    assert [job.id for job in queue.ours] == ["13_1"]
    assert [(job.id, job.user) for job in queue.others] == [("14_1", uid + 1)]
    assert arguments(seen, "squeue") == ["--account=inf24_lhc_2,paying", "-r", "-t", "all", "-o", QUEUE_FORMAT]


def test_no_format_asks_slurm_for_every_jobs_details() -> None:
    assert "C" not in QUEUE_FORMAT  # squeue.c: show_flags |= SHOW_DETAIL


def test_one_sacct_asks_for_the_ends_of_many_pilots_by_their_arrays(fake_command: Fake) -> None:
    ends = "12_1|COMPLETED|0:0|1|2|3|1|1|n|None\n12_[3-5]|CANCELLED by 7|0:0|1|3|3|0|0|None assigned|None\n"
    seen = fake_command("sacct", stdout=ends)
    ids = ["12_4", "12_1", "9_7", "12_3"]
    assert sorted(end.id for end in Slurm("leonardo").ended(ids)) == ["12_1", "12_3", "12_4"]
    assert arguments(seen, "sacct") == ["-X", "-n", "-P", "-j", "9,12", "-o", ENDED_FIELDS]


def test_no_pilot_that_ended_asks_nothing(fake_command: Fake) -> None:
    seen = fake_command("sacct")
    assert Slurm("leonardo").ended([]) == []
    assert not (seen / "sacct.args").exists()


def test_no_list_of_ids_is_longer_than_an_argument_may_be(fake_command: Fake) -> None:
    seen = fake_command("sacct")
    Slurm("leonardo").ended([f"{4_000_000_000 + number}_1" for number in range(12_000)])
    lists = [word for word in arguments(seen, "sacct") if word.startswith("4")]
    assert [word.count(",") + 1 for word in lists] == [5000, 5000, 2000]
    assert max(len(word) for word in lists) < 128 * 1024


def test_submissions_are_looked_up_by_name_since_well_before(fake_command: Fake) -> None:
    seen = fake_command("sacct", stdout="7|1795366000|\n8|1795366100|htcebridge:leonardo:dcgp:6b03\n")
    found = Slurm("leonardo").submitted_since("PILOT", 1795366050)
    assert [(job.id, job.plan_id) for job in found] == [("8", "6b03")]
    # 1795366050 is 2026-11-22T16:47:30 in UTC; the clock of the host may be any hour from it.
    asked = arguments(seen, "sacct")
    assert asked[asked.index("-S") + 1] == "2026-11-21T16:47:30"
    assert "--name=PILOT" in asked


def test_one_sbatch_submits_an_array_with_comment_script_and_times(fake_command: Fake) -> None:
    seen = fake_command("sbatch", stdout="4711;leonardo\n")
    submission = Submission("#!/bin/bash\n", 3, "dcgp", "6b03", 14941, 21601, ("lrdn0001", "lrdn0007"))
    assert Slurm("leonardo").submit(submission) == "4711"
    assert arguments(seen, "sbatch") == [
        "--parsable",
        "--array=1-3",
        "--comment=htcebridge:leonardo:dcgp:6b03",
        "--time=361",
        "--time-min=250",
        "--exclude=lrdn0001,lrdn0007",
    ]
    assert (seen / "sbatch.stdin").read_text() == submission.script


def test_what_is_not_asked_for_is_left_to_the_script(fake_command: Fake) -> None:
    seen = fake_command("sbatch", stdout="1\n")
    Slurm("leonardo").submit(Submission("#!/bin/bash\n", 1, "dcgp", "p"))
    assert arguments(seen, "sbatch") == ["--parsable", "--array=1-1", "--comment=htcebridge:leonardo:dcgp:p"]


# A fake scancel that says this to --version, and then what its test wants.
SCANCEL = '[ "$1" = --version ] && {{ echo {}; exit 0; }}'


@pytest.mark.parametrize("version", ["slurm 24.05.0", "slurm-wlm 24.11.5", "slurm-wlm 26.05.5"])
def test_pending_pilots_are_cancelled_only_while_they_are_pending(fake_command: Fake, version: str) -> None:
    seen = fake_command("scancel", first=SCANCEL.format(version))
    Slurm("leonardo").cancel_pending(["12_1", "12_2"])
    assert arguments(seen, "scancel") == ["--version", "--state=PENDING", "12_1", "12_2"]


@pytest.mark.parametrize("version", ["slurm-wlm 22.05.8", "slurm 23.11.10", "slurm"])
def test_an_old_scancel_that_would_cancel_the_whole_array_gets_no_filter(fake_command: Fake, version: str) -> None:
    seen = fake_command("scancel", first=SCANCEL.format(version))
    Slurm("leonardo").cancel_pending(["12_1", "12_2"])
    assert arguments(seen, "scancel") == ["--version", "12_1", "12_2"]


def test_a_pilot_that_is_gone_already_is_no_refusal(fake_command: Fake) -> None:
    gone = "scancel: error: Kill job error on job id 12_1: Invalid job id specified\n"
    fake_command("scancel", first=SCANCEL.format("slurm 24.11.5"), stderr=gone * 2, code=1)
    Slurm("leonardo").cancel_pending(["12_1", "12_2"])
    other = "scancel: error: Kill job error on job id 12_2: Access/permission denied\n"
    fake_command("scancel", first=SCANCEL.format("slurm 24.11.5"), stderr=gone + other, code=1)
    with pytest.raises(SlurmRefused, match="permission denied"):
        Slurm("leonardo").cancel_pending(["12_1", "12_2"])


def test_pilots_that_must_go_are_cancelled_whatever_they_do(fake_command: Fake) -> None:
    seen = fake_command("scancel")
    Slurm("leonardo").cancel(["12_1", "12_2"])
    assert arguments(seen, "scancel") == ["12_1", "12_2"]


def test_cancelling_nothing_calls_nothing(fake_command: Fake) -> None:
    seen = fake_command("scancel")
    Slurm("leonardo").cancel_pending([])
    Slurm("leonardo").cancel([])
    assert not (seen / "scancel.args").exists()


# --------------------------------------------------------------------------- limits

CONFIG = "AccountingStorageEnforce = associations,limits,qos\nClusterName = leonardo\nPreemptType = preempt/qos\n"
PARTITION = "PartitionName=p AllowAccounts=ALL AllowQos=ALL QoS=N/A MaxTime=1-00:00:00 State=UP\n"


@pytest.fixture
def slurm_with_limits(fake_command: Fake) -> Path:
    """scontrol and sacctmgr of a cluster where account a of b of root may have 50 pilots submitted in QOS low."""
    seen = fake_command(
        "scontrol",
        first=f"""case "$2 $4" in
        config*) printf '{CONFIG}'; exit;; 'partition p') printf '{PARTITION}'; exit;;
        reservation*) echo 'No reservations in the system'; exit;;
        esac; echo "Partition $4 not found"; exit 1""",
    )
    qos = "low|12:00:00||50" + "|" * (QOS_FIELDS.count(",") - 3)
    fake_command(
        "sacctmgr",
        first=f"""case "$*" in
        *" qos "*) echo '{qos}';;
        *user={ME}*) echo 'a|{ME}|||low,normal|||||||';;
        *account=a*) echo 'a|||b|normal||||||40|';;
        *account=b*) echo 'b|||root|normal|||||9||';;
        *account=root*) echo 'root||||normal|||||||';;
        esac""",
    )
    return seen


def test_limits_are_read_up_to_the_root_of_the_accounts(slurm_with_limits: Path) -> None:
    limits = Slurm("leonardo").limits("a", "p", "low")
    assert (limits.refusals, limits.unknown, limits.user) == ((), "", os.getuid())
    assert (limits.unread, limits.maintenances) == ((), ())
    assert (limits.max_wall_s, limits.max_wall_of) == (12 * 3600, "MaxWall of QOS low")
    assert [(bound.holder, bound.name, bound.most) for bound in limits.bounds] == [
        ("QOS low", "MaxSubmitPU", 50),
        ("account a", "GrpSubmit", 40),
        ("account b", "GrpJobs", 9),
    ]
    assert limits.watch == ("a",)
    asked = arguments(slurm_with_limits, "sacctmgr")
    assert asked.count(f"format={ASSOC_FIELDS}") == 4
    assert asked.count("cluster=leonardo") == 4


def test_a_partition_that_is_not_there_is_a_reason(slurm_with_limits: Path) -> None:
    assert Slurm("leonardo").limits("a", "nowhere", "low").refusals == ("there is no partition nowhere",)


@pytest.mark.parametrize(
    "said",
    [
        "sacctmgr: error: Unable to contact slurmdbd",
        "You are not running a supported accounting_storage plugin",
        "",
    ],
)
def test_without_slurmdbd_nothing_is_limited_but_by_the_partition(
    slurm_with_limits: Path, fake_command: Fake, said: str
) -> None:
    fake_command("sacctmgr", stderr=said, code=1)
    limits = Slurm("leonardo").limits("a", "p", "low")
    assert (limits.bounds, limits.refusals, limits.max_wall_s) == ((), (), 86400)
    assert limits.unknown.startswith("Slurm's accounting limits are not known: sacctmgr failed")
    assert said in limits.unknown


def test_without_sacctmgr_nothing_is_limited_but_by_the_partition(slurm_with_limits: Path) -> None:
    (slurm_with_limits.parent / "fakes" / "sacctmgr").unlink()
    assert "sacctmgr: not on PATH" in Slurm("leonardo").limits("a", "p", "low").unknown


def test_a_slurmctld_that_is_down_leaves_the_limits_unknown(slurm_with_limits: Path, fake_command: Fake) -> None:
    fake_command("scontrol", stderr="Unable to contact slurm controller (connect failure)", code=1)
    with pytest.raises(UnknownState, match="scontrol failed"):
        Slurm("leonardo").limits("a", "p", "low")


# --------------------------------------------------------------------------- failures

OUTAGES = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:hpcctl:6819: "
    "Connection refused",
    'squeue: error: Unable to resolve "hpcctl": Unknown host',
]
MAYBE = [
    "slurm_load_jobs error: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
]
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
REFUSALS = {
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified": (
        Answer.CONFIG
    ),
    "sbatch: error: invalid partition specified: nope\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified": Answer.CONFIG,
    "sbatch: error: CPU count per node can not be satisfied\n"
    "sbatch: error: Batch job submission failed: Requested node configuration is not available": Answer.CONFIG,
    f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: {POLICY}": Answer.LIMIT,
    "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry momentarily": Answer.BACK_OFF,
    "sbatch: error: something never seen before": Answer.TRANSIENT,
}


@pytest.mark.parametrize("stderr", OUTAGES + MAYBE)
def test_an_outage_is_unknown_and_says_what_slurm_said(fake_command: Fake, stderr: str) -> None:
    for name, call in (
        ("squeue", Slurm("leonardo").queue),
        ("sbatch", lambda: Slurm("leonardo").submit(SUBMISSION)),
        ("scancel", lambda: Slurm("leonardo").cancel_pending(["1"])),
        ("sacct", lambda: Slurm("leonardo").node_hours("dcgp", AS, None)),
        ("sacct", lambda: Slurm("leonardo").ended(["1"])),
    ):
        fake_command(name, stderr=stderr + "\n", code=1)
        with pytest.raises(UnknownState) as error:
            call()
        assert error.value.exit_code == ExitCode.TEMPFAIL
        assert str(error.value).startswith(f"{name} failed (exit code 1): ")
        assert " ".join(stderr.split()) in str(error.value)


@pytest.mark.parametrize("stderr", OUTAGES)
def test_after_an_outage_nothing_was_submitted(fake_command: Fake, stderr: str) -> None:
    fake_command("sbatch", stderr=stderr + "\n", code=1)
    with pytest.raises(UnknownState) as error:
        Slurm("leonardo").submit(SUBMISSION)
    assert not isinstance(error.value, OutcomeUnknown)


@pytest.mark.parametrize("stderr", [*MAYBE, ""])
def test_an_sbatch_that_lost_its_answer_may_have_submitted(fake_command: Fake, stderr: str) -> None:
    # slurmctld took the job when it went on, after sbatch had said "Socket timed out" (22.05, 24.11, 26.05).
    fake_command("sbatch", stderr=stderr, code=1)
    with pytest.raises(OutcomeUnknown):
        Slurm("leonardo").submit(SUBMISSION)


def test_an_sbatch_that_was_killed_or_printed_no_id_may_have_submitted(fake_command: Fake) -> None:
    fake_command("sbatch", first="kill -9 $$")
    with pytest.raises(OutcomeUnknown, match=r"exit code -9"):
        Slurm("leonardo").submit(SUBMISSION)
    fake_command("sbatch", stdout="Welcome\n")
    with pytest.raises(OutcomeUnknown, match="printed no job id"):
        Slurm("leonardo").submit(SUBMISSION)


@pytest.mark.parametrize("stderr", REFUSALS)
def test_a_refusal_is_no_outage_keeps_slurms_words_and_has_its_class(fake_command: Fake, stderr: str) -> None:
    fake_command("sbatch", stderr=stderr + "\n", code=1)
    with pytest.raises(SlurmRefused) as error:
        Slurm("leonardo").submit(SUBMISSION)
    assert error.value.exit_code == ExitCode.PROBLEM
    assert error.value.answer is REFUSALS[stderr]
    assert stderr.splitlines()[-1] in str(error.value)


def test_a_failing_squeue_is_never_an_empty_queue(fake_command: Fake) -> None:
    for code, stdout, stderr in (
        (1, "", ""),
        (1, EMPTY, ""),
        (127, "", "squeue: error while loading shared libraries"),
        (139, EMPTY, ""),
        (0, "", ""),
    ):
        fake_command("squeue", stdout=stdout, stderr=stderr, code=code)
        with pytest.raises(BridgeError):
            Slurm("leonardo").queue()


def test_a_squeue_that_dies_between_two_lines_is_no_shorter_queue(fake_command: Fake) -> None:
    line = f"13_1|RUNNING|p|q|a|{os.getuid()}|1|2|3|8:09:00|n|1|None|htcebridge:leonardo:dcgp:6b03|;"
    fake_command("squeue", first=f"echo '{EMPTY.strip()}'; echo '{line}'; kill -9 $$")
    with pytest.raises(UnknownState, match=r"exit code -9"):
        Slurm("leonardo").queue()


def test_a_squeue_that_is_refused_holds_the_cycle_like_one_that_is_silent(fake_command: Fake) -> None:
    # What squeue refuses is unknown all the same: only UnknownState holds a cycle.
    fake_command("squeue", stderr="squeue: error: something never seen before\n", code=1)
    with pytest.raises(UnknownState, match="something never seen before"):
        Slurm("leonardo").queue()


@pytest.mark.parametrize("name", ["squeue", "sbatch", "scancel", "sacct", "scontrol"])
def test_a_missing_command_is_named_with_where_it_belongs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = Slurm("leonardo")
    calls: dict[str, Callable[[], object]] = {
        "squeue": slurm.queue,
        "sbatch": lambda: slurm.submit(SUBMISSION),
        "scancel": lambda: slurm.cancel_pending(["1"]),
        "sacct": lambda: slurm.node_hours("dcgp", AS, None),
        "scontrol": lambda: slurm.limits("a", "p", "q"),
    }
    with pytest.raises(ConfigError, match=f"^{name}: not on PATH; .*edge node"):
        calls[name]()


def test_a_command_that_cannot_be_executed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^squeue: "):
        Slurm("leonardo").queue()


@pytest.mark.parametrize(("name", "kind"), [("squeue", UnknownState), ("sbatch", OutcomeUnknown)])
def test_a_command_that_hangs_is_unknown_after_its_timeout(
    fake_command: Fake, name: str, kind: type[UnknownState]
) -> None:
    fake_command(name, first="exec sleep 60")
    slurm = Slurm("leonardo", timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(kind, match=rf"^{name}: no answer from Slurm in 0\.3 s"):
        slurm.queue() if name == "squeue" else slurm.submit(SUBMISSION)
    assert time.monotonic() - started < 10


def test_a_comment_that_is_not_utf8_breaks_nothing(fake_command: Fake) -> None:
    line = f"13_1|RUNNING|p|q|a|{os.getuid()}|1|2|3|8:09:00|n|1|None|caf\x01|;\n"
    fake_command("squeue", stdout=(EMPTY + line).encode().replace(b"\x01", b"\xe9"))
    assert [job.id for job in Slurm("leonardo").queue().others] == ["13_1"]


def test_the_environment_is_scrubbed(fake_command: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "paying")
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_EXIT_ERROR", "0")
    monkeypatch.setenv("SLURM_BITSTR_LEN", "8")
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
    assert slurm_variables == {"SLURM_CONF", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"}
    assert passed["SLURM_CONF"] == "/etc/elsewhere/slurm.conf"
    assert (passed["LC_ALL"], passed["SLURM_TIME_FORMAT"], passed["SLURM_BITSTR_LEN"]) == ("C", "%s", "0")
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
