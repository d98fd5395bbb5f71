"""A small read-only web server beside the controller: pages that functions make, for people and for Prometheus.

It serves a fixed list of paths, GET and HEAD alone, in threads of its own: a request neither waits for a cycle nor
delays one, and what one request breaks is only its own answer. Nothing is read from disk by name.

On Python's own server. waitress 3.0.2 makes it 30 lines shorter and less safe: a client that takes nothing of an
answer of 3 MB holds its place for good, and sixteen of those the port; a loop in another thread has no public way to
end; the Host header and the methods stay ours to look at. prometheus_client's WSGI app would stand for one line here,
and would answer HEAD with 405.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from htcebridge.errors import BridgeError, ConfigError

log = logging.getLogger("htcebridge")

# More at a time are closed unanswered: Prometheus and a few people, not a crowd.
_MOST_REQUESTS = 16
# For a whole request to come in, and for an answer to be taken.
_TIMEOUT_S = 10.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# A page brings its own, stricter one; two hold both.
_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Answer:
    """What a path gives."""

    kind: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[], Answer]]
"""Path, as in a URL without its query -> what makes the answer. A BridgeError in it becomes 503 with its message."""


def cached(make: Callable[[], Answer], seconds: float) -> Callable[[], Answer]:
    """`make`, called once in so many seconds at most, by one thread at a time. Errors are not kept."""
    lock = threading.Lock()
    kept: list[tuple[float, Answer]] = []

    def answer() -> Answer:
        with lock:
            if not kept or time.monotonic() - kept[0][0] > seconds:
                kept[:] = [(time.monotonic(), make())]
            return kept[0][1]

    return answer


@contextmanager
def serving(address: str | None, pages: Pages) -> Iterator[int | None]:
    """Serve `pages` at "HOST:PORT" for as long as the block; gives the port, None where nothing is served.

    An address that cannot be used is logged, and the block runs without the pages. Port 0: any free one.
    """
    server = _bound(address, pages) if address else None
    if server is None:
        yield None
        return
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.2), name="http", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parse(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9118", "localhost:9118" or "[::1]:9118". Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--http {address!r}: write HOST:PORT, such as 127.0.0.1:9118")
    return host, int(port)


def _bound(address: str, pages: Pages) -> _Server | None:
    host, port = parse(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _Server(family, where, host, pages)
    except OSError as error:
        log.error(
            "the pages are not served: %s cannot be used (%s); the controller goes on without them",
            address,
            error.strerror or error,
        )
        return None
    shown = f"[{host}]" if ":" in host else host
    log.info("pages are served at http://%s:%d/", shown, server.server_address[1])
    if not server.loopback:
        log.warning(
            "%s can be reached from other machines, and whoever reaches it reads what is served: names of nodes, VOs "
            "and resources, what they did. 127.0.0.1 and `ssh -L` keep it to this machine's users",
            address,
        )
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = _MOST_REQUESTS

    def __init__(self, family: int, where: Any, host: str, pages: Pages) -> None:
        self.address_family = family
        self.pages = pages
        self.loopback = _is_loopback(str(where[0]))
        self.names = {"localhost", host.lower()}
        if not self.loopback:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._room = threading.Semaphore(_MOST_REQUESTS)
        super().__init__(where, _Handler)

    def server_bind(self) -> None:
        """As in socketserver: HTTPServer would ask the DNS for this machine's name here."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. A page elsewhere whose name was made to lead here (DNS rebinding)
        has a name of its own; with an address it cannot be done. `ssh -L` changes the port, so any will do."""
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was too slow, is none of the controller's business."""
        log.debug("a request from %s broke", client_address, exc_info=True)


class _InTime(io.RawIOBase):
    """What a client sends. A socket's own time-out begins anew with each byte, so a trickle would never end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ends = time.monotonic() + _TIMEOUT_S

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self._connection.settimeout(max(0.001, self._ends - time.monotonic()))
        try:
            return self._connection.recv_into(into)
        finally:
            self._connection.settimeout(_TIMEOUT_S)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "htcebridge"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_InTime(self.connection))

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        text = b"only GET and HEAD are answered\n"
        self._send(Answer(TEXT, text, HTTPStatus.METHOD_NOT_ALLOWED), {"Allow": "GET, HEAD"})

    def _answer(self) -> None:
        hosts = self.headers.get_all("Host", [])
        path = self.path.partition("?")[0]
        if len(hosts) != 1 or not self.server.is_ours(hosts[0].strip()):
            self._send(Answer(TEXT, b"this server has another name\n", HTTPStatus.MISDIRECTED_REQUEST))
        elif path not in self.server.pages:
            there = " ".join(self.server.pages)
            self._send(Answer(TEXT, f"no such page; there are: {there}\n".encode(), HTTPStatus.NOT_FOUND))
        else:
            self._send(_made(self.server.pages[path]))

    def _send(self, answer: Answer, more: Mapping[str, str] | None = None) -> None:
        self.send_response(answer.status)
        own = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body)), "Content-Security-Policy": _POLICY}
        for name, value in {**own, **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are no decisions: only -v shows them."""
        log.debug("http %s: %s", self.client_address[0], ascii(format % arguments))


for _method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
    setattr(_Handler, f"do_{_method}", _Handler._refuse)


def _made(make: Callable[[], Answer]) -> Answer:
    try:
        return make()
    except BridgeError as error:
        return Answer(TEXT, f"{error}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    except Exception:
        log.exception("a page could not be made")
        return Answer(
            TEXT, b"this page could not be made; the controller's log says why\n", HTTPStatus.INTERNAL_SERVER_ERROR
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
