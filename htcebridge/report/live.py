"""The report of the last 24 hours, live: what `pressure run --http` serves of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from htcebridge.config.tables import Config
from htcebridge.history import store
from htcebridge.report import queries, web
from htcebridge.report import text as report_text
from htcebridge.report.totals import Period, Report

_HOURS = 24
# A page is a tenth of a second of CPU; a cycle comes once a minute, and nothing is new in between.
_KEPT_S = 5.0
_LEAST_REFRESH_S = 60


def pages(config: Callable[[], Config]) -> web.Pages:
    """The page, the same standing still, and its numbers; `config` gives the configuration in force."""

    def html(refresh: bool) -> web.Answer:
        from htcebridge.report.page import page

        interval_s = config().pressure.cycle_s
        text = page(_report(config()), time.time(), max(_LEAST_REFRESH_S, interval_s) if refresh else 0)
        return web.Answer(web.HTML, text.encode())

    def numbers() -> web.Answer:
        document = report_text.as_document(_report(config()), time.time())
        return web.Answer(web.JSON, json.dumps(document).encode() + b"\n")

    return {
        "/": web.cached(lambda: html(refresh=True), _KEPT_S),
        "/still": web.cached(lambda: html(refresh=False), _KEPT_S),
        "/report.json": web.cached(numbers, _KEPT_S),
    }


def _report(config: Config) -> Report:
    now = int(time.time())
    begin = (now // queries.HOUR_S - _HOURS) * queries.HOUR_S
    return queries.read(store.path_of(config), config.pressure.instance, Period(begin, now))
