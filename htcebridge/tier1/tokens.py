"""IDTOKENs: what a token file says of itself, and whether it is kept as a secret is. No signature is looked at."""

from __future__ import annotations

import base64
import json
import os
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import BridgeError, ConfigError

_COMMAND_S = 60


def check_directory(directory: Path) -> None:
    """Refuse a token directory that is missing, empty or readable by others. Raises ConfigError."""
    try:
        tokens = [path for path in sorted(directory.iterdir()) if path.is_file()]
    except OSError as error:
        raise ConfigError(f"{directory}: no token directory ({error.strerror}); set tier1.token_directory") from None
    if not tokens:
        raise ConfigError(f"{directory}: no token in it; ask the Tier-1 for an IDTOKEN that allows READ")
    for token in tokens:
        check_secret(token)


def check_secret(path: Path) -> None:
    """Refuse a secret that is missing, unreadable or open to others. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: token cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: token is open to others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")


def lives_until(path: Path, when: float) -> bool:
    """Whether there is a token that nobody else can read and that has not expired by then."""
    try:
        check_secret(path)
        expires = expiry(path)
    except ConfigError:
        return False
    return expires is None or expires >= when


def printed_by(command: str) -> str:
    """The standard output of a command that prints a token; no shell runs it.

    Raises BridgeError, without a word of what it printed there.
    """
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BridgeError(f"no answer in {_COMMAND_S} s") from None
    except (OSError, ValueError) as error:
        raise BridgeError(str(error)) from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing on standard error"]
        raise BridgeError(f"ended with code {done.returncode}: {last[0][:200]}")
    return done.stdout


def replace(path: Path, token: str) -> None:
    """Put another token there, 0600 from its first byte, at once or not at all. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token.strip() + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def expiry(path: Path) -> int | None:
    """When an IDTOKEN expires (seconds since the epoch), None if it says nothing. The signature is not looked at.

    Raises ConfigError if the file holds no token.
    """
    return claims_of(path).expires


@dataclass(frozen=True)
class Claims:
    """What an IDTOKEN says of itself. `authorizations` is empty where it does not bound its identity's rights."""

    identity: str
    issuer: str
    authorizations: frozenset[str]
    expires: int | None
    """Seconds since the epoch; None: never."""


def claims_of(path: Path) -> Claims:
    """The first token in a file, its signature not looked at. Raises ConfigError if there is none."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: holds no IDTOKEN ({type(error).__name__})") from None
    return claims_in(text, str(path))


def claims_in(text: str, where: str) -> Claims:
    """The first token in a text, its signature not looked at. Raises ConfigError, with no part of the text, if none."""
    try:
        payload = text.split()[0].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        words = str(claims.get("scope", "")).split()
        return Claims(
            identity=str(claims.get("sub", "")),
            issuer=str(claims.get("iss", "")),
            authorizations=frozenset(word.removeprefix("condor:/") for word in words if word.startswith("condor:/")),
            expires=int(claims["exp"]) if "exp" in claims else None,
        )
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: holds no IDTOKEN ({type(error).__name__})") from None
