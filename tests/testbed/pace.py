"""How slow this machine is now, and patience that counts in its time.

Whoever waits says how long that takes on a machine with nothing else to do. What the machine really is at that moment
is measured, not guessed: a small piece of work, of the kind that fills a bed's days (programs that start and end, a
little arithmetic), against what it takes where nobody disturbs it.
"""

from __future__ import annotations

import subprocess
import threading
import time

# Seconds for `_work` on two idle cores of 2.5 GHz: 15 programs 0.008, the arithmetic 0.025 (November 2026).
CALM_S = 0.035
FRESH_S = 15.0  # so long a measurement is good
MOST = 20.0  # what hangs for ever ends some day, on any machine

_PROGRAMS = ["sh", "-c", "i=0; while [ $i -lt 15 ]; do /bin/true; i=$((i + 1)); done"]
_one_at_a_time = threading.Lock()
_measured: tuple[float, float] | None = None  # when, and the factor


def slowness() -> float:
    """How many times as long as on a calm machine things take here and now: 1 at least, measured every 15 s."""
    global _measured
    with _one_at_a_time:  # two would measure each other
        now = time.monotonic()
        if _measured is None or now - _measured[0] > FRESH_S:
            _work()
            _measured = time.monotonic(), min(max((time.monotonic() - now) / CALM_S, 1.0), MOST)
        return _measured[1]


def _work() -> None:
    subprocess.run(_PROGRAMS, check=True)
    total = 0
    for number in range(200_000):
        total += number * number & 7


class Patience:
    """So many seconds of a calm machine, used up more slowly while this one is slow."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._left = seconds
        self._began = self._seen = time.monotonic()

    def left(self) -> float:
        """What is left, in seconds of this machine as it is now; 0 when it is over."""
        now = time.monotonic()
        slow = slowness()  # its own time is not counted
        self._left -= (now - self._seen) / slow
        self._seen = time.monotonic()
        return max(self._left, 0.0) * slow

    def over(self) -> bool:
        return self.left() == 0.0

    def __str__(self) -> str:
        """ "60 s", and what that was here where the machine is slow."""
        passed = time.monotonic() - self._began
        if self._left > 0 or passed < 1.2 * self.seconds:
            return f"{self.seconds:g} s"
        return f"{self.seconds:g} s ({passed:.0f} s here: all takes {passed / self.seconds:.1f} times as long now)"


def scaled(seconds: float) -> float:
    """So many seconds of a calm machine, as seconds of this one now. For what takes a number, and not a Patience."""
    return seconds * slowness()
