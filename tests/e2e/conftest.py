"""One testbed per suite for all e2e tests. $HTCEBRIDGE_SUITES says which suites."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.e2e.chain import Chain
from tests.testbed import Testbed, TestbedError

SUITES = os.environ.get("HTCEBRIDGE_SUITES", "trixie forky").split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", SUITES, scope="session")


_SCENE = (
    ("ce01", "condor_q -all -nobatch; condor_q -all -better-analyze 2>&1 | tail -n 40"),
    ("tier1", "condor_status -af Name State Activity Cpus TotalSlotCpus PilotDraining LastHeardFrom; date +%s"),
    ("edge", "squeue -a; sinfo -N; tail -n 25 /leonardo/home/leo/pilots/logs/*.out"),
    ("ce01", "tail -n 15 /var/log/condor/ShadowLog /var/log/condor/SchedLog"),
    ("tier1", "tail -n 25 /var/log/condor/NegotiatorLog"),
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows how the testbed stood at that moment: nobody can look later."""
    report = yield
    chain = getattr(item, "funcargs", {}).get("chain")
    if report.when == "call" and report.failed and isinstance(chain, Chain):
        for host, command in _SCENE:
            try:
                said = chain.bed.on(host, ["sh", "-c", command], check=False, timeout=30).stdout
            except TestbedError as error:
                said = str(error)
            report.sections.append((f"{host}: {command}", said))
    return report


@pytest.fixture(scope="session")
def installed(suite: str) -> Iterator[Chain]:
    """A testbed of this suite with htcebridge in place. Skipped without root: namespaces need it."""
    if os.geteuid() != 0:
        pytest.skip("the testbed needs root: it makes network namespaces and mounts")
    with Testbed.up(suite, nodes=2, name=f"e2e-{suite}-{os.getpid()}") as bed:
        chain = Chain(bed)
        chain.install()
        yield chain


@pytest.fixture
def chain(installed: Chain) -> Chain:
    """The testbed, empty."""
    installed.clean()
    return installed
