"""Starts everything on the hosts of a new bed: files, then two lanes side by side, Slurm and the Tier-1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import condor, slurm
from .files import Directory, File
from .hosts import Host, Role, hosts_file
from .services import service_of

if TYPE_CHECKING:
    from .bed import Testbed


class Progress:
    """Says what was reached, with the seconds since the start."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        with self._lock:
            self._say(f"[{time.monotonic() - self._started:5.1f} s] {text}")


def bring_up(bed: Testbed, hosts: tuple[Host, ...], ce_config: Path | None, progress: Progress) -> None:
    signing_key, munge_key = condor.make_signing_key(), slurm.make_munge_key()
    new_security = bed.suite != "trixie"  # `use security:recommended` came with HTCondor 23.10; trixie has 23.9
    ce = list(condor.ce_files(ce_config, new_security, progress))

    def files(host: Host) -> Iterable[File | Directory]:
        yield File("/etc/hosts", hosts_file(hosts))
        yield Directory("/var/log/testbed", 0o1777)
        if host.is_hpc:
            yield from slurm.hpc_files(host, hosts, munge_key)
        else:
            yield from condor.pool_files(host, signing_key)
        if host.role is Role.CE:
            yield from ce

    with ThreadPoolExecutor(max_workers=8) as pool:
        together(pool, [partial(bed.unpack, host.name, list(files(host))) for host in hosts])
    progress("configuration in place")
    with ThreadPoolExecutor(max_workers=2) as lanes:
        together(lanes, [partial(slurm_lane, bed, hosts, progress), partial(tier1_lane, bed, hosts, progress)])


def slurm_lane(bed: Testbed, hosts: tuple[Host, ...], progress: Progress) -> None:
    hpc = [host for host in hosts if host.is_hpc]
    nodes = [host for host in hosts if host.is_node]
    with ThreadPoolExecutor(max_workers=8) as pool:
        firewalled = [host for host in hpc if host.role is not Role.CONTROL]
        firewall = ["nft", "-f", "/etc/testbed/firewall.nft"]
        together(pool, [partial(bed.on, host.name, firewall) for host in firewalled])
        together(pool, [partial(start, bed, host, "munge") for host in hpc])
        control = bed.host("hpcctl")
        start(bed, control, "mariadb")
        progress("mariadb ready")
        start(bed, control, "slurmdbd")
        progress("slurmdbd ready")
        bed.on(control.name, ["/etc/slurm/accounts.sh"])
        start(bed, control, "slurmctld")
        progress("slurmctld ready")
        together(pool, [partial(start, bed, host, "slurmd") for host in nodes])
    progress(f"slurm ready, {len(nodes)} nodes")


def tier1_lane(bed: Testbed, hosts: tuple[Host, ...], progress: Progress) -> None:
    for token in condor.TOKENS:
        text = bed.on("tier1", token.command()).stdout
        bed.write(token.host, token.path, text, mode=0o600, owner=token.owner)
    ces = [host for host in hosts if host.role is Role.CE]
    jobs = [partial(start, bed, bed.host("tier1"), "condor")]
    jobs += [partial(start, bed, host, service) for host in ces for service in ("condor", "condor-ce")]
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        together(pool, jobs)
    progress("tier1 and CEs ready")


def start(bed: Testbed, host: Host, service: str) -> None:
    there = service_of(host, service)
    bed.spawn(host.name, there)
    bed.wait_ready(host.name, there)


def together(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], object]]) -> None:
    """Run all jobs; the first failure is raised when the others are done or have failed too."""
    futures = [pool.submit(job) for job in jobs]
    for future in as_completed(futures):
        future.result()
