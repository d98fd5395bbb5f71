"""The daemons of a bed: how each is started, found, stopped and known to be ready."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .hosts import Host, Role
from .inside import Door

POOL_CONFIG = "/etc/condor/condor_config"
CE_CONFIG = "/etc/condor-ce/condor_config"


@dataclass(frozen=True)
class Service:
    """A daemon, or a daemon of HTCondor under its condor_master.

    `ready` is a shell command that succeeds when the daemon can be used. `config` tells the two HTCondors of a CE host
    apart.
    """

    name: str
    roles: tuple[Role, ...]
    programs: tuple[str, ...]
    log: str
    ready: str
    start: tuple[str, ...] = ()
    user: str = "root"
    config: str = ""
    children: tuple[str, ...] = ()  # programs that must not outlive it
    master_daemon: str = ""  # as condor_on and condor_off call it
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def env(self) -> dict[str, str]:
        return {"CONDOR_CONFIG": self.config} if self.config else {}


SLURM_ROLES = (Role.CONTROL, Role.EDGE, Role.NODE, Role.GPU_NODE)
NODE_ROLES = (Role.NODE, Role.GPU_NODE)
HAS_ROUTER = "condor_status -any -af MyType | grep -q Job_Router"
HAS_SCHEDD = 'condor_status -schedd -af Name | grep -qx "$(hostname)"'
HAS_NEGOTIATOR = "condor_status -negotiator -af Name | grep -q ."
MASTERS_CHILDREN = (
    *(
        "condor_collector",
        "condor_negotiator",
        "condor_schedd",
        "condor_job_router",
        "condor_shared_port",
        "condor_procd",
    ),
    "condor_shadow",
)

SERVICES: tuple[Service, ...] = (
    Service(
        "munge", SLURM_ROLES, ("munged",), "/var/log/munge/munged.log", "munge -n", ("munged", "--foreground"), "munge"
    ),
    Service(
        *("mariadb", (Role.CONTROL,), ("mariadbd",), "/var/log/testbed/mariadb.out"),
        *("mariadb -e 'USE slurm_acct_db'", ("mariadbd",), "mysql"),
    ),
    Service(
        *("slurmdbd", (Role.CONTROL,), ("slurmdbd",), "/var/log/slurm/slurmdbd.log"),
        *("sacctmgr -n show cluster", ("slurmdbd", "-D"), "slurm"),
    ),
    Service(
        *("slurmctld", (Role.CONTROL,), ("slurmctld", "slurmctld-wlm"), "/var/log/slurm/slurmctld.log"),
        *("scontrol ping", ("slurmctld", "-D"), "slurm"),
    ),
    Service(
        *("slurmd", NODE_ROLES, ("slurmd", "slurmd-wlm"), "/var/log/slurm/slurmd.log"),
        *("sinfo -h -n \"$(hostname -s)\" -o %T | grep -qxE 'idle|mixed|allocated|completing'", ("slurmd", "-D")),
    ),
    Service(
        *("condor", (Role.TIER1, Role.CE), ("condor_master",), "/var/log/condor/MasterLog"),
        f"if condor_config_val DAEMON_LIST | grep -q SCHEDD; then {HAS_SCHEDD}; else {HAS_NEGOTIATOR}; fi",
        *(("condor_master", "-f"), "root", POOL_CONFIG, MASTERS_CHILDREN),
        stop_signal=signal.SIGQUIT,  # what Debian's unit sends
    ),
    Service(
        *("condor-ce", (Role.CE,), ("condor_master",), "/var/log/condor-ce/MasterLog", f"{HAS_SCHEDD} && {HAS_ROUTER}"),
        *(("condor_master", "-f"), "root", CE_CONFIG, MASTERS_CHILDREN),
        stop_signal=signal.SIGQUIT,
    ),
    Service(
        *("collector", (Role.TIER1,), ("condor_collector",), "/var/log/condor/CollectorLog", HAS_NEGOTIATOR),
        config=POOL_CONFIG,
        master_daemon="COLLECTOR",
    ),
    Service(
        *("negotiator", (Role.TIER1,), ("condor_negotiator",), "/var/log/condor/NegotiatorLog", HAS_NEGOTIATOR),
        config=POOL_CONFIG,
        master_daemon="NEGOTIATOR",
    ),
    Service(
        *("schedd", (Role.CE,), ("condor_schedd",), "/var/log/condor/SchedLog", HAS_SCHEDD),
        config=POOL_CONFIG,
        master_daemon="SCHEDD",
    ),
    Service(
        *("ce-collector", (Role.CE,), ("condor_collector",), "/var/log/condor-ce/CollectorLog", HAS_SCHEDD),
        config=CE_CONFIG,
        master_daemon="COLLECTOR",
    ),
    Service(
        *("ce-schedd", (Role.CE,), ("condor_schedd",), "/var/log/condor-ce/SchedLog", HAS_SCHEDD),
        config=CE_CONFIG,
        master_daemon="SCHEDD",
    ),
    Service(
        *("ce-router", (Role.CE,), ("condor_job_router",), "/var/log/condor-ce/JobRouterLog", HAS_ROUTER),
        config=CE_CONFIG,
        master_daemon="JOB_ROUTER",
    ),
)


def service_of(host: Host, name: str) -> Service:
    there = [service for service in SERVICES if host.role in service.roles]
    for service in there:
        if service.name == name:
            return service
    raise UsageError(
        f"no service {name!r} on {host.name}; there are: {', '.join(service.name for service in there) or 'none'}"
    )


def expected(host: Host) -> list[Service]:
    """The services that a host should have running: all but the single daemons under a condor_master."""
    return [service for service in SERVICES if host.role in service.roles and service.start]


def running(service: Service, door: Door) -> list[int]:
    """The processes of `service` in a host, as this machine numbers them."""
    return find(service.programs, service.config, door)


def orphans(service: Service, door: Door) -> list[int]:
    """What a killed daemon left running."""
    return find(service.children, service.config, door) if service.children else []


def find(programs: tuple[str, ...], config: str, door: Door) -> list[int]:
    """Processes of one host's network that run one of `programs` with that CONDOR_CONFIG."""
    try:
        network = os.readlink(door.namespaces / "net")
    except FileNotFoundError:
        return []  # the host is just going down
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.readlink(entry / "ns" / "net") != network:
                continue
            if Path(os.readlink(entry / "exe")).name not in programs:
                continue
            if config and environment(entry).get("CONDOR_CONFIG", POOL_CONFIG) != config:
                continue
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or a kernel thread
        found.append(int(entry.name))
    return sorted(found)


def environment(process: Path) -> Mapping[str, str]:
    pairs = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
