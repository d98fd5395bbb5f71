"""The one error of the testbed."""


class TestbedError(Exception):
    """Something of the testbed failed; the text says what was tried, what came back and where to look."""

    __test__ = False  # pytest: not a test class


class UsageError(TestbedError):
    """The caller asked for something that can't be: no such bed, host, suite or service, or not root."""
