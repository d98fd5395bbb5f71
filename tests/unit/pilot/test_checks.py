"""The checks of a node and what runs them, by bash as on a node. With real HTCondor: e2e/test_pilot_checks.py."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot import checks as pilot_checks
from htcebridge.pilot import script as pilot_script

Make = Callable[..., Config]
ALL = {"cvmfs": ["cms.cern.ch"], "gpus": 4, "gres": []}


@pytest.fixture
def make(load: Callable[[str], Config], design_example: str) -> Make:
    """The example with these keys of [resource.dcgp] changed, and these tables added."""

    def changed(tables: dict[str, object] | None = None, **keys: object) -> Config:
        raw = {**tomllib.loads(design_example), **(tables or {})}
        raw["resource"]["dcgp"].update(keys)
        return load(tomli_w.dumps(raw))

    return changed


class Node:
    """A pilot's directory with checks in it."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder / "pilot's dir"
        (self.folder / "checks").mkdir(parents=True)
        for name, text in pilot_checks.files(config, config.resources["dcgp"], None).items():
            self.put(name, text)

    def put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def run(
        self, phase: str, *names: str, limit: int = 20, path: str = "/usr/bin:/bin"
    ) -> subprocess.CompletedProcess[str]:
        scratch = str(self.folder)
        env = {"PATH": path, "PILOT_DIR": scratch, "SCRATCH": scratch, "JOB_SCRATCH": scratch}
        command = [str(self.folder / "run-checks"), phase, str(limit), *names]
        return subprocess.run(
            command, env={**env, "PILOT_ID": "7_1"}, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def verdict(self) -> str:
        return (self.folder / "health.conf").read_text()


@pytest.fixture
def node(tmp_path: Path, make: Make) -> Node:
    return Node(tmp_path, make(min_scratch="1M"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --------------------------------------------------------------------------- what runs them


def test_what_checks_find_out_is_advertised_and_the_rest_of_their_output_is_not(node: Node) -> None:
    node.put("checks/35-licence.sh", '#!/bin/bash\necho "Licences = 4"; echo noise; echo "also noise =" >&2; exit 0\n')
    said = node.run("join", "10-scratch", "35-licence.sh")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "PilotCheck_scratch = true\nPilotCheck_licence = true\nLicences = 4\n"


def test_before_joining_the_first_failure_ends_it_with_its_code_and_reason(node: Node) -> None:
    node.put("checks/12-bad", "#!/bin/bash\necho first >&2; echo it is broken >&2; exit 17\n")
    node.put("checks/13-later", f"#!/bin/bash\ntouch {node.folder}/ran\n".replace("'", "\\'").replace(" dir", "\\ dir"))
    said = node.run("join", "12-bad", "13-later")
    assert (said.returncode, said.stderr) == (17, "bad: it is broken\n")
    assert not (node.folder / "ran").exists()


def test_later_all_run_and_the_first_failure_is_the_verdict(node: Node) -> None:
    node.put("checks/12-bad", "#!/bin/bash\necho 'it is \"$broken\"' >&2; exit 1\n")
    node.put("checks/13-worse", "#!/bin/bash\nexit 3\n")
    said = node.run("cron", "10-scratch", "12-bad", "13-worse")
    assert said.returncode == 0
    assert said.stdout.splitlines() == [
        "PilotCheck_scratch = true",
        "PilotCheck_bad = false",
        "PilotCheck_worse = false",
        "NODE_IS_HEALTHY = false",
        "PilotCheckFailed = \"bad: it is '_broken'\"",
    ]
    assert node.verdict.startswith("NODE_IS_HEALTHY = false\nPilotCheckFailed = \"bad: it is '_broken'\"\n")


def test_the_verdict_is_written_when_it_changes_and_only_then(node: Node) -> None:
    node.put("checks/12-x", "#!/bin/bash\necho Load = $RANDOM; echo Reached = true\n")
    node.run("cron", "12-x")
    written = (node.folder / "health.conf").stat().st_mtime_ns
    assert node.verdict.startswith("NODE_IS_HEALTHY = true\nPilotCheckFailed = undefined\n")
    node.run("cron", "12-x")
    assert (node.folder / "health.conf").stat().st_mtime_ns == written, "a number that changes is no news"
    node.put("checks/12-x", "#!/bin/bash\necho Reached = false\n")
    node.run("cron", "12-x")
    assert (node.folder / "health.conf").stat().st_mtime_ns > written, "a yes that becomes a no is"


def test_a_check_that_hangs_is_given_up_and_counts_as_failed(node: Node) -> None:
    node.put("checks/12-hangs", "#!/bin/bash\ntrap '' TERM\nx=$(sleep 271.5 | cat)\n")
    began = time.monotonic()
    said = node.run("cron", "12-hangs", "10-scratch", limit=4)
    assert time.monotonic() - began < 20
    assert "PilotCheck_hangs = false\nPilotCheck_scratch = true\n" in said.stdout
    assert 'PilotCheckFailed = "hangs: no answer within 4 s"' in said.stdout
    assert said.stderr == ""
    left = subprocess.run(["pgrep", "-f", "^sleep 271.5"], capture_output=True, text=True, check=False).stdout
    assert left == "", "what it started ends with it"


def test_a_timer_that_does_not_hear_term_holds_nothing_up(node: Node) -> None:
    """One that is only just forked has bash's handler, and TERM is lost on it (4 of 300 runs with bash 4.4)."""
    node.put("sleep", "#!/bin/bash\ntrap '' TERM\nexec /bin/sleep \"$@\"\n")
    node.put("checks/12-quick", "#!/bin/bash\n/bin/sleep 0.5\n")
    began = time.monotonic()
    assert node.run("cron", "12-quick", limit=40, path=f"{node.folder}:/usr/bin:/bin").returncode == 0
    assert time.monotonic() - began < 20


def test_run_checks_that_is_told_to_end_takes_its_check_with_it(node: Node, tmp_path: Path) -> None:
    node.put("checks/12-hangs", "#!/bin/bash\ntrap '' TERM\ntouch up\nsleep 272.5 & wait\n")
    command = [str(node.folder / "run-checks"), "cron", "273.5", "12-hangs"]
    env = {"PATH": "/usr/bin:/bin", "PILOT_DIR": str(node.folder)}
    with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 20
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.terminate()
        assert running.wait(20) == 143
    for seconds in ("272.5", "273.5"):
        left = subprocess.run(["pgrep", "-f", f"^sleep {seconds}"], capture_output=True, text=True, check=False).stdout
        assert left == ""


def test_places_that_hang_take_no_longer_than_one(make: Make, tmp_path: Path, collector: str) -> None:
    # An address of the documentation's: nothing answers, or the machine says at once that it has no way there.
    places = {f"x{number}": {"endpoint": "192.0.2.1:9"} for number in range(8)}
    began = time.monotonic()
    node = Node(tmp_path, make({"tier1": {"collector": collector}, "connectivity": places}))
    assert node.run("cron", "30-connectivity").stdout.count(" = false\n") == 8
    assert time.monotonic() - began < 12


# --------------------------------------------------------------------------- the checks themselves


def test_every_check_is_bash_that_shellcheck_likes(make: Make, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    door = {"data": {"read": [{"name": "d", "prefix": "root://door/"}]}}
    config = make({**door, "connectivity": {"x": {"endpoint": "x:1", "critical": True}}}, **ALL)
    for name, text in pilot_checks.files(config, config.resources["dcgp"], None).items():
        said = subprocess.run(
            ["shellcheck", "-s", "bash", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert said.stdout == "", name


def test_which_checks_there_are_follows_the_resource(make: Make) -> None:
    def names(config: Config) -> list[str]:
        found = pilot_checks.files(config, config.resources["dcgp"], None)
        return [name.removeprefix("checks/") for name in found if name != "run-checks"]

    everything = ["10-scratch", "20-cvmfs", "30-connectivity", "60-collector", "70-gpus"]
    assert names(make(**ALL)) == everything
    assert names(make(cvmfs=[])) == ["10-scratch", "30-connectivity", "60-collector"]
    executor = make(executor="/x/glidein.sh", mode="constant", **ALL)
    assert names(executor) == everything[:3], "its own pool is not ours to ask"
    for config, asked in ((make(**ALL), True), (executor, False)):
        files = pilot_checks.files(config, config.resources["dcgp"], None)
        assert ("collector" in files["checks/30-connectivity"].partition("\nset -u")[2]) == asked


def test_scratch_that_is_full_or_cannot_be_written_fails(make: Make, tmp_path: Path) -> None:
    full = Node(tmp_path / "full", make(min_scratch="1000T", disk="2000T")).run("join", "10-scratch")
    assert full.returncode == 13
    assert full.stderr.endswith(f" MB free, {1000 * 1024**2} are asked\n")
    node = Node(tmp_path / "gone", make(min_scratch="1M"))
    gone = subprocess.run(
        [str(node.folder / "checks/10-scratch")],
        env={"PATH": "/usr/bin:/bin", "SCRATCH": "/proc", "JOB_SCRATCH": "/proc", "PILOT_ID": "1"},
        capture_output=True,
        check=False,
    )
    assert gone.returncode == 13


def test_a_directory_of_the_nodes_own_disk_is_no_cvmfs(make: Make, tmp_path: Path) -> None:
    said = Node(tmp_path, make(cvmfs=["no.such.repository"])).run("cron", "20-cvmfs")
    assert 'PilotCheckFailed = "cvmfs: CVMFS repository no.such.repository is not mounted"' in said.stdout


def test_each_place_is_advertised_and_a_critical_one_ends_the_pilot(make: Make, tmp_path: Path, collector: str) -> None:
    tier1 = {"collector": collector}
    places = {"up": {"endpoint": collector}, "down": {"endpoint": f"127.0.0.1:{free_port()}"}}
    said = Node(tmp_path / "1", make({"tier1": tier1, "connectivity": places})).run("join", "30-connectivity")
    assert said.stdout == "PilotCheck_connectivity = true\nPilotReaches_down = false\nPilotReaches_up = true\n"
    places["down"]["critical"] = True
    said = Node(tmp_path / "2", make({"tier1": tier1, "connectivity": places})).run("join", "30-connectivity")
    assert said.returncode == 24
    assert said.stderr == f"connectivity: cannot be reached: down ({places['down']['endpoint']})\n"
    assert "PilotReaches_down = false" in said.stdout


def test_one_door_to_read_from_is_enough_unless_one_is_critical(make: Make, tmp_path: Path, collector: str) -> None:
    def run(folder: str, *reads: dict[str, object]) -> int:
        tables = {"tier1": {"collector": collector}, "data": {"read": list(reads)}}
        return Node(tmp_path / folder, make(tables)).run("join", "30-connectivity").returncode

    up = {"name": "up", "prefix": f"root://{collector}/"}
    down = {"name": "down", "prefix": f"root://127.0.0.1:{free_port()}/"}
    assert run("both", down, up) == 0
    assert run("critical", {**down, "critical": True}, up) == 24
    assert run("none", down) == 24


def test_a_silent_collector_is_no_fault_of_a_node_that_has_joined(make: Make, tmp_path: Path) -> None:
    node = Node(tmp_path, make({"tier1": {"collector": f"127.0.0.1:{free_port()}"}}))
    assert node.run("join", "30-connectivity").returncode == 23
    assert "NODE_IS_HEALTHY = true" in node.run("cron", "30-connectivity").stdout


# --------------------------------------------------------------------------- the admin's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "checks"
    folder.mkdir(mode=0o755)
    return folder


def write(path: Path, text: str = "#!/bin/sh\ntrue\n", mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_own_check_goes_into_the_script_and_may_replace_ours(make: Make, own: Path) -> None:
    write(own / "35-licence.sh", "#!/bin/sh\necho it's $LICENCE\nEND_OF_FILE\n")
    write(own / "10-scratch", "#!/bin/sh\necho ours no more\n")
    write(own / "README.md", "what these are")
    config = make(checks=str(own))
    script = pilot_script.script(config, "dcgp")
    assert "\necho it's $LICENCE\nEND_OF_FILE\nEND_OF_FILE_\n" in script
    assert "ours no more" in script
    assert "10-scratch 20-cvmfs 30-connectivity 35-licence.sh 60-collector" in pilot_script.startd_config(
        config, "dcgp"
    )


@pytest.mark.parametrize(
    ("name", "text", "mode", "says"),
    [
        ("licence.sh", "#!/bin/sh\n", 0o755, "two digits"),
        ("35-a b.sh", "#!/bin/sh\n", 0o755, "two digits"),
        ("35-licence.sh", "true\n", 0o755, "first line"),
        ("35-licence.sh", "#!/bin/sh\n", 0o775, "others may write it"),
        ("35-licence.sh", "#!/bin/sh\r\n", 0o755, "dos2unix"),
        ("10-scratch.sh", "#!/bin/sh\n", 0o755, "10-scratch is the name that replaces it"),
    ],
)
def test_an_own_check_that_cannot_be_right_is_named(
    make: Make, own: Path, name: str, text: str, mode: int, says: str
) -> None:
    path = write(own / name, text, mode)
    with pytest.raises(ConfigError, match=says) as error:
        pilot_script.script(make(checks=str(own)), "dcgp")
    assert str(path) in str(error.value)


def test_two_checks_of_one_name_would_hide_each_other(make: Make, own: Path) -> None:
    write(own / "35-licence.sh")
    write(own / "40-licence")
    with pytest.raises(ConfigError, match=r"40-licence: 35-licence\.sh already stands for PilotCheck_licence"):
        pilot_script.script(make(checks=str(own)), "dcgp")


def test_what_somebody_else_owns_does_not_run_on_nodes(make: Make, own: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(write(own / "35-licence.sh"), 12345, 12345)
    with pytest.raises(ConfigError, match="another user owns it"):
        pilot_script.script(make(checks=str(own)), "dcgp")


def test_a_missing_folder_of_checks_is_an_error(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checks = .*no such file"):
        pilot_script.script(make(checks=str(tmp_path / "none")), "dcgp")


def test_a_folder_that_others_may_write_is_refused(make: Make, own: Path) -> None:
    os.chmod(own, 0o777)  # noqa: S103
    with pytest.raises(ConfigError, match="others may write it"):
        pilot_script.script(make(checks=str(own)), "dcgp")
