"""All whole-chain tests: beds that live as long as the run, and each takes one file of tests after the other.

usage: python -m tests.e2e.run SUITE...
$HTCEBRIDGE_BEDS: how many beds at a time. $HTCEBRIDGE_ALL=1: every test on every suite, also where one is enough.
$HTCEBRIDGE_PARTS="policy drain": these files only.
$HTCEBRIDGE_LOGS: a directory for each part's log and pytest's report.

Most of a test's time is waiting, so several beds share a core; more only make each other's daemons late. Between two
files a bed is emptied and compared with what it was like when it was new; if it differs, or a test failed on it, the
next file gets a new one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

from tests.e2e.chain import PROJECT, Chain
from tests.e2e.emptied import Standing, empty, standing
from tests.testbed import Testbed, TestbedError

PYTEST = (sys.executable, "-m", "pytest", "--color=no")
NUMBERS = count(1)
SUITES_OF_TESTS = (Path(__file__).parent, PROJECT / "tests" / "attacks")
# The longest first; a file that is not named here comes before them.
LONGEST = (
    *("test_drain", "test_pressure", "test_pilot_life", "test_chain", "test_policy", "test_pilot_checks"),
    *("test_pilot_storm", "test_routes_install", "test_token", "test_doctor", "test_demand", "test_limits"),
    *("test_oracle", "test_packages", "test_running", "test_accounting", "test_report_page", "test_attacks"),
    *(
        "test_quickstart",
        "test_routes_check",
        "test_routes_try",
        "test_containers",
        "test_through_ccb",
        "test_migrating",
    ),
    *("test_metrics", "test_history"),
)

# It has a bed of its own, with more nodes.
WITHOUT = ("test_pilot_storm",)


@dataclass(frozen=True)
class Part:
    """A file of tests on one suite."""

    name: str
    suite: str
    tests: int

    def __str__(self) -> str:
        return f"{self.suite} {self.name.removeprefix('test_')}"


@dataclass(frozen=True)
class Outcome:
    """What a part came to. `end`: the last of its log, where it failed."""

    part: Part
    seconds: float
    verdict: str
    failed: bool
    end: str = ""


@dataclass
class Run:
    """What the workers share."""

    logs: Path
    suites: Sequence[str]
    waiting: list[Part]
    outcomes: list[Outcome] = field(default_factory=list)
    stopping: bool = False
    processes: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, suite: str) -> Part | None:
        """The next part of this suite; when it has no more, another's: a new bed costs half a minute."""
        with self.lock:
            waiting = sorted(self.waiting, key=lambda part: part.suite != suite) if not self.stopping else []
            if not waiting:
                return None
            self.waiting.remove(waiting[0])
            return waiting[0]

    @contextmanager
    def watched(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """The process ends when the run is stopped."""
        with process:
            with self.lock:
                self.processes.add(process)
                if self.stopping:
                    process.send_signal(signal.SIGINT)
            try:
                yield
            finally:
                with self.lock:
                    self.processes.remove(process)

    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            for process in self.processes:
                process.send_signal(signal.SIGINT)  # it tears its fixtures down


def main(suites: Sequence[str]) -> int:
    """Returns 0 if all is well, 1 if a test failed, 130 after Ctrl-C."""
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it would be ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.geteuid() != 0:
        say("the testbed needs root: these tests are skipped")
        return 0
    with logs_directory() as logs:
        with ThreadPoolExecutor() as pool:
            parts = [part for found in pool.map(partial(collected, suites=suites), suites) for part in found]
        if not parts:
            raise SystemExit(f"no such part: {os.environ.get('HTCEBRIDGE_PARTS')}")
        run = Run(logs, suites, parts)
        beds = int(os.environ.get("HTCEBRIDGE_BEDS") or 3 * (os.cpu_count() or 1))
        say(f"{sum(part.tests for part in run.waiting)} tests in {len(run.waiting)} parts on {beds} beds")
        with ThreadPoolExecutor(max_workers=beds) as pool:
            workers = [pool.submit(work, run, suites[number % len(suites)]) for number in range(beds)]
            try:
                for each in as_completed(workers):
                    each.result()
            except KeyboardInterrupt:
                run.stop()
                say("interrupted: what runs is ended")
                return 130
            except BaseException:
                run.stop()
                raise
    for outcome in run.outcomes:
        if outcome.failed:
            say(f"\n##### {outcome.part} failed #####\n{outcome.end}")
    say("\n" + "\n".join(table(run.outcomes)))
    say(f"{time.monotonic() - began:.0f} s in all")
    return int(any(outcome.failed for outcome in run.outcomes))


@contextmanager
def logs_directory() -> Iterator[Path]:
    if asked := os.environ.get("HTCEBRIDGE_LOGS"):
        Path(asked).mkdir(parents=True, exist_ok=True)
        yield Path(asked)
        return
    with tempfile.TemporaryDirectory(prefix="htcebridge-e2e-") as made:
        yield Path(made)


def collected(suite: str, suites: Sequence[str]) -> list[Part]:
    """The parts of a suite, the longest first."""
    listed = subprocess.run(
        [*PYTEST, "--collect-only", "-q", *map(str, SUITES_OF_TESTS)],
        env=environment(suite, suites),
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        raise SystemExit(listed.stdout + listed.stderr)
    asked = {f"test_{name}" for name in os.environ.get("HTCEBRIDGE_PARTS", "").split()}
    counts = Counter(re.findall(r"^tests/\w+/(\w+)\.py::", listed.stdout, re.MULTILINE))
    order = {name: number for number, name in enumerate(LONGEST)}
    names = sorted(counts.keys() & asked if asked else counts, key=lambda name: order.get(name, -1))
    return [Part(name, suite, counts[name]) for name in names]


def environment(suite: str, suites: Sequence[str], **more: str) -> dict[str, str]:
    one_of = "" if os.environ.get("HTCEBRIDGE_ALL") else " ".join(suites)
    return {**os.environ, "HTCEBRIDGE_SUITES": suite, "HTCEBRIDGE_ONE_OF": one_of, **more}


def work(run: Run, suite: str) -> None:
    """Take parts, of this suite first, until there are none, on one bed as long as it is good."""
    bed: Bed | None = None
    try:
        while part := run.take(suite):
            if bed is not None and part.suite != suite:
                bed.chain.bed.down()
                bed = None
            suite = part.suite
            try:
                bed = bed or Bed.new_of(suite)
            except TestbedError as error:
                run.outcomes.append(Outcome(part, 0, "no testbed", failed=True, end=str(error)))
                continue
            outcome = done(run, part, bed.chain.bed.name)
            run.outcomes.append(outcome)
            why = ["a test failed on it"] if outcome.failed else []
            if not why and part.name not in WITHOUT and not run.stopping:
                why = empty(bed.chain, bed.new)
                say(f"{part}: its bed is {'not empty' if why else 'empty again'}")
            if why:
                say("\n".join(f"{part}: {line}" for line in [*why[:20], "the next part gets a new bed"]))
                bed.chain.bed.down()
                bed = None
    finally:
        if bed is not None:
            bed.chain.bed.down()


@dataclass(frozen=True)
class Bed:
    """A testbed with htcebridge in place, and what it is like when it is empty."""

    chain: Chain
    new: Standing

    @classmethod
    def new_of(cls, suite: str) -> Bed:
        bed = Testbed.up(suite, nodes=2, name=f"e2e-{suite}-{os.getpid()}-{next(NUMBERS)}", say=lambda _: None)
        try:
            chain = Chain(bed)
            chain.install()
            return cls(chain, standing(bed))
        except BaseException:
            bed.down()
            raise


def done(run: Run, part: Part, bed: str) -> Outcome:
    """Run a part; its lines are shown as they come."""
    began, xml, log = time.monotonic(), run.logs / f"{part}.xml", run.logs / f"{part}.log"
    file = next(path for folder in SUITES_OF_TESTS if (path := folder / f"{part.name}.py").exists())
    command = [*PYTEST, str(file), "-v", "--durations=5", f"--junitxml={xml}"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment(part.suite, run.suites, HTCEBRIDGE_BED=bed),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with run.watched(process), log.open("w") as kept:
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            say(f"{part}: {line.rstrip()}")
        code = process.wait()
    if code == 0:
        return Outcome(part, time.monotonic() - began, counted(xml), failed=False)
    verdict = counted(xml) if xml.exists() else f"pytest ended with {code}"
    lines = log.read_text().splitlines()
    start = next((n for n, line in enumerate(lines) if re.fullmatch("=+ (FAILURES|ERRORS) =+", line)), 0)
    return Outcome(part, time.monotonic() - began, verdict, failed=True, end="\n".join(lines[start:][-150:]))


def counted(xml: Path) -> str:
    """What pytest's report says of its tests, in words."""
    suite = next(ElementTree.parse(xml).iter("testsuite"))
    counts = {name: int(suite.get(name, "0")) for name in ("failures", "errors", "skipped")}
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "ok"


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The slowest part first."""
    lines = [f"{'part':<20}{'suite':<8}{'tests':>6}{'seconds':>9}  verdict"]
    for each in sorted(outcomes, key=lambda each: -each.seconds):
        verdict = f"FAILED: {each.verdict}" if each.failed else each.verdict
        name = each.part.name.removeprefix("test_")
        lines.append(f"{name:<20}{each.part.suite:<8}{each.part.tests:>6}{each.seconds:>9.0f}  {verdict}")
    return lines


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
