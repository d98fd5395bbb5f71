"""One testbed for the e2e tests of a suite: $HTCEBRIDGE_SUITES says which suites, $HTCEBRIDGE_BED which bed is used."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.e2e.chain import Chain
from tests.testbed import Testbed, TestbedError

SUITES = os.environ.get("HTCEBRIDGE_SUITES", "trixie forky").split()
# A test that one suite is enough for takes it from these, as the run was asked for them (`scripts/e2e`); from none of
# them where every test is to run on every suite.
ONE_OF = os.environ.get("HTCEBRIDGE_ONE_OF", " ".join(SUITES)).split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", SUITES, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of what is marked one_suite only one suite's: the one that it names, or the first if that is not asked for."""
    kept = [item for item in items if _is_asked_for(item)]
    if left := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def _is_asked_for(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("one_suite")
    if not ONE_OF or mark is None:
        return True
    chosen = mark.args[0] if mark.args[0] in ONE_OF else ONE_OF[0]
    callspec = getattr(item, "callspec", None)
    return chosen == callspec.params["suite"] if callspec and "suite" in callspec.params else chosen in SUITES


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
    funcargs = getattr(item, "funcargs", {})
    chain = funcargs.get("chain") or funcargs.get("installed")
    if report.failed and isinstance(chain, Chain):
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
    if bed_there := os.environ.get("HTCEBRIDGE_BED"):
        yield Chain(Testbed.attach(bed_there))
        return
    with Testbed.up(suite, nodes=2, name=f"e2e-{suite}-{os.getpid()}") as bed:
        chain = Chain(bed)
        chain.install()
        yield chain


@pytest.fixture
def chain(installed: Chain, request: pytest.FixtureRequest) -> Chain:
    """The testbed, empty."""
    installed.isolates = request.node.get_closest_marker("isolates") is not None
    installed.clean()
    return installed
