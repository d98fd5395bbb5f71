"""`htcebridge doctor` on the real thing: quiet on a good bed, and what is broken by name, with its fix."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.chain import CONFIG, CONFIGURATION, HTCEBRIDGE, RUNNING, STATE, Chain, wait_until
from tests.e2e.pilots import PATIENT
from tests.e2e.test_running import HOME, SERVICE, Systemd, own, system  # noqa: F401  fixtures
from tests.testbed.pace import scaled

pytestmark = [pytest.mark.testbed, pytest.mark.isolates, pytest.mark.one_suite("trixie")]

PYTHON = HTCEBRIDGE.replace("bin/htcebridge", "bin/python")
TOKEN = f"{HOME}/.condor/tokens.d/tier1"
PILOT_TOKEN = f"{HOME}/.config/htcebridge/pilot.idtoken"
PILOT = "leonardo-pilot@cr.example.org"
PILOT_RIGHTS = ("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER")


@dataclass(frozen=True)
class Line:
    """One line of the doctor's."""

    status: str
    said: str
    fix: str


def examine(chain: Chain, *arguments: str, expect: int) -> dict[tuple[str, str], Line]:
    """(check, about) -> its line. Where a resource's check has several lines the worst one counts."""
    return lines(chain.json("doctor", *arguments, expect=expect))


def lines(document: Any) -> dict[tuple[str, str], Line]:
    found: dict[tuple[str, str], Line] = {}
    order = ("skip", "ok", "warn", "fail")
    for each in document["checks"]:
        key = (each["check"], each["about"])
        line = Line(each["status"], each["said"], each["fix"])
        found[key] = max(found.get(key, line), line, key=lambda line: order.index(line.status))
    return found


def failed(found: dict[tuple[str, str], Line]) -> set[tuple[str, str]]:
    return {key for key, line in found.items() if line.status == "fail"}


@contextmanager
def token(chain: Chain, path: str, identity: str, *rights: str, lifetime_s: int = 0) -> Iterator[None]:
    """Another token in the place of this one, for as long as the block."""
    before = chain.bed.on("edge", ["cat", path], user="leo").stdout
    command = ["condor_token_create", "-identity", identity]
    for right in rights:
        command += ["-authz", right]
    if lifetime_s:
        command += ["-lifetime", str(lifetime_s)]
    made = chain.bed.on("tier1", command).stdout
    try:
        chain.bed.write("edge", path, made, mode=0o600, owner="leo")
        yield
    finally:
        chain.bed.write("edge", path, before, mode=0o600, owner="leo")


def test_a_good_bed_has_nothing_wrong_and_a_joined_pilot_is_left_alone(chain: Chain) -> None:
    chain.configure(PATIENT)
    jobs = chain.submit(gate="never") + chain.submit(ce="ce02", user="atlpil001", gate="never")
    with token(chain, PILOT_TOKEN, PILOT, *PILOT_RIGHTS, lifetime_s=60 * 86400):
        wait_until(lambda: None not in chain.states(jobs), 60, "both jobs are in the Tier-1 schedds")
        chain.htcebridge("pressure", "once")
        wait_until(lambda: chain.states(jobs) == [RUNNING] * 2, 120, "both jobs run on a pilot")
        chain.htcebridge("pressure", "once")
        found = examine(chain, expect=0)
        bad = {key: line for key, line in found.items() if line.status not in ("ok", "skip")}
        assert not bad
        # Neither shellcheck nor systemd is there: said so, and no failure.
        skipped = {key: line.said for key, line in found.items() if line.status == "skip"}
        assert set(skipped) == {("unit", "")}
        assert "not checked: no systemd answers here" in skipped["unit", ""]
        assert chain.states(jobs) == [RUNNING] * 2
        assert len(chain.startds()) == 1, "asking whether a token may advertise takes no ad away"
        expected = {
            ("token", "controller"): "leonardo-controller@cr.example.org of cr.example.org: READ",
            ("token", "pilot"): f"{PILOT} of cr.example.org: ADVERTISE_MASTER, ADVERTISE_STARTD, READ; 59 days left",
            ("advertise", "pilot"): "lets a startd and a master with this token in",
            ("clock", "collector"): "agrees with this machine's",
            ("collector", "tier1.cr.example.org:9618"): "knows 2 of our schedds, 1 of our pilots",
            (
                "negotiator",
                "tier1.cr.example.org",
            ): "may spread a burst over several pilots (NEGOTIATOR_DEPTH_FIRST is off)",
            ("isolation", "dcgp"): "namespaces on 1 joined pilot",
            ("schedd", "ce01.cr.example.org"): "1 granted jobs",
            ("routes", ""): "2 jobs with OpportunisticSite = 'leonardo' in 2 schedds",
            ("slurm", "dcgp"): "partition dcgp_usr_prod, account INF24_lhc_2, QOS qos_lowprio",
            ("walltime", "dcgp"): "12h asked; MaxTime of partition dcgp_usr_prod is 1d",
            ("account", ""): "its user may submit to normal of ",
            ("sbatch", "dcgp"): "Slurm would take a pilot",
            ("scripts", "dcgp"): "checked by condor_config_val",
            ("directory", "dcgp"): "writable here; a pilot wrote there",
            ("stop", ""): "off",
            ("cycle", ""): "the interval is 4s; nobody holds the lock",
        }
        for key, said in expected.items():
            assert said in found[key].said, key
        text = chain.htcebridge("doctor").stdout
        secret = chain.bed.on("edge", ["cat", PILOT_TOKEN], user="leo").stdout.strip()
        assert secret.split(".")[1] not in text + json.dumps([vars(line) for line in found.values()])
        assert all(len(row) <= 100 for row in text.splitlines())
        assert "\x1b" not in text
        for width in (100, 80):
            for command in ("demand", "pilots", "pressure plan", "doctor"):
                seen = on_a_terminal(chain, command, width)
                assert max(map(len, seen)) <= width, command
        (row,) = [line for line in on_a_terminal(chain, "pilots", 80) if "RUNNING" in line]
        assert "joined" in row
        assert "/112" in row
        owners = [group["owner"] for group in chain.json("demand", "--filter", "vo=atlas")["groups"]]
        assert owners == ["atlpil001"]
        assert chain.json("pilots", "--filter", "cpus_busy>2")["pilots"] == []
        assert len(chain.json("pilots", "--filter", "cpus_busy=2", "--sort", "started")["pilots"]) == 1


def on_a_terminal(chain: Chain, command: str, width: int) -> list[str]:
    """What a command leaves on a terminal of this width, colours and progress taken away."""
    line = f"stty cols {width} rows 50; {HTCEBRIDGE} {command}"
    terminal = [PYTHON, "-c", "import pty, sys; pty.spawn(['sh', '-c', sys.argv[1]])", line]
    done = chain.bed.on("edge", terminal, user="leo", env={"TERM": "xterm"}, timeout=60)
    assert "\x1b[1m" in done.stdout
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
    return [row.rpartition("\r")[2] if "\r" in row.rstrip("\r") else row.rstrip("\r") for row in plain.split("\n")]


def test_what_is_wrong_in_the_configuration_is_named_with_its_fix(chain: Chain) -> None:
    chain.bed.on("edge", ["mkdir", "-p", "templates"], user="leo")
    mine = 'template = "own"\ntemplates = "$HOME/templates"'
    both = {"slurm", "sbatch"}
    cases = (
        ('qos = "qos_lowprio"', 'qos = "qos_gone"', both, "there is no QOS qos_gone"),
        (
            'account = "INF24_lhc_2"',
            'account = "inf99"',
            both,
            "association of this user with account inf99",
        ),
        (
            'partition = "dcgp_usr_prod"',
            'partition = "dcgp_gone"',
            both,
            "there is no partition dcgp_gone",
        ),
        ("cpus = 112", "cpus = 1000", {"sbatch"}, "Slurm would not take a pilot"),
        ('"$HOME/pilots"', '"/nowhere/pilots"', {"directory"}, "/nowhere/pilots: the directory above it is not there"),
        ('"$HOME/pilots"', '"/etc/pilots"', {"directory"}, "cannot be written: Permission denied"),
        ('template = "leonardo-dcgp"', mine, {"scripts"}, "no such knob"),
    )
    for old, new, checks, said in cases:
        assert old in CONFIGURATION
        chain.configure(CONFIGURATION.replace(old, new))
        if new == mine:
            text = '{% extends "startd_configs/generic.conf.j2" %}\n{% block x %}{{ no_such_knob }}{% endblock %}\n'
            chain.bed.write("edge", f"{HOME}/templates/own.conf.j2", text.replace("x %}", "slots %}", 1), owner="leo")
            said = "no_such_knob"
        found = examine(chain, expect=1)
        assert failed(found) == {(check, "dcgp") for check in checks}, new
        assert said in " ".join(found[check, "dcgp"].said for check in checks)
        assert all(found[check, "dcgp"].fix for check in checks)
    chain.configure(CONFIGURATION.replace('walltime = "12h"', 'walltime = "3d"'))
    line = examine(chain, expect=0)["walltime", "dcgp"]
    assert line.status == "warn"
    assert "3d asked and MaxTime of partition dcgp_usr_prod is 1d: pilots are cut to that" in line.said
    assert line.fix == 'set walltime = "1d" in [resource.dcgp]'


def test_a_startd_configuration_that_htcondor_cannot_read_is_found(chain: Chain) -> None:
    text = '{% extends "startd_configs/generic.conf.j2" %}\n{% block slots %}\nuse feature:NoSuch\n{% endblock %}\n'
    chain.bed.on("edge", ["mkdir", "-p", "templates"], user="leo")
    chain.bed.write("edge", f"{HOME}/templates/own.conf.j2", text, owner="leo")
    mine = 'template = "own"\ntemplates = "$HOME/templates"'
    chain.configure(CONFIGURATION.replace('template = "leonardo-dcgp"', mine))
    found = examine(chain, expect=1)
    assert failed(found) == {("scripts", "dcgp")}
    assert "condor_config_val: " in found["scripts", "dcgp"].said
    assert "NoSuch" in found["scripts", "dcgp"].said


def test_a_broken_configuration_is_exit_2_and_the_rest_is_checked(chain: Chain) -> None:
    chain.configure(CONFIGURATION.replace('qos = "qos_lowprio"\n', "").replace("[tier1]\n", "[tier1]\ncolour = 1\n"))
    found = examine(chain, expect=2)
    config = found["config", ""]
    assert f"{CONFIG}:" in config.said
    assert "[resource.dcgp] lacks qos" in config.said
    assert "checked without tier1.colour, resource.dcgp" in config.said
    assert found["schedd", "ce02.cr.example.org"].status == "ok"
    chain.configure("[tier1")
    assert failed(examine(chain, expect=2)) == {("config", "")}


def test_tokens(chain: Chain) -> None:
    bed = chain.bed
    bed.on("edge", ["chmod", "644", TOKEN], user="leo")
    try:
        found = examine(chain, expect=1)
        assert ("token", "controller") in failed(found)
        assert "open to others (mode 0644)" in found["token", "controller"].said
        assert found["token", "controller"].fix == f"chmod 600 {TOKEN}"
    finally:
        bed.on("edge", ["chmod", "600", TOKEN], user="leo")
    with token(chain, TOKEN, "leonardo-controller@cr.example.org", "READ", lifetime_s=3 * 86400 + 60):
        line = examine(chain, expect=0)["token", "controller"]
        assert (line.status, "expires in 3 days" in line.said) == ("warn", True)
        assert "condor_token_create -identity leonardo-controller@cr.example.org" in line.fix
    with token(chain, PILOT_TOKEN, PILOT, *PILOT_RIGHTS, lifetime_s=3 * 3600 + 60):
        found = examine(chain, expect=1)
        assert failed(found) == {("token", "pilot")}
        assert "expires in 3 hours, before a pilot of 12h would end" in found["token", "pilot"].said
    with token(chain, PILOT_TOKEN, PILOT, "READ"):
        found = examine(chain, expect=1)
        assert failed(found) == {("token", "pilot"), ("advertise", "pilot")}
        assert "does not allow ADVERTISE_STARTD, ADVERTISE_MASTER" in found["token", "pilot"].said
    with token(chain, PILOT_TOKEN, "stranger@cr.example.org", *PILOT_RIGHTS, lifetime_s=60 * 86400):
        found = examine(chain, expect=1)
        # The token itself is in order; it is the pool that does not know its identity.
        assert failed(found) == {("advertise", "pilot")}
        assert "ALLOW_ADVERTISE_STARTD" in found["advertise", "pilot"].fix


def test_daemons_that_are_down_or_hang_are_named_and_delay_nobody(chain: Chain) -> None:
    chain.htcebridge("pressure", "once")
    chain.bed.stop("ce02", "schedd")
    try:
        found = examine(chain, expect=1)
        assert failed(found) == {("schedd", "ce02.cr.example.org")}
        assert "is it down?" in found["schedd", "ce02.cr.example.org"].said
    finally:
        chain.bed.start("ce02", "schedd")
    chain.bed.kill("ce01", "schedd", signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = examine(chain, "--timeout", "4", expect=1)
        # Its own 4 s, and the other checks' as they are on a busy machine; without deadlines it would be for ever.
        assert time.monotonic() - began < scaled(45)
        assert "no answer in 4 s" in found["schedd", "ce01.cr.example.org"].said
        assert found["sbatch", "dcgp"].status == "ok"
    finally:
        chain.bed.kill("ce01", "schedd", signal.SIGCONT)
    chain.bed.stop("hpcctl", "slurmctld")
    try:
        found = examine(chain, "--timeout", "5", expect=1)
        assert failed(found) == {("slurm", "dcgp"), ("sbatch", "dcgp")}
        assert "scontrol ping" in found["slurm", "dcgp"].fix
    finally:
        chain.bed.start("hpcctl", "slurmctld")
    idle = ["sinfo", "-h", "-p", "dcgp_usr_prod", "-t", "idle", "-o", "%D"]
    wait_until(
        lambda: chain.bed.on("edge", idle, user="leo").stdout.strip() == "2", 60, "slurmctld has its nodes again"
    )
    chain.bed.stop("tier1", "collector")
    try:
        found = examine(chain, expect=1)
        assert failed(found) == {("collector", "tier1.cr.example.org:9618")}
        # The port is open: condor_shared_port has it.
        assert "is condor_collector itself up" in found["collector", "tier1.cr.example.org:9618"].fix
        assert found["clock", "collector"].status == found["advertise", "pilot"].status == "skip"
    finally:
        chain.bed.start("tier1", "collector")


def test_a_controller_that_has_not_cycled_for_long_and_a_kill_switch(chain: Chain) -> None:
    chain.htcebridge("pressure", "once")
    chain.htcebridge("pressure", "stop", "--reason", "maintenance")
    path = f"{STATE}/leonardo.json"
    memory = json.loads(chain.bed.on("edge", ["cat", path], user="leo").stdout)
    for age_s, status in ((200, "warn"), (3 * 3600 + 60, "fail")):
        memory["memory"]["upkeep"]["looked"] = int(time.time()) - age_s
        chain.bed.write("edge", path, json.dumps(memory), owner="leo")
        found = examine(chain, expect=1 if status == "fail" else 0)
        assert found["cycle", ""].status == status
    assert "the last one was 3 hours ago, the interval is 4s; nobody holds the lock" in found["cycle", ""].said
    assert "htcebridge pressure once" in found["cycle", ""].fix
    assert found["stop", ""].status == "warn"
    assert "maintenance" in found["stop", ""].said
    assert found["stop", ""].fix == "htcebridge pressure resume"


def test_routes_out_of_step_show_in_the_jobs_and_in_a_copy_of_the_ces_files(chain: Chain) -> None:
    jobs = chain.submit() + chain.submit(ce="ce02", user="atlpil001")
    wait_until(lambda: None not in chain.states(jobs), 60, "both jobs are in the Tier-1 schedds")
    text = chain.htcebridge("routes", "show").stdout
    chain.bed.on("edge", ["mkdir", "-p", "ce"], user="leo")
    chain.bed.write("edge", f"{HOME}/ce/60-htcebridge.conf", text, owner="leo")
    copy = ("routes", f"{HOME}/ce")
    assert examine(chain, "--routes-dir", "ce", expect=0)["routes", "ce"].status == "ok"
    chain.configure(CONFIGURATION.replace("[[vo]]", '[grant]\nvalue = "marconi"\n\n[[vo]]', 1))
    found = examine(chain, "--routes-dir", copy[1], expect=1)
    assert failed(found) == {copy}
    assert "'leonardo' (2)" in found["routes", ""].said
    assert found["routes", ""].status == "warn"
    other_attribute = '[grant]\nattribute = "OtherSite"\n\n[[vo]]'
    chain.configure(CONFIGURATION.replace("[[vo]]", other_attribute, 1))
    assert "2 jobs came over a route of ours without OtherSite" in examine(chain, expect=0)["routes", ""].said
    chain.configure(CONFIGURATION.replace('name = "atlas"', 'name = "alice"'))
    assert "does not know: 'atlas' (1)" in examine(chain, expect=0)["routes", ""].said


def test_shared_directories_are_tried_from_a_node(chain: Chain) -> None:
    found = examine(chain, "--from-node", expect=0)
    assert found["from-node", "dcgp"].status == "ok"
    assert "lrdn000" in found["from-node", "dcgp"].said
    assert f"sees and writes {HOME}/pilots" in found["from-node", "dcgp"].said
    left = chain.bed.on("edge", ["sh", "-c", "ls -A pilots"], user="leo").stdout.split()
    assert not [name for name in left if "doctor" in name]
    chain.configure(CONFIGURATION.replace('"$HOME/pilots"', '"/tmp/pilots"'))
    found = examine(chain, "--from-node", "--deadline", "10", expect=1)
    assert failed(found) == {("from-node", "dcgp")}
    assert "/tmp/pilots shows no file of it" in found["from-node", "dcgp"].said
    chain.configure(CONFIGURATION)
    chain.occupy(2)
    line = examine(chain, "--from-node", "--deadline", "5", expect=0)["from-node", "dcgp"]
    assert (line.status, "is still PENDING" in line.said) == ("skip", True)
    wait_until(lambda: not chain.slurm_jobs(), 30, "the job is cancelled")


def test_the_systemd_units(own: Systemd) -> None:  # noqa: F811  the fixture
    chain, system_wide = own.chain, Systemd(own.chain)

    def unit(*arguments: str, uid: int) -> Line:
        become = ["setpriv", f"--reuid={uid}", "--clear-groups", "env", f"HOME={HOME}"]
        runtime = [f"XDG_RUNTIME_DIR=/run/user/{uid}"] if uid else []
        text = own.run(*become, *runtime, HTCEBRIDGE, "doctor", "--json", *arguments, check=False)
        return lines(json.loads(text))["unit", ""]

    assert unit(uid=own.uid).said == "no unit of htcebridge is active, and no controller runs"
    own("start", "htcebridge.service")
    wait_until(lambda: own.shows("htcebridge.service", "StatusText"), 60, "the first cycle is done")
    assert unit(uid=own.uid) == Line("ok", "--user htcebridge.service: active", "")
    own("stop", "htcebridge.service")
    # There is no D-Bus here, by which anybody but root asks the system's manager.
    chain.bed.write("edge", "/etc/htcebridge/htcebridge.toml", "[tier1]\n")
    system_wide("start", SERVICE, check=False)
    line = unit("--unit", SERVICE, uid=0)
    assert (line.status, line.said) == ("fail", f"{SERVICE} has failed")
    assert f"journalctl -u {SERVICE}" in line.fix
