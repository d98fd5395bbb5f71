"""The report's page in a real Chromium: of a real run on the testbed, live, and of a full month.

Pictures and prints are kept in build/screenshots.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import made_history
from htcebridge.cli.report import the_period
from htcebridge.config import file
from htcebridge.report import live, web
from htcebridge.report.page import page
from htcebridge.report.queries import read
from tests.e2e.browser import Browser, browser
from tests.e2e.chain import CONFIGURATION, HTCEBRIDGE, RUNNING, STATE, Chain, wait_until

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("forky")]

HTTP = "127.0.0.1:9118"
REPORT = "/leonardo/home/leo/report.html"
HISTORY = f"{STATE}/leonardo.history.sqlite"
# WAL and all, as one file.
COPY = f"""
import sqlite3, sys
sqlite3.connect("{HISTORY}").execute("VACUUM INTO '/tmp/history-copy'")
"""
# What a person sees of an element, and the relative luminance of two colours (WCAG 2.2).
CONTRAST = """
const light = (text) => {
  const part = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255).map(
    (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
  }
};
return [...document.querySelectorAll(arguments[0])].filter((e) => e.getClientRects().length).map((e) => {
  const style = getComputedStyle(e);
  const [a, b] = [light(e instanceof SVGElement ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
});
"""
TEXTS = "h1, h2, p, dt, dd, small, th, td, a, summary, figcaption, .key, .node, .plot text"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def fits_and_is_legible(seen: Browser, name: str) -> None:
    """At the size of a desk, a phone and paper, in both schemes: no sideways scrolling, text that stands out."""
    luminance = {}
    for scheme in ("light", "dark"):
        for device, width, height in (("desk", 1280, 900), ("phone", 360, 740)):
            seen.looks(width, height, scheme, phone=device == "phone")
            assert seen.asks("return document.documentElement.scrollWidth") <= width
            seen.shoot(f"{name}-{device}-{scheme}")
        contrasts = seen.asks(CONTRAST, TEXTS)
        assert len(contrasts) > 50
        assert min(contrasts) >= 4.5, "WCAG AA"
        luminance[scheme] = seen.asks("return getComputedStyle(document.body).backgroundColor")
    assert luminance["light"] != luminance["dark"]
    seen.looks(1280, 900)
    assert seen.prints(f"{name}-print").read_bytes().startswith(b"%PDF-")


def is_quiet(seen: Browser, *allowed: str) -> None:
    """No error, and nothing asked for but these."""
    assert seen.console() == []
    asked = {address for address in seen.requests() if not address.startswith(("data:", "chrome:"))}
    assert asked <= set(allowed)


def tiles(seen: Browser) -> dict[str, str]:
    script = (
        "return [...document.querySelectorAll('.tiles > div')].map(e => [e.querySelector('dt').innerText,"
        " e.querySelector('dd').firstChild.textContent])"
    )
    return dict(seen.asks(script))


def pilots(seen: Browser) -> list[str]:
    """What stands at each bar of the timeline."""
    return list(seen.asks("return [...document.querySelectorAll('.pilot title')].map(e => e.textContent)"))


def test_what_a_bad_page_does_would_be_noticed(chromium: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    policy = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'">"""
    bad.write_text(f'{policy}<img src="http://example.org/x.png"><script>throw new Error("thrown")</script>')
    chromium.forget()
    chromium.open(bad)
    said = wait_until(lambda: (found := chromium.console())[1:] and found, 10, "the console has both", every=0.1)
    assert any("thrown" in each for each in said)
    assert any("Content Security Policy" in each for each in said)
    assert "http://example.org/x.png" in chromium.requests()


# --------------------------------------------------------------------------- a real run


def curl(chain: Chain, path: str, *options: str) -> str:
    return chain.bed.on("edge", ["curl", "-sS", *options, f"http://{HTTP}{path}"], user="leo", check=False).stdout


def totals(chain: Chain) -> dict[str, Any]:
    """What the live report says by now; it looks again every 5 s."""
    said = curl(chain, "/report.json")
    return dict(json.loads(said)["totals"]) if said.startswith("{") else {"preempted": 0, "failed": 0, "joined": 0}


def looked(chain: Chain) -> int:
    """When the controller's last cycle looked, seconds since the epoch."""
    return int(json.loads(chain.bed.read("edge", f"{STATE}/leonardo.json"))["memory"]["upkeep"]["looked"])


def test_the_page_shows_a_run_with_jobs_a_failure_and_a_preemption(
    chain: Chain, chromium: Browser, tmp_path: Path
) -> None:
    jobs = chain.submit(count=3, cpus=8, gate="never")
    run = [HTCEBRIDGE, "pressure", "run", "--http", HTTP]
    with chain.bed.popen("edge", run, user="leo", stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: RUNNING in chain.states(jobs), 90, "a job runs")
            # The next pilot finds a node without what it was promised.
            chain.configure(CONFIGURATION.replace('cvmfs = ["cms.cern.ch"]', 'cvmfs = ["none.example.org"]'))
            # A cycle that is under way has the configuration of before.
            for _ in range(2):
                before = looked(chain)
                wait_until(lambda: looked(chain) != before, 60, "another cycle has begun")  # noqa: B023  called at once
            chain.submit(cpus=100)
            wait_until(lambda: totals(chain)["failed"], 90, "a pilot has failed")
            chain.occupy(2)
            wait_until(lambda: totals(chain)["preempted"], 90, "a pilot was preempted")
            assert "http-equiv" in curl(chain, "/")
            assert "\n# TYPE htcebridge_" in curl(chain, "/metrics")
            assert curl(chain, "/", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: evil.example.org") == "421"
        finally:
            chain.bed.on("edge", ["pkill", "-TERM", "-f", "pressure run"], user="leo", check=False)
            log = process.stderr.read() if process.stderr else ""
    assert f"pages are served at http://{HTTP}/" in log
    assert "Traceback" not in log
    said = chain.json("report")
    chain.htcebridge("report", "--format", "html", "-o", REPORT)
    assert "preempted" in chain.htcebridge("report").stdout

    local = tmp_path / "report.html"
    local.write_text(chain.bed.read("edge", REPORT))
    chromium.forget()
    chromium.looks(1280, 900)
    chromium.open(local)
    assert tiles(chromium)["pilots"] == f"{said['totals']['pilots']:,}"
    shown = pilots(chromium)
    preempted = [text for text in shown if "preempted" in text]
    assert preempted
    assert re.search(r"3 jobs, 3 evicted, .* core-hours lost", preempted[0])
    assert any("failed: never joined" in text and "none.example.org" in text for text in shown)
    assert "cms" in chromium.asks("return document.querySelector('.plots .keys').innerText")
    fits_and_is_legible(chromium, f"run-{chain.bed.suite}")
    is_quiet(chromium, local.as_uri())
    copied_history_is_served_live(chain, chromium, tmp_path)


def copied_history_is_served_live(chain: Chain, seen: Browser, tmp_path: Path) -> None:
    """The same page as `run --http` gives it, by the same code, where this machine's Chromium can reach it."""
    chain.bed.on("edge", [str(Path(HTCEBRIDGE).with_name("python")), "-c", COPY], user="leo")
    text = chain.bed.on("edge", ["base64", "/tmp/history-copy"]).stdout
    chain.bed.on("edge", ["rm", "/tmp/history-copy"])
    (tmp_path / "history").write_bytes(base64.b64decode(text))
    path = tmp_path / "htcebridge.toml"
    path.write_text(f'{CONFIGURATION}\n[history]\nfile = "{tmp_path}/history"\n')
    config = file.load(path)
    with web.serving("127.0.0.1:0", live.pages(lambda: config)) as port:
        seen.forget()
        seen.open(f"http://localhost:{port}/")
        assert seen.asks("return document.querySelector('meta[http-equiv=refresh]').content") == "60"
        assert tiles(seen)["pilots"] != "0"
        seen.asks("document.querySelector('a[href=\"/still\"]').click()")
        wait_until(lambda: seen.driver.current_url.endswith("/still"), 10, "the page stands still", every=0.1)
        assert seen.asks("return document.querySelector('meta[http-equiv=refresh]')") is None
        seen.shoot(f"live-{chain.bed.suite}")
        is_quiet(seen, *(f"http://localhost:{port}{each}" for each in ("/", "/still")))
        seen.open("about:blank")


# --------------------------------------------------------------------------- a full month


def test_a_month_of_36000_pilots_is_one_small_page_for_pointer_keyboard_and_paper(
    chromium: Browser, tmp_path: Path
) -> None:
    now = int(time.time())
    made = made_history.make(tmp_path / "history", 30, now // 3600 * 3600)
    assert made == 36000
    path = tmp_path / "month.html"
    path.write_text(page(read(tmp_path / "history", "leonardo", the_period(now - 30 * 86400, now, now)), now))
    assert path.stat().st_size < 2_000_000
    chromium.forget()
    chromium.looks(1280, 900)
    chromium.open(path)
    assert tiles(chromium)["pilots"] == "36,000"
    assert len(pilots(chromium)) > 200
    the_keyboard_reaches_everything(chromium)
    chromium.open(path)
    fits_and_is_legible(chromium, "month")
    is_quiet(chromium, path.as_uri())


def the_keyboard_reaches_everything(seen: Browser) -> None:
    tab, enter, right, left, down, end = "\ue004", "\ue007", "\ue014", "\ue012", "\ue015", "\ue010"
    focus = "return document.activeElement.className + ' ' + document.activeElement.tagName"
    seen.press(tab)
    assert seen.asks(focus) == "skip A"
    assert seen.asks("return document.activeElement.getBoundingClientRect().left") >= 0
    seen.press(tab)
    assert seen.asks(focus) == "plots DIV"
    seen.press(end, left)
    value = "return document.querySelector('.plots .readout').innerText"
    first = seen.asks(value)
    assert re.search(r"from 20\d\d-\d\d-\d\d \d\d:\d\d · waiting cores atlas [\d,]+ · .*busy cores [\d,]+", first)
    seen.press(left)
    assert seen.asks(value) != first
    seen.press(tab, enter)
    assert seen.asks("return document.querySelector('details').open")
    for _ in range(20):
        seen.press(tab)
        if "lines" in seen.asks(focus):
            break
    seen.press(right, down)
    told = seen.asks("return document.querySelector('.lines + .readout').innerText")
    assert re.match(r"lrdn\d+, pilot \d+_1, (dcgp|booster): ", told)
    assert seen.asks("return document.querySelectorAll('.pilot.on').length") == 1
