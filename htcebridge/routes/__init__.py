"""The CE's side: job-router configuration from the same policy that the controller and the pilots use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from htcebridge.errors import ConfigError
from htcebridge.routes import policy
from htcebridge.templates import render

if TYPE_CHECKING:
    from htcebridge.config.tables import Config

# Below 02- it would lose its JOB_ROUTER_ROUTE_NAMES to the packaged 02-ce-condor.conf.
FILE_NAME = "60-htcebridge.conf"


@dataclass(frozen=True)
class RouteFile:
    """A file to install: on the CE (/etc/condor-ce), on the pool's side of the same host (/etc/condor), or on the
    pool's central manager (/etc/condor)."""

    side: Literal["ce", "pool", "central"]
    name: str
    text: str

    @property
    def command(self) -> str:
        """Which of htcebridge's commands installs it."""
        return "pool" if self.side == "central" else "routes"


def render_files(config: Config) -> tuple[RouteFile, ...]:
    """Everything that belongs on a CE's host. Raises ConfigError if no VO may have the grant."""
    lease_s = _lease_s(config)
    pool = render(
        "ce_routes/pool.conf.j2",
        config=config,
        file_name=FILE_NAME,
        lease_s=lease_s,
        keepalive_s=min(60, max(5, lease_s // 4)) if lease_s else None,
    )
    return (RouteFile("ce", FILE_NAME, render_routes(config)), RouteFile("pool", FILE_NAME, pool))


def render_routes(config: Config) -> str:
    """The configuration for the CE. Raises ConfigError if no VO may have the grant."""
    if not config.vos:
        raise ConfigError("no [[vo]] in the configuration: nobody may have the grant, so there is no route")
    return render(
        "ce_routes/opportunistic.conf.j2",
        config=config,
        file_name=FILE_NAME,
        routes=policy.routes(config),
        asking=policy.anybody_asks(config),
        asking_only=policy.anybody_asks(config, "only"),
        waiting_only=policy.waiting_only(config),
        has_only=any(vo.placement == "only" for vo in config.vos),
        may_ask=policy.may_ask(config),
        names=", ".join(vo.name for vo in config.vos),
        default_minutes=int(config.pilot.default_walltime.total_seconds() // 60),
        lease_s=_lease_s(config),
    )


def _lease_s(config: Config) -> int | None:
    return int(config.routes.job_lease.total_seconds()) if config.routes.job_lease else None
