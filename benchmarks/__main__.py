"""`python -m benchmarks WHAT`: the tables of docs/performance.md; --help says what there is.

`demand`, the default, needs root for a testbed of its own; `simulation` needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable


def main() -> int:
    """Run a benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The tables of docs/performance.md.")
    known = ("demand", "matching", "metrics", "planner", "recording", "report", "simulation")
    parser.add_argument("what", nargs="?", choices=known, default="demand")
    parser.add_argument("--seeds", type=int, default=10, help="simulation: how many (default 10)")
    parser.add_argument("--first-seed", type=int, default=200, help="simulation: the first of them (default 200)")
    arguments = parser.parse_args()
    for line in _lines(arguments):
        print(line, flush=True)
    return 0


def _lines(arguments: argparse.Namespace) -> Iterable[str]:
    """Each benchmark is imported only when it runs: they need different things."""
    if arguments.what == "simulation":
        from benchmarks import simulation

        yield from simulation.run(arguments.seeds, arguments.first_seed)
    elif arguments.what == "matching":
        from benchmarks import matching

        yield from matching.run()
    elif arguments.what == "planner":
        from benchmarks import planner_scale

        yield from planner_scale.run()
    elif arguments.what == "recording":
        from benchmarks import recording

        yield from recording.run()
    elif arguments.what == "metrics":
        from benchmarks import metrics_scrape

        yield from metrics_scrape.run()
    elif arguments.what == "report":
        from benchmarks import report_scale

        yield from report_scale.run()
    else:
        from benchmarks import demand_query
        from tests.e2e.chain import Chain
        from tests.testbed import Testbed

        with Testbed.up("trixie", nodes=2, name="bench") as bed:
            chain = Chain(bed)
            chain.install()
            yield from demand_query.run(chain)


if __name__ == "__main__":
    sys.exit(main())
