"""The same testbed as for the whole-chain tests."""

from tests.e2e.conftest import (
    chain,
    installed,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    pytest_runtest_makereport,
)

__all__ = ["chain", "installed", "pytest_collection_modifyitems", "pytest_generate_tests", "pytest_runtest_makereport"]
