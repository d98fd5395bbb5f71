"""What goes onto the Tier-1's hosts: the pool's configuration and keys, and the CE in front of its schedds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .files import Directory, File
from .hosts import Host, Role
from .places import ETC

CE_SHARE = "/usr/share/condor-ce"
CE_ETC = "/etc/condor-ce"
# What HTCondor-CE's package installs to /usr/share, and what to /etc: config/ of its sources has both.
SHARED_CE_FILES = (
    "01-ce-router-defaults.conf",
    "01-common-auth-defaults.conf",
    "01-common-collector-defaults.conf",
    "01-pilot-env-defaults.conf",
    "02-ce-condor-defaults.conf",
    "05-ce-auth-defaults.conf",
)
LOCAL_CE_FILES = ("01-ce-auth.conf", "01-ce-router.conf", "01-pilot-env.conf", "02-ce-condor.conf")


@dataclass(frozen=True)
class Token:
    """An IDTOKEN to be made on tier1 and put on another host."""

    identity: str
    host: str
    path: str
    owner: str = "root"
    authorizations: tuple[str, ...] = ()  # empty: all that the identity may do
    lifetime_s: int = 0  # 0: for ever

    def command(self) -> list[str]:
        command = ["condor_token_create", "-identity", self.identity]
        for authorization in self.authorizations:
            command += ["-authz", authorization]
        if self.lifetime_s:
            command += ["-lifetime", str(self.lifetime_s)]
        return command


RUN_DIRECTORIES = ("/run/condor", "/run/lock/condor")  # systemd makes these on a real host
CE_RUN_DIRECTORIES = ("/run/condor-ce", "/run/lock/condor-ce", "/run/lock/condor-ce/user")
WEEK_S = 7 * 24 * 3600
LEO = "/leonardo/home/leo"
TOKENS = (
    Token("condor@cr.example.org", "ce01", "/etc/condor/tokens.d/condor"),
    Token("condor@cr.example.org", "ce02", "/etc/condor/tokens.d/condor"),
    # The job router asks the Tier-1's collector where its schedd is.
    Token("condor@cr.example.org", "ce01", "/etc/condor-ce/tokens.d/tier1"),
    Token("condor@cr.example.org", "ce02", "/etc/condor-ce/tokens.d/tier1"),
    Token("leonardo-controller@cr.example.org", "edge", f"{LEO}/.condor/tokens.d/tier1", "leo", ("READ",)),
    Token(
        *("leonardo-pilot@cr.example.org", "edge", f"{LEO}/.config/htcebridge/pilot.idtoken", "leo"),
        *(("READ", "ADVERTISE_STARTD", "ADVERTISE_MASTER"), WEEK_S),
    ),
)


def pool_files(host: Host, signing_key: bytes) -> Iterator[File | Directory]:
    """The Tier-1 pool's part of tier1 or of a CE host. The schedds have the signing key too: they check tokens."""
    for path in RUN_DIRECTORIES:
        yield Directory(path, 0o775, "condor", "condor")
    role = "tier1" if host.role is Role.TIER1 else "schedd"
    yield File("/etc/condor/config.d/50-pool.conf", (ETC / "condor" / "common.conf").read_text())
    yield File("/etc/condor/config.d/51-role.conf", (ETC / "condor" / f"{role}.conf").read_text())
    yield File("/etc/condor/passwords.d/POOL", signing_key, 0o600)


def make_signing_key() -> bytes:
    return os.urandom(64).hex().encode()


def ce_files(ce_config: Path | None, new_security: bool, say: Callable[[str], object]) -> Iterator[File | Directory]:
    """The CE: the testbed's own configuration or the real one in `ce_config`, and in both cases the site file."""
    yield Directory(f"{CE_ETC}/tokens.d", 0o700)
    for path in CE_RUN_DIRECTORIES:
        yield Directory(path, 0o1777 if path.endswith("user") else 0o775, "condor", "condor")
    if ce_config is None:
        yield from own_ce_files()
    elif (ce_config / "config.d").is_dir():
        yield from site_ce_files(ce_config, new_security, say)
    else:
        yield from packaged_ce_files(ce_config, new_security, say)
    yield File(f"{CE_ETC}/config.d/98-testbed.conf", (ETC / "condor-ce" / "98-testbed.conf").read_text())


def check_ce_config(directory: Path) -> None:
    if not (directory / "condor_config").is_file():
        raise UsageError(
            f"--ce-config {directory}: no condor_config in it; "
            "give the config/ directory of HTCondor-CE's sources or a site's /etc/condor-ce"
        )


def own_ce_files() -> Iterator[File]:
    here = ETC / "condor-ce"
    yield File(f"{CE_ETC}/condor_config", (here / "condor_config").read_text())
    for path in sorted((here / "share").glob("*.conf")):
        yield File(f"{CE_SHARE}/config.d/{path.name}", path.read_text())
    for path in sorted((here / "site").glob("*.conf")):
        yield File(f"{CE_ETC}/config.d/{path.name}", path.read_text())
    yield own_router_defaults()
    yield File(f"{CE_ETC}/condor_mapfile", (here / "mapfile").read_text())


def own_router_defaults() -> File:
    script = ETC / "condor-ce" / "share" / "condor_ce_router_defaults"
    return File(f"{CE_SHARE}/{script.name}", script.read_text(), 0o755)


def packaged_ce_files(config: Path, new_security: bool, say: Callable[[str], object]) -> Iterator[File]:
    """HTCondor-CE's own files, from the config/ directory of its sources, put where its package puts them."""
    yield File(f"{CE_ETC}/condor_config", (config / "condor_config").read_text())
    for names, where in ((SHARED_CE_FILES, f"{CE_SHARE}/config.d"), (LOCAL_CE_FILES, f"{CE_ETC}/config.d")):
        for name in names:
            if (config / name).is_file():
                yield File(f"{where}/{name}", adapted(config / name, new_security, say))
            else:
                say(f"ce-config: no {name} in {config}, left out")
    for name in ("condor_mapfile", "uid_acct_group.map", "x509_acct_group.map"):
        if (config / name).is_file():
            yield File(f"{CE_ETC}/{name}", (config / name).read_text())
    for path in sorted((config / "mapfiles.d").glob("*.conf")):
        where = CE_SHARE if path.name == "50-common-default.conf" else CE_ETC
        yield File(f"{where}/mapfiles.d/{path.name}", path.read_text())
    yield router_defaults_near(config)


def site_ce_files(etc: Path, new_security: bool, say: Callable[[str], object]) -> Iterator[File]:
    """A site's /etc/condor-ce as it is. What the package has in /usr/share is the testbed's, or in `etc`/share."""
    for path in sorted(etc.rglob("*")):
        inside = path.relative_to(etc)
        if path.is_file() and inside.parts[0] not in ("share", "tokens.d", "passwords.d"):
            yield File(f"{CE_ETC}/{inside}", adapted(path, new_security, say))
    theirs = sorted((etc / "share" / "config.d").glob("*.conf"))
    for path in theirs or sorted((ETC / "condor-ce" / "share").glob("*.conf")):
        yield File(f"{CE_SHARE}/config.d/{path.name}", adapted(path, new_security, say))
    yield File(f"{CE_SHARE}/mapfiles.d/50-common-default.conf", (ETC / "condor-ce" / "mapfile").read_text())
    if not (etc / "condor_mapfile").is_file():
        yield File(f"{CE_ETC}/condor_mapfile", (ETC / "condor-ce" / "mapfile").read_text())
    yield router_defaults_near(etc)


def router_defaults_near(config: Path) -> File:
    """The script that adds the Env transform: in the directory, in its share/, or in src/ beside it."""
    name = "condor_ce_router_defaults"
    for path in (config / name, config / "share" / name, config.parent / "src" / name):
        if path.is_file():
            return File(f"{CE_SHARE}/{name}", path.read_text(), 0o755)
    return own_router_defaults()


def adapted(path: Path, new_security: bool, say: Callable[[str], object]) -> str:
    """HTCondor before 23.10 doesn't know `use security:recommended`, and would refuse the whole configuration."""
    text = path.read_text()
    if new_security:
        return text
    changed = re.sub(r"(?im)^(\s*use\s+security\s*:\s*recommended)\s*$", r"\1_v9_0", text)
    if changed != text:
        say(f"ce-config: {path.name}: this HTCondor has no security:recommended, taking recommended_v9_0")
    return changed
