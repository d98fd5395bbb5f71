"""`make soak`: mixed load on pilots of short life, for as long as you like. No job may be killed by a pilot's walltime.

usage: python -m tests.e2e.soak SUITE MINUTES
"""

from __future__ import annotations

import random
import sys
import time

from tests.e2e.chain import CE_ENVIRONMENT, CONFIGURATION, Chain, GridJob, controller, wait_until
from tests.testbed import Testbed

# Pilots of 8 minutes, of which jobs may use 6: START has to turn away something all the time.
SHORT = CONFIGURATION.replace('walltime = "12h"', 'walltime = "8m"').replace(
    "[pilot]\n", '[pilot]\nmargin = "90s"\nboot_time = "30s"\n'
)
WALLTIMES_M = (1, 2, 3, 4, 5)


def main() -> int:
    """Returns 0 if every job ran once, to its end."""
    suite, minutes = sys.argv[1], float(sys.argv[2])
    chance = random.Random(1)  # noqa: S311
    with Testbed.up(suite, nodes=4, gpu_nodes=0, name=f"soak-{suite}") as bed:
        chain = Chain(bed, isolates=True)
        chain.install()
        chain.configure(SHORT)
        jobs: list[GridJob] = []
        until = time.monotonic() + minutes * 60
        with controller(chain):
            while time.monotonic() < until:
                walltime = chance.choice(WALLTIMES_M)
                jobs += chain.submit(
                    ce=chance.choice(["ce01", "ce02"]),
                    user=chance.choice(["cmspil001", "atlpil001"]),
                    # Nearly all that they declare.
                    seconds=walltime * 60 - 15,
                    cpus=chance.choice([8, 16, 32, 56]),
                    walltime=f"{walltime}m",
                )
                time.sleep(chance.uniform(2, 10))
            wait_until(lambda: chain.done(jobs), 1200, "all jobs have ended", every=5)
        return judge(chain, jobs)


def judge(chain: Chain, jobs: list[GridJob]) -> int:
    """Say what was seen; 0 if no job was started twice or evicted."""
    starts: dict[str, int] = {}
    for ce in ("ce01", "ce02"):
        wait_until(lambda ce=ce: not chain.ce_queue(ce), 120, "the CE's queue is empty")  # type: ignore[misc]
        rows = chain.bed.on(ce, ["condor_history", "-af", "ClusterId", "NumShadowStarts"], env={}).stdout
        starts |= {f"{ce} {row.split()[0]}": int(row.split()[1]) for row in rows.splitlines()}
        ended = chain.bed.on(ce, ["condor_history", "-af", "JobStatus"], env=CE_ENVIRONMENT).stdout.split()
        assert set(ended) <= {"4"}, ended
    outcomes = [line for line in chain.pilot_logs().splitlines() if " htcebridge-outcome " in line]
    evicted = [line for line in outcomes if " evicted=0 " not in line]
    again = {job: count for job, count in starts.items() if count != 1}
    print(f"{len(jobs)} jobs, {len(outcomes)} pilots")
    print(f"started more than once: {again or 'none'}; evicted: {evicted or 'none'}")
    return 1 if again or evicted else 0


if __name__ == "__main__":
    sys.exit(main())
