from __future__ import annotations

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from htcebridge import routes
from htcebridge.cli import doctor as doctor_command
from htcebridge.config import file as config_file
from htcebridge.config.tables import Config
from htcebridge.doctor import checks as doctor_checks
from htcebridge.doctor import files, judge, site, tier1
from htcebridge.doctor import routes as doctor_routes
from htcebridge.doctor.checks import Check, Finding, Problem, Status
from htcebridge.doctor.judge import DirectoryFacts, TokenFile
from htcebridge.errors import BridgeError, ConfigError, ExitCode
from htcebridge.slurm.limits import Bound, Size, SlurmLimits, Unit
from htcebridge.slurm.reservations import Maintenance
from htcebridge.state import resets
from htcebridge.state.lock import ControllerLock, holder
from htcebridge.state.memory import Disabled, Memory, Resources, remember
from htcebridge.tier1.pool import Negotiation, Tagged
from htcebridge.tier1.query import ahead_s
from htcebridge.tier1.tokens import Claims, claims_of
from tests import schema

Run = Callable[..., Any]
NOW = 1_800_000_000
DAY = 86400
PILOT = frozenset(("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER"))


def write_token(path: Path, **claims: object) -> Path:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    path.write_text(f"eyJhbGciOiJIUzI1NiJ9.{payload}.c2VjcmV0\n")
    path.chmod(0o600)
    return path


# --------------------------------------------------------------------------- how the checks run


def test_the_findings_stand_in_the_checks_order_and_each_end_is_told() -> None:
    def after(seconds: float, name: str) -> Finding:
        time.sleep(seconds)
        return doctor_checks.finding(name, "", "good")

    ended: list[str] = []
    checks = [
        Check("slow", "", lambda: after(0.05, "slow"), 5),
        Check("fast", "", lambda: [after(0, "fast"), after(0, "fast too")], 5),
    ]
    assert [each.check for each in doctor_checks.run(checks, lambda check: ended.append(check.name))] == [
        *("slow", "fast", "fast too")
    ]
    assert ended == ["fast", "slow"]


def test_a_check_that_hangs_costs_its_own_deadline_and_nobody_elses() -> None:
    release = threading.Event()

    def hang() -> list[Finding]:
        release.wait(20)
        return []

    checks = [
        Check("hangs", "dcgp", hang, 0.05),
        Check("good", "", lambda: doctor_checks.finding("good", "", "it is"), 5),
    ]
    began = time.monotonic()
    late, good = doctor_checks.run(checks)
    release.set()
    assert time.monotonic() - began < 5
    assert (late.check, late.about, late.status, late.said) == ("hangs", "dcgp", Status.FAIL, "no answer in 0.05 s")
    assert good.status is Status.OK


def test_what_a_check_raises_is_its_finding() -> None:
    def known() -> list[Finding]:
        raise BridgeError("the port is closed")

    def defect() -> list[Finding]:
        raise ZeroDivisionError("by zero")

    first, second = doctor_checks.run([Check("known", "", known, 5), Check("defect", "", defect, 5)])
    assert (first.status, first.said) == (Status.FAIL, "the port is closed")
    assert (second.status, second.said) == (Status.FAIL, "the check itself failed: ZeroDivisionError: by zero")


def test_no_check_at_all_is_no_finding() -> None:
    assert doctor_checks.run([]) == []


def test_one_line_has_the_worst_status_all_that_is_wrong_and_each_fix_once() -> None:
    problems = [
        Problem(Status.WARN, "old", "renew"),
        Problem(Status.FAIL, "open", "chmod"),
        Problem(Status.WARN, "x", "renew"),
    ]
    found = doctor_checks.finding("token", "pilot", "me", problems)
    assert found == Finding("token", "pilot", Status.FAIL, "old; open; x (me)", "renew; chmod")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([("config", Status.OK), ("unit", Status.WARN), ("scripts", Status.SKIP)], ExitCode.OK),
        ([("config", Status.OK), ("token", Status.FAIL)], ExitCode.PROBLEM),
        ([("config", Status.FAIL), ("token", Status.FAIL)], ExitCode.USAGE),
    ],
)
def test_the_exit_code(findings: list[tuple[str, Status]], code: ExitCode) -> None:
    assert doctor_checks.exit_code(Finding(name, "", status, "") for name, status in findings) == code


# --------------------------------------------------------------------------- versions and clocks


@pytest.mark.parametrize(
    ("kind", "text", "oldest", "status", "said"),
    [
        ("HTCondor", "$CondorVersion: 25.14.1 2026-06-01 BuildID: 1 $", (23, 9), Status.OK, "HTCondor 25.14.1"),
        ("HTCondor", "$CondorVersion: 10.0.9 2023-09-28 $", (23, 9), Status.WARN, "older than 23.9"),
        ("Slurm", "24.11.5", (22, 5), Status.OK, "Slurm 24.11.5"),
        ("Slurm", "20.11.9", (22, 5), Status.WARN, "older than 22.05"),
        ("Slurm", "unknown", (22, 5), Status.WARN, "no version in 'unknown'"),
    ],
)
def test_versions(kind: str, text: str, oldest: tuple[int, int], status: Status, said: str) -> None:
    found = judge.versions(kind, "x", text, oldest)
    assert found.status is status
    assert said in found.said


@pytest.mark.parametrize("off_s", [0, 3, -3, 59, -61, 7200, -86400 * 3650])
def test_a_clock_is_found_by_asking_whether_it_is_later(off_s: int) -> None:
    asked: list[int] = []

    def later(seconds: int) -> bool:
        asked.append(seconds)
        return off_s >= seconds

    assert ahead_s(later) == off_s
    assert len(asked) <= 40


@pytest.mark.parametrize(
    ("ahead", "status", "said"),
    [
        (0, Status.OK, "agrees"),
        (-4, Status.OK, "4s behind"),
        (30, Status.WARN, "30s ahead of"),
        (-61, Status.FAIL, "1m1s behind"),
    ],
)
def test_a_clock_may_be_off_by_max_clock_skew(ahead: int, status: Status, said: str) -> None:
    found = judge.clock("collector", ahead, 60)
    assert found.status is status
    assert said in found.said
    assert (found.fix == "") is (status is Status.OK)


# --------------------------------------------------------------------------- tokens


def test_a_tokens_claims_are_read_and_its_text_is_not(tmp_path: Path) -> None:
    path = write_token(tmp_path / "t", sub="pilot@p", iss="p", scope="condor:/READ condor:/ADVERTISE_STARTD", exp=5)
    assert claims_of(path) == Claims("pilot@p", "p", frozenset(("READ", "ADVERTISE_STARTD")), 5)
    assert claims_of(write_token(tmp_path / "u", sub="s")) == Claims("s", "", frozenset(), None)
    for text in ("", "a.b.c", "a.W10.c", "only words"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no IDTOKEN"):
            claims_of(path)


def pilots(**changes: object) -> TokenFile:
    claims = Claims("leonardo-pilot@p", "p", PILOT, NOW + 60 * DAY)
    mode = changes.pop("mode", 0o600)
    assert isinstance(mode, int)
    return TokenFile("/t/pilot", mode, replace(claims, **changes))


@pytest.mark.parametrize(
    ("file", "status", "said", "fix"),
    [
        (pilots(), Status.OK, "leonardo-pilot@p of p: ADVERTISE_MASTER, ADVERTISE_STARTD, READ; 60 days left", ""),
        (pilots(expires=None), Status.OK, "does not expire", ""),
        (pilots(mode=0o400), Status.OK, "", ""),
        (pilots(mode=0o640), Status.FAIL, "open to others (mode 0640)", "chmod 600 /t/pilot"),
        (pilots(expires=NOW + 13 * DAY), Status.WARN, "expires in 13 days", "-identity leonardo-pilot@p"),
        (
            pilots(expires=NOW + 7199),
            Status.FAIL,
            "expires in 119 minutes, before a pilot of 12h",
            "condor_token_create",
        ),
        (pilots(expires=NOW - 60), Status.FAIL, "expired 60 seconds ago", "condor_token_create"),
        (
            pilots(authorizations=frozenset(("READ",))),
            Status.FAIL,
            "does not allow ADVERTISE_STARTD, ADVERTISE_MASTER",
            "",
        ),
        (pilots(authorizations=frozenset(("DAEMON",))), Status.WARN, "allows more than it needs: DAEMON", ""),
        (pilots(authorizations=frozenset()), Status.WARN, "whatever its identity may do", ""),
        (TokenFile("/t/x", 0o600, None, "/t/x: holds no IDTOKEN"), Status.FAIL, "holds no IDTOKEN", "ask the Tier-1"),
    ],
)
def test_a_pilots_token(file: TokenFile, status: Status, said: str, fix: str) -> None:
    found = judge.token("pilot", file, judge.PILOT_NEEDS, NOW, 12 * 3600)
    assert found.status is status
    assert said in found.said
    assert fix in found.fix


def test_an_open_and_expired_token_says_both() -> None:
    found = judge.token("pilot", pilots(mode=0o644, expires=NOW - 9 * DAY), judge.PILOT_NEEDS, NOW)
    assert found.status is Status.FAIL
    assert "open to others (mode 0644); expired 9 days ago" in found.said
    assert found.fix.startswith("chmod 600 /t/pilot; ask the Tier-1")


def test_the_controllers_directory_without_a_token(config: Config, own_home: Path) -> None:
    (missing,) = tier1._controllers_tokens(config, NOW)
    assert missing.status is Status.FAIL
    assert "no such file or directory" in missing.said
    directory = own_home / ".condor/tokens.d"
    directory.mkdir(parents=True)
    (empty,) = tier1._controllers_tokens(config, NOW)
    assert "no token in it" in empty.said
    write_token(directory / "a", sub="me@p", iss="p", scope="condor:/READ")
    (directory / "b").write_text("rubbish")
    first, second = tier1._controllers_tokens(config, NOW)
    assert (first.about, first.status, second.about, second.status) == (
        *("controller a", Status.OK),
        *("controller b", Status.FAIL),
    )


@pytest.mark.parametrize(
    ("where", "said"), [("127.0.0.1:1", "connection refused"), ("no-such-host.invalid:9618", "is not known here")]
)
def test_the_networks_own_answer_tells_a_closed_port(where: str, said: str, collector: str) -> None:
    assert said in tier1.unreachable(where)
    assert tier1.unreachable(collector) == ""


# --------------------------------------------------------------------------- Slurm


def judged(config: Config, **limits: object) -> dict[str, Finding]:
    found = judge.slurm("dcgp", config.resources["dcgp"], SlurmLimits(1000, **limits), NOW)  # type: ignore[arg-type]
    return {each.check: each for each in found}


def test_limits_that_match(config: Config) -> None:
    found = judged(config, usage_factor=0.0, max_wall_s=DAY, max_wall_of="MaxWall of QOS q")
    assert {each.status for each in found.values()} == {Status.OK}
    assert found["slurm"].said.endswith("QOS qos_lowprio; not charged")
    assert found["walltime"].said == "12h asked; MaxWall of QOS q is 1d"


def test_what_slurm_refuses_is_named(config: Config) -> None:
    found = judged(config, refusals=("there is no QOS qos_lowprio",))
    assert (found["slurm"].status, found["limits"].status) == (Status.FAIL, Status.OK)
    assert "there is no QOS qos_lowprio" in found["slurm"].said
    assert "[resource.dcgp]" in found["slurm"].fix
    assert judged(config, unknown="slurmdbd is down")["slurm"].status is Status.WARN


@pytest.mark.parametrize(
    ("usable", "isolation", "status", "said"),
    [
        ({("INF24_lhc_2", "qos_lowprio")}, "auto", Status.OK, "to no other"),
        ({("INF24_lhc_2", "qos_lowprio"), ("INF24_lhc_2", "normal")}, "auto", Status.OK, "submit to normal of INF24"),
        ({("INF24_lhc_2", "qos_lowprio"), ("paid", "qos_lowprio")}, "none", Status.WARN, "qos_lowprio of paid as well"),
        ({("x", f"q{n}") for n in range(7)}, "auto", Status.OK, "q0 of x, q1 of x, q2 of x and 4 more as well"),
        (set(), "auto", Status.SKIP, "not known"),
    ],
)
def test_what_else_the_account_may_submit_to_is_named(
    config: Config, usable: set[tuple[str, str]], isolation: str, status: Status, said: str
) -> None:
    resources = {
        name: each.model_copy(update={"isolation": isolation, "account": "INF24_lhc_2", "qos": "qos_lowprio"})
        for name, each in config.resources.items()
    }
    found = judge.account(config.model_copy(update={"resources": resources}), usable)
    assert found.status is status
    assert said in found.said + found.fix


@pytest.mark.parametrize(("wall_s", "status"), [(6 * 3600, Status.WARN), (3600, Status.FAIL), (300, Status.FAIL)])
def test_a_walltime_above_slurms(config: Config, wall_s: int, status: Status) -> None:
    found = judged(config, max_wall_s=wall_s, max_wall_of="MaxTime of partition p")["walltime"]
    assert found.status is status
    assert "12h asked and MaxTime of partition p is" in found.said
    assert found.fix.startswith('set walltime = "')


def test_a_maintenance_cuts_pilots_and_passes(config: Config) -> None:
    coming = Maintenance("maint", NOW + 4 * 3600, NOW + 5 * 3600, whole=True)
    found = judged(config, maintenances=(coming,))["walltime"]
    assert found.status is Status.WARN
    assert found.said.startswith("12h asked, no limit known; walltime 12h cut to 4h by maintenance maint, ")
    assert found.fix == "nothing to do: it passes; scontrol show reservation"


@pytest.mark.parametrize(("most", "status"), [(4, Status.OK), (2, Status.FAIL)])
def test_gpus_of_a_user_bound_pilots(config: Config, most: int, status: Status) -> None:
    """cases/qos-gpu-limit-per-user.txt"""
    four = config.resources["dcgp"].model_copy(update={"gpus": 4})
    gpus = Bound("MaxTRESPU gres/gpu", "QOS q", Unit.GPUS, most, own=True, qos="qos_lowprio")
    found = {each.check: each for each in judge.slurm("dcgp", four, SlurmLimits(1000, bounds=(gpus,)), NOW)}
    assert found["limits"].status is status
    assert ("Slurm takes 1 pilot: " if most == 4 else "no pilot would fit: ") in found["limits"].said


def test_a_limit_that_is_not_known_here_is_a_warning(config: Config) -> None:
    found = judged(config, unread=("GrpTRES 'billing=9' of QOS q",))["slurm"]
    assert found.status is Status.WARN
    assert "a limit that is not known here, and cuts nothing: GrpTRES 'billing=9' of QOS q" in found.said


def test_room_for_no_pilot_fails_and_room_for_few_is_said(config: Config) -> None:
    few = Bound("MaxSubmitPU", "QOS q", Unit.SUBMITTED, 7, own=True, qos="qos_lowprio")
    found = judged(config, bounds=(few,))["limits"]
    assert found.status is Status.OK
    assert "max_running 100, and Slurm takes 7 pilots: QOS q allows 7 submitted jobs" in found.said
    found = judged(config, sizes=(Size("MaxTRES", "QOS q", "cpu", 64),))["limits"]
    assert found.status is Status.FAIL
    assert "allows at most cpu=64 a job, a pilot has 112" in found.said


def test_the_small_job_writes_where_it_is_told() -> None:
    script = files.node_script("p", "a", "q", [Path("/x y"), Path("/z")], ".tok")
    assert "#SBATCH --partition=p\n#SBATCH --account=a\n#SBATCH --qos=q\n" in script
    assert "[ \"$(cat '/x y/.tok.here')\" = .tok ] && echo \"$(hostname -s)\" > '/x y/.tok.there'" in script


# --------------------------------------------------------------------------- directories


GOOD = DirectoryFacts("/w/htcebridge", exists=True, above=True, file_system="lustre", free_mb=10**6)


@pytest.mark.parametrize(
    ("facts", "status", "said"),
    [
        (GOOD, Status.OK, "/w/htcebridge on lustre, writable here"),
        (replace(GOOD, exists=False), Status.OK, "the first cycle makes it"),
        (replace(GOOD, exists=False, above=False), Status.FAIL, "the directory above it is not there"),
        (replace(GOOD, error="Disk quota exceeded"), Status.FAIL, "cannot be written: Disk quota exceeded"),
        (replace(GOOD, free_mb=3), Status.WARN, "3 MiB free"),
        (replace(GOOD, file_system="ext4"), Status.WARN, "this machine's own file system as far as is known"),
        (replace(GOOD, file_system="ext4", newest_log_s=130), Status.OK, "a pilot wrote there 2 minutes ago"),
        (replace(GOOD, file_system="ext4", newest_log_s=30 * DAY), Status.WARN, "no pilot wrote there lately"),
    ],
)
def test_a_directory(facts: DirectoryFacts, status: Status, said: str) -> None:
    found = judge.directory("dcgp", "shared_dir", facts)
    assert found.status is status
    assert said in found.said
    assert status is Status.OK or "shared_dir" in found.fix or "remove" in found.fix


def test_a_directory_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/7_1.out").write_text("hello")
    (tmp_path / "logs/7_2.out").touch()
    facts = files.look_at(tmp_path, time.time() + 50)
    assert (facts.exists, facts.above, facts.error) == (True, True, "")
    assert facts.file_system
    assert facts.newest_log_s == pytest.approx(50, abs=5)
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "home"}
    assert files.look_at(tmp_path / "logs/7_1.out", 0).error == "it is no directory"
    assert not files.look_at(tmp_path / "new/deep", 0).above


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:40 / /leonardo rw - nfs4 server:/ rw\n"
        "24 23 0:41 / /leonardo/my\\040work rw shared:1 - lustre mds:/work rw\n"
        "25 22 0:42 / /leonardo rw - autofs x rw\n"
    )
    assert files.file_system(Path("/etc"), mounts) == "ext4"
    assert files.file_system(Path("/leonardo/home"), mounts) == "autofs"
    assert files.file_system(Path("/leonardo/my work/x"), mounts) == "lustre"
    assert files.file_system(Path("/leonardox"), mounts) == "ext4"
    assert files.file_system(Path("/etc"), "") == ""


# --------------------------------------------------------------------------- the controller

WHO = "pid 12 on edge01 since 2027-01-15 08:00:00"


@pytest.mark.parametrize(
    ("age_s", "interval_s", "who", "status", "said"),
    [
        (None, 60, "", Status.WARN, "there was none yet; nobody holds the lock"),
        (50, 60, WHO, Status.OK, f"50 seconds ago, the interval is 1m; the lock: {WHO}"),
        (239, 60, "", Status.OK, "3 minutes ago"),
        (300, 60, "", Status.WARN, "5 minutes ago"),
        (901, 60, "", Status.FAIL, "15 minutes ago"),
        (901, 600, "", Status.OK, ""),
        (2400, 600, WHO, Status.WARN, ""),
        (6001, 600, WHO, Status.FAIL, ""),
        (-600, 60, WHO, Status.WARN, "10 minutes in the future"),
    ],
)
def test_the_last_cycles_age(age_s: int | None, interval_s: int, who: str, status: Status, said: str) -> None:
    found = judge.cycle(NOW - age_s if age_s is not None else 0, NOW, interval_s, who)
    assert found.status is status
    assert said in found.said
    if status is Status.FAIL:
        assert ("kill 12" if who else "pressure once") in found.fix


SERVICE = "htcebridge@leo.service"


@pytest.mark.parametrize(
    ("states", "who", "missing", "status", "said", "fix"),
    [
        ({SERVICE: "active", "htcebridge-once@leo.timer": "inactive"}, WHO, "", Status.OK, f"{SERVICE}: active", ""),
        ({SERVICE: "failed"}, "", "", Status.FAIL, "has failed", f"journalctl -u {SERVICE} -n 50"),
        ({"--user htcebridge.service": "failed"}, "", "", Status.FAIL, "", "journalctl --user -u htcebridge.service"),
        ({SERVICE: "activating"}, WHO, "", Status.OK, "waits for the lock", ""),
        ({SERVICE: "activating"}, "", "", Status.WARN, "is activating", "journalctl"),
        ({SERVICE: "active", "htcebridge-once@leo.timer": "active"}, WHO, "", Status.WARN, "both active", "stop one"),
        ({SERVICE: "inactive"}, WHO, "", Status.OK, "runs without one: pid 12", ""),
        ({SERVICE: "inactive"}, "", "", Status.WARN, "no controller runs", "docs/running.md"),
        ({}, "", "there is no systemctl here", Status.SKIP, "not checked: there is no systemctl", "see cycle"),
        ({}, WHO, "there is no systemctl here", Status.OK, "runs without one", ""),
    ],
)
def test_systemds_units(states: dict[str, str], who: str, missing: str, status: Status, said: str, fix: str) -> None:
    found = judge.unit(states, who, missing)
    assert found.status is status
    assert said in found.said
    assert fix in found.fix


def test_the_lock_is_looked_at_and_not_taken(config: Config) -> None:
    assert holder(config) is None
    with ControllerLock(config):
        found = holder(config)
        assert found is not None
        assert str(found).startswith("pid ")
    assert holder(config) is None


def test_a_disabled_resource_is_named_with_its_reset(config: Config, own_home: Path) -> None:
    assert list(site._disabled(config)) == []
    (own_home / ".local/state/htcebridge").mkdir(parents=True)
    disabled = {"dcgp": Disabled("Invalid qos", 1, "x"), "gone": Disabled("", 1, "x")}
    remember(config, Memory(resources=Resources(disabled=disabled)))
    (found,) = site._disabled(config)
    assert (found.status, found.said) == (Status.FAIL, "disabled: Invalid qos")
    assert found.fix.endswith("htcebridge pressure reset dcgp")
    resets.request(config, "dcgp")
    assert list(site._disabled(config)) == [], "the next cycle forgets it"


# --------------------------------------------------------------------------- routes


def test_routes_in_step_and_without_a_job(config: Config) -> None:
    (found,) = judge.routes(config, [Tagged("leonardo", "cms", "HTCEBridge_leonardo_cms", 4)], 2)
    assert (found.status, found.said) == (Status.OK, "4 jobs with OpportunisticSite = 'leonardo' in 2 schedds")
    (found,) = judge.routes(config, [], 2)
    assert (found.status, found.said) == (Status.SKIP, "not checked: no granted job in 2 schedds now")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([Tagged("marconi", "cms", None, 3)], "no job has our grant, others have 'marconi' (3)"),
        (
            [Tagged(None, None, "HTCEBridge_leonardo_cms", 3)],
            "3 jobs came over a route of ours without",
        ),
        (
            [Tagged("leonardo", "atlas", None, 3)],
            "VOs that the configuration does not know: 'atlas' (3)",
        ),
    ],
)
def test_routes_out_of_step(config: Config, tags: list[Tagged], said: str) -> None:
    (found,) = judge.routes(config, tags, 1)
    assert found.status is Status.WARN
    assert said in found.said


def test_another_hpcs_jobs_beside_ours_are_no_mistake(config: Config) -> None:
    tags = [Tagged("marconi", "cms", None, 3), Tagged("leonardo", "cms", None, 1)]
    assert judge.routes(config, tags, 1)[0].status is Status.OK


def test_a_copy_of_the_ces_routes_is_compared(config: Config, tmp_path: Path) -> None:
    text = routes.render_routes(config)
    path = tmp_path / routes.FILE_NAME
    assert "no such file" in doctor_routes._copy(config, tmp_path).said
    path.write_text(text)
    assert doctor_routes._copy(config, tmp_path).status is Status.OK
    path.write_text(text.replace("leonardo", "marconi"))
    found = doctor_routes._copy(config, tmp_path)
    assert found.status is Status.FAIL
    assert "marconi" in found.said


# --------------------------------------------------------------------------- what is rendered


def test_missing_tools_are_not_checked_and_no_failure(
    config: Config, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    good, *skipped = site._rendered(config, "dcgp")
    assert (good.status, good.said) == (Status.OK, "its script and startd configuration render")
    assert [(each.status, each.fix) for each in skipped] == [
        (Status.SKIP, "install ShellCheck"),
        (Status.SKIP, "install HTCondor"),
    ]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_a_setup_line_that_shellcheck_refuses_is_shown(load: Callable[[str], Config], design_example: str) -> None:
    assert site._rendered(load(design_example), "dcgp").__next__().status is Status.OK
    broken = design_example.replace("setup = [", 'setup = ["if true; then", ')
    found = next(iter(site._rendered(load(broken), "dcgp")))
    assert found.status is Status.FAIL
    assert "shellcheck of setup, line 1:1: error: " in found.said


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_a_check_of_the_sites_own_that_shellcheck_refuses_is_shown(
    load: Callable[[str], Config], design_example: str, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    (folder / "35-licence.sh").write_text("#!/bin/sh\nif true\n")
    (folder / "36-other").write_text("#!/usr/bin/python3\nif True: pass\n")
    for path in folder.iterdir():
        path.chmod(0o700)
    config = load(design_example.replace("[pilot] ", f'[pilot]\nchecks = "{folder}"  '))
    found = next(iter(site._rendered(config, "dcgp")))
    assert found.status is Status.FAIL
    assert "shellcheck of checks/35-licence.sh, line " in found.said


def test_what_condor_config_val_refuses_is_shown(config: Config, fake_command: Callable[..., Path]) -> None:
    fake_command("shellcheck")
    seen = fake_command("condor_config_val", stderr="Configuration Error Line 3\nno such template", code=1)
    (found,) = site._rendered(config, "dcgp")
    assert found.status is Status.FAIL
    assert "condor_config_val: Configuration Error Line 3 no such template" in found.said
    assert (seen / "condor_config_val.args").read_text() == "-dump\n"


def test_an_unset_variable_is_named(
    load: Callable[[str], Config], design_example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORK")
    (found,) = site._rendered(load(design_example), "dcgp")
    assert found.status is Status.FAIL
    assert "$WORK/htcebridge" in found.said


# --------------------------------------------------------------------------- a broken configuration


@pytest.mark.parametrize(
    ("old", "new", "left_out"),
    [
        ("[grant] ", "[grant] \nunknown = 1", "grant.unknown"),
        ('partition = "dcgp_usr_prod"\n', "", "resource.dcgp"),
        ('interval = "60s"', 'interval = "soon"', "pressure.interval"),
        ('name = "cms"\n', "", "vo.0"),
        ('idle_timeout = "20m"', 'idle_timeout = "never"', "pilot.idle_timeout"),
    ],
)
def test_what_is_left_of_a_broken_file(tmp_path: Path, design_example: str, old: str, new: str, left_out: str) -> None:
    assert old in design_example
    path = tmp_path / "c.toml"
    path.write_text(design_example.replace(old, new, 1))
    saved = config_file.salvage(path)
    assert saved.config is not None
    assert saved.left_out == (left_out,)
    assert saved.config.tier1.collector == "cm01.cr.example.org:9618"
    assert ("dcgp" in saved.config.resources) is (left_out not in ("resource.dcgp", "pilot.idle_timeout"))


@pytest.mark.parametrize("text", ["[tier1", "", "[tier1]\n", "tier1 = 3\n", '[tier1]\ncollector = "no port:x"\n'])
def test_a_file_without_a_collector_leaves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert config_file.salvage(path).config is None


# --------------------------------------------------------------------------- the command


def test_no_configuration_is_one_line_and_exit_2(htcebridge_command: Run) -> None:
    said = htcebridge_command("doctor")
    assert said.code == ExitCode.USAGE
    schema.check("doctor", json.loads(htcebridge_command("doctor", "--json").out))
    assert "FAIL  config" in said.out
    assert "-> htcebridge config init" in said.out


def test_where_nothing_is_in_place_every_line_says_so(
    htcebridge_command: Run, tmp_path: Path, design_example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(design_example.replace("cm01.cr.example.org:9618", "127.0.0.1:1"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = htcebridge_command("--config", path, "doctor", "--json", "--timeout", "5")
    assert said.code == ExitCode.PROBLEM
    document = json.loads(said.out)
    schema.check("doctor", document)
    assert document["exit_code"] == 1
    worst = {each["check"]: each["status"] for each in document["checks"] if each["status"] in ("fail", "skip")}
    assert worst["token"] == worst["slurm"] == worst["directory"] == "fail"
    assert sum(document["totals"].values()) == len(document["checks"])
    assert all(each["fix"] for each in document["checks"] if each["status"] in ("fail", "warn"))


def test_the_lines_fit_100_columns_and_are_told_apart_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("schedd", f"a-long-name-{'x' * 70}.cr.example.org", Status.FAIL, "none [in 20 s] " * 9, "look " * 40),
        Finding("clock", "collector", Status.OK, "agrees"),
    ]
    doctor_command.show(lambda: doctor_command._picture(findings), None)
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= 100
    assert rows[0].startswith("FAIL  schedd")
    assert "[in 20 s]" in "".join(rows)
    assert rows[-1].strip() == "2 checks: 1 ok, 0 warnings, 1 failed, 0 not checked"


# --------------------------------------------------------------------------- what the controller writes


def test_what_the_controller_cannot_write_is_told(tmp_path: Path) -> None:
    def told(**tables: dict[str, str]) -> dict[str, tuple[str, str]]:
        raw = {"tier1": {"collector": "c"}, "pressure": {"state_dir": str(tmp_path / "state")}, **tables}
        checks = files.checks(Config.model_validate(raw), 0.0, 5.0)
        found = doctor_checks.run([check for check in checks if check.name == "records"])
        return {each.about: (each.status.value, each.said) for each in found}

    assert told()["history"][0] == "ok"
    (tmp_path / "text").write_text("no database " * 100)
    broken = told(
        history={"file": str(tmp_path / "text")},
        metrics={"textfile_directory": str(tmp_path / "none")},
        log={"file": str(tmp_path / "none" / "x.log")},
    )
    assert {about: status for about, (status, _) in broken.items()} == dict.fromkeys(
        ("history", "metrics", "log"), "fail"
    )
    assert "is damaged or no history" in broken["history"][1]
    assert broken["metrics"][1] == broken["log"][1] == f"{tmp_path}/none: is not there"
    assert told(log={"file": str(tmp_path)})["log"] == ("fail", f"{tmp_path}: is a directory")
    good = told(
        history={"file": str(tmp_path / "new.sqlite")},
        metrics={"textfile_directory": str(tmp_path)},
        log={"file": str(tmp_path / "x.log")},
    )
    assert {status for status, _ in good.values()} == {"ok"}
    assert not (tmp_path / "new.sqlite").exists()


# --------------------------------------------------------------------------- the negotiator


@pytest.mark.parametrize(
    ("depth_first", "says"),
    [
        (True, "a cycle every 5m; it fills one pilot before the next (NEGOTIATOR_DEPTH_FIRST)"),
        (False, "a cycle every 5m; it may spread a burst over several pilots (NEGOTIATOR_DEPTH_FIRST is off)"),
        (None, "a cycle every 5m; it does not say whether NEGOTIATOR_DEPTH_FIRST is on"),
    ],
)
def test_what_the_plan_assumes_of_the_negotiator(config: Config, depth_first: bool | None, says: str) -> None:
    found = judge.negotiation(config, Negotiation(NOW, 300, name="n@tier1.example.org"), depth_first)
    assert (found.about, found.status, found.said) == ("tier1.example.org", Status.OK, says)


def test_a_pilot_that_leaves_before_the_negotiator_has_looked_at_it(config: Config) -> None:
    found = judge.negotiation(config, Negotiation(NOW, 1000), depth_first=True)
    assert found.status is Status.WARN
    assert found.said.startswith("idle_timeout of dcgp is shorter than 3 of them (a cycle every 16m40s")
    assert "set it to 50m or more" in found.fix


def test_a_negotiator_that_has_ended_no_cycle_is_not_judged(config: Config) -> None:
    found = judge.negotiation(config, Negotiation(0, 0), None)
    assert found.status is Status.OK
    assert "not known" in found.said


# --------------------------------------------------------------------------- what keeps jobs apart


def test_weak_isolation_is_named(config: Config) -> None:
    def ads(**pilots: int) -> list[dict[str, str]]:
        """So many joined pilots that say this, and one of a version that did not know it."""
        told = [
            {"PilotResource": '"dcgp"', "PilotIsolation": f'"{name}"'} for name, n in pilots.items() for _ in range(n)
        ]
        return [*told, {"PilotResource": '"dcgp"'}, {"PilotResource": '"other"', "PilotIsolation": '"none"'}]

    def told(config: Config, **pilots: int) -> tuple[Status, str]:
        (found,) = judge.isolation(config, ads(**pilots))
        assert (found.check, found.about) == ("isolation", "dcgp")
        return found.status, found.said

    assert told(config) == (Status.OK, "no joined pilot has proved any")
    assert told(config, namespaces=2) == (Status.OK, "namespaces on 2 joined pilots")
    assert told(config, namespaces=1, container=2)[1] == "namespaces on 1 joined pilot, container on 2 joined pilots"
    weak = "jobs are not isolated on 1 of 4 joined pilots (namespaces on 2 joined pilots)"
    assert told(config, namespaces=2, none=1) == (Status.WARN, weak)
    off = config.model_copy(
        update={"resources": {"dcgp": config.resources["dcgp"].model_copy(update={"isolation": "none"})}}
    )
    assert told(off, none=1) == (Status.WARN, 'isolation = "none" (no joined pilot has proved any)')


# --------------------------------------------------------------------------- who else can change things


def test_what_others_could_change_is_a_fail_with_its_fix(tmp_path: Path) -> None:
    state, checks_folder = tmp_path / "state", tmp_path / "checks"
    for folder in (state, checks_folder):
        folder.mkdir(mode=0o755)

    def told() -> tuple[Status, str, str]:
        raw = {"tier1": {"collector": "c"}, "pressure": {"state_dir": str(state)}}
        (found,) = doctor_checks.run(
            [c for c in files.checks(Config.model_validate(raw), 0.0, 5.0) if c.name == "trust"]
        )
        mine = [part for part in found.said.split("; ") if str(tmp_path) in part]
        return found.status, "; ".join(mine), "; ".join(fix for fix in found.fix.split("; ") if str(tmp_path) in fix)

    assert told()[1] == ""
    state.chmod(0o777)
    status, said, fix = told()
    assert (status, fix) == (Status.FAIL, f"chmod go-w {state}")
    assert said.startswith(f"others may write {state}")
