"""The web server beside the controller: what it answers, what it refuses, and that nothing of it reaches the loop."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import pytest

from htcebridge.config import file
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.history import store
from htcebridge.model import Plan
from htcebridge.report import live, web


@contextmanager
def served(pages: web.Pages | None = None) -> Iterator[int]:
    with web.serving("127.0.0.1:0", pages or {"/": lambda: web.Answer(web.TEXT, b"hello\n")}) as port:
        assert port
        yield port


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server whose only page is "/"."""
    with served() as number:
        yield number


def ask(
    port: int, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} if host is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def answered(port: int) -> bool:
    """Whether there is room for a request within 20 seconds."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        with suppress(http.client.BadStatusLine, ConnectionError):
            return ask(port)[0] == 200
        threading.Event().wait(0.02)
    return False


def test_a_page_has_its_headers_and_no_version_of_anything(port: int) -> None:
    status, body, headers = ask(port)
    assert (status, body) == (200, b"hello\n")
    assert headers["Server"].strip() == "htcebridge"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_head_has_no_body_and_nothing_else_is_answered(port: int) -> None:
    status, body, headers = ask(port, method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "6")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        status, _, headers = ask(port, method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/x", "//x", "/../etc/passwd", "/%2e%2e/etc/passwd", "/index.html", "/metrics"])
def test_there_is_nothing_but_the_pages(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404
    assert ask(port, "/?" + path)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example.org", 421),
        ("127.0.0.1.evil.example.org", 421),
        ("10.1.2.3", 421),
        ("", 421),
    ],
)
def test_only_this_machines_names_are_answered(port: int, host: str, status: int) -> None:
    assert ask(port, host=host)[0] == status


def test_a_request_that_is_no_request_is_no_answer(port: int) -> None:
    for raw in (b"GET / HTTP/1.0\r\n\r\n", b"GET /" + b"x" * 70000, b"\x16\x03\x01\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            said = client.recv(65536)
        assert b"hello" not in said
    assert ask(port)[0] == 200


def test_too_many_at_a_time_are_closed_and_the_rest_go_on() -> None:
    with served() as port:
        clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(web._MOST_REQUESTS)]
        try:
            with pytest.raises((http.client.BadStatusLine, ConnectionError)):
                ask(port)
        finally:
            for client in clients:
                client.close()
        assert answered(port), "no room again"


def test_a_request_that_trickles_in_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUT_S", 1.0)
    with served() as port, socket.create_connection(("127.0.0.1", port), timeout=0.2) as client:
        began = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        with suppress(ConnectionError):
            while time.monotonic() - began < 20:
                client.sendall(b"x")
                with suppress(TimeoutError):
                    assert client.recv(1) == b""
                    break
        assert time.monotonic() - began < 20, "a byte now and then keeps the place"


def test_clients_that_take_nothing_of_an_answer_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUT_S", 0.5)
    pages = {"/": lambda: web.Answer(web.TEXT, b"x"), "/big": lambda: web.Answer(web.TEXT, b"x" * 12_000_000)}
    with served(pages) as port, ExitStack() as open_clients:
        for _ in range(web._MOST_REQUESTS):
            client = open_clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            client.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answered(port)


def test_what_breaks_in_a_page_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> web.Answer:
        raise BridgeError("x.sqlite: is damaged")

    def wrong() -> web.Answer:
        raise ZeroDivisionError

    with served({"/gone": gone, "/wrong": wrong}) as port:
        assert ask(port, "/gone")[:2] == (503, b"x.sqlite: is damaged\n")
        status, body, _ = ask(port, "/wrong")
    assert (status, b"log says why" in body) == (500, True)
    assert "ZeroDivisionError" in caplog.text


def test_a_page_is_made_once_however_many_ask() -> None:
    made = []

    def make() -> web.Answer:
        made.append(1)
        return web.Answer(web.TEXT, b"x")

    with served({"/": web.cached(make, 60)}) as port:
        for _ in range(5):
            ask(port)
    assert len(made) == 1
    fresh = web.cached(make, 0)
    fresh()
    fresh()
    assert len(made) == 3


def test_a_port_in_use_is_one_sentence_and_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    with served() as port, web.serving(f"127.0.0.1:{port}", {}) as none:
        assert none is None
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert f"127.0.0.1:{port} cannot be used (Address already in use)" in record.getMessage()
    assert "goes on without" in record.getMessage()


def test_an_address_that_others_reach_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with web.serving("0.0.0.0:0", {"/": lambda: web.Answer(web.TEXT, b"x")}) as port:
        assert port
        assert ask(port, host="10.1.2.3")[0] == 200, "an address cannot be rebound"
        assert ask(port, host=socket.gethostname())[0] == 200
        assert ask(port, host="evil.example.org")[0] == 421
    assert "can be reached from other machines" in caplog.text


@pytest.mark.parametrize("address", ["9118", ":9118", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "h:70000", "::1:²"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        web.parse(address)


def test_addresses_as_people_write_them() -> None:
    assert web.parse("[::1]:9118") == ("::1", 9118)
    assert web.parse("localhost:0") == ("localhost", 0)


@pytest.fixture
def live_config(tmp_path: Path, design_example: str) -> Config:
    path = tmp_path / "live.toml"
    state = f'interval = "60s"\nstate_dir = "{tmp_path}"'
    path.write_text(design_example.replace('interval = "60s"', state, 1))
    return file.load(path)


def test_the_live_report(live_config: Config) -> None:
    with served(live.pages(lambda: live_config)) as port:
        status, body, _ = ask(port)
        assert (status, b"no history yet" in body) == (HTTPStatus.SERVICE_UNAVAILABLE, True)
        store.record(
            store.path_of(live_config), store.Cycle(1_800_000_000, "p", 0.1, Plan({}, held="squeue: no answer"))
        )
        status, body, headers = ask(port)
        assert status == 200
        assert b"No cycle, pilot or core-hour of leonardo was recorded" in body
        assert b'http-equiv="refresh" content="60"' in body
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert b'http-equiv="refresh"' not in ask(port, "/still")[1]
        status, body, headers = ask(port, "/report.json")
        assert (status, headers["Content-Type"], body[:12]) == (200, "application/json", b'{"schema": 1')
