"""The controller on the testbed, its metrics in a real Prometheus: every panel and every rule gets an answer."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from htcebridge.metrics.export import CONTENT_TYPE
from tests.e2e.chain import CONFIGURATION, PROJECT, Chain, controller, wait_until
from tests.testbed.pace import scaled
from tests.testbed.prometheus import ensure_prometheus

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("forky")]

TEXTFILES = "/leonardo/home/leo/textfile"
FILE = f"{TEXTFILES}/htcebridge-leonardo.prom"
# A limit cuts the plan, because there is work for three pilots; none leaves by itself meanwhile.
MEASURED = (
    CONFIGURATION.replace('idle_timeout = "20s"', 'idle_timeout = "10m"').replace(
        "[resource.dcgp]", "[resource.dcgp]\nmax_running = 2"
    )
    + '\n[metrics]\ntextfile_directory = "$HOME/textfile"\n'
)
DASHBOARD = json.loads((PROJECT / "deploy" / "grafana" / "htcebridge.json").read_text(encoding="utf-8"))
# What Grafana puts in for a dashboard of some minutes.
WINDOWS = {"$__rate_interval": "10s", "$__interval": "10s", "$__range": "5m"}


@dataclass
class Scraped:
    """What is served on /metrics: the file as the last cycle left it, read from the edge node."""

    chain: Chain
    cycles: int = 0
    body: bytes = b""
    port: int = field(default_factory=lambda: free_port())

    def once(self) -> None:
        """A cycle, and its metrics."""
        self.chain.htcebridge("pressure", "once")
        self.cycles += 1
        self.body = self.chain.bed.read("edge", FILE).encode()


@contextmanager
def served(scraped: Scraped) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(scraped.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", scraped.port), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@dataclass(frozen=True)
class Prometheus:
    """A running one and its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

    address: str

    def get(self, path: str, **parameters: object) -> Any:
        """The `data` of an answer. Raises AssertionError with Prometheus' own words if it is an error."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode()}") from None

    def value(self, query: str) -> float | None:
        """Of a query that has one series."""
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def ready(self) -> bool:
        try:
            return self.value("up") == 1
        except (OSError, AssertionError):
            return False


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[Prometheus]:
    """Debian's, with the shipped rules, scraping `target` every second."""
    address = f"127.0.0.1:{free_port()}"
    # JSON is YAML.
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROJECT / "deploy" / "prometheus" / "alerts.yml")],
        "scrape_configs": [{"job_name": "htcebridge", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")
    command = [
        *("setpriv", "--pdeathsig", "KILL", str(ensure_prometheus() / "prometheus")),
        *(f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb"),
        f"--web.listen-address={address}",
    ]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(timeout=scaled(30))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_every_panel_and_rule_gets_an_answer_from_a_real_prometheus(chain: Chain, tmp_path: Path) -> None:
    chain.bed.on("edge", ["rm", "-rf", TEXTFILES], user="leo")
    chain.configure(MEASURED)
    jobs = chain.submit(cpus=100, count=3, gate="never")
    (nowhere,) = chain.submit(ce="ce02", user="atlpil001", cpus=200)
    wait_until(lambda: None not in chain.states([*jobs, nowhere]), 60, "the jobs are in the Tier-1 schedds")
    # Nobody has made the directory: the cycle does its work, and says so.
    said = chain.htcebridge("pressure", "once", expect=1).said
    assert f"metrics are not written: {TEXTFILES}: no such directory" in said
    chain.bed.on("edge", ["mkdir", TEXTFILES], user="leo")
    scraped = Scraped(chain, cycles=1)
    scraped.once()
    began = time.time()
    with served(scraped), prometheus(tmp_path, scraped.port) as server:
        wait_until(server.ready, 30, "Prometheus scrapes", every=0.5)
        some_life(chain, scraped)
        scraped_at = time.time()
        wait_until(lambda: (server.value("timestamp(up)") or 0) > scraped_at + 3, 60, "three more scrapes", every=0.5)
        agrees_with_the_bed(chain, server, scraped)
        counted_once(chain, server)
        every_panel_is_answered(server, began)
        every_rule_is_evaluated(server)
        a_blind_controller_says_so(chain, server, scraped)


def some_life(chain: Chain, scraped: Scraped) -> None:
    """Two pilots join and work, the resource is drained, one pilot is taken away."""

    def two_joined() -> bool:
        scraped.once()
        return len(chain.startds()) == 2 and chain.busy_slots() == 2

    wait_until(two_joined, 90, "two pilots have joined and work")
    wait_until(partial(says, scraped, r'use="busy",vo="cms"} [12]00\.0'), 90, "the pool has told whose jobs they are")
    # First drained, so that nothing is submitted in its place.
    chain.htcebridge("drain", "dcgp")
    wait_until(partial(says, scraped, r'reason="drained",resource="dcgp"} 1\.0'), 20, "the resource is drained")
    chain.bed.on("edge", ["scancel", min(chain.slurm_jobs())], user="leo")
    ended = r'outcome="cancelled_by_others",resource="dcgp"} 1\.0'
    wait_until(partial(says, scraped, ended), 60, "its end is counted")
    # On its way from the shadow back into the queue a job neither runs nor waits.
    back = r'demand_jobs{controller="leonardo",shape="17\+",state="idle",vo="cms"} 2\.0'
    wait_until(partial(says, scraped, back), 60, "its job waits again")


def says(scraped: Scraped, pattern: str) -> bool:
    """Whether the metrics of a new cycle have this."""
    scraped.once()
    return re.search(pattern, scraped.body.decode()) is not None


def agrees_with_the_bed(chain: Chain, server: Prometheus, scraped: Scraped) -> None:
    assert server.value("sum(htcebridge_cycles_total)") == scraped.cycles
    assert server.value('sum(htcebridge_pilots{state=~"joined|booting|pending"})') == len(chain.slurm_jobs())
    assert server.value('htcebridge_demand_unmatched_jobs{vo="atlas"}') == 1
    assert server.value('sum(htcebridge_demand_jobs{vo="cms"})') == 3
    assert server.value('htcebridge_schedds{state="answering"}') == 2
    assert (server.value('htcebridge_token_expiration_timestamp_seconds{token="pilot"}') or math.inf) > time.time()
    assert chain.bed.on("edge", ["stat", "-c", "%a", FILE]).stdout.strip() == "644"
    assert chain.bed.on("edge", ["ls", TEXTFILES]).stdout.split() == [Path(FILE).name]


def counted_once(chain: Chain, server: Prometheus) -> None:
    """What many processes of `once` counted is what happened: no pilot twice, none forgotten."""
    ended = server.value("sum(htcebridge_pilots_ended_total)") or 0
    assert server.value("sum(htcebridge_pilots_submitted_total)") == ended + len(chain.slurm_jobs())
    assert ended == server.value("htcebridge_pilot_boot_duration_seconds_count") == 1
    assert 0 < (server.value("htcebridge_pilot_boot_duration_seconds_sum") or 0) < 120


def every_panel_is_answered(server: Prometheus, began: float) -> None:
    """As Grafana asks: each target over the time shown, or now. No error, and at least one number."""
    silent = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = filled(target["expr"])
            if target["instant"]:
                rows = [[row["value"]] for row in server.get("query", query=query)["result"]]
            else:
                found = server.get("query_range", query=query, start=began, end=time.time(), step="1s")["result"]
                rows = [row["values"] for row in found]
            if not any(math.isfinite(float(value)) for row in rows for _, value in row):
                silent.append((panel["title"], query))
    assert not silent
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            found = server.get(f"label/{label}/values", **{"match[]": filled(metric)})
            assert found == {"controller": ["leonardo"], "resource": ["dcgp"]}[variable["name"]]
    page = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for query in re.findall(r"```promql\n(.*?)```", page, re.DOTALL):
        assert server.get("query", query=query)["result"], query


def filled(query: str) -> str:
    for name, window in WINDOWS.items():
        query = query.replace(name, window)
    query = query.replace("$controller", "leonardo").replace("$resource", "dcgp")
    assert "$" not in query
    return query


def every_rule_is_evaluated(server: Prometheus) -> None:
    (group,) = server.get("rules")["groups"]
    assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"] if rule["health"] != "ok"} == {}
    states = {rule["name"]: rule["state"] for rule in group["rules"]}
    assert states["HtcebridgeJobsFitNowhere"] == "pending"
    assert states["HtcebridgeHeld"] == states["HtcebridgeAbsent"] == states["HtcebridgeNoCycle"] == "inactive"


def a_blind_controller_says_so(chain: Chain, server: Prometheus, scraped: Scraped) -> None:
    """`pressure run` writes the file, too. A held cycle ends what is not known any more, and keeps what was counted."""
    before = server.value("sum(htcebridge_pilots_submitted_total)")
    chain.configure(MEASURED.replace("tier1.cr.example.org:9618", "tier1.cr.example.org:9"))

    def written() -> bool:
        scraped.body = chain.bed.read("edge", FILE).encode()
        return b'htcebridge_held{controller="leonardo"} 1.0' in scraped.body

    with controller(chain):
        wait_until(written, 30, "the service has held a cycle")
    wait_until(lambda: server.value("htcebridge_held") == 1, 20, "Prometheus knows that it is held", every=0.5)
    assert server.value("sum(htcebridge_demand_jobs)") is None
    assert server.value("sum(htcebridge_pilots)") is None
    assert server.value("sum(htcebridge_pilots_submitted_total)") == before
    assert (server.value('htcebridge_cycles_total{result="held"}') or 0) >= 1
