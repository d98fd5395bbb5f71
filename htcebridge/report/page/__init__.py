"""The report as one page: HTML, CSS and SVG in one file that asks for nothing, with or without its small script.

What is on it stands in tables too. Nothing from the history gets into the page unescaped, and its own policy
(Content-Security-Policy) lets only this very style and script work in it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from htcebridge import __version__
from htcebridge.report import text as report_text
from htcebridge.report.page import plots, timeline
from htcebridge.report.totals import FAILED, Report

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = Path(__file__).parent


def page(report: Report, now: float, refresh_s: int | None = None) -> str:
    """The whole page; `refresh_s`: it is live, and is asked for again so often (0: it is live, and stands still)."""
    style, script = _own("page.css"), _own("page.js")
    return _template().render(
        report=report,
        written=f"{report_text.moment(now)} {report_text.zone(now)}",
        live=refresh_s is not None,
        refresh_s=refresh_s,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        text=report_text,
        failed=FAILED,
        plots=plots.series(report) if not report.empty else (),
        hours=plots.core_hours(report),
        lines=timeline.lines(report.timeline),
        ticks=timeline.ticks(report.timeline),
        marks=timeline.MARKS,
        version=__version__,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        hours=report_text.hours, big=_big, percent=report_text.percent, took=report_text.took, moment=report_text.moment
    )
    return environment.get_template("page.html.j2")


@cache
def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _big(seconds: float) -> str:
    """Hours where there is little room: 15.4 M; the tables have them in full."""
    millions = seconds / report_text.HOUR_S / 1e6
    return f"{millions:,.3g} M" if millions >= 1 else report_text.hours(seconds)


def _hash(text: str) -> str:
    """As a policy names an inline element (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
