"""sd_notify against a real datagram socket; under a real systemd: tests/e2e/test_running.py."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from htcebridge.controller.notify import Notifier

Heard = Callable[[], list[str]]


@pytest.fixture(params=["path", "abstract"])
def heard(
    request: pytest.FixtureRequest, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Heard]:
    """Play systemd: the datagrams that came since the last call."""
    name = f"@htcebridge-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if name.startswith("@") else name)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        for variable in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            monkeypatch.delenv(variable, raising=False)

        def messages() -> list[str]:
            found = []
            while True:
                try:
                    found.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield messages


def test_a_life_is_told_in_the_words_of_sd_notify(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier.from_environment()
    assert notifier.watchdog_s == 30
    notifier.ready()
    notifier.status("3 pilots run, é")
    notifier.alive()
    notifier.stopping()
    assert heard() == ["READY=1", "STATUS=3 pilots run, é", "WATCHDOG=1", "STOPPING=1"]


def test_a_status_is_one_line_and_no_second_message(heard: Heard) -> None:
    Notifier.from_environment().status("broken\nMAINPID=1\r\n\tconfiguration\udcff")
    assert heard() == ["STATUS=broken MAINPID=1 configuration?"]


@pytest.mark.parametrize("usec", ["", "0", "soon", "-1", "²"])
def test_without_a_watchdog_nothing_is_told_to_it(heard: Heard, monkeypatch: pytest.MonkeyPatch, usec: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    notifier = Notifier.from_environment()
    notifier.alive()
    assert notifier.watchdog_s is None
    assert heard() == []


@pytest.mark.parametrize(("pid", "watched"), [("", True), ("own", True), ("1", False)])
def test_the_watchdog_of_another_process_is_not_ours(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, pid: str, watched: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Notifier.from_environment().watchdog_s == (1.5 if watched else None)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path"])
def test_outside_systemd_every_call_does_nothing(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier.from_environment()
    assert notifier == Notifier()
    notifier.ready()
    notifier.alive()


def test_a_socket_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    gone, full = tmp_path / "gone", tmp_path / "full"
    too_long = "/" + "x" * 200
    for address in (str(gone), too_long, "@nobody-listens-here"):
        Notifier(address).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(full))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    other.sendto(b"x", str(full))
        began = time.monotonic()
        Notifier(str(full)).ready()
        assert 0.5 < time.monotonic() - began < 5
