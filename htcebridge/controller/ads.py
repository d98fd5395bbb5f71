"""The hand at the Tier-1's collector: offline slots while the negotiator is asked, and goodbyes of dead pilots."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from htcebridge import logs
from htcebridge.config.tables import Config
from htcebridge.controller import renew
from htcebridge.controller.observation import Negotiator
from htcebridge.errors import BridgeError
from htcebridge.pilot import advertise, ghost


def keep_ghosts(config: Config, says: Negotiator | None, now: int) -> list[str]:
    """Keep the negotiator's offline slots as they should be: there while they are asked, gone otherwise."""
    try:
        if says is not None and (says.asked or says.ghosts):
            for token_file in {each.token_file for each in config.resources.values()}:
                renew.have(config, token_file)
        if says is not None and says.asked:
            ghost.advertise(config, says.ads, says.ghosts, now)
        elif says is not None and says.ghosts:
            ghost.withdraw(config)
    except BridgeError as error:
        return [f"the negotiator cannot be asked: {error}"]
    return []


def withdraw_ghosts(config: Config) -> None:
    """When nobody will look at them any more. Where that fails their lifetime ends them."""
    if config.pressure.demand_source == "negotiator":
        try:
            ghost.withdraw(config)
        except BridgeError as error:
            logs.event("the offline slots stay until they expire", logging.WARNING, why=error)


def say_goodbyes(config: Config, dead: Mapping[str, Iterable[str]]) -> list[str]:
    """A pilot that died hard could not take its ads out of the collector: they would be matched until they expire.

    `dead`: resource -> pilot ids. One of a resource that left the configuration has no token to do it with.
    """
    problems = []
    for name, ids in dead.items():
        if name not in config.resources:
            continue
        try:
            renew.have(config, config.resources[name].token_file)
            advertise.say_goodbye(config, config.resources[name].token_file, ids)
            logs.event("goodbye", resource=name, pilots=ids)
        except BridgeError as error:
            problems.append(f"resource {name}: {error}")
    return problems
