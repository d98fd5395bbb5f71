"""A report says what the history says, no more: sums, times, nodes, an empty period, other programs' formats."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

import htcebridge
from htcebridge.cli.report import the_period
from htcebridge.errors import ConfigError
from htcebridge.history import store
from htcebridge.history.store import Cycle
from htcebridge.history.usage import Use
from htcebridge.model import (
    Demand,
    EndedPilot,
    Group,
    Outcome,
    Pilot,
    PilotPhase,
    Plan,
    ResourcePlan,
    ScheddAnswer,
    Shape,
    SlurmJob,
    Startd,
)
from htcebridge.report import text as report_text
from htcebridge.report.page import axis, page, plots, timeline
from htcebridge.report.queries import read
from htcebridge.report.totals import Bar, Cores, Period, Report, Series, Timeline, spread, step_for
from htcebridge.state.memory import Seen

Run = Callable[..., object]
HOUR_S = 3600
# A full hour of the zone that tests run in, some years ago.
NOW = 1_700_000_000 // HOUR_S * HOUR_S
PERIOD = Period(NOW - 6 * HOUR_S, NOW)
EVIL = '<script>alert("x")</script>'


def ended(number: int, outcome: Outcome, node: str = "n1", **changes: object) -> EndedPilot:
    begin = NOW - 4 * HOUR_S
    made = EndedPilot(
        *(
            f"{number}_1",
            "dcgp",
            "p",
            outcome,
            begin,
            begin + 60 * number,
            begin + 2 * HOUR_S,
            begin + 90 * number,
            node,
        ),
        jobs=4,
        core_s=112 * 1800,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def cycle(at: int, **changes: object) -> Cycle:
    group = Group(Shape(8, 16000), 3600, "a", "cms", 5, 2, 600, ("dcgp",))
    startd = Startd("7_1", "s", "m", Shape(112, 494000), Shape(56, 400000), 7, NOW + 9999, True, False, {"cms": 56})
    job = SlurmJob("7_1", "dcgp", "p", "RUNNING", "", "p", "q", "a", "n7", at, at, NOW + 9999, 43200)
    made = Cycle(
        at,
        f"plan{at}",
        0.5,
        Plan({"dcgp": ResourcePlan(3, 1, 1, 2)}),
        Demand((group,), (ScheddAnswer("ce01", 0.1),)),
        joined=[Pilot(job, PilotPhase.JOINED, startd)],
        used={("dcgp", "cms", Use.BUSY): 56 * 600, ("dcgp", "", Use.TAIL): 56 * 600},
        cpus={"dcgp": 112},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two hours of cycles, every ten minutes, and one long ago; one live pilot; five that have ended."""
    path = tmp_path / "leonardo.history.sqlite"
    store.record(path, cycle(NOW - 40 * 86400, used={}, joined=()))
    for at in range(NOW - 2 * HOUR_S, NOW, 600):
        store.record(path, cycle(at))
    alive = {"7_1": Seen("dcgp", "p", NOW - 5400, NOW - 3600, NOW - 3000, "n7"), "8_1": Seen("dcgp", "p", NOW - 60)}
    ends = [
        (ended(1, Outcome.RAN), {}),
        (ended(2, Outcome.PREEMPTED, evicted=2, lost_core_s=7200), {"cms": 8}),
        (ended(3, Outcome.NODE_FAILED, "n2", evicted=1, lost_core_s=3600), {"cms": 8}),
        (ended(4, Outcome.NEVER_JOINED, "n2", joined=None, said=EVIL, ended=NOW - 3600, jobs=0, core_s=0), {}),
        (ended(5, Outcome.NEVER_STARTED, "", started=None, joined=None, jobs=0, core_s=0), {}),
    ]
    store.record(path, cycle(NOW - 30, pilots=alive, ended=ends, used={}))
    return path


@pytest.fixture
def report(path: Path) -> Report:
    return read(path, "leonardo", PERIOD)


def test_pilots_are_counted_by_what_became_of_them(report: Report) -> None:
    (row,) = report.resources
    assert row.pilots.outcomes == {
        "ran": 1,
        "preempted": 1,
        "node failed": 1,
        "started, never joined": 1,
        "never started": 1,
        "alive": 2,
    }
    assert (row.pilots.count, row.pilots.started, row.pilots.joined) == (7, 5, 4)
    assert (row.pilots.preempted, row.pilots.failed, row.pilots.jobs, row.pilots.evicted) == (1, 2, 12, 3)


def test_node_hours_are_from_start_to_end_within_the_period(path: Path) -> None:
    begin = NOW - 4 * HOUR_S
    lived = [(60 * n, 2 * HOUR_S) for n in (1, 2, 3)] + [(240, 3 * HOUR_S)]
    whole = sum(end - start for start, end in lived) + (NOW - 30) - (NOW - 3600)
    assert read(path, "x", PERIOD).pilots.node_s == whole
    part = read(path, "x", Period(begin + HOUR_S, begin + 2 * HOUR_S))
    assert part.pilots.node_s == 4 * HOUR_S
    assert part.pilots.outcomes == {"alive": 5}, "they ended when it was over"


def test_good_is_busy_without_what_was_lost_and_all_parts_add_up(report: Report) -> None:
    cores = report.cores
    assert cores.held == 12 * 112 * 600
    assert cores.lost == 10800
    assert cores.good == 12 * 56 * 600 - 10800
    assert cores.idle == 12 * 56 * 600
    assert sum(cores.split().values()) == cores.held
    assert set(cores.split()) == set(report_text.USES)


def test_more_lost_than_was_busy_makes_nothing_negative() -> None:
    cores = Cores({Use.BUSY: 10, Use.LOST: 30, Use.TAIL: 5})
    assert (cores.good, cores.held, cores.split()["good"], cores.split()["lost"]) == (0, 15, 0, 10)


def test_what_vos_did_and_how_they_waited(report: Report) -> None:
    (row,) = report.vos
    assert (row.vo, row.resource, row.cores.lost) == ("cms", "dcgp", 10800)
    (wait,) = report.waited
    assert (wait.vo, wait.idle_jobs, wait.idle_cpus, wait.oldest_s) == ("cms", 5, 40, 600)


def test_the_way_to_the_pool_is_split_into_slurm_and_boot(report: Report) -> None:
    (row,) = report.resources
    assert (row.queued.count, row.queued.p50, row.queued.p90) == (5, 180, 1800)
    assert (row.booted.count, row.booted.p50, row.booted.p90) == (4, 60, 600)
    assert (row.to_join.count, row.to_join.p50, row.to_join.p90) == (4, 180, 2400)


def test_a_rank_is_a_value_that_occurred() -> None:
    assert spread({}).p50 is None
    assert spread({5: 1}).p90 == 5
    many = spread(dict.fromkeys(range(1, 101), 1))
    assert (many.p50, many.p90, many.count) == (50, 90, 100)


def test_the_worst_nodes_come_first_and_say_why(report: Report) -> None:
    assert [(row.node, row.failed, row.preempted, row.lost_core_s) for row in report.nodes] == [
        ("n2", 2, 0, 3600),
        ("n1", 0, 1, 7200),
    ]
    assert report.nodes[0].said == EVIL, "the last one's"


def test_the_series_has_means_and_gaps_where_nothing_was_seen(report: Report) -> None:
    found = report.series
    assert found.times[0] == PERIOD.since
    assert found.joined[: 4 * HOUR_S // found.step_s] == (None,) * (4 * HOUR_S // found.step_s)
    seen = found.joined[4 * HOUR_S // found.step_s :]
    assert set(seen) == {1.0}, "a step without a cycle is like the one before"
    assert {value for value in found.waiting_cpus["cms"] if value is not None} == {40.0}
    assert {value for value in found.busy_cpus if value is not None} == {56.0}


def test_a_held_cycle_is_a_gap_and_counted(path: Path) -> None:
    for at in range(NOW - 6 * HOUR_S, NOW - 4 * HOUR_S, 600):
        store.record(path, cycle(at, plan=Plan({}, held="squeue: no answer"), demand=None, joined=(), used={}))
    found = read(path, "x", PERIOD)
    assert (found.watched.cycles, found.watched.held) == (25, 12)
    assert found.watched.part == 8 / 24
    assert found.series.joined[0] is None


def test_the_timeline_has_each_pilot_that_had_a_node(report: Report) -> None:
    lines = {node: [bar.id for bar in bars] for node, bars in report.timeline.lines.items()}
    assert lines == {"n1": ["1_1", "2_1"], "n2": ["3_1", "4_1"], "n7": ["7_1"]}
    (live,) = report.timeline.lines["n7"]
    assert (live.outcome, live.ended, live.levels[0][1]) == ("alive", None, 56)


def test_the_timeline_and_the_totals_have_one_idea_of_who_has_ended(path: Path) -> None:
    """Slurm is asked a moment after the cycle began: an end may be later than that."""
    late = ended(6, Outcome.PREEMPTED, "n6", ended=NOW - 18, started=NOW - 3600, joined=NOW - 3540)
    store.record(path, cycle(NOW - 20, ended=[(late, {"cms": 8})], used={}))
    found = read(path, "x", Period(NOW - HOUR_S, NOW))
    assert found.pilots.outcomes["preempted"] == 1
    (bar,) = found.timeline.lines["n6"]
    assert (bar.outcome, bar.ended) == ("preempted", NOW - 18)
    earlier = read(path, "x", Period(NOW - HOUR_S, NOW - 19))
    assert earlier.timeline.lines["n6"][0].outcome == "alive"


def test_a_pilot_without_an_end_is_not_alive_for_ever(path: Path) -> None:
    """The controller's memory was lost: nobody will ever say how it ended."""
    store.record(path, cycle(NOW - 20, pilots={"old": Seen("dcgp", "p", 0, NOW - 9 * 86400, None, "n9")}, used={}))
    found = read(path, "x", Period(NOW - 30 * 86400, NOW))
    assert found.pilots.outcomes["alive"] == 2


def test_a_period_begins_with_a_younger_history(path: Path) -> None:
    found = read(path, "x", Period(NOW - 400 * 86400, NOW))
    assert found.period.since == (NOW - 40 * 86400) // HOUR_S * HOUR_S
    assert "the history begins at 2023-10-05" in report_text.watched(found)
    assert "begins" not in report_text.watched(read(path, "x", PERIOD))


def test_a_step_is_chosen_so_that_a_plot_stays_legible() -> None:
    for hours in (1, 24, 24 * 7, 24 * 30, 24 * 365, 24 * 3650):
        period = Period(0, hours * HOUR_S)
        assert period.seconds / step_for(period) <= 530


# --------------------------------------------------------------------------- the command


def test_the_command_shows_the_three_tables(htcebridge_command: Run, path: Path) -> None:
    said = htcebridge_command("report", "--history", path, "--since", "2023-11-01", "--until", "2023-11-30")
    assert said.code == 0  # type: ignore[attr-defined]
    out = said.out  # type: ignore[attr-defined]
    for text in ("Report of leonardo", "13 cycles", "Pilots", "good/held", "to joining", "longest wait", "Worst nodes"):
        assert text in out
    assert EVIL in re.sub(r"\n +", "", out), "its brackets are no markup"
    assert max(len(line) for line in out.splitlines()) <= 100


def test_json_is_what_its_schema_says(htcebridge_command: Run, path: Path) -> None:
    schema = json.loads(
        (Path(htcebridge.__file__).resolve().parent.parent / "docs/schema/report.json").read_text(encoding="utf-8")
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    for since in ("2023-11-01", "2001-01-01T00:00"):
        until = "2023-11-30" if since.startswith("2023") else "2001-01-02"
        said = htcebridge_command("report", "--json", "--history", path, "--since", since, "--until", until)
        document = json.loads(said.out)  # type: ignore[attr-defined]
        jsonschema.validate(document, schema)
        assert (document["empty"] is None) == since.startswith("2023")


@pytest.mark.parametrize(("by", "lines"), [("resource", 1), ("vo", 1), ("node", 2)])
def test_csv_has_a_line_for_each(report: Report, by: str, lines: int) -> None:
    rows = list(csv.DictReader(io.StringIO(report_text.as_csv(report, by))))
    assert len(rows) == lines
    assert {int(row["since"]) for row in rows} == {PERIOD.since}
    if by == "resource":
        assert float(rows[0]["held_core_hours"]) == pytest.approx(report.cores.held / HOUR_S, abs=0.001)
        assert rows[0]["to_join_s_p90"] == "2400"


def test_csv_has_no_formula(path: Path) -> None:
    store.record(
        path, cycle(NOW - 10, ended=[(ended(6, Outcome.NODE_FAILED, "n3", said="=HYPERLINK(1)"), {})], used={})
    )
    assert "'=HYPERLINK(1)" in report_text.as_csv(read(path, "x", PERIOD), "node")


@pytest.mark.parametrize("form", ["table", "csv", "json", "html"])
def test_an_empty_period_is_one_sentence(htcebridge_command: Run, path: Path, form: str) -> None:
    said = htcebridge_command("report", "--history", path, "--since", "2001-01-01", "--until", "2001-01-02",
                              "--format", form)  # fmt: skip
    assert said.code == 0  # type: ignore[attr-defined]
    sentence = "No cycle, pilot or core-hour of leonardo was recorded between 2001-01-01 00:00 and 2001-01-02 00:00"
    text = re.sub(r"\s+", " ", said.out + said.err)  # type: ignore[attr-defined]
    assert sentence in text
    assert "the history goes from 2023-10-05" in text


def test_what_is_no_history_is_named(htcebridge_command: Run, tmp_path: Path) -> None:
    said = htcebridge_command("report", "--history", tmp_path / "none")
    assert (said.code, said.out) == (2, "")  # type: ignore[attr-defined]
    assert "no history yet" in said.err  # type: ignore[attr-defined]
    (tmp_path / "text").write_text("no database " * 100)
    said = htcebridge_command("report", "--history", tmp_path / "text")
    assert said.code == 2  # type: ignore[attr-defined]
    assert "is damaged or no history" in said.err  # type: ignore[attr-defined]


def test_a_file_is_written_whole_or_not_at_all(htcebridge_command: Run, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    options = ("report", "--history", path, "--since", "2023-11-01", "--until", "2023-11-30", "--format", "html")
    assert htcebridge_command(*options, "-o", target).code == 0  # type: ignore[attr-defined]
    assert target.read_text().endswith("</html>")
    said = htcebridge_command(*options, "-o", tmp_path / "none" / "report.html")
    assert said.code == 1  # type: ignore[attr-defined]
    assert "cannot be written" in said.err  # type: ignore[attr-defined]
    assert sorted(each.name for each in tmp_path.iterdir() if "report" in each.name) == ["report.html"]


def test_a_period_is_whole_hours_up_to_now() -> None:
    now = time.mktime((2026, 11, 26, 4, 20, 0, 0, 0, -1))
    midnight = int(time.mktime((2026, 11, 20, 0, 0, 0, 0, 0, -1)))
    week = int(now) - 7 * 86400
    assert the_period(week, int(now), now) == Period(week - 1200, int(now))
    assert the_period(midnight, int(now), now).since == midnight
    assert the_period(midnight, midnight + 5 * HOUR_S + 1800, now).until == midnight + 6 * HOUR_S
    assert the_period(int(now) - 3600, int(now) + 10**7, now).until == int(now)
    with pytest.raises(ConfigError, match="begins in the future"):
        the_period(int(now) + 7200, int(now) + 9000, now)


# --------------------------------------------------------------------------- the page


class Checker(HTMLParser):
    """Collects what matters: elements that are open, attributes, identifiers, text."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def test_the_page_is_well_formed_and_asks_for_nothing(report: Report) -> None:
    text = page(report, NOW)
    seen = Checker(text)
    assert not seen.open
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    assert {target.removeprefix("#") for target in seen.values("aria-labelledby")} <= set(ids)
    assert {target for target in seen.values("href") if target != "data:,"} == {"#numbers"}
    assert not seen.values("src")
    assert not seen.values("style"), "the policy would not let it work"
    assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(ids)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_nothing_gets_into_the_page_as_markup(report: Report) -> None:
    text = page(replace(report, name=EVIL), NOW)
    assert EVIL not in text
    assert "&lt;script&gt;alert" in text
    assert text.count("<script>") == 1


def test_only_a_live_page_asks_for_itself_again(report: Report) -> None:
    assert 'http-equiv="refresh"' not in page(report, NOW)
    assert 'http-equiv="refresh" content="60"' in page(report, NOW, 60)
    still = page(report, NOW, 0)
    assert 'http-equiv="refresh"' not in still
    assert 'href="/report.json"' in still


def test_a_curve_is_made_of_steps_and_breaks_in_gaps(report: Report) -> None:
    made = replace(
        report,
        period=Period(0, 500),
        series=Series(100, (0, 100, 200, 300, 400), {}, *[(2.0, 4.0, None, 4.0, 4.0)] * 5),
    )
    cores = plots.series(made)[2]
    assert cores.box == "0 0 5 1000"
    busy = cores.layers[-1]
    assert (busy.label, busy.edge) == ("busy", "M0 500V500H1V0H2M3 0V0H5")
    assert busy.path == "M0 1000V500H1V0H2V1000H0ZM3 1000V0H5V1000H3Z"


def test_a_pilot_of_seconds_is_seen_and_its_letter_has_room() -> None:
    def bar(begin: int, end: int) -> Bar:
        return Bar("1", "dcgp", "n1", 112, begin, None, end, "node failed", "", 0, 0, 0, 0)

    day = Timeline(0, 86400, 1, 4, {"n1": [bar(0, 20), bar(600, 620), bar(7200, 9000), bar(86390, 86400)]})
    (line,) = timeline.lines(day)
    assert [(each.at, each.boot) for each in line.drawn] == [(0, 0.4), (0.69, 0.4), (8.33, 2.08), (99.6, 0.4)]
    anchors = [each.letter and each.letter.anchor for each in line.drawn]
    assert anchors == [None, "start", "end", "end"], "the first has no room, the last none behind it"
    assert [each.letter.at for each in line.drawn if each.letter] == [1.09, 10.41, 99.6]


@pytest.mark.parametrize("hours", [1, 3, 24, 24 * 7, 24 * 31, 24 * 365, 24 * 3000])
def test_an_axis_has_few_marks_in_order(hours: int) -> None:
    ticks = axis.times(NOW - hours * HOUR_S, NOW)
    assert 1 < len(ticks) <= 10
    assert sorted(tick.at for tick in ticks) == [tick.at for tick in ticks]
    assert len({tick.label for tick in ticks}) == len(ticks)


def test_days_of_23_hours_have_their_midnights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Rome")
    time.tzset()
    try:
        since = int(time.mktime((2026, 3, 27, 0, 0, 0, 0, 0, -1)))
        ticks = axis.times(since, since + 4 * 86400 - HOUR_S)
        at = {tick.label: round(tick.at * (4 * 24 - 1) / 100, 2) for tick in ticks}
        assert at == pytest.approx({**at, "Sat 28": 24, "Sun 29": 48, "Mon 30": 71})
        assert report_text.zone(since) == "CET (UTC+01:00)"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_top_of_an_axis_is_round() -> None:
    assert [axis.top(value) for value in (0, 0.3, 1, 7, 11, 230, 5000)] == [1, 0.4, 1, 8, 20, 250, 5000]
    assert [axis.short(value) for value in (0, 5, 1500, 2_500_000)] == ["0", "5", "1.5k", "2.5M"]
