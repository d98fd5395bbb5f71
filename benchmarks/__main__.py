"""`python -m benchmarks`: every benchmark on a testbed of its own."""

from __future__ import annotations

import sys

from benchmarks import demand_query
from tests.e2e.chain import Chain
from tests.testbed import Testbed


def main() -> int:
    """Run the benchmarks and print their tables."""
    with Testbed.up("trixie", nodes=2, name="bench") as bed:
        chain = Chain(bed)
        chain.install()
        for line in demand_query.run(chain):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
