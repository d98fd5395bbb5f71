"""The hosts of a bed: who they are and what belongs on which."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TIER1_DOMAIN = "cr.example.org"
HPC_DOMAIN = "leonardo.local"
MAX_NODES = 200


class Role(Enum):
    TIER1 = "tier1"  # collector and negotiator of the Tier-1 pool
    CE = "ce"  # a schedd of the Tier-1 pool, and the CE in front of it
    CONTROL = "hpcctl"  # slurmctld, slurmdbd, MariaDB
    EDGE = "edge"  # Slurm client, where the controller runs
    NODE = "node"  # slurmd behind a firewall
    GPU_NODE = "gpu node"


@dataclass(frozen=True)
class Host:
    name: str
    role: Role
    address: str

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{HPC_DOMAIN if self.is_hpc else TIER1_DOMAIN}"

    @property
    def is_hpc(self) -> bool:
        return self.role not in (Role.TIER1, Role.CE)

    @property
    def gpus(self) -> int:
        return 4 if self.role is Role.GPU_NODE else 0

    @property
    def is_node(self) -> bool:
        return self.role in (Role.NODE, Role.GPU_NODE)


def make_hosts(nodes: int, gpu_nodes: int) -> tuple[Host, ...]:
    """All hosts of a bed. Node names and numbers are Leonardo's: lrdn0001.. are DCGP here, lrdn1001.. Booster."""
    fixed = (
        Host("tier1", Role.TIER1, "10.0.1.1"),
        Host("ce01", Role.CE, "10.0.1.11"),
        Host("ce02", Role.CE, "10.0.1.12"),
        Host("hpcctl", Role.CONTROL, "10.0.2.1"),
        Host("edge", Role.EDGE, "10.0.2.2"),
    )
    dcgp = tuple(Host(f"lrdn{i:04d}", Role.NODE, f"10.0.3.{i}") for i in range(1, nodes + 1))
    booster = tuple(Host(f"lrdn{1000 + i}", Role.GPU_NODE, f"10.0.4.{i}") for i in range(1, gpu_nodes + 1))
    return fixed + dcgp + booster


def hosts_file(hosts: tuple[Host, ...]) -> str:
    """`/etc/hosts` of every host; there is no other name service."""
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.fqdn} {host.name}" for host in hosts)]
    return "\n".join(lines) + "\n"
