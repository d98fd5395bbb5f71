"""How a pilot ends, and what it takes before that: preemption, a node that vanishes, walltime, GPUs, data."""

from __future__ import annotations

import time

import pytest

from tests.e2e.chain import CONFIGURATION, IDLE, RUNNING, STATE, Chain, let_pass, never, wait_until
from tests.e2e.pilots import PATIENT, accounted, advertised, executing, left_on, outcome, run, start
from tests.e2e.test_pilot_checks import GPUS
from tests.testbed import data
from tests.testbed.pace import scaled

pytestmark = [pytest.mark.testbed, pytest.mark.isolates]

DATA = f"""
[data]
cms_site = "T1_IT_CNAF"
cms_subsite = "CNAF-LEONARDO"

[[data.read]]
name = "Door"
prefix = "{data.DOOR_URL}"

[[data.read]]
name = "Federation"
prefix = "{data.PROXY_URL}"
"""
# What CMSSW and WMCore do with SITECONF, in a few lines: catalogs in order, each looked up in storage.json.
READER = """
import json, os, subprocess, sys
from xml.etree import ElementTree
here = os.environ["SITECONFIG_PATH"]
# A door that is down: not the client's own five times two minutes.
os.environ.update(XRD_CONNECTIONRETRY="1", XRD_CONNECTIONWINDOW="3")
site = ElementTree.parse(here + "/JobConfig/site-local-config.xml").getroot().find("site")
up = here + "/.." if site.find("subsite") is not None else here
for catalog in site.iter("catalog"):
    storage = json.load(open(up + "/storage.json"))
    volume = next(v for v in storage if (v["site"], v["volume"]) == (site.get("name"), catalog.get("volume")))
    protocol = next(p for p in volume["protocols"] if p["protocol"] == catalog.get("protocol"))
    url = protocol["prefix"] + "/" + "store/file"
    if subprocess.run(["xrdcp", "-s", "-f", url, "got"], timeout=60).returncode == 0:
        print("read from", catalog.get("volume"), open("got").read(), flush=True)
        break
plain = [prefix + "/store/file" for prefix in os.environ["HTCEBRIDGE_DATA_READ"].split()]
print("plain", *plain)
"""


def test_a_preempted_pilots_jobs_are_idle_within_15_s_and_it_says_what_was_lost(chain: Chain) -> None:
    chain.configure(PATIENT.replace('scratch = "50M"', 'scratch = "50M"\nscratch = "/scratch_local/with space"'))
    for node in chain.bed.nodes:
        chain.bed.on(node, ["install", "-d", "-o", "leo", "/scratch_local/with space"])
    jobs = chain.submit(count=2, cpus=3, gate="second-pilot", seconds=1)
    pilot = start(chain)
    run(chain, jobs)
    wait_until(lambda: executing(chain, jobs), 60, "their starters say that they execute")
    (node,) = advertised(chain, 'split(Machine, ".")[0]')
    # Both are to have run for well over 3 s by the starter's clock, which counts whole seconds.
    let_pass(5)
    paying = chain.occupy(2)
    wait_until(lambda: chain.states(jobs) == [IDLE] * 2, 90, "both jobs are idle again", every=0.3)
    said = outcome(chain, pilot)
    assert (said.code, said.joined, said.jobs, said.evicted) == (0, True, 2, 2)
    assert said.lost_core_s == said.core_s > 2 * 3 * 3
    assert accounted(chain, pilot).startswith("PREEMPTED")
    announced = time.strptime(said.reason.removeprefix("Slurm announced the end at "), "%Y-%m-%dT%H:%M:%S")
    idle_at = [int(row[0]) for row in chain.pool_jobs("ce01", "EnteredCurrentStatus").values()]
    assert max(idle_at) - time.mktime(announced) <= 15
    for each in chain.bed.nodes:
        assert left_on(chain, each) == ""
        chain.bed.on(each, ["rmdir", "/scratch_local/with space"])
    assert not chain.startds(), "it said goodbye to the collector"
    assert node in chain.bed.nodes

    chain.open("second-pilot")
    chain.configure(PATIENT)
    chain.bed.on("edge", ["scancel", *paying], user="leo2")
    start(chain)
    wait_until(lambda: chain.done(jobs), 120, "both have ended well on another pilot")
    assert [chain.output(job).count("done") for job in jobs] == [1, 1]


@pytest.mark.one_suite("forky")
def test_a_pilot_that_slurm_shrank_takes_only_what_fits(chain: Chain) -> None:
    """A maintenance in 25 minutes: Slurm fits the pilot of 12 h (--time-min 20 m) in front of it."""
    chain.configure(PATIENT.replace('walltime = "12h"', 'walltime = "12h"\nmin_walltime = "20m"'))
    hole = ["scontrol", "create", "reservation", "ReservationName=hole", "StartTime=now+25minutes", "Duration=60"]
    chain.bed.on("hpcctl", [*hole, "Users=root", "Nodes=ALL", "Flags=MAINT,IGNORE_JOBS"])
    try:
        long, short = chain.submit(walltime="30m", seconds=1), chain.submit(walltime="10m", seconds=1)
        start(chain)
        wait_until(lambda: chain.done(short), 120, "the job of 10 minutes has run")
        life = [int(value) for value in advertised(chain, "PilotEnds - PilotStarted", "GLIDEIN_ToDie - PilotStarted")]
        # The pilot counts from when its script looks.
        assert 20 * 60 - 30 <= life[0] <= 25 * 60
        assert life[1] == life[0] - 240
        never(lambda: chain.states(long) != [IDLE], 10, "a job of 30 minutes starts, which does not fit")
    finally:
        chain.bed.on("hpcctl", ["scontrol", "delete", "ReservationName=hole"])
    chain.configure(PATIENT)
    start(chain)
    wait_until(lambda: chain.done(long), 120, "a fresh pilot takes it")


def test_gpus_go_to_jobs_that_ask_for_them(chain: Chain) -> None:
    four = GPUS.replace("-simulate:0,2", "-simulate:0,4").replace(
        "[resource.booster]", '[resource.booster]\nmin_scratch = "50M"'
    )
    chain.configure(PATIENT + four + "allow_cpu_jobs = true\ncpus_kept_per_gpu = 7\n")
    shows = "echo gpus are $CUDA_VISIBLE_DEVICES"
    (plain,) = chain.submit(cpus=4, does=shows, seconds=1)
    (wide,) = chain.submit(cpus=5, seconds=1)
    start(chain, resource="booster")
    wait_until(lambda: chain.done([plain]), 120, "a small job without a GPU has run")
    never(lambda: chain.states([wide]) != [IDLE], 5, "it takes more, though 28 of 32 cores are kept for 4 free GPUs")
    (one,) = chain.submit(extra=["request_gpus = 1"], does=shows, seconds=1)
    wait_until(lambda: chain.done([one]), 60, "a job with a GPU has run")
    assert chain.node_of(one) == "lrdn1001"
    assert "gpus are 10000" not in chain.output(one)
    assert "gpus are 10000" in chain.output(plain)
    assert advertised(chain, "TotalGPUs", "int(TotalCpus)") == ["4", "32"]


@pytest.mark.one_suite("forky")
def test_data_come_from_the_door_and_through_the_proxy_when_it_is_down(chain: Chain) -> None:
    write = f'\n[data.write]\nname = "WebDAV"\nprefix = "{data.DAVS_URL}"\n'.replace("https", "davs")
    chain.configure(PATIENT + DATA + write)
    bed = chain.bed
    data.put(bed, data.DOOR_HOST, "/store/file", "from the door")
    data.put(bed, data.ORIGIN_HOST, "/store/file", "from the federation")
    bed.write("ce01", "/home/cmspil001/reader.py", READER, owner="cmspil001")
    reads = {
        "extra": ["transfer_input_files = reader.py"],
        "does": "python3 reader.py; echo hello > new; "
        f"curl -s --fail --capath {data.AUTHORITIES} -T new https${{HTCEBRIDGE_DATA_WRITE#davs}}/store/new",
    }
    with data.federation(bed):
        with data.door(bed):
            first = chain.submit(seconds=0, **reads)  # type: ignore[arg-type]
            start(chain)
            wait_until(lambda: chain.done(first), 90, "the job has run")
            said = chain.output(first[0])
            assert "read from Door from the door" in said
            assert f"plain {data.DOOR_URL}/store/file {data.PROXY_URL}/store/file" in said
            assert data.get(bed, data.DOOR_HOST, "/store/new") == "hello\n"
            reached = ("PilotReaches_Door", "PilotReaches_Federation", "PilotReaches_WebDAV", "CMSSubSiteName")
            assert advertised(chain, *reached) == ["true", "true", "true", "CNAF-LEONARDO"]
        second = chain.submit(seconds=0, **reads)  # type: ignore[arg-type]
        wait_until(lambda: chain.done(second), 120, "the second job has run")
        assert "read from Federation from the federation" in chain.output(second[0])
        wait_until(
            lambda: advertised(chain, *reached[:2]) == ["false", "true"], 150, "the pilot says that the door is down"
        )


def test_htcondor_from_a_tarball_reads_nasty_values_as_they_were_written(chain: Chain) -> None:
    motto = 'it\'s "q" $(touch X) `touch X` $ENV(HOME) \\ % #'
    escaped = motto.replace("\\", "\\\\").replace('"', '\\"')
    parts = "usr/bin/condor_* usr/sbin/condor_* usr/lib/condor usr/libexec/condor"
    chain.bed.on("edge", ["sh", "-c", f"cd / && tar cf /leonardo/work/leo/condor.tar {parts}"])
    tarball = PATIENT.replace("[pilot]\n", '[pilot]\ncondor = "tarball:/leonardo/work/leo/condor.tar"\n')
    chain.configure(tarball + f'attributes = {{ Motto = "{escaped}" }}\n')
    start(chain)
    wait_until(lambda: advertised(chain, "Motto"), 90, "the pilot is in the pool")
    shown = chain.bed.on("tier1", ["condor_status", "-constraint", "PartitionableSlot", "-af", "Motto"]).stdout
    assert shown == motto + "\n"
    (machine,) = advertised(chain, "Machine")
    look = ["sh", "-c", "readlink /proc/$(pgrep -x condor_startd)/exe"]
    assert "/htcebridge-" in chain.bed.on(machine.partition(".")[0], look).stdout


@pytest.mark.one_suite("forky")
def test_a_token_replaced_by_one_file_is_the_next_pilots(chain: Chain) -> None:
    """Rotation: nothing is restarted, running pilots keep their copy."""
    chain.configure(CONFIGURATION)
    old = chain.bed.read("edge", "/leonardo/home/leo/.config/htcebridge/pilot.idtoken")
    rights = [part for name in ("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER") for part in ("-authz", name)]
    create = ["condor_token_create", "-identity", "leonardo-pilot@cr.example.org", "-lifetime", "86400", *rights]
    new = chain.bed.on("tier1", create).stdout
    assert new != old
    chain.bed.write("edge", "/leonardo/home/leo/.config/htcebridge/pilot.idtoken", new, mode=0o600, owner="leo")
    try:
        pilot = start(chain)
        assert outcome(chain, pilot, seconds=120).joined
        for text in (chain.pilot_logs(), chain.htcebridge("render", "script", "dcgp").stdout):
            assert new.strip() not in text
    finally:
        chain.bed.write("edge", "/leonardo/home/leo/.config/htcebridge/pilot.idtoken", old, mode=0o600, owner="leo")


@pytest.mark.one_suite("forky")
def test_jobs_of_a_node_that_vanishes_run_again_after_the_lease_and_its_ads_are_gone(chain: Chain) -> None:
    chain.configure(PATIENT + '\n[routes]\njob_lease = "60s"\n')
    chain.install_routes()
    jobs = chain.submit(gate="never", user="atlpil001")
    wait_until(lambda: chain.states(jobs) == [IDLE], 60, "the job waits")
    chain.htcebridge("pressure", "once")
    run(chain, jobs)
    (pilot,) = chain.slurm_jobs()
    (machine,) = advertised(chain, "Machine")
    node = machine.partition(".")[0]
    chain.htcebridge("pressure", "once")
    # Debian's HTCondor 23.9 leaves the time between a keepalive's probes to the kernel: 75 s, 9 times (docs/routes.md).
    probes = ["net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"]
    usual = chain.bed.on("ce01", ["sysctl", "-n", *probes]).stdout.split()
    chain.bed.on("ce01", ["sysctl", "-q", *(f"{name}=5" for name in probes)])
    chain.bed.cut(node)
    cut = time.monotonic()
    try:
        chain.bed.on(node, ["pkill", "-KILL", "-u", "leo"], check=False)
        wait_until(lambda: chain.states(jobs) == [IDLE], 300, "the lease has ended, the job is idle again")
        waited = time.monotonic() - cut
        print(f"idle again {waited:.0f} s after the cut")
        # The lease counts from its last renewal; a keepalive (a quarter of it) and its five probes, then three times
        # 25 s in which the shadow tries to tell the startd.
        assert waited < scaled(60 + 15 + 25 + 75 + 30)
        # Slurm gives the node up after SlurmdTimeout (60 s here); the controller takes the ads away when it knows that.
        chain.bed.on("hpcctl", ["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"])

        def cleaned() -> bool:
            chain.htcebridge("pressure", "once", expect=None)
            return not any(f"pilot_{pilot}@" in name for name in chain.startds())

        wait_until(cleaned, 90, "its ads are gone", every=5)
        wait_until(lambda: chain.states(jobs) == [RUNNING], 120, "the job runs elsewhere")
        outcomes = chain.bed.read("edge", f"{STATE}/leonardo.json")
        assert f'"id":"{pilot}"' in outcomes
        assert '"outcome":"node failed"' in outcomes
    finally:
        chain.bed.on("ce01", ["sysctl", "-q", *(f"{name}={value}" for name, value in zip(probes, usual, strict=True))])
        chain.bed.mend(node)
        chain.bed.on("hpcctl", ["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)
        chain.bed.stop(node, "slurmd")
        # The pilot was killed with its automounter: what a dead node comes back without.
        chain.bed.on(node, ["/etc/slurm/cvmfs.sh", "boot"])
        chain.bed.start(node, "slurmd")
        chain.clean()
        chain.install_routes()


@pytest.mark.one_suite("trixie")
def test_pilots_get_tokens_that_a_command_makes_when_they_are_needed(chain: Chain) -> None:
    minted, file = "/leonardo/home/leo/minted", "/leonardo/home/leo/fresh/pilot.idtoken"
    create = ["condor_token_create", "-identity", "leonardo-pilot@cr.example.org", "-lifetime", str(13 * 3600)]
    create += ["-authz", "READ", "-authz", "ADVERTISE_STARTD", "-authz", "ADVERTISE_MASTER"]
    chain.bed.write("edge", minted, chain.bed.on("tier1", create).stdout, mode=0o600, owner="leo")
    chain.bed.on("edge", ["mkdir", "-m", "700", "/leonardo/home/leo/fresh"], user="leo")
    keys = f'token_file = "{file}"\ntoken_command = "cat {minted}"\n'
    chain.configure(CONFIGURATION.replace("[pilot]\n", f"[pilot]\n{keys}"))
    jobs = chain.submit(seconds=1)
    wait_until(lambda: chain.states(jobs) == [IDLE], 60, "a job waits in the Tier-1 schedd")
    assert chain.json("pressure", "plan")["resources"]["dcgp"]["submit"] == 1
    assert chain.bed.on("edge", ["ls", file], check=False).returncode != 0, "a plan changes nothing"
    chain.htcebridge("pressure", "once")
    assert chain.bed.on("edge", ["stat", "-c", "%a %U", file]).stdout.split() == ["600", "leo"]
    wait_until(lambda: chain.done(jobs), 90, "the job has run on a pilot with this token")
    chain.htcebridge("pressure", "once")
    assert chain.bed.on("edge", ["ls", file], check=False).returncode != 0, "who has joined has a copy"
