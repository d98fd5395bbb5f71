from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError
from htcebridge.state import ledger
from htcebridge.state.ledger import Entry, Ledger

NOW = 1_800_000_000


@pytest.fixture
def book(config: Config, file: Path) -> Ledger:
    file.parent.mkdir(parents=True)
    return Ledger(config)


@pytest.fixture
def file(own_home: Path) -> Path:
    return own_home / ".local/state/htcebridge/leonardo.submissions"


def entry(plan_id: str = "p1", when: int = NOW, **changes) -> Entry:
    return replace(Entry(when, plan_id, "dcgp", 3, "INF24_lhc_2", "dcgp_usr_prod", "qos_lowprio", 7200), **changes)


def test_a_submission_is_written_down_before_and_settled_after(book: Ledger) -> None:
    book.begin(entry())
    assert ledger.unsettled(book.entries()) == [entry()]
    book.settle(entry(), "4711")
    assert book.entries() == [replace(entry(), outcome="4711")]
    assert ledger.unsettled(book.entries()) == []


def test_what_nobody_knows_counts_for_the_caps_and_what_was_refused_does_not(book: Ledger) -> None:
    book.begin(entry("known"))
    book.settle(entry("known"), "1")
    book.begin(entry("unknown"))
    book.begin(entry("refused"))
    book.settle(entry("refused"), "none")
    book.begin(entry("long ago", when=NOW - ledger.HOUR_S))
    assert ledger.submitted_since(book.entries(), NOW - ledger.HOUR_S) == 6


def test_a_line_that_a_crash_tore_is_no_submission_and_swallows_none(book: Ledger, file: Path) -> None:
    book.begin(entry("p1"))
    whole = file.read_bytes()
    book.begin(entry("p2"))
    file.write_bytes(file.read_bytes()[: len(whole) + 17])
    assert [each.plan_id for each in book.entries()] == ["p1"]
    book.begin(entry("p3"))
    assert [each.plan_id for each in book.entries()] == ["p1", "p3"]


def test_torn_anywhere_it_never_invents_or_loses_a_whole_line(book: Ledger, file: Path) -> None:
    for name in ("p1", "p2", "p3"):
        book.begin(entry(name))
    data = file.read_bytes()
    for cut in range(len(data)):
        file.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        assert whole <= len(book.entries()) <= whole + 1


def test_damage_in_the_middle_is_said_not_skipped(book: Ledger, file: Path) -> None:
    book.begin(entry("p1"))
    file.write_text("garbage\n" + file.read_text())
    with pytest.raises(BridgeError, match="line 1 is damaged"):
        book.entries()


def test_what_cannot_be_written_down_is_an_error(book: Ledger, file: Path) -> None:
    file.mkdir()
    with pytest.raises(BridgeError, match="nothing is submitted that is not written down"):
        book.begin(entry())


def test_old_lines_go_and_young_ones_stay(book: Ledger) -> None:
    book.begin(entry("old", when=NOW - ledger.KEEP_S - 1))
    book.begin(entry("young", when=NOW - 60))
    book.prune(NOW)
    assert [each.plan_id for each in book.entries()] == ["young"]
