"""The pilot's script, run by bash as Slurm would, with stand-ins for HTCondor's programs. Real ones: test_drain.py."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from htcebridge.config.tables import Config
from htcebridge.pilot import marks
from htcebridge.pilot import script as pilot_script
from htcebridge.pilot.logs import OutcomeLine, parse_outcome, read_outcome

# What the script calls. Time runs fifty times as fast; condor_status knows the pilot once `in_collector` is there.
PROGRAMS = {
    "sleep": 'echo >> "$ROUNDS"\nexec /bin/sleep "$(awk "BEGIN { print $1 / 50 }")"',
    "condor_advertise": "cat > /dev/null",
    "condor_status": """case "$*" in
      *time*) ;;
      *-collector*) echo cm ;;
      *) [ ! -e $SHARED/in_collector ] || echo slot ;;
    esac""",
    "srun": "exit 0",
    "scontrol": 'cat "$SHARED/job" 2> /dev/null',
}
# A condor_master that obeys TERM and shows which signals it got and what it read then. It listens once `up` is there.
UNSEEN = """
log=${CONDOR_CONFIG%/*}/log
trap 'echo TERM >> "$SHARED/signals"; exit 0' TERM
trap 'cat "${CONDOR_CONFIG%/*}/drain.conf" >> "$SHARED/signals"' HUP
trap 'echo QUIT >> "$SHARED/signals"; exit 0' QUIT
: > "$log/.master_address"; : > "$log/.startd_address"; : > "$SHARED/up"
"""
# One that joins at once, and has been seen in the collector.
OBEDIENT = UNSEEN + ': > "$SHARED/in_collector"\n'
SEEN = 'until [ -e "${CONDOR_CONFIG%/*}/joined" ]; do /bin/sleep 0.02; done\n'
WAIT = "while :; do [ ! -e $SHARED/leave ] || exit 0; /bin/sleep 0.05; done\n"
JOBS = "for i in 1 2 3; do echo 'x slot1_1: Changing activity: Idle -> Busy'; done >> \"$log/StartLog\"\n"
ID = "70_4"
TRUE, FALSE = "PilotDraining = true\nPilotDrainReason = {}\n", "PilotDraining = false\nPilotDrainReason = undefined\n"
SLURM = {"SLURM_JOB_ACCOUNT": "inf24_lhc_2", "SLURM_JOB_QOS": "qos_lowprio", "SLURM_JOB_PARTITION": "dcgp_usr_prod"}


class Run:
    """A pilot that runs, and what lies around it."""

    def __init__(self, script: str, shared: Path, folder: Path, env: dict[str, str]) -> None:
        self.shared, self.folder = shared, folder
        self.log = shared / "logs" / f"{ID}.out"
        (folder / "slurm_script").write_text(script)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", str(folder / "slurm_script")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd="/",
                start_new_session=True,
            )

    def until(self, holds: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def says(self, text: str) -> None:
        self.until(lambda: text in self.log.read_text())

    def is_up(self) -> None:
        """condor_master runs and hears signals."""
        self.says("condor_master runs")
        self.until((self.shared / "up").exists)

    def is_seen(self) -> None:
        """It knows that the collector has shown it."""
        self.until(lambda: any((self.folder / "node scratch").glob("*/joined")))

    def looks_on(self, rounds: int = 12) -> None:
        """Its watcher has slept so many times more: what it does by itself it has done by then."""
        slept = self.folder / "rounds"
        enough = slept.read_text().count("\n") + rounds
        self.until(lambda: slept.read_text().count("\n") >= enough)

    def heard(self, text: str) -> None:
        """condor_master has got these signals, and read this at each HUP."""
        path = self.shared / "signals"
        self.until(lambda: path.exists() and path.read_text() == text)

    def ends(self) -> tuple[int, OutcomeLine]:
        code = self.process.wait(timeout=30)
        lines = self.log.read_text().splitlines()
        assert " htcebridge-outcome " in lines[-1], lines
        said = parse_outcome(lines[-1])
        assert said is not None
        assert said == read_outcome(self.shared, ID)
        assert said.code == code
        assert not list((self.folder / "node scratch").iterdir()), "nothing stays on the node"
        return code, said


Start = Callable[..., Run]


@pytest.fixture
def start(load: Callable[[str], Config], design_example: str, tmp_path: Path, collector: str) -> Iterator[Start]:
    """start(what condor_master does, environment of the Slurm job, patch of the script) -> a running pilot."""
    shared, scratch = tmp_path / "shared it's", tmp_path / "node scratch"
    scratch.mkdir()
    marks.prepare(shared)
    token = tmp_path / "token"
    token.write_text("a.e30.c")
    token.chmod(0o600)
    raw = tomllib.loads(design_example)
    own = {"condor": f"tarball:{tmp_path}/condor.tar", "scratch": str(scratch), "setup": [], "cvmfs": []}
    own["min_scratch"] = "1M"
    raw["tier1"]["collector"] = collector
    raw["resource"]["dcgp"].update({**own, "shared_dir": str(shared), "token_file": str(token)})
    config = load(tomli_w.dumps(raw))
    runs = []

    def run(master: str = OBEDIENT + WAIT, patch: Callable[[str], str] = str, **variables: str | None) -> Run:
        pack(tmp_path, {**PROGRAMS, "condor_master": master})
        given = {"SLURM_JOB_ID": "74", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4", **SLURM, **variables}
        env = {"PATH": "/usr/bin:/bin", "SLURM_MEM_PER_NODE": "494000", "SHARED": str(tmp_path / "plain")}
        env["ROUNDS"] = str(tmp_path / "rounds")
        env["SLURM_JOB_END_TIME"] = str(int(time.time()) + 7200)
        (tmp_path / "plain").symlink_to(shared)
        env.update({name: value for name, value in given.items() if value is not None})
        runs.append(Run(patch(pilot_script.script(config, "dcgp")), shared, tmp_path, env))
        return runs[-1]

    yield run
    for each in runs:
        try:
            os.killpg(each.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def pack(folder: Path, programs: dict[str, str]) -> None:
    """A release of HTCondor, as far as the script sees it."""
    bin_ = folder / "release" / "bin"
    bin_.mkdir(parents=True)
    for name, text in programs.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_ / name).chmod(0o755)
    with tarfile.open(folder / "condor.tar", "w") as tar:
        tar.add(folder / "release", "release")


# --------------------------------------------------------------------------- what it says at its end


def test_it_says_last_that_it_joined_and_how_many_jobs_it_ran(start: Start) -> None:
    run = start(OBEDIENT + JOBS + 'mv "$log/StartLog" "$log/StartLog.old"\n' + JOBS + "exit 0")
    assert run.ends() == (0, OutcomeLine(0, True, 6, "idle or at the end of its life"))


def test_a_directory_of_its_name_that_is_there_is_not_used(start: Start, tmp_path: Path) -> None:
    (tmp_path / "node scratch" / f"htcebridge-{ID}").mkdir()
    run = start()
    assert run.process.wait(timeout=30) == 13
    assert "is there already" in run.log.read_text()
    assert (tmp_path / "node scratch" / f"htcebridge-{ID}").exists(), "it is somebody else's"


@pytest.mark.parametrize(("number", "says"), [(signal.SIGUSR1, "told to leave"), (signal.SIGTERM, "Slurm takes")])
def test_a_signal_during_the_checks_is_heard_at_once(start: Start, number: signal.Signals, says: str) -> None:
    run = start(patch=lambda script: script.replace("#!/bin/bash\n# Free space", "#!/bin/bash\n/bin/sleep 60\n#"))
    run.until(lambda: list(run.folder.glob("node scratch/*/checks/.out*")) != [])
    began = time.monotonic()
    run.process.send_signal(number)
    code, said = run.ends()
    assert time.monotonic() - began < 5
    assert (code, said.joined, said.reason.startswith(says)) == (0, False, True)


def test_it_says_what_was_lost_when_it_had_to_leave(start: Start) -> None:
    ad = "CpusProvisioned = {}\\nCompletionDate = {}\\nJobCurrentStartDate = {}\\n*** Offset = 0 ClusterId = 1\\n"
    now = "$(date +%s)"
    old = ad.format(4, "100", "50")
    lost = ad.format(8, f"$(({now} + 1))", f"$(({now} - 99))")
    dies = f"""trap 'printf "{old}{lost}" > "$log/startd_history"; exit 0' TERM\n"""
    run = start(OBEDIENT + JOBS + dies + WAIT)
    run.is_up()
    run.is_seen()
    run.process.send_signal(signal.SIGUSR1)
    code, said = run.ends()
    assert (code, said.jobs, said.evicted) == (0, 3, 1)
    assert said.lost_core_s == 800
    assert said.core_s == 800 + 4 * 50


def test_a_startd_that_dies_again_and_again_ends_the_pilot(start: Start) -> None:
    death = "echo '11/26/26 01:49:37 The STARTD (pid {}) {}' >> \"$log/MasterLog\"\n"
    harmless = death.format(1, "exited with status 99") + death.format(2, "exited with status 0")
    dies = "".join(death.format(pid, "exited with status 4") for pid in (3, 4)) + death.format(
        5, "died due to signal 11"
    )
    run = start(OBEDIENT + harmless + dies + WAIT)
    code, said = run.ends()
    assert code == 30
    assert said.reason.startswith("condor_startd died ")


def test_it_says_that_it_joined_though_no_job_came(start: Start) -> None:
    run = start(OBEDIENT + SEEN + "exit 99")
    assert run.ends() == (0, OutcomeLine(0, True, 0, "idle or at the end of its life"))


def test_a_job_proves_that_it_joined(start: Start) -> None:
    run = start(UNSEEN + JOBS + "exit 0")
    assert run.ends() == (0, OutcomeLine(0, True, 3, "idle or at the end of its life"))


def test_a_pilot_that_the_collector_never_showed_fails_as_such(start: Start) -> None:
    run = start(UNSEEN + "exit 0")
    assert run.ends() == (31, OutcomeLine(31, False, 0, "left without having been seen in the collector"))


def test_a_master_that_hears_slurm_before_the_script_does_has_not_failed(start: Start) -> None:
    """proctrack/linuxproc signals children first; without it this is code 31: left without having been seen."""
    run = start('echo "JobId=74 JobState=CANCELLED Reason=None" > "$SHARED/job"; exit 0')
    code, said = run.ends()
    assert (code, said.reason) == (0, "Slurm takes the node back")


def test_no_variable_of_the_environment_is_a_knob_of_its_daemons(start: Start) -> None:
    shows = 'env | grep -i condor > "$SHARED/seen"\n'
    run = start(
        shows + OBEDIENT + "exit 0", _CONDOR_START="True", _condor_START="True", CONDOR_INHERIT="1 <127.0.0.1:1>"
    )
    run.ends()
    seen = dict(line.split("=", 1) for line in (run.shared / "seen").read_text().splitlines())
    assert seen.pop("CONDOR_CONFIG").endswith(f"/htcebridge-{ID}/condor_config")
    assert not [name for name in seen if "CONDOR" in name.upper()]


def test_a_failed_pilots_logs_stand_before_its_last_line(start: Start) -> None:
    run = start(OBEDIENT + SEEN + 'echo "what went wrong" > "$log/MasterLog"\nexit 4')
    assert run.ends() == (30, OutcomeLine(30, True, 0, "condor_master ended with code 4"))
    assert "what went wrong" in run.log.read_text()


def test_a_pilot_that_is_told_to_leave_before_it_joins_has_not_failed(start: Start) -> None:
    run = start(UNSEEN + WAIT)
    run.is_up()
    run.process.send_signal(signal.SIGUSR1)
    assert run.ends() == (0, OutcomeLine(0, False, 0, "the end of the walltime is near"))
    assert (run.shared / "signals").read_text() == "TERM\n"


def test_the_first_reason_to_leave_is_the_reason(start: Start) -> None:
    stays = """trap 'echo TERM >> "$SHARED/signals"' TERM\n"""
    run = start(OBEDIENT + stays + WAIT)
    run.is_up()
    run.is_seen()
    run.process.send_signal(signal.SIGUSR1)
    run.heard("TERM\n")
    run.process.send_signal(signal.SIGTERM)
    run.says("leaving: Slurm takes the node back")
    (run.shared / "leave").touch()
    assert run.ends() == (0, OutcomeLine(0, True, 0, "the end of the walltime is near"))


# --------------------------------------------------------------------------- as what it is billed


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ACCOUNT": "INF24_LHC_2", "SLURM_JOB_QOS": "Qos_LowPrio"},
        {"SLURM_JOB_ACCOUNT": None, "SLURM_JOB_QOS": None},
    ],
)
def test_slurmdbds_lower_case_and_no_accounting_at_all_are_no_mistake(start: Start, variables: dict[str, str]) -> None:
    assert start(OBEDIENT + SEEN + "exit 0", **variables).ends()[0] == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLURM_JOB_ACCOUNT", "paying"), ("SLURM_JOB_QOS", "normal"), ("SLURM_JOB_PARTITION", "DCGP_USR_PROD")],
)
def test_a_pilot_that_is_billed_otherwise_ends_before_anything_else(start: Start, variable: str, value: str) -> None:
    run = start(**{variable: value})
    code, said = run.ends()
    assert code == 16
    assert said.reason.startswith("billed to ")
    assert value in said.reason
    assert said.reason.endswith("instead of INF24_lhc_2, qos_lowprio, dcgp_usr_prod")
    assert len(run.log.read_text().splitlines()) == 2
    assert not (run.shared / "in_collector").exists()


# --------------------------------------------------------------------------- marks


def set_mark(shared: Path, reason: str) -> None:
    if reason == "stop":
        marks.set_stop(shared, "test")
    else:
        name = "leonardo.dcgp" if reason == "resource" else ID
        marks.set_drain(shared, name, "test", tail=reason == "tail")


def lift_mark(shared: Path, reason: str) -> None:
    if reason == "stop":
        marks.lift_stop(shared)
    else:
        marks.lift_drain(shared, "leonardo.dcgp" if reason == "resource" else ID, tail=reason == "tail")


REASONS = ["stop", "resource", "pilot", "tail"]


@pytest.mark.parametrize("reason", REASONS)
def test_a_pilot_that_starts_under_a_mark_never_starts_condor_master(start: Start, tmp_path: Path, reason: str) -> None:
    set_mark(tmp_path / "shared it's", reason)
    run = start()
    assert run.ends() == (0, OutcomeLine(0, False, 0, f"drained ({reason}) before it joined"))
    assert not (run.shared / "in_collector").exists()


@pytest.mark.parametrize("reason", REASONS)
def test_the_startd_hears_once_of_a_mark_and_once_that_it_is_gone(start: Start, reason: str) -> None:
    run = start()
    run.is_up()
    set_mark(run.shared, reason)
    run.says(f"drains: {reason}")
    run.heard(TRUE.format(f'"{reason}"'))
    lift_mark(run.shared, reason)
    run.says("takes jobs again")
    run.heard(TRUE.format(f'"{reason}"') + FALSE)
    run.looks_on()
    run.heard(TRUE.format(f'"{reason}"') + FALSE)
    (run.shared / "leave").touch()
    assert run.ends() == (0, OutcomeLine(0, True, 0, "idle or at the end of its life"))
    assert run.log.read_text().count("drains") == 1


def test_a_mark_that_comes_before_condor_master_listens_waits_for_it(start: Start) -> None:
    run = start(OBEDIENT.replace(': > "$log/.master_address"; ', "") + WAIT)
    run.is_up()
    set_mark(run.shared, "pilot")
    run.says("drains: pilot")
    run.looks_on()
    assert not (run.shared / "signals").exists(), "a HUP would have ended it"
    next((run.folder / "node scratch").glob("*/log")).joinpath(".master_address").touch()
    run.heard(TRUE.format('"pilot"'))


def test_condor_master_is_told_to_leave_when_a_drained_startd_is_gone(start: Start) -> None:
    run = start()
    run.is_up()
    set_mark(run.shared, "stop")
    run.heard(TRUE.format('"stop"'))
    next((run.folder / "node scratch").glob("*/log")).joinpath(".startd_address").unlink()
    assert run.ends() == (0, OutcomeLine(0, True, 0, "drained (stop)"))
    assert (run.shared / "signals").read_text() == TRUE.format('"stop"') + "TERM\n"


def test_a_startd_that_restarts_ends_no_pilot_that_is_not_drained(start: Start) -> None:
    run = start()
    run.is_up()
    next((run.folder / "node scratch").glob("*/log")).joinpath(".startd_address").unlink()
    run.looks_on()
    assert run.process.poll() is None
    assert not (run.shared / "signals").exists()


@pytest.mark.parametrize("drained", [False, True])
def test_a_vanished_shared_directory_neither_drains_nor_undrains(start: Start, drained: bool) -> None:
    run = start()
    run.is_up()
    before = TRUE.format('"tail"') if drained else ""
    if drained:
        set_mark(run.shared, "tail")
        run.heard(before)
    gone = run.shared.with_name("gone")
    run.shared.rename(gone)
    run.looks_on()
    gone.rename(run.shared)
    assert run.process.poll() is None
    assert ((run.shared / "signals").read_text() if drained else "") == before
    (run.shared / "leave").touch()
    run.ends()


def test_a_pilot_that_cannot_see_the_kill_switch_does_not_start(start: Start, tmp_path: Path) -> None:
    # bash has the script and its log open already when the directory goes.
    gone = lambda script: script.replace("\nlook_for_marks ||", '\nmv "$SHARED/logs" "$SHARED/x"\nlook_for_marks ||')  # noqa: E731
    run = start(patch=gone)
    assert run.process.wait(timeout=20) == 19
    assert not (run.shared / "in_collector").exists()
    said = parse_outcome((run.shared / "x" / f"{ID}.out").read_text())
    assert said == OutcomeLine(19, False, 0, f"the shared directory {run.shared} cannot be seen from here")


def test_a_look_that_hangs_hangs_nothing_else_and_is_alone(start: Start, tmp_path: Path) -> None:
    hang = (
        'eval "real_$(declare -f look_for_marks)"\n'
        'look_for_marks() {\n  [ -z "$MASTER" ] || { echo >> "$SHARED/hanging"; /bin/sleep 60; }\n'
        "  real_look_for_marks\n}\n"
    )
    run = start(patch=lambda script: script.replace("\nwho_and_where\n", f"\n{hang}who_and_where\n"))
    run.until((tmp_path / "shared it's" / "hanging").exists)
    run.looks_on()
    (run.shared / "leave").touch()
    assert run.ends() == (0, OutcomeLine(0, True, 0, "idle or at the end of its life"))
    assert (run.shared / "hanging").read_text() == "\n", "one look at a time"
