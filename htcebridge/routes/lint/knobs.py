"""Checks of the settings around the routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from htcebridge.routes.ce import Knob
from htcebridge.routes.lint import classads
from htcebridge.routes.lint.finding import Finding
from htcebridge.routes.lint.view import SHIPPED_TRANSFORMS, View, split_names

_SCHEDDS = [
    f"JOB_ROUTER_SCHEDD{n}_{w}" for n in "12" for w in ("NAME", "POOL", "SPOOL", "JOB_QUEUE_LOG", "ADDRESS_FILE")
]
# HTCondor 23 to 25: docs/admin-manual/configuration/job_router.rst and what JobRouter.cpp reads besides.
KNOWN = (
    "JOB_ROUTER_ROUTE_NAMES JOB_ROUTER_PRE_ROUTE_TRANSFORM_NAMES JOB_ROUTER_POST_ROUTE_TRANSFORM_NAMES "
    "JOB_ROUTER_SOURCE_JOB_CONSTRAINT JOB_ROUTER_DEFAULT_MAX_JOBS_PER_ROUTE JOB_ROUTER_DEFAULT_MAX_IDLE_JOBS_PER_ROUTE "
    "JOB_ROUTER_MAX_JOBS JOB_ROUTER_ROUND_ROBIN_SELECTION JOB_ROUTER_POLLING_PERIOD JOB_ROUTER_ENTRIES_REFRESH "
    "JOB_ROUTER_NAME JOB_ROUTER_RELEASE_ON_HOLD JOB_ROUTER_LOCK JOB_ROUTER_HOOK_KEYWORD JOB_ROUTER_IDTOKEN_REFRESH "
    "JOB_ROUTER_CREATE_IDTOKEN_NAMES JOB_ROUTER_SEND_ROUTE_IDTOKENS JOB_ROUTER_CLASSAD_USER_MAP_NAMES "
    "JOB_ROUTER_USE_DEPRECATED_ROUTER_ENTRIES JOB_ROUTER_DEFAULTS_GENERATED " + " ".join(_SCHEDDS)
).split()
# What every daemon may have with its name before it.
_DAEMON = re.compile(
    r"JOB_ROUTER_(DEBUG|LOG|ARGS|ENVIRONMENT|ADDRESS_FILE|SUPER_ADDRESS_FILE|HOST|PORT|ATTRS|EXPRS|IP_ADDR|HOOK_\w+|"
    r"D_\w+_LOG|CREATE_IDTOKEN_\w+|CLASSAD_USER_MAP\w*|DEBUG_\w+|LOG_\w+|USERID|KILL\w*|BACKOFF\w*|RECOVER_FACTOR|"
    r"USER_LOG_\w+|STARTUP_\w+|SCHEDD_\w+)$|JOB_ROUTER_(ROUTE|TRANSFORM)_\w+$"
)
REMOVED = {"JOB_ROUTER_ENTRIES", "JOB_ROUTER_ENTRIES_CMD", "JOB_ROUTER_ENTRIES_FILE", "JOB_ROUTER_DEFAULTS"}
_CE = ["CONDORCE_MAX_JOBS", "ROUTED_JOB_MAX_TIME", "COMPLETED_JOB_EXPIRATION", "ENABLE_JOB_RETRIES"]
_POLICIES = ("SYSTEM_PERIODIC_HOLD", "SYSTEM_PERIODIC_REMOVE", "SYSTEM_PERIODIC_RELEASE")


def check(view: View) -> Iterator[Finding]:
    """Every finding about settings."""
    for knob in view.own():
        name = knob.name.upper()
        if name in REMOVED:
            yield Finding(
                "R38",
                view.where(knob),
                f"{knob.name} is ignored, and since HTCondor 24.10 not even known: its routes do not exist.",
                "Write JOB_ROUTER_ROUTE_<NAME> and list it; `condor_transform_ads -convertoldroutes` helps.",
            )
        elif "." in name:
            yield from _prefixed(knob, view)
        else:
            yield from _unknown(knob, view)
    yield from _policy(view)
    yield from _constraint(view)
    yield from _user_maps(view)
    yield from _spool(view)


def _prefixed(knob: Knob, view: View) -> Iterator[Finding]:
    prefix, _, rest = knob.name.upper().partition(".")
    if prefix == "JOB_ROUTER" and re.match(r"JOB_ROUTER_|CLASSAD_USER_MAP", rest):
        yield Finding(
            "R25",
            view.where(knob),
            f"{knob.name} is seen by the daemon only: condor_job_router_info and every check work without it.",
            f"Write {knob.name.partition('.')[2]} without the prefix.",
        )


def _unknown(knob: Knob, view: View) -> Iterator[Finding]:
    name = knob.name.upper()
    ours = re.match(r"JOB_?ROUTER|JOBS_ROUTER|JOB_ROUTE", name) is not None
    if name in KNOWN or name in _CE or name == "JOB_ROUTER" or _DAEMON.match(name):
        return
    if any(f"$({name}" in other.value.upper() for other in view.knobs.values()):
        return  # a macro of the site's own
    listed = [f"JOB_ROUTER_ROUTE_{one}" for one in view.names("JOB_ROUTER_ROUTE_NAMES")]
    by_upper = {one.upper(): one for one in [*KNOWN, *_CE, *listed]}
    near = get_close_matches(name, by_upper, 1, 0.6 if ours else 0.92)
    if ours or near:
        yield Finding(
            "R37",
            view.where(knob),
            f"{knob.name} is no setting of HTCondor or HTCondor-CE: nothing reads it.",
            f"Did you mean {by_upper[near[0]]}?" if near else "Remove it, or look for its right name.",
        )


def _policy(view: View) -> Iterator[Finding]:
    for name in _POLICIES:
        knob = view.knobs.get(name)
        # $(JobStatus != 3) is what HTCondor-CE ships in SYSTEM_PERIODIC_HOLD: no name of a macro, so it stays as it is.
        inert = re.search(r"\$\((?![A-Za-z_][\w.]*(?::.*)?\))[^)]*\)", knob.value) if knob else None
        if knob and inert:
            yield Finding(
                "R27",
                view.where(knob),
                f"{name} has {inert[0]} in it, which is no macro and no ClassAd: it never does anything.",
                f"Set it again with ({inert[0][2:-1]}) in its place.",
                "warning",
            )
    knob = view.knobs.get("JOB_ROUTER_ROUND_ROBIN_SELECTION")
    if knob and knob.value.strip().lower() in ("true", "t", "yes", "1"):
        yield Finding(
            "R22",
            view.where(knob),
            "Jobs that several routes match are spread over them in turn: the order of the list means nothing.",
            "Remove it: the default is false.",
        )
    for name in ("SECURE_JOB_ATTRS", "SYSTEM_SECURE_JOB_ATTRS"):
        knob = view.knobs.get(name)
        for grant in view.grants if knob else ():
            if knob and grant.upper() in (one.upper() for one in split_names(knob.value)):
                yield Finding(
                    "R21",
                    view.where(knob),
                    f"{name} makes a schedd ignore {grant} from the job router as well: no job keeps its grant.",
                    "Use IMMUTABLE_JOB_ATTRS on the schedd behind the CE.",
                )


def _constraint(view: View) -> Iterator[Finding]:
    knob = view.knobs.get("JOB_ROUTER_SOURCE_JOB_CONSTRAINT")
    if knob is None or not knob.value.strip():
        return
    if not classads.parses(knob.value):
        yield Finding(
            "R26",
            view.where(knob),
            "JOB_ROUTER_SOURCE_JOB_CONSTRAINT is no expression: the job router ends at once, again and again.",
            "Mend the expression: look for brackets, quotes and operators.",
        )


def _user_maps(view: View) -> Iterator[Finding]:
    """userMap() in a route: the daemon and the tools each have a list of maps of their own."""
    daemon, tool = (
        {one.upper() for one in split_names(view.knobs[name].value)} if name in view.knobs else set()
        for name in ("JOB_ROUTER_CLASSAD_USER_MAP_NAMES", "TOOL_CLASSAD_USER_MAP_NAMES")
    )
    for routine in view.routines:
        if routine.role == "unlisted" or routine.name.upper() in SHIPPED_TRANSFORMS:
            continue
        for statement in routine.statements:
            for name in dict.fromkeys(re.findall(r'\buserMap\s*\(\s*"([^"]+)"', statement.text, re.IGNORECASE)):
                if name.upper() in daemon & tool:
                    continue
                missing = "JOB_ROUTER" if name.upper() not in daemon else "TOOL"
                who = "the job router" if missing == "JOB_ROUTER" else "condor_job_router_info"
                yield Finding(
                    "R24",
                    statement.where,
                    f"The map {name} is not in {missing}_CLASSAD_USER_MAP_NAMES: for {who} userMap() is undefined.",
                    "List it in JOB_ROUTER_CLASSAD_USER_MAP_NAMES and in TOOL_CLASSAD_USER_MAP_NAMES.",
                )


def _spool(view: View) -> Iterator[Finding]:
    name = "JOB_ROUTER_SCHEDD2_SPOOL"
    own, other = view.value("SPOOL"), view.value(name)
    # Only where the CE itself is: a copy of its configuration elsewhere says nothing about its disks.
    if name not in view.knobs or view.value("JOB_ROUTER_SCHEDD2_JOB_QUEUE_LOG") or not own or not other:
        return
    try:
        there = Path(own).is_dir()
        log = (Path(other) / "job_queue.log").exists()
    except OSError:
        return
    if there and not log:
        yield Finding(
            "R29",
            view.where(view.knobs[name]),
            f"{other} has no job_queue.log: the router never sees what becomes of the jobs that it routed.",
            "Give the SPOOL of the pool's schedd: condor_config_val SPOOL, without the CE's CONDOR_CONFIG.",
        )
