"""What is simulated: resources and policy as the configuration has them, and the partitions that they live in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from htcebridge.config.resource import Resource
from htcebridge.config.tables import Config
from htcebridge.controller.situation import policy
from htcebridge.errors import ConfigError
from htcebridge.model import Limits, Policy, Shape
from htcebridge.pilot import script
from htcebridge.pilot.exit_codes import FAULTS
from htcebridge.plan.health import Rules
from htcebridge.simulation.cluster import Weather
from htcebridge.simulation.workload import DAY_S, HOUR_S

# Leonardo's DCGP nodes (112 cores, 494000M for Slurm), and parts of them by cores where nodes are shared.
_DCGP = {"partition": "dcgp_usr_prod", "account": "none", "qos": "qos_lowprio", "walltime": "12h", "min_walltime": "2h"}
CATALOGUE: dict[str, dict[str, object]] = {
    "dcgp": {**_DCGP, "cpus": 112, "memory": "494000M", "gres": ["tmpfs:3t"]},
    "dcgp_56": {**_DCGP, "cpus": 56, "memory": "247000M", "gres": ["tmpfs:1500g"]},
    "dcgp_28": {**_DCGP, "cpus": 28, "memory": "123500M", "gres": ["tmpfs:700g"]},
    "dcgp_16": {**_DCGP, "cpus": 16, "memory": "70500M", "gres": ["tmpfs:400g"]},
    "dcgp_8": {**_DCGP, "cpus": 8, "memory": "35200M", "gres": ["tmpfs:200g"]},
}
# What all pilots of a built-in resource may hold together: 40 whole nodes.
_CORES = 40 * 112


@dataclass(frozen=True)
class Scenario:
    """`partitions` is resource -> partition, `nodes` partition -> what one of its nodes has for pilots.

    `cpu_jobs` is resource -> whether jobs without a GPU may run there. Seconds where the name says so.
    """

    limits: Mapping[str, Limits]
    policy: Policy
    rules: Rules
    partitions: Mapping[str, str]
    nodes: Mapping[str, Shape]
    cpu_jobs: Mapping[str, bool]
    margin_s: Mapping[str, int]
    boot_s: Mapping[str, int]
    idle_timeout_s: Mapping[str, int]
    interval_s: int
    boot_timeout_s: int
    start_horizon_s: int
    most_new: Mapping[str, tuple[int, int]]
    """The hard caps: configuration key -> (pilots, seconds in which they may be submitted)."""
    weather: Weather


def built_in(names: Sequence[str], weather: Weather, pressure: Mapping[str, object] | None = None) -> Scenario:
    """A scenario of the built-in catalogue with htcebridge's shipped defaults. Raises ConfigError.

    `pressure` are keys of the [pressure] table that shall differ. Each resource may hold all of the cores.
    """
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise ConfigError(f"no built-in resource {unknown[0]!r}; there are: {', '.join(CATALOGUE)}")
    whole = Resource.model_validate(CATALOGUE["dcgp"])
    tables = {}
    for name in names:
        most = _CORES // Resource.model_validate(CATALOGUE[name]).cpus
        tables[name] = {**CATALOGUE[name], "max_running": most, "max_pending": most}
    config = Config.model_validate(
        {"tier1": {"collector": "simulated"}, "pressure": pressure or {}, "resource": tables}
    )
    return replace(from_config(config, weather), nodes={whole.partition: script.node_shape(whole)})


def from_config(config: Config, weather: Weather, pilots_per_node: int = 1) -> Scenario:
    """The scenario that a configuration describes. Raises ConfigError where it has no resource to simulate.

    What a node has the configuration does not say: so many of the largest pilots of its partition are taken to fit.
    """
    resources = {name: resource for name, resource in config.resources.items() if resource.executor is None}
    if not resources:
        raise ConfigError("the configuration has no resource whose pilots could be simulated")
    pressure = config.pressure
    limits = {name: script.limits(name, resource) for name, resource in resources.items()}
    return Scenario(
        limits={name: replace(limit, max_new_per_cycle=pressure.max_new_per_cycle) for name, limit in limits.items()},
        policy=policy(config),
        rules=Rules(
            faults=FAULTS,
            window_s=_seconds(pressure.outcome_window),
            quarantine_s=_seconds(pressure.quarantine),
            boot_timeout_s=_seconds(pressure.boot_timeout),
        ),
        partitions={name: resource.partition for name, resource in resources.items()},
        nodes={
            partition: Shape(*(amount * pilots_per_node for amount in largest.axes))
            for partition, largest in _largest(resources.values()).items()
        },
        cpu_jobs={name: resource.takes_cpu_jobs for name, resource in resources.items()},
        margin_s={name: _seconds(resource.margin) for name, resource in resources.items()},
        boot_s={name: _seconds(resource.boot_time) for name, resource in resources.items()},
        idle_timeout_s={name: _seconds(resource.idle_timeout) for name, resource in resources.items()},
        interval_s=_seconds(pressure.interval),
        boot_timeout_s=_seconds(pressure.boot_timeout),
        start_horizon_s=_seconds(pressure.start_horizon),
        most_new={
            "max_new_per_hour": (pressure.max_new_per_hour, HOUR_S),
            "max_new_per_day": (pressure.max_new_per_day, DAY_S),
        },
        weather=weather,
    )


def _largest(resources: Iterable[Resource]) -> dict[str, Shape]:
    largest: dict[str, Shape] = {}
    for resource in resources:
        shape, other = script.node_shape(resource), largest.get(resource.partition)
        if other is None or shape.cpus > other.cpus:
            largest[resource.partition] = shape
    return largest


def _seconds(duration: timedelta) -> int:
    return int(duration.total_seconds())
