"""IDTOKENs: what a token file says of itself, and whether it is kept as a secret is. No signature is looked at."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import ConfigError


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
        payload = path.read_text(encoding="ascii").split()[0].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        words = str(claims.get("scope", "")).split()
        return Claims(
            identity=str(claims.get("sub", "")),
            issuer=str(claims.get("iss", "")),
            authorizations=frozenset(word.removeprefix("condor:/") for word in words if word.startswith("condor:/")),
            expires=int(claims["exp"]) if "exp" in claims else None,
        )
    except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: holds no IDTOKEN ({type(error).__name__})") from None
