"""The script of a manual glidein, run by bash as Slurm would; srun, scontrol are stand-ins. Real: test_migrating.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot import script as pilot_script

# Passes a signal on to the step, as Slurm's does when a preemption's grace begins.
SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
exec "$@"
"""
# What slurmctld says of the job is in a file beside it.
SCONTROL = """#!/bin/bash
cat "${0%/*}/job"
"""
# A pilot ends every process of its id: tests side by side must not have the same.
JOB = os.getpid()
# A wrapper without a trap around a script that has one: what sites really have.
WRAPPER = "#!/bin/sh\necho wrapper starts\n./inner.sh\necho inner ended with $?\nexit 3\n"
INNER = """#!/bin/bash
trap 'echo inner heard TERM; exit 0' TERM
echo inner waits
sleep 60 & wait $!
"""


class Job:
    """A running script, as Slurm sees it: signals go to the batch shell."""

    def __init__(self, script: str, folder: Path, env: dict[str, str]) -> None:
        self.log = folder / "job.out"
        self.process = subprocess.Popen(
            ["bash", "-s"],
            stdin=subprocess.PIPE,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env=env,
            cwd="/",
            start_new_session=True,
        )
        assert self.process.stdin is not None
        # bash reads a script from a pipe as it goes; Slurm gives it a file.
        path = folder / "slurm_script"
        path.write_text(script)
        self.process.stdin.write(f". {path}\n".encode())
        self.process.stdin.close()

    def says(self, text: str, seconds: float = 20) -> str:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{self.log.read_text(errors='replace')[-3000:]}"
            assert self.process.poll() is None or text in self.log.read_text(errors="replace"), self.log.read_text()
            time.sleep(0.05)
        return self.log.read_text(errors="replace")

    def ends(self, seconds: float = 30) -> tuple[int, str]:
        """The exit code, and the outcome line's text; it stands last."""
        code = self.process.wait(timeout=seconds)
        last = self.log.read_text(errors="replace").splitlines()[-1]
        found = re.fullmatch(r"\S+ htcebridge-outcome (code=\d+) joined=no jobs=0 (reason=.*)", last)
        assert found, self.log.read_text(errors="replace")[-3000:]
        return code, f"{found[1]} {found[2]}"

    def session(self) -> list[str]:
        """What still runs of it."""
        found = subprocess.run(
            ["ps", "-o", "stat=,args=", "-s", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


Start = Callable[..., Job]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with the site's own pilot scripts, as awkward as a path may be."""
    folder = tmp_path / "the site's own"
    folder.mkdir()
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "node scratch"
    folder.mkdir()
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def with_executor(
    load: Callable[[str], Config], design_example: str, scratch: Path, collector: str
) -> Callable[..., Config]:
    def make(executor: Path | str, **keys: object) -> Config:
        raw = tomllib.loads(design_example)
        raw["tier1"]["collector"] = collector
        plain = {"mode": "constant", "executor": str(executor), "scratch": str(scratch), "setup": [], "cvmfs": []}
        raw["resource"]["dcgp"].update({**plain, "vacate_time": "3s", "min_scratch": "1M", **keys})
        return load(tomli_w.dumps(raw))

    return make


@pytest.fixture
def start(with_executor: Callable[..., Config], tmp_path: Path) -> Iterator[Start]:
    jobs = []

    def begin(executor: Path, life_s: int = 3600, **keys: object) -> Job:
        script = pilot_script.script(with_executor(executor, **keys), "dcgp")
        write(tmp_path / "srun", SRUN)
        write(tmp_path / "scontrol", SCONTROL)
        (tmp_path / "job").write_text("JobId=77 JobName=x JobState=RUNNING Reason=None PreemptTime=None\n")
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_JOB_ID": "77",
            "SLURM_ARRAY_JOB_ID": str(JOB),
            "SLURM_ARRAY_TASK_ID": "4",
            "SLURM_JOB_END_TIME": str(int(time.time()) + life_s),
        }
        jobs.append(Job(script, tmp_path, env))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


def clean(job: Job, scratch: Path) -> bool:
    return not list(scratch.iterdir()) and not job.session()


# --------------------------------------------------------------------------- what Slurm gets


def test_the_head_is_that_of_every_pilot(with_executor: Callable[..., Config], config: Config) -> None:
    def directives(script: str) -> list[str]:
        return re.findall(r"^#SBATCH .*$", script, re.MULTILINE)

    assert directives(pilot_script.script(with_executor("/x/glidein.sh"), "dcgp")) == directives(
        pilot_script.script(config, "dcgp")
    )


def test_the_script_passes_shellcheck(with_executor: Callable[..., Config]) -> None:
    script = pilot_script.script(with_executor("/x/it's (touch X).sh", cvmfs=["cms.cern.ch"]), "dcgp")
    done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_nothing_of_our_own_daemons_is_in_it(with_executor: Callable[..., Config]) -> None:
    script = pilot_script.script(with_executor("/x/glidein.sh"), "dcgp")
    assert not re.search(r"condor_|CONDOR|token_file|startd_config", script)


def test_a_variable_in_its_path_is_the_edge_nodes(with_executor: Callable[..., Config], tmp_path: Path) -> None:
    assert f"\nreadonly PILOT_EXECUTOR={tmp_path}/work/g.sh " in pilot_script.script(
        with_executor("$WORK/g.sh"), "dcgp"
    )
    with pytest.raises(ConfigError, match=r"executor = .*environment variable"):
        pilot_script.script(with_executor("$UNSET_HERE/g.sh"), "dcgp")


def test_there_is_no_startd_to_show(with_executor: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"no startd of ours: its pilots run /x/glidein\.sh"):
        pilot_script.startd_config(with_executor("/x/glidein.sh"), "dcgp")


# --------------------------------------------------------------------------- what it does on the node


def test_an_executors_exit_code_is_the_pilots(start: Start, site: Path, scratch: Path) -> None:
    for code in (0, 1, 111):
        job = start(write(site / "glidein.sh", f"#!/bin/sh\necho said; echo complained >&2\nexit {code}\n"))
        assert job.ends() == (code, f"code={code} reason=the executor ended by itself with code {code}")
        # The pilot's own lines begin with the time, and may come in between.
        lines = [line for line in job.log.read_text().splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
        assert lines == ["said", "complained"]
        assert clean(job, scratch)


def test_it_finds_what_stands_beside_it_and_writes_on_the_node(start: Start, site: Path, scratch: Path) -> None:
    write(site / "inner.sh", '#!/bin/sh\npwd > left-behind\ncat left-behind "a file"\nprintf "%s\\n" "$TMPDIR"\n')
    (site / "a file").write_text("of the site\n")
    job = start(write(site / "it's mine.sh", '#!/bin/sh\n./inner.sh\nmkdir "$TMPDIR/x"\n'))
    assert job.ends()[0] == 0
    # The pilot's own lines begin with the time, and may come in between.
    said = [line for line in job.log.read_text().splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert said == [f"{scratch}/htcebridge-{JOB}_4/work", "of the site", f"{scratch}/htcebridge-{JOB}_4/tmp"]
    assert sorted(path.name for path in site.iterdir()) == ["a file", "inner.sh", "it's mine.sh"]
    assert clean(job, scratch)


def test_setup_lines_reach_the_executor(start: Start, site: Path) -> None:
    lines = ["export CERTIFICATE='/a b/token'", "NOT_EXPORTED=1"]
    job = start(write(site / "g.sh", '#!/bin/sh\necho "$CERTIFICATE ${NOT_EXPORTED:-no}"\n'), setup=lines)
    assert job.ends()[0] == 0
    assert "/a b/token no\n" in job.log.read_text()


@pytest.mark.parametrize(("what", "mode"), [("missing", None), ("not executable", 0o644)])
def test_an_executor_that_cannot_run_has_its_own_code(
    start: Start, site: Path, scratch: Path, what: str, mode: int | None
) -> None:
    executor = site / "glidein.sh"
    if mode is not None:
        write(executor, "#!/bin/sh\n").chmod(mode)
    job = start(executor)
    code, said = job.ends()
    assert (code, str(executor) in said) == (18, True)
    assert clean(job, scratch)


def test_checks_come_before_the_executor(start: Start, site: Path) -> None:
    executor = write(site / "g.sh", "#!/bin/sh\necho it ran\n")
    for life_s, keys, code in ((30, {}, 20), (3600, {"setup": ["false"]}, 17), (3600, {"scratch": "/proc/x"}, 13)):
        job = start(executor, life_s=life_s, **keys)
        assert job.ends()[0] == code
        assert "it ran" not in job.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_what_a_wrapper_without_a_trap_runs(
    start: Start, site: Path, scratch: Path, number: int
) -> None:
    write(site / "inner.sh", INNER)
    job = start(write(site / "wrapper.sh", WRAPPER))
    job.says("inner waits")
    job.process.send_signal(number)
    code, said = job.ends()
    assert code == 0
    why = "the end of the walltime is near" if number == signal.SIGUSR1 else "Slurm takes the node back"
    assert said == f"code=0 reason={why}"
    assert "inner heard TERM\n" in job.log.read_text()
    assert clean(job, scratch)


# Slurm's proctrack/linuxproc signals children first. Whoever is late, the executor that hears TERM ends with code 0.
DEAF = "#!/bin/bash\ntrap 'exit 0' TERM\necho waits as $$\nsleep 60 & wait $!\n"


def tell_the_executor_alone(job: Job) -> None:
    said = job.says("waits as ")
    pid = int(re.findall(r"waits as (\d+)", said)[0])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    # Reaped: the pilot's shell has seen its end.
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_an_executor_that_hears_a_signal_first_has_not_ended_by_itself(
    start: Start, site: Path, scratch: Path, number: int
) -> None:
    job = start(write(site / "glidein.sh", DEAF))
    tell_the_executor_alone(job)
    job.process.send_signal(number)
    why = "the end of the walltime is near" if number == signal.SIGUSR1 else "Slurm takes the node back"
    assert job.ends() == (0, f"code=0 reason={why}")
    assert clean(job, scratch)


@pytest.mark.parametrize(
    "job_is",
    [
        "JobState=CANCELLED",
        "JobState=COMPLETING",
        "JobState=RUNNING PreemptTime=2026-11-28T10:00:00",
        "JobState=PREEMPTED",
    ],
)
def test_slurms_word_is_enough_where_no_signal_comes(start: Start, site: Path, tmp_path: Path, job_is: str) -> None:
    job = start(write(site / "glidein.sh", DEAF))
    job.says("waits as ")
    (tmp_path / "job").write_text(f"JobId=77 JobName=x {job_is} Reason=None\n")
    tell_the_executor_alone(job)
    assert job.ends() == (0, "code=0 reason=Slurm takes the node back")


def test_an_executor_with_a_trap_is_the_only_one_told(start: Start, site: Path) -> None:
    write(
        site / "payload.sh", "#!/bin/bash\ntrap 'echo payload heard TERM' TERM\nfor _ in {1..100}; do sleep 0.1; done\n"
    )
    executor = (
        "#!/bin/bash\ntrap 'echo vacates; sleep 1; kill -KILL $!; exit 5' TERM\n./payload.sh &\necho up\nwait $!\n"
    )
    job = start(write(site / "glidein.sh", executor))
    job.says("up")
    job.process.send_signal(signal.SIGTERM)
    assert job.ends() == (0, "code=0 reason=Slurm takes the node back")
    assert "vacates" in job.log.read_text()
    assert "payload heard" not in job.log.read_text()


def sentinel_of(job: Job, seconds: float = 20) -> int:
    """The process id of the sentinel once it listens: it sleeps then, in a child."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        listed = subprocess.run(
            ["ps", "-ww", "-o", "pid=,ppid=,args=", "-s", str(job.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        sentinels = {pid for pid, _, args in rows if "sentinel" in args}
        for _, parent, args in rows:
            if args == "sleep 1" and parent in sentinels:
                return int(parent)
        time.sleep(0.05)
    raise AssertionError(f"no sentinel listens: {rows}")


def test_the_announcement_of_a_preemption_reaches_it(start: Start, site: Path, scratch: Path) -> None:
    write(site / "inner.sh", INNER)
    job = start(write(site / "wrapper.sh", WRAPPER))
    job.says("inner waits")
    os.kill(sentinel_of(job), signal.SIGTERM)
    code, said = job.ends()
    assert code == 0
    assert re.fullmatch(r"code=0 reason=Slurm announced the end at \S+", said)
    assert clean(job, scratch)


def test_an_executor_that_will_not_go_is_killed_with_all_it_started(start: Start, site: Path, scratch: Path) -> None:
    stubborn = "#!/bin/bash\ntrap '' TERM\necho stays\n(while :; do sleep 0.2; done) &\nwhile :; do sleep 0.2; done\n"
    job = start(write(site / "glidein.sh", stubborn))
    job.says("stays")
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.ends() == (0, "code=0 reason=Slurm takes the node back")
    assert 3 <= time.monotonic() - began < 15
    assert "ends what is left: " in job.log.read_text()
    assert clean(job, scratch)


def test_what_it_leaves_running_is_ended(start: Start, site: Path, scratch: Path) -> None:
    job = start(write(site / "glidein.sh", "#!/bin/sh\nsleep 1000 &\n(trap '' TERM; sleep 1001) &\necho done\n"))
    assert job.ends()[0] == 0
    assert clean(job, scratch)


def test_a_daemon_in_a_session_of_its_own_is_ended_and_holds_nothing_up(
    start: Start, site: Path, scratch: Path
) -> None:
    # As afuse does, with the output of whoever started it.
    daemon = "#!/bin/bash\ntrap 'echo unmounted; exit' TERM\necho $$\nsleep 60 & wait $!\n"
    write(site / "daemon", daemon)
    job = start(write(site / "glidein.sh", "#!/bin/sh\nsetsid ./daemon &\nsetsid sleep 61 &\nsleep 0.5\n"))
    began = time.monotonic()
    assert job.ends(20)[0] == 0
    assert time.monotonic() - began < 10
    said = job.log.read_text()
    assert "unmounted\n" in said
    assert "sleep 61" in said
    (pid,) = re.findall(r"^(\d+)$", said, re.MULTILINE)
    sleeps = subprocess.run(["ps", "-eo", "stat=,pid=,args="], capture_output=True, text=True, check=True).stdout
    alive = [line.split(maxsplit=2) for line in sleeps.splitlines() if not line.startswith("Z")]
    assert not [line for line in alive if line[1] == pid or line[2:] == ["sleep 61"]]
    assert clean(job, scratch)


def test_a_flood_of_output_keeps_its_beginning_and_its_end(start: Start, site: Path, scratch: Path) -> None:
    job = start(write(site / "glidein.sh", "#!/bin/sh\nseq 1000000\necho the last word\n"))
    assert job.ends()[0] == 0
    text = job.log.read_text()
    assert "\n1\n2\n3\n" in text
    assert "the executor said more than 1000000 bytes; the end of it:\n" in text
    assert "\n999999\n1000000\nthe last word\n" in text
    assert 1_900_000 < len(text) < 2_010_000
    assert clean(job, scratch)


@pytest.mark.parametrize("count", [999_999, 1_000_000, 1_000_001, 2_000_000])
def test_output_around_the_bound_is_whole(start: Start, site: Path, count: int) -> None:
    job = start(write(site / "glidein.sh", f"#!/bin/sh\nhead -c {count} /dev/zero | tr '\\0' @\n"))
    assert job.ends()[0] == 0
    assert job.log.read_text().count("@") == count


def test_a_mount_under_scratch_is_not_emptied(with_executor: Callable[..., Config]) -> None:
    assert "rm -rf --one-file-system --" in pilot_script.script(with_executor("/x/g.sh"), "dcgp")
