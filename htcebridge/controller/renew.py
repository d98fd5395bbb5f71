"""Fresh tokens for the pilots, by the site's own command: there while one may need it, and no longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from htcebridge import logs
from htcebridge.config.paths import EdgePath
from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.tier1 import tokens

# So long before the last moment the command is run: one that fails for a while does no harm.
_EARLY_S = 600


def have(config: Config, token_file: EdgePath, now: float | None = None) -> None:
    """Have a token there that lives as long as a pilot that starts now, where a `token_command` makes it.

    Raises BridgeError if it makes none; what was there before stays then. A token without a command is its owner's.
    """
    now = time.time() if now is None else now
    path, resources = token_file.path, _made(config).get(token_file, ())
    if not resources:
        return
    needed = now + max(resource.walltime.total_seconds() for resource in resources)
    if tokens.lives_until(path, needed + _EARLY_S):
        return
    try:
        text = tokens.printed_by(resources[0].token_command)
        expires = tokens.claims_in(text, "what it printed").expires
        if expires is not None and expires < needed:
            raise ConfigError(f"its token lives {int(expires - now)} s, a pilot {int(needed - now)} s")
        tokens.replace(path, text)
    except (BridgeError, OSError) as error:
        if tokens.lives_until(path, needed):
            logs.event("token_command failed, the old token will do", logging.WARNING, file=str(path), why=error)
            return
        raise BridgeError(f"token_command for {path}: {error}") from None
    logs.event("pilots' token renewed", logging.INFO, file=str(path), expires=expires)


def keep(config: Config, starting: Collection[str], now: float | None = None) -> list[str]:
    """Have the tokens fresh that a pilot may still read, and take the others away: it has its copy when it has joined.

    `starting`: resources with a pilot that was submitted and has not joined yet. Where the negotiator is asked a token
    is needed in every cycle. Returns what went wrong.
    """
    problems: list[str] = []
    always = config.pressure.demand_source == "negotiator"
    read = {config.resources[name].token_file for name in starting if name in config.resources}
    by_hand = {each.token_file for each in config.resources.values() if not each.token_command}
    for token_file in _made(config):
        try:
            if always or token_file in read:
                have(config, token_file, now)
            elif token_file not in by_hand:
                token_file.path.unlink(missing_ok=True)
        except BridgeError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{token_file.path}: no pilot needs it, and it cannot be removed: {error.strerror}")
    return problems


def _made(config: Config) -> dict[EdgePath, list[Resource]]:
    """The token files that a command fills, with the resources whose pilots read them."""
    found: dict[EdgePath, list[Resource]] = {}
    for resource in config.resources.values():
        if resource.token_command and resource.executor is None:
            found.setdefault(resource.token_file, []).append(resource)
    return found
