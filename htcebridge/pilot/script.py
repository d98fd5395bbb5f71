"""What a pilot is: its START, the ad that it will advertise, its startd configuration, its Slurm script.

All of it comes from one resource of the configuration, so that the planner's idea of a pilot is the pilot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from htcebridge import trusted
from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.model import Limits, Shape, Startd
from htcebridge.pilot import checks as pilot_checks
from htcebridge.pilot import siteconf
from htcebridge.pilot.exit_codes import OF_CHECKS, PilotExit
from htcebridge.slurm.text import format_minutes
from htcebridge.slurm.tres import Tres
from htcebridge.templates import OWN, classad_string, render, stray_blocks
from htcebridge.tier1 import slots
from htcebridge.tier1.fit import GIVES, walltime_expression

# Slurm may deliver --signal up to 60 s early (sbatch(1)); the pilot's own layers come first.
SIGNAL_BEFORE_END_S = 180
_GENERIC = "startd_configs/generic.conf.j2"
# What condor_submit asks for in the name of a job with an image. A pilot finds out whether it has them; without a pilot
# to ask, the configuration's word has to do.
_CONTAINERS = {"HasContainer": True, "HasSingularity": True, "HasSIF": True, "HasSandboxImage": True}
# The moment's part of a slot that has just joined.
# Of an empty slot that is all of its startd they are the same.
_PARTS = ("", "Total", "TotalSlot")
_IDLE = {
    "State": "Unclaimed",
    "Activity": "Idle",
    "SlotType": "Partitionable",
    "PartitionableSlot": True,
    "SlotID": 1,
    "LoadAvg": 0.0,
    "CondorLoadAvg": 0.0,
    "CpuBusy": False,
    "KeyboardIdle": 3600,
    "ConsoleIdle": 3600,
    "NumDynamicSlots": 0,
    "PilotDraining": False,
    "MyType": "Machine",
    "Machine": "node.pilot.invalid",
    "Name": "slot1@pilot@node.pilot.invalid",
    "UidDomain": "pilot.invalid",
    "FileSystemDomain": "pilot.invalid",
}
_FAR = 2**40


def limits(name: str, resource: Resource) -> Limits:
    """A resource as the configuration bounds it."""
    minimum = resource.min_walltime
    return Limits(
        name=name,
        node=node_shape(resource),
        walltime_s=int(resource.walltime.total_seconds()),
        job_life_s=int(resource.longest_job.total_seconds()),
        max_running=resource.max_running,
        max_pending=resource.max_pending,
        max_new_per_cycle=0,
        min_walltime_s=int(minimum.total_seconds()) if minimum is not None else None,
        constant=resource.mode == "constant",
        cpus_kept_per_gpu=resource.cpus_kept_per_gpu if resource.takes_cpu_jobs else 0,
    )


def node_shape(resource: Resource) -> Shape:
    """What an empty pilot has for jobs."""
    return Shape(
        cpus=resource.cpus,
        memory_mb=resource.memory - resource.memory_reserve,
        gpus=resource.gpus,
        disk_mb=resource.disk_mb,
    )


def asks(resource: Resource) -> Tres:
    """What a pilot asks of Slurm, under Slurm's names. GPUs have a type only where `gres` names one."""
    split = [gres.split(":") for gres in resource.gres]
    types = [rest[0] for name, *rest in split if name == "gpu" and rest and not rest[0].isdigit()]
    return {
        "cpu": resource.cpus,
        "node": 1,
        "mem": resource.memory,
        "gres/gpu": resource.gpus,
        **{f"gres/gpu:{type_}": resource.gpus for type_ in types},
    }


def site_domain(config: Config) -> str:
    """How the names of all that this HPC has in the pool end: pilots, ghosts. No host of a site has such a name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", config.grant.value) + ".invalid"


def start_expression(config: Config, resource: Resource) -> str:
    """The startd's START: the grant, the time that is left, the kind of job. A ClassAd expression."""
    grant = config.grant
    clauses = [
        f"(TARGET.{grant.attribute} =?= {classad_string(grant.value)})",
        "(PilotDraining =!= True)",
        "(NODE_IS_HEALTHY =!= False)",
        # The ad of a node that died without a goodbye: the collector dates each ad, and looks for old ones every
        # quarter of an hour only. On the node itself there is no date.
        f"(time() - (LastHeardFrom ?: time()) < {4 * update_interval_s(resource) + 60})",
        "(time() < GLIDEIN_ToRetire)",
        f"(time() + {job_wall_expression(config, resource)} <= GLIDEIN_ToDie)",
    ]
    # HTCondor makes a slot of whole cores for a job of 1.5, finds it too small, and has given the pilot to nobody else
    # in that negotiation cycle, nor in the next (23.9, 25.14). It starts a job of -1 cores.
    clauses += [f"({_counts(name)})" for name in ("RequestCpus", *(["RequestGPUs"] if resource.gpus else []))]
    if grant.provenance:
        clauses.append(f"(TARGET.AuthTokenSubject =?= {classad_string(grant.provenance)})")
    if resource.gpus and resource.takes_cpu_jobs and resource.cpus_kept_per_gpu:
        # glideinWMS's RoomForCPUOnlyJobs: a job without a GPU leaves the free GPUs their cores.
        room = f"Cpus - (TARGET.RequestCpus ?: 1) >= {resource.cpus_kept_per_gpu} * (GPUs ?: 0)"
        clauses.append(f"((TARGET.RequestGPUs ?: 0) > 0 || {room})")
    if not resource.gpus:
        # A startd without GPUs does not look at RequestGPUs: it would start such a job, without one.
        clauses.append("((TARGET.RequestGPUs ?: 0) <= 0)")
    if not resource.takes_cpu_jobs:
        clauses.append("((TARGET.RequestGPUs ?: 0) > 0)")
    return " && ".join(clauses)


def _counts(request: str) -> str:
    """ClassAd expression: this request is a whole number, if there is one."""
    asked = f"(TARGET.{request} ?: 0)"
    return f"floor{asked} == {asked} && {asked} >= 0"


def update_interval_s(resource: Resource) -> int:
    """How often, at least, a startd updates its ads: with each it looks if it has been idle for too long."""
    return max(8, min(60, _seconds(resource.idle_timeout) // 4))


def job_wall_expression(config: Config, resource: Resource) -> str:
    """How long a job says that it runs, seconds, seen from the startd."""
    return walltime_expression(config.demand.walltime, int(resource.default_walltime.total_seconds()))


def template_ad(
    config: Config,
    name: str,
    condor_version: str,
    learnt: Mapping[str, str] | None = None,
    job_life_s: int | None = None,
) -> str:
    """The partitionable slot that a fresh pilot of a resource would advertise, as ClassAd text.

    `learnt` is such a slot as pilots with this configuration have shown it (`tier1.slots.lasting`). Without one it
    is as shipped, of an HTCondor like `condor_version` (the CondorVersion of the schedds), about which condor_submit
    25.14 writes a question into every job's Requirements. `job_life_s`: what it can promise a job, where Slurm or a
    maintenance leave less than its configured walltime does.
    """
    resource = config.resources[name]
    shape = node_shape(resource)
    life = int(resource.longest_job.total_seconds()) if job_life_s is None else job_life_s
    values: dict[str, object] = {
        **({} if learnt else _unseen(resource, condor_version)),
        **identity(config, name),
        **resource.attributes,
        **_IDLE,
        **{f"{part}Cpus": shape.cpus for part in _PARTS},
        **{f"{part}Memory": shape.memory_mb for part in _PARTS},
        **{f"{part}Disk": shape.disk_mb * 1024 for part in _PARTS},
        **{f"{part}GPUs": shape.gpus for part in _PARTS},
        "PilotJobLife": life,
    }
    expressions = {
        "GLIDEIN_ToDie": f"time() + {life}",
        "GLIDEIN_ToRetire": f"time() + {life}",
        "JobWall": job_wall_expression(config, resource),
        "Start": start_expression(config, resource),
        **cvmfs_attributes(resource),
        **gives(config, name),
    }
    base = learnt or slots.shipped(condor_version)
    if not learnt and resource.gpus:
        # So a startd with GPUs writes it.
        expressions["WithinResourceLimits"] = f"{base['WithinResourceLimits']} && (TARGET.RequestGPUs ?: 0) <= MY.GPUs"
    return slots.text(base, _literals(values), expressions)


def standing_ad(
    config: Config, name: str, kind: Mapping[str, str], gives: Mapping[str, str], now: Startd | None = None
) -> str:
    """The slot of pilots that are there, as ClassAd text, from what they all advertise (`tier1.slots.lasting`).

    `gives`: what their configuration makes of requests, as the function of that name says.

    What changes while a pilot lives is left to whoever counts, if `now` does not say how one of them is: free
    resources, remaining life. Our own drain marks always are.
    """
    values: dict[str, object] = {**_IDLE, "GLIDEIN_ToDie": _FAR, "GLIDEIN_ToRetire": _FAR}
    if now is not None:
        free = now.free
        values |= {"Cpus": free.cpus, "Memory": free.memory_mb, "Disk": free.disk_mb * 1024, "GPUs": free.gpus}
        values |= {"GLIDEIN_ToDie": now.to_die, "GLIDEIN_ToRetire": now.to_die}
    totals = {part + what: kind[what] for what in slots.RESOURCES if what in kind for part in _PARTS}
    wall = {"JobWall": job_wall_expression(config, config.resources[name])}
    return slots.text(kind, totals, _literals(values), wall, gives)


_MODIFIES = re.compile(
    r"^MODIFY_REQUEST_EXPR_REQUEST(CPUS|MEMORY|DISK|GPUS)[ \t]*=[ \t]*(.+)$", re.MULTILINE | re.IGNORECASE
)
_OF_REQUEST = {each.upper(): f"{GIVES}Request{each}" for each in slots.RESOURCES}


def gives(config: Config, name: str) -> dict[str, str]:
    """What a site's own template makes of requests, as attributes for `tier1.fit`: HTCondor advertises none of it.

    Raises ConfigError.
    """
    return {_OF_REQUEST[each.upper()]: what for each, what in _MODIFIES.findall(_rendered(config, name, ""))}


def _literals(values: Mapping[str, object]) -> dict[str, str]:
    return {name: classad_string(value) for name, value in values.items()}


def _unseen(resource: Resource, condor_version: str) -> dict[str, object]:
    """What is known of a pilot that nobody has seen."""
    return {"CondorVersion": condor_version, slots.GUESS: True, **(_CONTAINERS if resource.apptainer else {})}


def cvmfs_attributes(resource: Resource) -> dict[str, str]:
    """What OSG's and other pools' jobs ask for, by repository: attribute -> ClassAd expression. The check proved it."""
    return {
        f"HAS_CVMFS_{re.sub(r'[^A-Za-z0-9]', '_', repository)}": "(PilotCheck_cvmfs =!= False)"
        for repository in resource.cvmfs
    }


# What the startd itself adds to a partitionable slot's Requirements.
WITHIN_RESOURCE_LIMITS = (
    "(TARGET.RequestCpus ?: 1) <= MY.Cpus && (TARGET.RequestMemory ?: 1) <= MY.Memory && "
    "(TARGET.RequestDisk ?: 0) <= MY.Disk && (TARGET.RequestGPUs ?: 0) <= MY.GPUs"
)


def identity(config: Config, name: str) -> dict[str, object]:
    """The attributes by which the pool knows this pilot. The grant's attribute tells where the node stands."""
    return {
        config.grant.attribute: config.grant.value,
        "PilotInstance": config.pressure.instance,
        "PilotResource": name,
        "IS_GLIDEIN": True,
        "GLIDEIN_Site": config.grant.value,
        "GLIDEIN_ResourceName": f"{config.grant.value}-{name}",
        "GLIDEIN_SiteWMS": "SLURM",
        # What CMS's monitoring and its jobs' Requirements look at.
        **({"GLIDEIN_CMSSite": config.data.cms_site} if config.data.cms_site else {}),
        **({"CMSSubSiteName": config.data.cms_subsite} if config.data.cms_subsite else {}),
    }


def slot_fingerprint(config: Config, name: str) -> str:
    """Of all that makes this resource's pilots what they are: each advertises it as PilotConfig. Raises ConfigError."""
    resource = config.resources[name]
    facts = resource.model_dump_json(include=set(_MAKES_A_SLOT))
    return hashlib.sha256((facts + _rendered(config, name, "")).encode()).hexdigest()[:16]


# What a startd's configuration does not have of it.
_MAKES_A_SLOT = (
    *("partition", "condor", "setup", "cvmfs", "cpus", "memory", "gpus", "gres"),
    *("apptainer", "isolation", "bind"),
)


def startd_config(config: Config, name: str) -> str:
    """The HTCondor configuration of this resource's pilots. Raises ConfigError."""
    resource_of(config, name)
    return _rendered(config, name, slot_fingerprint(config, name))


def _rendered(config: Config, name: str, fingerprint: str) -> str:
    resource = config.resources[name]
    if resource.executor is not None:
        raise ConfigError(f"resource {name} has no startd of ours: its pilots run {resource.executor}")
    template, own = _startd_template(resource)
    start = start_expression(config, resource)
    attributes = {**identity(config, name), **resource.attributes}
    text = render(
        template,
        own,
        config=config,
        resource=resource,
        start=start,
        attributes=attributes,
        fingerprint=fingerprint,
        cvmfs_attributes=cvmfs_attributes(resource),
        update_s=update_interval_s(resource),
        checks=[path.removeprefix("checks/") for path in _checks(config, resource) if path.startswith("checks/")],
        job_environment=siteconf.environment(config.data),
        site_path=siteconf.site_path(config.data),
        seconds=_seconds,
    )
    if start not in text:
        raise ConfigError(
            f"template {template}: START is not in what it makes; begin it with "
            f'{{% extends "{_GENERIC}" %}} and keep {{{{ start }}}} where it changes START'
        )
    knobs = re.findall(r"^([\w.]+) *=", text, re.MULTILINE)
    for attribute in attributes:
        if sum(knob.lower() == attribute.lower() for knob in knobs) > 1:
            raise ConfigError(f"attributes: {attribute} is the pilot's own; knobs of HTCondor go into a template")
    return text


def _startd_template(resource: Resource) -> tuple[str, Path | None]:
    """The template's name, and the admin's folder if there is one. Raises ConfigError."""
    file = f"{resource.template}.conf.j2"
    if resource.templates is None:
        return f"startd_configs/{file}", None
    own = resource.templates.path
    if own / file not in trusted.folder(own, "templates"):
        return f"startd_configs/{file}", own
    template = f"{OWN}/{file}"
    if stray := stray_blocks(template, _GENERIC, own):
        raise ConfigError(f"{own / file}: generic has no block {', '.join(stray)}: nothing would come of it")
    return template, own


def script(config: Config, name: str) -> str:
    """The sbatch script of this resource's pilots, complete: exactly what Slurm gets. Raises ConfigError."""
    resource = resource_of(config, name)
    kind = "pilot" if resource.executor is None else "executor"
    parts = ("job-functions", f"{kind}-functions", f"{kind}-main")
    common: dict[str, Any] = {
        "config": config,
        "resource": resource,
        "name": name,
        "gres": _gres(resource),
        "minutes": lambda duration: format_minutes(_seconds(duration)),
        "seconds": _seconds,
        "signal_s": min(SIGNAL_BEFORE_END_S, max(30, _seconds(resource.margin) - 30)),
        "log_dir": resource.shared_dir.path / "logs",
        "checks": _checks(config, resource),
        "job_scratch": resource.job_scratch.path if resource.job_scratch else None,
        "parts": parts,
        "constant": "".join(render(f"slurm_scripts/{part}.sh") for part in parts),
        "exit_codes": tuple(PilotExit),
        "of_checks": OF_CHECKS,
    }
    if resource.executor is not None:
        with suppress(OSError):  # what is not seen from here is for the node to miss
            trusted.check_file(resource.executor.path)
        return render("slurm_scripts/executor.sh.j2", **common, executor=resource.executor.path)
    return render(
        "slurm_scripts/pilot.sh.j2",
        **common,
        token_file=resource.token_file.path,
        startd_config=startd_config(config, name),
        siteconf=siteconf.files(config.data),
        isolated_starter=render("slurm_scripts/isolated-starter.sh"),
        node_name=site_domain(config).removesuffix(".invalid"),
    )


def shell_files(config: Config, name: str) -> dict[str, str]:
    """What the script writes on the node and runs there as shell: name -> text. Raises ConfigError."""
    resource = resource_of(config, name)
    setup = {"setup": "\n".join((*resource.setup, ""))} if resource.setup else {}
    checks = _checks(config, resource)
    return {**setup, **{path: text for path, text in checks.items() if re.match(r"#!.*\b(ba)?sh\b", text)}}


def _checks(config: Config, resource: Resource) -> dict[str, str]:
    return pilot_checks.files(config, resource, resource.checks.path if resource.checks else None)


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())


def resource_of(config: Config, name: str) -> Resource:
    """A resource by name. Raises ConfigError that lists the known ones."""
    if name not in config.resources:
        known = ", ".join(config.resources) or "none is configured"
        raise ConfigError(f"no resource {name!r} in the configuration; known: {known}")
    return config.resources[name]


def _gres(resource: Resource) -> str:
    gres = list(resource.gres)
    if resource.gpus and not any(item.split(":")[0] == "gpu" for item in gres):
        gres.insert(0, f"gpu:{resource.gpus}")
    return ",".join(gres)
