"""`htcebridge demand` against a plain projection query of the same attributes, 50,000 idle jobs in one schedd.

Whole commands are compared, each a fresh process on the edge node: wall time, and the largest resident memory of its
processes added up (a child's peak counts beside its parent's, though they need not coincide).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median

from tests.e2e.chain import HTCEBRIDGE, Chain, wait_until

JOBS = 50_000
ROUNDS = 5
HOME = "/leonardo/home/leo"
PYTHON = f"{HOME}/htcebridge-venv/bin/python"
# The attributes that the demand rests on, one row a job.
PLAIN = """
import htcondor2
collector = htcondor2.Collector("tier1.cr.example.org:9618")
wanted = ["Name", "MyAddress", "CondorVersion"]
(ad,) = collector.query(htcondor2.AdType.Schedd, 'Machine == "ce01.cr.example.org"', wanted)
rows = htcondor2.Schedd(ad).query(
    'OpportunisticSite =?= "leonardo" && (JobStatus == 1 || JobStatus == 2)',
    ["JobStatus", "OpportunisticSite", "OpportunisticVO", "Owner", "QDate", "AllowedExecuteDuration",
     "AllowedJobDuration", "BatchRuntime", "MaxWallTimeMins", "maxWallTime", "Requirements", "RequestCpus",
     "RequestMemory", "RequestDisk", "RequestGPUs"])
print(len(rows))
"""
# What the product itself would ask of that schedd, from leo's own configuration, as JSON.
REQUEST = """
import json
from pathlib import Path
from htcebridge.config import file
from htcebridge.tier1 import pool
config = file.load(Path.home() / ".config/htcebridge/htcebridge.toml")
view = pool.read_pool(pool.pool_of(config), config.pressure.instance, config.grant.vo_attribute)
(schedd,) = [schedd for schedd in view.schedds if "ce01" in schedd.name]
print(json.dumps(pool.demand_request(schedd, pool.tag_of(config))))
"""
# The same two questions without what a command costs to start: seconds of the queries alone, in one process each.
# The request comes from outside: the product's child knows neither configuration nor pydantic.
QUERY = """
import json, sys, time
import classad2, htcondor2
from htcebridge.tier1 import query_demand
request = json.load(sys.stdin)
schedd = htcondor2.Schedd(classad2.ClassAd({"MyAddress": request["address"], "CondorVersion": request["version"]}))
keys = ["JobStatus", request["attribute"], request["vo_attribute"], "Owner", "QDate", *request["walltime"]]
keys += query_demand.RESOURCE_ATTRIBUTES
tagged = f'{request["attribute"]} =?= "{request["value"]}" && (JobStatus == 1 || JobStatus == 2)'
began = time.monotonic()
if sys.argv[1] == "plain":
    schedd.query(tagged, keys)
else:
    known = query_demand.answer_demand(request)["qdates"]
    if sys.argv[1] == "again":
        began = time.monotonic()
        query_demand.answer_demand({**request, "known": known})
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(time.monotonic() - began, peak)
"""
# Runs a command; prints its seconds and the sum of its processes' peak memory (kB), from their own /proc entries.
MEASURE = """
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
peaks = {}
def family(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            return [pid] + [p for child in children.read().split() for p in family(int(child))]
    except OSError:
        return []
while process.poll() is None:
    for pid in family(process.pid):
        try:
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    if line.startswith("VmHWM:"):
                        peaks[pid] = int(line.split()[1])
        except OSError:
            pass
    time.sleep(0.005)
print(json.dumps({"seconds": time.monotonic() - began, "kilobytes": sum(peaks.values()), "code": process.returncode}))
"""


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds."""

    seconds: float
    megabytes: float


def run(chain: Chain) -> list[str]:
    """Fill a schedd, measure both ways with and without autoclusters; lines of a table."""
    submit_idle(chain, JOBS)
    lines = [f"{JOBS} idle jobs in one schedd, medians of {ROUNDS} runs", ""]
    lines += _compare(chain, "no startd in the pool (no autoclusters)")
    job = chain.submit(ce="ce02", seconds=600)
    wait_until(lambda: None not in chain.states(job), 60, "a job that fits is in the other schedd")
    chain.htcebridge("pressure", "once")
    wait_until(chain.startds, 120, "a pilot has joined")
    wait_until(lambda: _autoclusters(chain) > 0, 120, "the schedd has autoclusters")
    lines += _compare(chain, "with a startd in the pool")
    return lines


def submit_idle(chain: Chain, jobs: int) -> None:
    """Tagged jobs of five shapes, straight into a Tier-1 schedd, idle for ever: no node has their memory."""
    for part in range(5):
        lines = [
            "universe = vanilla",
            "executable = /bin/true",
            '+OpportunisticSite = "leonardo"',
            '+OpportunisticVO = "cms"',
            f"+BatchRuntime = {3600 * (part + 1)}",
            f"request_cpus = {part + 1}",
            "request_memory = 600000",
            f"queue {jobs // 5}",
            "",
        ]
        chain.bed.on("ce01", ["condor_submit", "-terse", "-"], user="cmspil001", input="\n".join(lines), timeout=300)


def _compare(chain: Chain, title: str) -> list[str]:
    plain_env = {
        "CONDOR_CONFIG": "/dev/null",
        "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "_CONDOR_SEC_TOKEN_DIRECTORY": f"{HOME}/.condor/tokens.d",
    }
    plain, demand = [], []
    for _ in range(ROUNDS):
        plain.append(_measure(chain, [PYTHON, "-c", PLAIN], plain_env))
        demand.append(_measure(chain, [HTCEBRIDGE, "demand", "--json"], {}))
    mine, theirs = _median(demand), _median(plain)
    request = chain.bed.on("edge", [PYTHON, "-c", REQUEST], user="leo").stdout
    ways = ("plain", "first", "again")
    asked = {way: _median([_ask(chain, way, request, plain_env) for _ in range(ROUNDS)]) for way in ways}
    return [
        title,
        " the queries alone, as the first cycle asks",
        *_rows(asked["plain"], asked["first"]),
        " the queries alone, as every further cycle asks, which knows since when the first job of each group waits",
        *_rows(asked["plain"], asked["again"]),
        " whole commands, with what Python, configuration, matching and printing cost",
        *_rows(theirs, mine),
    ]


def _rows(theirs: Cost, mine: Cost) -> list[str]:
    return [
        f"  plain projection query  {theirs.seconds:6.2f} s  {theirs.megabytes:6.0f} MB",
        f"  htcebridge demand       {mine.seconds:6.2f} s  {mine.megabytes:6.0f} MB",
        f"  ratio                   {mine.seconds / theirs.seconds:6.2f}    {mine.megabytes / theirs.megabytes:6.2f}",
    ]


def _measure(chain: Chain, command: list[str], env: dict[str, str]) -> Cost:
    done = chain.bed.on("edge", [PYTHON, "-c", MEASURE, *command], user="leo", env=env)
    told = json.loads(done.stdout)
    if told["code"] != 0:
        raise RuntimeError(f"{command[0]} ended with code {told['code']}: {done.stderr}")
    return Cost(told["seconds"], told["kilobytes"] / 1024)


def _ask(chain: Chain, way: str, request: str, env: dict[str, str]) -> Cost:
    done = chain.bed.on("edge", [PYTHON, "-c", QUERY, way], user="leo", env=env, input=request)
    seconds, kilobytes = done.stdout.split()
    return Cost(float(seconds), float(kilobytes) / 1024)


def _median(costs: list[Cost]) -> Cost:
    return Cost(median(cost.seconds for cost in costs), median(cost.megabytes for cost in costs))


def _autoclusters(chain: Chain) -> int:
    found = chain.bed.on(
        "ce01", ["condor_q", "-all", "-limit", "1", "-constraint", "AutoClusterId isnt undefined", "-af", "Owner"]
    )
    return len(found.stdout.split())
