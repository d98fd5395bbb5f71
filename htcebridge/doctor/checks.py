"""`htcebridge doctor`: is everything in place, here and now? What a finding is, and how the checks run.

The checks are in the modules beside this one, each a question to one outer world; what the answers mean is in
`judge`, without any I/O. They run side by side: one that hangs costs its own deadline and nobody else's.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from htcebridge.errors import BridgeError, ExitCode

log = logging.getLogger("htcebridge")


class Status(StrEnum):
    """How a check ended. A skipped one could not be made here, and says what it needs."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


_BADNESS = list(Status)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. `about` is the resource, schedd or file that it is about, `fix` what to do."""

    check: str
    about: str
    status: Status
    said: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A question. `look` returns what it found, or raises BridgeError, which is a finding; within `deadline_s`."""

    name: str
    about: str
    look: Callable[[], Finding | Iterable[Finding]]
    deadline_s: float


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be, and what to do about it."""

    status: Status
    said: str
    fix: str


def finding(check: str, about: str, said: str, problems: Sequence[Problem] = ()) -> Finding:
    """One line of several judgements: the worst one's status, all that is wrong, and what was seen."""
    worst = max((each.status for each in problems), key=_BADNESS.index, default=Status.OK)
    wrong = "; ".join(each.said for each in problems)
    fixes = dict.fromkeys(each.fix for each in problems if each.fix)
    return Finding(check, about, worst, f"{wrong} ({said})" if wrong and said else wrong or said, "; ".join(fixes))


def run(checks: Sequence[Check], ended: Callable[[Check], None] = lambda _: None) -> list[Finding]:
    """The findings of all checks, in the checks' order. `ended` hears of each check that has come to its end.

    A thread each, and nobody waits for one beyond its deadline: a file system that hangs cannot be interrupted.
    """
    answers: queue.Queue[tuple[int, list[Finding]]] = queue.Queue()
    started = time.monotonic()
    for number, check in enumerate(checks):
        threading.Thread(target=lambda n=number, c=check: answers.put((n, _made(c))), daemon=True).start()
    found: dict[int, list[Finding]] = {}
    while len(found) < len(checks):
        waiting = [(started + check.deadline_s, n) for n, check in enumerate(checks) if n not in found]
        due, number = min(waiting)
        try:
            number, findings = answers.get(timeout=max(0.0, due - time.monotonic()))
        except queue.Empty:
            findings = [_late(checks[number])]
        if number not in found:
            found[number] = findings
            ended(checks[number])
    return [each for number in sorted(found) for each in found[number]]


def _made(check: Check) -> list[Finding]:
    try:
        found = check.look()
        return [found] if isinstance(found, Finding) else list(found)
    except BridgeError as error:
        return [Finding(check.name, check.about, Status.FAIL, str(error))]
    except Exception as error:  # one check's defect must not cost the others
        log.debug("check %s %s", check.name, check.about, exc_info=True)
        said = f"the check itself failed: {type(error).__name__}: {error}"
        return [Finding(check.name, check.about, Status.FAIL, said, "run it with -vv and report it")]


def _late(check: Check) -> Finding:
    said = f"no answer in {check.deadline_s:g} s"
    return Finding(
        check.name, check.about, Status.FAIL, said, "something that it asks hangs: a file system or a daemon"
    )


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """2 for a configuration that cannot be used, 1 if anything else fails, 0 otherwise."""
    failed = [each for each in findings if each.status is Status.FAIL]
    if any(each.check == "config" for each in failed):
        return ExitCode.USAGE
    return ExitCode.PROBLEM if failed else ExitCode.OK
