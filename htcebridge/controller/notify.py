"""Tells systemd how the controller is: sd_notify(3), which is one datagram.

By hand, for the libraries hang where this gives up after a second, at a socket that nobody reads: sdnotify 0.3.2 (of
2017, and it loses a status that is not Latin-1) in its thread, cysystemd 2.0.5 with the whole process. systemd-python
has no wheels. $WATCHDOG_USEC and the lines of a message would be ours to read and to clean with any.

Nothing here raises because of the socket: a controller that systemd does not hear runs on, and the watchdog ends it
if that was a mistake.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass

log = logging.getLogger("htcebridge")

# systemd reads the socket all the time; a manager that does not must not stop the controller.
_SEND_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Notifier:
    """Where to tell, and how often to be heard. Both None outside systemd: then every call does nothing.

    `watchdog_s` is the unit's WatchdogSec in seconds: without `alive` for that long systemd ends the process.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def from_environment(cls) -> Notifier:
        """What systemd left in $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID (sd_watchdog_enabled(3))."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # sd_notify(3): a path, or '@' and an abstract name. vsock addresses are for whole virtual machines.
        if not address.startswith(("/", "@")):
            return cls()
        return cls(address, _watchdog_s())

    def ready(self) -> None:
        """The configuration is good and the lock is held: cycles begin."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """What `systemctl status` shows, one line."""
        self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """The loop turns; to be called at least twice in `watchdog_s`. Does nothing without a watchdog."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The last cycle is done."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(_SEND_TIMEOUT_S)
                out.sendto(message.encode("utf-8", "replace"), address)
        except OSError as error:
            log.debug("systemd was not told %s: %s", message.partition("=")[0], error)


def _watchdog_s() -> float | None:
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    # A shell between systemd and this process leaves the variables of another one.
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1_000_000
