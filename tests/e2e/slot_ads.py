"""`scripts/slot-ads`: the slot of a pilot that nobody has seen yet, by each suite's startd, for tier1/slot_ads.

usage: python -m tests.e2e.slot_ads SUITE...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import htcebridge
from htcebridge.tier1 import fit, slots
from tests.e2e.chain import Chain, controller, wait_until
from tests.testbed import Testbed

FOLDER = Path(htcebridge.__file__).parent / "tier1" / "slot_ads"
HEAD = """\
# The partitionable slot of an empty pilot, without what its node alone knows. Made by scripts/slot-ads.
"""


def main() -> int:
    """Write a file for each suite's HTCondor. Returns 0."""
    for suite in sys.argv[1:]:
        with Testbed.up(suite, nodes=1, gpu_nodes=0, name=f"slot-ads-{suite}") as bed:
            chain = Chain(bed)
            chain.install()
            chain.submit(cpus=1)
            with controller(chain):
                text = wait_until(lambda: shown(chain), 300, "an empty pilot has joined")  # noqa: B023
        ad = fit.bindings().parseOne(text)
        version = re.search(r"(\d+\.\d+)\.", ad["CondorVersion"])
        assert version
        kept = slots.without_the_nodes(slots.lasting(ad))
        FOLDER.mkdir(exist_ok=True)
        file = FOLDER / f"{version[1]}.ad"
        file.write_text(HEAD + "".join(f"{name} = {value}\n" for name, value in kept.items()), encoding="utf-8")
        print(f"{file}: {len(kept)} attributes")
    return 0


def shown(chain: Chain) -> str:
    """The slot's ad, once the job has left it."""
    empty = "PartitionableSlot && NumDynamicSlots == 0 && JobStarts > 0"
    return chain.bed.on("tier1", ["condor_status", "-long", "-constraint", empty]).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
