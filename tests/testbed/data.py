"""Real xrootd servers in a running bed, for as long as a test wants them: the Tier-1's door, and the federation.

Paths are those of the grid, /store/...; each server shows its host's own files below /storage.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .bed import Testbed
from .errors import TestbedError
from .files import Directory, File
from .hosts import TIER1_DOMAIN
from .inside import InsideProcess
from .pace import Patience, scaled
from .places import ETC

DOOR_HOST, ORIGIN_HOST, PROXY_HOST = "tier1", "ce02", "ce01"
DOOR_URL = f"root://{DOOR_HOST}.{TIER1_DOMAIN}:1094/"  # + /store/...: xroot wants two slashes before the path
DAVS_URL = f"https://{DOOR_HOST}.{TIER1_DOMAIN}:8443"
PROXY_URL = f"root://{PROXY_HOST}.{TIER1_DOMAIN}:1095/"
AUTHORITIES = "/etc/grid-security/certificates"  # what a client of DAVS_URL trusts: curl --capath

STORAGE = "/storage"
USER = "xrootd"  # it refuses to run as root
LOG = "/var/log/testbed/xrootd.log"
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
CONNECT = ["timeout", "2", "bash", "-c", ': <"/dev/tcp/$0/$1"']


@dataclass(frozen=True)
class Server:
    name: str  # its configuration is etc/xrootd/<name>.cfg
    host: str
    ports: tuple[int, ...]


DOOR = Server("door", DOOR_HOST, (1094, 8443))
ORIGIN = Server("origin", ORIGIN_HOST, (1096,))
PROXY = Server("proxy", PROXY_HOST, (1095,))


@contextmanager
def door(bed: Testbed) -> Iterator[None]:
    """The Tier-1's own storage: xroot at DOOR_URL, davs at DAVS_URL; anybody reads and writes.

    Raises TestbedError if it does not start.
    """
    prepare(bed, DOOR_HOST)
    trust_door(bed)
    with serve(bed, DOOR):
        yield


@contextmanager
def federation(bed: Testbed) -> Iterator[None]:
    """What is put on ORIGIN_HOST can be read through the proxy at PROXY_URL.

    Raises TestbedError if one of the two does not start.
    """
    prepare(bed, ORIGIN_HOST)
    with serve(bed, ORIGIN), serve(bed, PROXY):
        yield


def put(bed: Testbed, host: str, path: str, text: str) -> None:
    """Place a file into the storage of DOOR_HOST or ORIGIN_HOST; the servers need not run."""
    prepare(bed, host)
    bed.write(host, f"{STORAGE}{path}", text, owner=USER)


def get(bed: Testbed, host: str, path: str) -> str:
    """What a file of that storage holds, as it lies on the server's disk. Raises TestbedError if there is none."""
    return bed.read(host, f"{STORAGE}{path}")


def prepare(bed: Testbed, host: str) -> None:
    bed.unpack(host, [Directory(path, 0o755, USER, USER) for path in (STORAGE, f"{STORAGE}/store")])


def trust_door(bed: Testbed) -> None:
    """Give the door a certificate, and every host the authority that signed it."""
    script = (ETC / "xrootd" / "make-certificate.sh").read_text()
    name = bed.on(DOOR_HOST, ["sh", "-s"], USER, input=script).stdout.strip()
    authority = File(f"{AUTHORITIES}/{name}.0", bed.read(DOOR_HOST, f"{STORAGE}/tls/ca.pem"))
    for host in bed.hosts:
        bed.unpack(host, [authority])


@contextmanager
def serve(bed: Testbed, server: Server) -> Iterator[None]:
    """Run a server until the context ends; it is entered when all ports answer."""
    config = f"/etc/xrootd/{server.name}.cfg"
    bed.write(server.host, config, (ETC / "xrootd" / f"{server.name}.cfg").read_text())
    command = ["xrootd", "-c", config, "-l", LOG]
    process = bed.popen(server.host, command, USER, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with process:
        try:
            wait_ready(bed, server, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(scaled(STOP_TIMEOUT_S))
            except subprocess.TimeoutExpired:
                process.kill()


def wait_ready(bed: Testbed, server: Server, process: InsideProcess) -> None:
    patience = Patience(READY_TIMEOUT_S)
    address = bed.host(server.host).address
    for port in server.ports:
        while bed.on(server.host, [*CONNECT, address, str(port)], check=False).returncode != 0:
            if process.poll() is not None or patience.over():
                end = bed.on(server.host, ["tail", "-n", "15", LOG], check=False).stdout.rstrip()
                raise TestbedError(f"xrootd {server.name} on {server.host} does not answer on port {port}\n{end}")
            time.sleep(0.1)
