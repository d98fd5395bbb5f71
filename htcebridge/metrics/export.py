"""The controller's numbers for Prometheus: by HTTP from `pressure run`, as a file for node_exporter from any cycle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, ConfigError
from htcebridge.history.result import CycleResult
from htcebridge.metrics.samples import Expiries, samples
from htcebridge.metrics.table import TABLE, Kind, Metric, Sample
from htcebridge.tier1 import tokens

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns (https://prometheus.io/docs/instrumenting/exposition_formats/)."""


class Latest:
    """The last cycle of this process: set by the loop, read by a web server's threads."""

    def __init__(self) -> None:
        # One reference to immutable values: whoever reads it has one cycle whole.
        self._last: tuple[Config, CycleResult, Expiries] | None = None

    def update(self, config: Config, result: CycleResult) -> None:
        """A cycle has ended. Reads the tokens' expiries here, for a scrape touches no shared file system."""
        self._last = (config, result, token_expiries(config))

    def metrics(self) -> bytes:
        """The exposition of the last cycle, of type CONTENT_TYPE; empty before the first has ended."""
        last = self._last
        return render(*last) if last else b""


def write_textfile(config: Config, result: CycleResult) -> list[str]:
    """Leave the metrics of a cycle for node_exporter, if that is configured: whole and readable, or as it was.

    Returns sentences for a person where it cannot be written; no cycle ends because of that.
    """
    if config.metrics.textfile_directory is None:
        return []
    try:
        directory = config.metrics.textfile_directory.path
        _replace(
            directory / f"htcebridge-{config.pressure.instance}.prom", render(config, result, token_expiries(config))
        )
    except BridgeError as error:
        return [f"metrics are not written: {error}"]
    except FileNotFoundError:
        return [f"metrics are not written: {directory}: no such directory; make it, or mend metrics.textfile_directory"]
    except OSError as error:
        return [f"metrics are not written: {directory}: {error.strerror}; look at its owner, mode and disk"]
    return []


def render(config: Config, result: CycleResult, expiries: Expiries | None = None) -> bytes:
    """One cycle in Prometheus' text format. `expiries` are those of the tokens; left out they are not exported."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(config.pressure.instance, samples(config, result, expiries or {})))
    return generate_latest(registry)


def token_expiries(config: Config) -> Expiries:
    """When the controller's and the pilots' tokens expire. What cannot be read is left out: the cycle says that."""
    found: dict[tuple[str, str], int] = {}
    own: list[Path] = []
    with suppress(OSError, ConfigError):
        directory = config.tier1.token_directory.path
        own = [path for path in directory.iterdir() if path.is_file()]
    expires = [when for path in own if (when := _expiry(path)) is not None]
    if expires:
        found["controller", ""] = min(expires)
    for name, resource in config.resources.items():
        with suppress(ConfigError):
            if resource.executor is None and (when := tokens.expiry(resource.token_file.path)) is not None:
                found["pilot", name] = when
    return found


def _expiry(token: Path) -> int | None:
    with suppress(ConfigError):
        return tokens.expiry(token)
    return None


class _Families(Collector):
    """What `generate_latest` asks: samples by metric, in the table's order."""

    def __init__(self, controller: str, found: Iterable[Sample]) -> None:
        self._controller = controller
        self._found: dict[Metric, list[Sample]] = {metric: [] for metric in TABLE}
        for sample in found:
            self._found[sample.metric].append(sample)

    def collect(self) -> Iterator[Family]:
        for metric, found in self._found.items():
            if found:
                yield self._family(metric, found)

    def _family(self, metric: Metric, found: list[Sample]) -> Family:
        labels = ("controller", *metric.labels)
        if metric.kind is Kind.SUMMARY:
            summary = SummaryMetricFamily(metric.name, metric.says, labels=labels)
            for each in found:
                summary.add_metric((self._controller, *each.labels), count_value=int(each.count), sum_value=each.value)
            return summary
        make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        family = make(metric.name, metric.says, labels=labels)
        for each in found:
            family.add_metric((self._controller, *each.labels), each.value)
        return family


def _replace(path: Path, text: bytes) -> None:
    """Put a new file in the place of an old one, in one step. node_exporter reads only what ends in .prom."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)  # of a killed controller; the lock keeps others out
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # node_exporter is another user, whatever the umask
            file.write(text)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
