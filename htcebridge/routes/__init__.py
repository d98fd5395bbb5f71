"""The CE's side: job-router configuration from the same policy that the controller and the pilots use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from htcebridge.errors import ConfigError
from htcebridge.templates import classad_string, render

if TYPE_CHECKING:
    from htcebridge.config import VO, Config

REQUEST = "WantOpportunistic"


@dataclass(frozen=True)
class RouteFile:
    """A file to install: on the CE (/etc/condor-ce) or on the pool's side of the same host (/etc/condor)."""

    side: Literal["ce", "pool"]
    name: str
    text: str


def render_files(config: Config) -> tuple[RouteFile, ...]:
    """Everything that belongs on a CE's host. Raises ConfigError if no VO may have the grant."""
    return (RouteFile("ce", "60-htcebridge.conf", render_routes(config)),)


def render_routes(config: Config) -> str:
    """The job-router configuration for the CE. Raises ConfigError if no VO may have the grant."""
    if not config.vos:
        raise ConfigError("no [[vo]] in the configuration: nobody may have the grant, so there is no route")
    return render(
        "ce_routes/opportunistic.conf.j2",
        config=config,
        routes=[(route_name(config, vo), vo, requirements(vo)) for vo in config.vos],
        default_minutes=int(config.pilot.default_walltime.total_seconds() // 60),
    )


def route_name(config: Config, vo: VO) -> str:
    """The route of one VO. A '-' in a route's name makes the CE's whole configuration unreadable."""
    site = re.sub(r"[^A-Za-z0-9]", "_", config.grant.value)
    return f"HTCEBridge_{site}_{vo.name}"


def requirements(vo: VO) -> str:
    """Which jobs are this VO's and ask for the grant: literals only, no macro and no TARGET.

    `$(...)` is not expanded in a route's REQUIREMENTS, and TARGET. never matches there (HTCondor 23.9 and 25.14).
    Authority are the token's issuer and the mapped account; x509 attributes are what the submitter wrote.
    """
    who = [f"AuthTokenIssuer =?= {classad_string(issuer)}" for issuer in vo.issuers]
    who += [f"regexp({classad_string(_account_pattern(owner))}, Owner)" for owner in vo.owners]
    clause = "(" + " || ".join(who) + ")"
    return clause if vo.request == "always" else f"{clause} && ({REQUEST} =?= true)"


def _account_pattern(owner: str) -> str:
    """An account pattern as an anchored regular expression: * is any text, all else is itself."""
    return "^" + ".*".join(re.escape(part) for part in owner.split("*")) + "$"
