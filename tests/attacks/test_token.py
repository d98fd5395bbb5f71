"""What a pilot's token is good for in other hands, before and after `htcebridge pool install`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import schema
from tests.e2e.chain import CONFIGURATION, IDLE, PROJECT, RUNNING, Answer, Chain, never, wait_until
from tests.e2e.pilots import PATIENT, advertised, start
from tests.testbed.wheels import wheelhouse

pytestmark = pytest.mark.testbed

PYTHON = "/leonardo/home/leo/htcebridge-venv/bin/python"
DIRECTORY, STATE = "/etc/condor/config.d", "/etc/condor/htcebridge"
FILE = f"{DIRECTORY}/60-htcebridge-leonardo.conf"
POOL = "tier1.cr.example.org:9618"
OWN = f"{POOL}?sock=htcebridge"
KEYS = f'[tier1]\npilot_collector = "{OWN}"\npilot_identity = "leonardo-pilot@cr.example.org"\n'

# What the token's thief sends: a line is a command, a blank and an ad. After each a sign that it was dealt with.
THIEF = """
import sys
import classad2, htcondor2
collector = htcondor2.Collector(sys.argv[1])
for number, line in enumerate(sys.stdin, int(sys.argv[2])):
    command, ad = line.split(" ", 1)
    sign = classad2.ClassAd({"MyType": "Machine", "Name": "sign@x.leonardo.invalid", "Sign": number})
    try:
        collector.advertise([classad2.ClassAd(ad)], command)
        collector.advertise([sign], "UPDATE_STARTD_AD")
        print("sent")
    except htcondor2.HTCondorException as error:
        print(type(error).__name__, error)
"""
TOKEN = {
    "CONDOR_CONFIG": "/dev/null",
    "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
    "_CONDOR_SEC_TOKEN_DIRECTORY": "/leonardo/home/leo/stolen",
}
ADDRESS = "<10.9.9.9:9618>"
WORKER = f"""MyType = "Machine"
Name = "slot1@wn-001.cr.example.org"
Machine = "wn-001.cr.example.org"
MyAddress = "{ADDRESS}"
StartdIpAddr = "{ADDRESS}"
SlotID = 1
State = "Owner"
Requirements = false
"""
MASTER = f"""MyType = "DaemonMaster"
Name = "wn-001.cr.example.org"
MyAddress = "{ADDRESS}"
"""
ALL = 'MyType = "Query"; Requirements = true;'
NAMED = f'MyType = "Query"; MyAddress = "{ADDRESS}"; Requirements = true;'
SLOT = f'MyType = "Machine"; MyAddress = "{ADDRESS}"; Requirements = true; State = "Owner"; Stolen = true;'
WN = '"slot1@wn-001.cr.example.org"'
PILOT = '"slot1@pilot_9@x.leonardo.invalid"'
COMPUTED = f'ifThenElse(OpportunisticSite =?= undefined && random(2) == 0, "x.leonardo.invalid", {WN})'
AWAY = (
    f'INVALIDATE_STARTD_ADS [ {ALL} TargetType = "Machine" ]',
    f'INVALIDATE_STARTD_ADS [ {ALL} TargetType = "StartD" ]',
    f'INVALIDATE_MASTER_ADS [ {ALL} TargetType = "DaemonMaster" ]',
    f'INVALIDATE_STARTD_ADS [ {NAMED} TargetType = "Machine"; Name = {WN} ]',
    f'INVALIDATE_STARTD_ADS [ {NAMED} TargetType = "StartD"; Name = {WN} ]',
    f'INVALIDATE_MASTER_ADS [ {NAMED} TargetType = "DaemonMaster"; Name = "wn-001.cr.example.org" ]',
    # The key is made of Machine where there is no name, and of what a name comes to where it is computed.
    f'INVALIDATE_STARTD_ADS [ {NAMED} TargetType = "Machine"; Machine = {WN} ]',
    f'INVALIDATE_MASTER_ADS [ {NAMED} TargetType = "DaemonMaster"; Machine = "wn-001.cr.example.org" ]',
    *[f'INVALIDATE_STARTD_ADS [ {NAMED} TargetType = "Machine"; Name = {COMPUTED} ]'] * 4,
    # As an update would look, with the name of a pilot that is not there, and with what macros are made of.
    f'INVALIDATE_STARTD_ADS [ {SLOT} TargetType = "Machine"; Name = {PILOT} ]',
    'INVALIDATE_STARTD_ADS [ TargetType = "Machine"; Requirements = strcat("$(MY.x)", "$ENV(PATH)") != "y" ]',
    'INVALIDATE_STARTD_ADS [ TargetType = "Machine"; Requirements = "true) || (true" != "" || true ]',
)
UPDATES = (
    f"UPDATE_STARTD_AD [ {SLOT} Name = {WN} ]",
    *[f"UPDATE_STARTD_AD [ {SLOT} Name = {COMPUTED} ]"] * 4,
    'UPDATE_MASTER_AD [ MyType = "DaemonMaster"; Name = "wn-001.cr.example.org"; Stolen = true ]',
    f'UPDATE_STARTD_AD [ {SLOT} Name = {PILOT}; TARGET = [ OpportunisticSite = "leonardo" ] ]',
)
REVOKED = """HTCEBRIDGE_LEONARDO.DENY_ADVERTISE_STARTD = leonardo-pilot@cr.example.org
HTCEBRIDGE_LEONARDO.DENY_ADVERTISE_MASTER = leonardo-pilot@cr.example.org
DENY_READ = $(DENY_READ:) leonardo-pilot@cr.example.org
"""
FORGET = 'MyType = "Query"\nTargetType = "Machine"\nRequirements = regexp("[.]leonardo[.]invalid$", Name)\n'


@dataclass
class CentralManager:
    """tier1 with htcebridge for its admin."""

    chain: Chain

    def pool(self, *arguments: str, expect: int = 0) -> Answer:
        """`htcebridge pool ...` as root on the central manager."""
        command = ["/opt/htcebridge/bin/htcebridge", "pool", *arguments]
        done = self.chain.bed.on("tier1", command, check=False)
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in answer.said, answer.said
        assert answer.code == expect, f"{arguments}: {answer.code}\n{answer.said}"
        return answer

    def check(self, *arguments: str, expect: int = 0) -> dict[str, bool | None]:
        document = json.loads(self.pool("check", "--json", *arguments, expect=expect).stdout)
        schema.check_command(("pool", "check"), document)
        return {line["what"]: line["good"] for line in document["lines"]}

    def configure(self, keys: str, site: str = "leonardo") -> None:
        grant = f'[grant]\nvalue = "{site}"\n\n'
        text = grant + CONFIGURATION.replace("[tier1]\n", keys)
        self.chain.bed.write("tier1", "/etc/htcebridge/htcebridge.toml", text)

    def files(self) -> str:
        return self.chain.bed.on("tier1", ["sh", "-c", f"cd {DIRECTORY} && sha256sum $(find . -type f)"]).stdout


@pytest.fixture(scope="module")
def installed_there(installed: Chain) -> Iterator[CentralManager]:
    bed = installed.bed
    bed.install_wheels("tier1", wheelhouse(PROJECT, bed.suite), "/opt/htcebridge", "root", "htcebridge")
    bed.on("tier1", ["mkdir", "-p", "/etc/htcebridge"])
    yield CentralManager(installed)
    bed.on("tier1", ["rm", "-rf", "/etc/htcebridge"])


@pytest.fixture
def manager(chain: Chain, installed_there: CentralManager) -> Iterator[CentralManager]:
    """The central manager as it was, a worker of the Tier-1's own in its pool, and a stolen token on the HPC."""
    bed = chain.bed
    bed.on("edge", ["sh", "-c", "install -D -m 600 .config/htcebridge/pilot.idtoken stolen/pilot"], user="leo")
    installed_there.configure(KEYS)
    yield installed_there
    bed.on("edge", ["scancel", "-u", "leo"], user="leo")
    wait_until(lambda: not chain.slurm_jobs(), 60, "no pilot is left")
    bed.on("tier1", ["sh", "-c", f"rm -rf {FILE} {DIRECTORY}/99-* {STATE}; condor_reconfig"])
    wait_until(lambda: not answers(chain, OWN), 30, "the pilots' collector has ended")
    left = f'MyAddress == "{ADDRESS}" || regexp("[.]leonardo[.]invalid$|^Pilots of", Name)'
    for kind in ("STARTD Machine", "STARTD StartD", "MASTER DaemonMaster", "COLLECTOR Collector"):
        what, target = kind.split()
        forget = f'MyType = "Query"\nTargetType = "{target}"\nRequirements = {left}\n'
        bed.on("tier1", ["condor_advertise", f"INVALIDATE_{what}_ADS", "-"], input=forget)


def answers(chain: Chain, address: str) -> bool:
    return chain.bed.on("tier1", ["condor_status", "-pool", address, "-collector"], check=False).returncode == 0


def worker_there(chain: Chain) -> list[str]:
    """The ads of the Tier-1's own worker, put there if they are missing."""
    for what, ad in (("STARTD", WORKER), ("MASTER", MASTER)):
        chain.bed.on("tier1", ["condor_advertise", f"UPDATE_{what}_AD", "-"], input=ad)
    return wait_until(lambda: found if len(found := workers_ads(chain)) == 3 else None, 30, "the worker is shown")


def workers_ads(chain: Chain) -> list[str]:
    look = ["condor_status", "-any", "-constraint", 'regexp("wn-001", Name)', "-af", "MyType", "Name", "Stolen"]
    return sorted(chain.bed.on("tier1", look).stdout.splitlines())


def steals(chain: Chain, address: str, lines: tuple[str, ...], first: int = 0) -> list[str]:
    """What a thief is told at this collector for each of these. `first`: the number of the first one's sign."""
    done = chain.bed.on(
        "edge",
        [PYTHON, "-c", THIEF, address, str(first)],
        user="leo",
        env=TOKEN,
        input="".join(f"{line}\n" for line in lines),
    )
    return done.stdout.splitlines()


def dealt_with(chain: Chain, number: int) -> None:
    """Wait until the pool shows the sign that was sent after the line of this number."""
    look = ["condor_status", "-constraint", f"Sign == {number}", "-af", "Name"]
    wait_until(lambda: chain.bed.on("tier1", look).stdout, 30, f"line {number} was dealt with", every=0.2)


def hostile_pilot(chain: Chain) -> None:
    """A startd with the pilots' token that takes any job, and says that it is none of theirs."""
    disguised = r"sed -e 's/^START = .*/START = True/' -e 's/^OpportunisticSite = .*/OpportunisticSite = \"none\"/'"
    start(chain, before="true", through=disguised)
    wait_until(lambda: chain.startds(), 60, "it has joined")


def doctors_advertise(chain: Chain) -> str:
    """What the doctor says of where the pilots' token is taken."""
    lines = chain.json("doctor", expect=None)["checks"]
    (said,) = [line["said"] for line in lines if line["check"] == "advertise"]
    return str(said)


def test_without_the_pools_side_a_token_takes_any_startd_away_and_gets_any_job(manager: CentralManager) -> None:
    chain = manager.chain
    chain.configure(PATIENT)
    assert worker_there(chain)
    assert steals(chain, POOL, AWAY[:1] + AWAY[2:3]) == ["sent"] * 2
    wait_until(lambda: len(workers_ads(chain)) <= 1, 30, "the worker's slot and its master are gone")
    hostile_pilot(chain)
    assert advertised(chain, "OpportunisticSite") == ["none"]
    other = chain.submit(user="bob001", wants=False, gate="never")
    wait_until(lambda: chain.states(other) == [RUNNING], 60, "it has somebody's job that was not for the HPC")


def test_with_it_a_token_is_good_for_pilots_alone(manager: CentralManager) -> None:
    chain = manager.chain
    manager.pool("install")
    chain.configure(PATIENT.replace("[tier1]\n", KEYS))
    there = worker_there(chain)
    refused = steals(chain, POOL, AWAY + UPDATES)
    assert not [said for said in refused if said == "sent"]
    for number, line in enumerate(AWAY + UPDATES):
        assert steals(chain, OWN, (line,), number) == ["sent"], line
        dealt_with(chain, number)
        assert workers_ads(chain) == there, line
    shown = chain.bed.on("tier1", ["condor_status", "-long", "-constraint", "Stolen =?= true"]).stdout
    assert f"Name = {PILOT}" in shown
    assert shown.count("\nName = ") == shown.count('\nOpportunisticSite = "leonardo"\n')
    assert "\nTARGET = " not in shown
    hostile_pilot(chain)
    assert advertised(chain, "OpportunisticSite") == ["leonardo"]
    granted, other = chain.submit(gate="revoked"), chain.submit(user="bob001", wants=False, gate="never")
    wait_until(lambda: chain.states(granted) == [RUNNING], 60, "a job that was for the HPC runs there")
    wait_until(lambda: chain.states(other) == [IDLE], 60, "the other waits")
    never(lambda: chain.states(other) != [IDLE], 12, "two cycles of the negotiator give it what it may not have")

    # As the runbook revokes a token.
    chain.bed.write("tier1", f"{DIRECTORY}/99-revoked.conf", REVOKED)
    chain.bed.on("tier1", ["condor_reconfig"])
    wait_until(lambda: steals(chain, OWN, UPDATES[-1:]) != ["sent"], 30, "the token is worth nothing")
    chain.bed.on("tier1", ["condor_advertise", "INVALIDATE_STARTD_ADS", "-"], input=FORGET)
    assert not chain.startds()
    chain.open("revoked")
    wait_until(lambda: chain.done(granted), 60, "its startd has something to tell")
    never(lambda: chain.startds(), 10, "an open session outlives the revocation")


@pytest.mark.one_suite("forky")
def test_it_is_installed_under_running_pilots_and_taken_out_again(manager: CentralManager) -> None:
    chain, before = manager.chain, manager.files()
    chain.configure(PATIENT)
    old = start(chain, "-w", "lrdn0001")
    wait_until(lambda: chain.startds(), 60, "a pilot has joined at the pool's collector")
    assert manager.check(expect=1) == {"file": False}
    assert "+HTCEBRIDGE_LEONARDO = $(COLLECTOR)" in manager.pool("install", "--transition", "--dry-run").stdout
    assert manager.files() == before
    assert "1 pilot joined" in manager.pool("install", expect=1).stderr
    manager.pool("install", "--transition")
    assert all(manager.check("--transition").values())
    found = manager.check(expect=1)
    assert [what for what, good in found.items() if not good] == ["the pool's collector"], "it is not closed yet"

    chain.configure(PATIENT.replace("[tier1]\n", KEYS))
    assert "takes it as well" in doctors_advertise(chain)
    new = start(chain, "-w", "lrdn0002")
    wait_until(lambda: len(chain.startds()) == 2, 60, "another has joined at their own")
    jobs = chain.submit(cpus=100, count=2, gate="both", seconds=1)
    wait_until(lambda: chain.states(jobs) == [RUNNING, RUNNING], 90, "a job runs on each")
    chain.open("both")
    wait_until(lambda: chain.done(jobs), 60, "both have run")
    assert {chain.node_of(job) for job in jobs} == {"lrdn0001", "lrdn0002"}
    assert f"1 pilot joined at {POOL}" in manager.pool("install", expect=1).stderr
    chain.bed.on("edge", ["scancel", "--batch", "--signal=USR1", old], user="leo")
    wait_until(lambda: len(chain.startds()) == 1, 60, "the old one has left, and its ad with it")
    manager.pool("install")
    assert all(manager.check().values())
    assert doctors_advertise(chain) == f"{OWN} lets a startd and a master with this token in"
    manager.configure(KEYS.replace("leonardo-pilot", "leonardo-pilto"))
    assert f"1 pilot joined at {OWN} would lose the pool" in manager.pool("install", expect=1).stderr
    manager.configure(KEYS)
    assert "would lose the pool" in manager.pool("uninstall", expect=1).stderr
    chain.bed.on("edge", ["scancel", "--batch", "--signal=USR1", new], user="leo")
    wait_until(lambda: not chain.startds(), 60, "the last one has left, and the pool knows it")
    manager.pool("uninstall")
    assert manager.files() == before


@pytest.mark.one_suite("forky")
def test_what_would_not_be_in_force_is_refused_and_what_does_not_do_is_taken_back(manager: CentralManager) -> None:
    chain, before = manager.chain, manager.files()
    late = f"{DIRECTORY}/99-site.conf"
    for text, said in (
        ("DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR\n", "DAEMON_LIST: HTCEBRIDGE_LEONARDO is not in it"),
        ("HTCEBRIDGE_LEONARDO.FORWARD_AD_TRANSFORM_NAMES = \n", f"FORWARD_AD_TRANSFORM_NAMES: set again in {late}:1"),
    ):
        chain.bed.write("tier1", late, text)
        assert said in manager.pool("install", expect=1).stderr
    manager.configure(KEYS.replace("sock=htcebridge", "sock=collector"))
    assert "?sock=collector is My Pool" in manager.pool("install", expect=2).stderr
    manager.configure(KEYS)
    chain.bed.write("tier1", late, "HTCEBRIDGE_LEONARDO.ALLOW_DAEMON = *\n")
    began = time.monotonic()
    answer = manager.pool("install", "--timeout", "5", expect=1)
    assert "DAEMON is allowed" in answer.stderr
    assert "The file is as it was" in answer.stderr
    assert time.monotonic() - began > 5
    chain.bed.on("tier1", ["rm", late])
    assert manager.files() == before
    manager.pool("install")
    manager.configure(KEYS.replace("sock=htcebridge", "sock=other"))
    for command in ("install", "uninstall"):
        assert "another socket" in manager.pool(command, expect=2).stderr
    manager.configure(KEYS, site="marconi")
    assert "is Pilots of leonardo@" in manager.pool("install", expect=2).stderr
    assert "there is 60-htcebridge-leonardo.conf" in manager.pool("uninstall").stdout
    manager.configure(KEYS)
    chain.bed.on("tier1", ["sh", "-c", f"echo '# mine' >> {FILE}"])
    assert manager.check(expect=1)["file"] is False
    assert "edited by hand" in manager.pool("uninstall", expect=2).stderr
    chain.bed.write("tier1", FILE, "# somebody else's\n")
    assert "not written by" in manager.pool("install", expect=2).stderr
