"""One testbed per suite for all e2e tests. $HTCEBRIDGE_SUITES says which suites."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.chain import Chain
from tests.testbed import Testbed

SUITES = os.environ.get("HTCEBRIDGE_SUITES", "trixie forky").split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", SUITES, scope="session")


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
