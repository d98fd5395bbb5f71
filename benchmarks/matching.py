"""What the matching of one cycle costs: CPU seconds of groups against the slots of new and of joined pilots. Ratios."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from htcebridge.model import Shape
from htcebridge.tier1 import fit
from htcebridge.tier1.fit import Job, Matcher
from htcebridge.tier1.slots import lasting, text

GROUPS, PILOTS = 1_000, 500
ROUNDS = 5
REQUIREMENTS = (
    '(TARGET.Arch == "X86_64") && (TARGET.OpSys == "LINUX") && (TARGET.Disk >= RequestDisk) && '
    "(TARGET.Memory >= RequestMemory) && (TARGET.HasFileTransfer)"
)
SLOT = """[ MyType = "Machine"; Name = "slot1@pilot_{number}@node"; PilotJobId = "{number}_1";
  OpportunisticSite = "leonardo"; PartitionableSlot = true; TotalSlotCpus = 112;
  TotalSlotMemory = 489904; TotalSlotDisk = 1.2E+07; Cpus = {number};
  Microarch = "x86_64-v{kind}"; Arch = "X86_64"; OpSys = "LINUX"; HasFileTransfer = true; GLIDEIN_ToDie = {number};
  JobWall = (TARGET.BatchRuntime) ?: 28800; PilotJobLife = 42000;
  Start = (TARGET.OpportunisticSite =?= "leonardo") && (NODE_IS_HEALTHY =!= False) && (JobWall < PilotJobLife);
  WithinResourceLimits = TARGET.RequestCpus <= MY.Cpus && TARGET.RequestMemory <= MY.Memory;
  Requirements = Start && WithinResourceLimits ]"""


@dataclass(frozen=True)
class Case:
    kinds: int
    pilots: int
    groups: int


def run() -> Iterable[str]:
    """Lines of the table."""
    cases = [Case(1, PILOTS, GROUPS), Case(3, PILOTS, GROUPS), Case(8, PILOTS, GROUPS), Case(8, 5_000, GROUPS)]
    cases += [Case(8, PILOTS, 100), Case(8, PILOTS, 5_000)]
    base = _cpu_s(cases[2])
    yield f"the matching of one cycle, medians of {ROUNDS}; ratio to 8 kinds, {PILOTS} pilots, {GROUPS:,} groups"
    yield f"{'kinds':>6} {'pilots':>7} {'groups':>7} {'CPU s':>8} {'ratio':>6}"
    for case in cases:
        cpu_s = base if case == cases[2] else _cpu_s(case)
        yield f"{case.kinds:>6} {case.pilots:>7,} {case.groups:>7,} {cpu_s:>8.3f} {cpu_s / base:>6.2f}"


def _cpu_s(case: Case) -> float:
    parse = fit.bindings().ClassAd
    ads = [parse(SLOT.format(number=number, kind=number % case.kinds)) for number in range(case.pilots)]
    # A third of the groups fits nowhere, and each has to be told why.
    jobs = [
        f'[ OpportunisticSite = "leonardo"; RequestCpus = {1 + number % 168}; RequestMemory = {1000 + number}; '
        f"RequestDisk = 1000; BatchRuntime = {number}; Requirements = {REQUIREMENTS} ]"
        for number in range(case.groups)
    ]
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        equal = {text(lasting(ad)): None for ad in ads}
        matcher = Matcher({str(number): slot for number, slot in enumerate(equal)})
        for job in jobs:
            matcher.judge(job, Job(Shape(1, 1), 3600))
        seconds.append(time.process_time() - began)
    return median(seconds)
