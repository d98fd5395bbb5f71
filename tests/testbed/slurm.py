"""What goes onto the HPC's hosts: Slurm's configuration, its database, the firewalls, the users' homes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .files import Directory, File
from .hosts import Host, Role
from .places import ETC
from .render import render

USERS = ("leo", "leo2")
GROUP = "leonardo"
# As Slurm shows them on Leonardo.
DCGP_SHAPE = "CPUs=112 Boards=1 Sockets=2 CoresPerSocket=56 ThreadsPerCore=1 RealMemory=494000 Gres=tmpfs:3072G"
BOOSTER_SHAPE = "CPUs=32 Boards=1 Sockets=1 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=494000 Gres=gpu:4,tmpfs:3072G"
RUN_DIRECTORIES = {  # systemd makes these on a real host
    "/run/munge": "munge",
    "/run/mysqld": "mysql",
    "/run/slurm": "root",
    "/run/slurmctld": "slurm",
    "/run/slurmdbd": "slurm",
}
# Without a default a job takes all the memory of its node.
DCGP_MEMORY, BOOSTER_MEMORY = "DefMemPerCPU=4400", "DefMemPerCPU=15400"
LIMITS = "MaxTime=1-00:00:00 DefaultTime=00:30:00 State=UP"


def hpc_files(host: Host, hosts: tuple[Host, ...], munge_key: bytes) -> Iterator[File | Directory]:
    for path, owner in RUN_DIRECTORIES.items():
        yield Directory(path, 0o755, owner, owner)
    yield File("/etc/munge/munge.key", munge_key, 0o400, "munge", "munge")
    yield File("/etc/slurm/slurm.conf", slurm_conf(hosts))
    yield File("/etc/slurm/gres.conf", gres_conf(hosts))
    yield File("/etc/slurm/cgroup.conf", (ETC / "slurm" / "cgroup.conf").read_text())
    yield File("/etc/profile.d/leonardo.sh", "export WORK=/leonardo/work/$USER\n")
    if host.role is Role.CONTROL:
        yield File("/etc/slurm/slurmdbd.conf", (ETC / "slurm" / "slurmdbd.conf").read_text(), 0o600, "slurm", "slurm")
        yield File("/etc/slurm/accounts.sh", (ETC / "slurm" / "accounts.sh").read_text(), 0o755)
        yield File("/etc/mysql/mariadb.conf.d/90-testbed.cnf", (ETC / "mariadb" / "testbed.cnf").read_text())
        yield File("/etc/mysql/slurm.sql", (ETC / "mariadb" / "slurm.sql").read_text())
    if host.role is Role.EDGE:
        yield from homes()
    if host.is_node:
        yield Directory("/scratch_local", 0o1777)
        yield Directory(
            "/cvmfs", 0o777
        )  # fusermount lets a user mount only where that user may write, not in a sticky one
        yield Directory("/run/cvmfs-jobs", 0o1777)
        for script in ("task_prolog.sh", "epilog.sh", "cvmfs.sh"):
            yield File(f"/etc/slurm/{script}", (ETC / "slurm" / script).read_text(), 0o755)
    if host.is_node or host.role is Role.EDGE:
        yield File("/etc/testbed/firewall.nft", firewall(host, hosts))


def homes() -> Iterator[Directory]:
    """Once is enough: /leonardo is one directory for all HPC hosts."""
    for top in ("/leonardo/home", "/leonardo/work"):
        yield Directory(top)
    for user in USERS:
        yield Directory(f"/leonardo/home/{user}", 0o700, user, GROUP)
        yield Directory(f"/leonardo/work/{user}", 0o755, user, GROUP)
    for path in (".condor", ".condor/tokens.d", ".config", ".config/htcebridge"):
        yield Directory(f"/leonardo/home/leo/{path}", 0o700, "leo", GROUP)


def make_munge_key() -> bytes:
    return os.urandom(128)


def slurm_conf(hosts: tuple[Host, ...]) -> str:
    lines = []
    for role, shape, partition, extra in (
        (Role.NODE, DCGP_SHAPE, "dcgp_usr_prod", f"Default=YES {DCGP_MEMORY}"),
        (Role.GPU_NODE, BOOSTER_SHAPE, "boost_usr_prod", f"Default=NO {BOOSTER_MEMORY}"),
    ):
        names = node_names(hosts, role)
        if names:
            lines += [f"NodeName={names} {shape}", f"PartitionName={partition} Nodes={names} {LIMITS} {extra}"]
    return render("slurm/slurm.conf", nodes="\n".join(lines))


def gres_conf(hosts: tuple[Host, ...]) -> str:
    lines = ["AutoDetect=off"]
    for role, counts in (
        (Role.NODE, ("tmpfs Count=3072G",)),
        (Role.GPU_NODE, ("gpu File=/dev/nvidia[0-3]", "tmpfs Count=3072G")),
    ):
        names = node_names(hosts, role)
        if names:
            lines += [f"NodeName={names} Name={count}" for count in counts]
    return render("slurm/gres.conf", gres="\n".join(lines))


def node_names(hosts: tuple[Host, ...], role: Role) -> str:
    return ",".join(host.name for host in hosts if host.role is role)


def firewall(host: Host, hosts: tuple[Host, ...]) -> str:
    def addresses(*roles: Role) -> str:
        return ", ".join(each.address for each in hosts if each.role in roles)

    control = addresses(Role.CONTROL)
    if host.role is Role.EDGE:
        return render("net/edge.nft", control=control)
    slurm_hosts = addresses(Role.CONTROL, Role.EDGE, Role.NODE, Role.GPU_NODE)
    return render("net/node.nft", control=control, tier1=addresses(Role.TIER1, Role.CE), slurm_hosts=slurm_hosts)
