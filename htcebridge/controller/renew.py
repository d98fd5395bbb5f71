"""Fresh tokens for the pilots, by the site's own command."""

from __future__ import annotations

import logging

from htcebridge import logs
from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.tier1 import tokens

# So long before the last moment the command is run: one that fails for a while does no harm.
_EARLY_S = 600


def ends(resource: Resource, now: float) -> float:
    """When a pilot that starts now would end, seconds since the epoch: so long its token has to live."""
    return now + resource.walltime.total_seconds()


def tokens_of_pilots(config: Config, now: float) -> list[str]:
    """Run `token_command` where what is in `token_file` would not live as long as a pilot that starts now. Returns what
    went wrong; what was there before stays then."""
    problems = []
    due = {
        (resource.token_file.path, resource.token_command): max(
            ends(each, now) for each in config.resources.values() if each.token_file == resource.token_file
        )
        for resource in config.resources.values()
        if resource.token_command and resource.executor is None
    }
    for (path, command), needed in due.items():
        if tokens.lives_until(path, needed + _EARLY_S):
            continue
        try:
            text = tokens.printed_by(command)
            expires = tokens.claims_in(text, "what it printed").expires
            if expires is not None and expires < needed:
                raise ConfigError(f"its token lives {int(expires - now)} s, a pilot {int(needed - now)} s")
            tokens.replace(path, text)
        except (BridgeError, OSError) as error:
            problems.append(f"token_command for {path}: {error}")
        else:
            logs.event("pilots' token renewed", logging.INFO, file=str(path), expires=expires)
    return problems
