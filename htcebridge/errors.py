"""The errors that reach a person: what, where, what to do. Each kind has one exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the commands return (README, exit codes); EX_TEMPFAIL is sysexits.h's."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    TEMPFAIL = 75


class BridgeError(Exception):
    """Something is wrong out there, and the message names it."""

    exit_code = ExitCode.PROBLEM


class ConfigError(BridgeError):
    """What the admin wrote, or the command line, cannot be used."""

    exit_code = ExitCode.USAGE


class UnsetVariable(ConfigError):
    """A path begins with a variable that this command's environment does not have."""


class UnknownState(BridgeError):
    """A source did not answer: unknown, never zero. Nothing is decided on it."""

    exit_code = ExitCode.TEMPFAIL


class LockHeld(BridgeError):
    """Another controller of the same instance is at work."""

    exit_code = ExitCode.TEMPFAIL
