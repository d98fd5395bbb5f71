"""Who gets the grant, as ClassAd expressions: the one place from which every part of the CE's policy is made.

Literals only: `$(...)` is not expanded in a route's REQUIREMENTS, and TARGET. never matches there (HTCondor 23.9 and
25.14). Authority are the token's issuer and the mapped account; x509 attributes are what the submitter wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from htcebridge.templates import classad_string
from htcebridge.units import format_duration, format_megabytes

if TYPE_CHECKING:
    from htcebridge.config.tables import VO, Config

REQUEST = "WantOpportunistic"


@dataclass(frozen=True)
class Route:
    """One VO's way to one site."""

    name: str
    vo: VO
    site: str
    requirements: str
    max_idle: int
    max_jobs: int

    @property
    def comment(self) -> str:
        """What the route is for, in one line."""
        vo = self.vo
        parts = [f"{vo.name}: " + ("every job" if vo.request == "always" else f"jobs with {REQUEST} = true")]
        if vo.max_walltime is not None:
            parts.append(f"up to {format_duration(vo.max_walltime.total_seconds())}")
        if vo.max_cpus is not None:
            parts.append(f"up to {vo.max_cpus} cpus")
        if vo.max_memory is not None:
            parts.append(f"up to {format_megabytes(vo.max_memory)}")
        only = vo.placement == "only"
        parts.append(f"on {self.site} only" if only else f"on the Tier-1 or {self.site}, whichever is free first")
        return ", ".join(parts)


def routes(config: Config) -> list[Route]:
    """Every route, in the order in which they are tried: the main site first, then the others as written."""
    by_name = {vo.name.lower(): vo for vo in config.vos}
    main = [(config.grant.value, vo, vo.max_idle, vo.max_jobs) for vo in config.vos]
    more = [
        (site.value, by_name[name.lower()], site.max_idle, site.max_jobs) for site in config.sites for name in site.vos
    ]
    return [
        Route(_name(site, vo), vo, site, _requirements(config, vo, site), max_idle, max_jobs)
        for site, vo, max_idle, max_jobs in main + more
    ]


def who(vo: VO, scope: str = "") -> str:
    """True for the jobs of this VO. `scope` is put before attributes: "TARGET." where the job is the other ad."""
    token = _any(f"{scope}AuthTokenIssuer =?= {classad_string(issuer)}" for issuer in vo.issuers)
    if vo.subjects:
        token += " && " + _any(f"{scope}AuthTokenSubject =?= {classad_string(subject)}" for subject in vo.subjects)
    if vo.groups:
        # A job without a token has no groups: undefined is not true.
        member = (f"stringListMember({classad_string(group)}, {scope}AuthTokenGroups) is true" for group in vo.groups)
        token += " && " + _any(member)
    accounts = (f"regexp({classad_string(_account_pattern(owner))}, {scope}Owner)" for owner in vo.owners)
    return _any([*([f"({token})" if " && " in token else token] if vo.issuers else []), *accounts])


def anybody_asks(config: Config, placement: str | None = None) -> str:
    """True for the jobs of any VO (of this placement) that ask for the grant. "false" if there is no such VO."""
    clauses = [
        _both([who(vo), *([f"({REQUEST} =!= undefined && {REQUEST} =!= false)"] if vo.request == "flag" else [])])
        for vo in config.vos
        if placement in (None, vo.placement)
    ]
    return _any(clauses) if clauses else "false"


def waiting_only(config: Config) -> str:
    """True for the jobs that a route of a placement "only" takes as soon as it has room. "false" if there is none."""
    clauses = [f"({route.requirements})" for route in routes(config) if route.vo.placement == "only"]
    return _any(clauses) if clauses else "false"


def may_ask(config: Config) -> str:
    """A SUBMIT_REQUIREMENT: nobody asks who may not. There the job is the TARGET."""
    allowed = _any(who(vo, "TARGET.") for vo in config.vos)
    return f"(TARGET.{REQUEST} =?= undefined) || (TARGET.{REQUEST} =?= false) || {allowed}"


def _requirements(config: Config, vo: VO, site: str) -> str:
    wanted = f"{REQUEST} =?= true" if vo.request == "flag" else f"isString({REQUEST}) =!= true"
    if config.sites:
        # A job may name one site of several; without a name it takes the first route that has room.
        return _all([who(vo), f"({wanted} || {REQUEST} =?= {classad_string(site)})", *_bounds(vo)])
    return _all([who(vo), *([f"({wanted})"] if vo.request == "flag" else []), *_bounds(vo)])


def _bounds(vo: VO) -> list[str]:
    """The CE's own words for a job's size; what is not given cannot be too large."""
    bounds = []
    if vo.max_walltime is not None:
        seconds = int(vo.max_walltime.total_seconds())
        bounds.append(f"(((maxWallTime * 60) ?: (BatchRuntime ?: 0)) <= {seconds})")
    if vo.max_cpus is not None:
        bounds.append(f"((xcount ?: (RequestCpus ?: 1)) <= {vo.max_cpus})")
    if vo.max_memory is not None:
        bounds.append(f"((maxMemory ?: (RequestMemory ?: 0)) <= {vo.max_memory})")
    return bounds


def _any(clauses: Iterable[str]) -> str:
    return "(" + " || ".join(clauses) + ")"


def _both(clauses: Iterable[str]) -> str:
    return f"({_all(clauses)})"


def _all(clauses: Iterable[str]) -> str:
    return " && ".join(clauses)


def _name(site: str, vo: VO) -> str:
    """A '-' in a route's name makes the CE's whole configuration unreadable."""
    return f"HTCEBridge_{re.sub(r'[^A-Za-z0-9]', '_', site)}_{vo.name}"


def _account_pattern(owner: str) -> str:
    """An account pattern as an anchored regular expression: * is any text, all else is itself."""
    return "^" + ".*".join(re.escape(part) for part in owner.split("*")) + "$"
