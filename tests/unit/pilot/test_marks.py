from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from htcebridge.errors import BridgeError, ConfigError, UnknownState
from htcebridge.pilot import marks
from htcebridge.pilot.marks import Kind

ME = marks._name(os.geteuid())


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared it's"
    marks.prepare(directory)
    return directory


def fail(number: int) -> object:
    """An `os` or `Path` function that fails with this errno."""

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


def test_prepare_makes_what_pilots_and_slurm_expect_and_may_be_called_again(shared: Path) -> None:
    marks.prepare(shared)
    assert {path.name for path in shared.iterdir()} == {"logs", "drain"}


def test_prepare_names_the_directory_that_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BridgeError, match=r"file/shared/logs: cannot be made: Not a directory"):
        marks.prepare(tmp_path / "file" / "shared")


# --------------------------------------------------------------------------- the kill switch


def test_the_kill_switch_says_where_who_when_and_why(shared: Path) -> None:
    assert marks.read_stop([shared]) is None
    marks.set_stop(shared, "mail from CINECA:\nstop\x1b[2J now")
    day = time.strftime("%Y-%m-%d")
    said = marks.read_stop([shared])
    assert said is not None
    assert said.startswith(f"{shared}/STOP: {ME}, {day} ")
    assert said.endswith(": mail from CINECA: stop [2J now")
    assert marks.lift_stop(shared)
    assert marks.read_stop([shared]) is None
    assert not marks.lift_stop(shared)


def test_a_file_that_somebody_touched_is_the_kill_switch(shared: Path) -> None:
    marks.stop_mark(shared).touch()
    assert str(marks.read_stop([shared])).endswith("no reason given")


def test_the_kill_switch_counts_though_its_text_cannot_be_read(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks.set_stop(shared, "why")
    monkeypatch.setattr(Path, "open", fail(errno.EACCES))
    assert str(marks.read_stop([shared])).endswith("no reason given")


def test_a_directory_of_that_name_is_the_kill_switch_too(shared: Path) -> None:
    marks.stop_mark(shared).mkdir()
    assert marks.read_stop([shared])


def test_one_directory_with_the_kill_switch_is_enough(shared: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    marks.prepare(other)
    marks.set_stop(other, "here")
    assert str(marks.read_stop([shared, other, shared])).startswith(f"{other}/STOP")


def test_a_missing_directory_is_never_a_kill_switch_that_is_off(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownState, match=r"gone/STOP: whether the kill switch is on cannot be seen"):
        marks.read_stop([shared, tmp_path / "gone"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_an_unreadable_directory_is_never_a_kill_switch_that_is_off(
    shared: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "stat", fail(number))
    with pytest.raises(UnknownState, match=os.strerror(number)):
        marks.read_stop([shared])


def test_a_directory_that_cannot_be_listed_is_never_a_kill_switch_that_is_off(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lookup of STOP says "not there", as some file systems do when a server is lost.
    monkeypatch.setattr(os, "listdir", fail(errno.ESTALE))
    with pytest.raises(UnknownState, match="cannot be seen"):
        marks.read_stop([shared])


# --------------------------------------------------------------------------- drain marks


def test_marks_are_listed_with_their_kind_and_text(shared: Path) -> None:
    marks.set_drain(shared, marks.resource_mark("leonardo", "dcgp"), "disk full")
    marks.set_drain(shared, "123_4", "slow node")
    marks.set_drain(shared, "123_4", "its work fits elsewhere", tail=True)
    marks.set_drain(shared, "99", "", tail=True)
    assert [(mark.kind, mark.name, mark.why, mark.who) for mark in marks.marks(shared)] == [
        (Kind.PILOT, "123_4", "slow node", ME),
        (Kind.TAIL, "123_4", "its work fits elsewhere", ME),
        (Kind.TAIL, "99", "", ME),
        (Kind.RESOURCE, "leonardo.dcgp", "disk full", ME),
    ]
    assert abs(marks.marks(shared)[0].since - time.time()) < 60
    names = {path.name for path in (shared / "drain").iterdir()}
    assert names == {"123_4", "123_4.tail", "99.tail", "leonardo.dcgp"}


def test_an_admins_mark_and_the_tails_are_lifted_apart(shared: Path) -> None:
    marks.set_drain(shared, "123_4", "")
    marks.set_drain(shared, "123_4", "", tail=True)
    assert marks.lift_drain(shared, "123_4", tail=True)
    assert [mark.kind for mark in marks.marks(shared)] == [Kind.PILOT]
    assert not marks.lift_drain(shared, "123_4", tail=True)
    assert marks.lift_drain(shared, "123_4")
    assert marks.marks(shared) == ()


def test_setting_a_mark_again_renews_its_text(shared: Path) -> None:
    marks.set_drain(shared, "1", "first")
    marks.set_drain(shared, "1", "second")
    assert [mark.why for mark in marks.marks(shared)] == ["second"]


def test_marks_need_no_prepared_directory(tmp_path: Path) -> None:
    assert marks.marks(tmp_path) == ()
    marks.set_drain(tmp_path, "1_2", "")
    assert len(marks.marks(tmp_path)) == 1


def test_what_is_no_mark_is_not_listed(shared: Path) -> None:
    for name in (".1.77.new", "notes.txt.bak", "1_2.tail~", "1_2.TAIL", "_1", "1_", "STOP", "1_2.tail.tail"):
        (shared / "drain" / name).touch()
    assert marks.marks(shared) == ()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../STOP", "a/b.c", "leonardo", "leonardo.", ".dcgp", "a.b.c", "1_2.tail", "1\n", "١", "*"]
)
@pytest.mark.parametrize("tail", [False, True])
def test_a_name_that_is_neither_a_pilot_nor_a_resource_is_refused(shared: Path, name: str, tail: bool) -> None:
    before = sorted(shared.rglob("*"))
    for act in (
        lambda: marks.set_drain(shared, name, "", tail=tail),
        lambda: marks.lift_drain(shared, name, tail=tail),
    ):
        with pytest.raises(ConfigError, match="cannot be drained"):
            act()
    assert sorted(shared.rglob("*")) == before


def test_only_pilots_have_the_tails_mark(shared: Path) -> None:
    with pytest.raises(ConfigError, match=r"it is not a pilot's id"):
        marks.set_drain(shared, "leonardo.dcgp", "", tail=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_an_error_and_leaves_neither_a_mark_nor_litter(
    shared: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail(number))
    for act in (lambda: marks.set_drain(shared, "1_2", "x"), lambda: marks.set_stop(shared, "x")):
        with pytest.raises(BridgeError, match=rf"the mark could not be set: {os.strerror(number)}"):
            act()
    assert [path for path in shared.rglob("*") if path.is_file()] == []


def test_a_failed_renewal_keeps_the_mark_that_lay_there(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks.set_stop(shared, "first")
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(BridgeError):
        marks.set_stop(shared, "second")
    assert str(marks.read_stop([shared])).endswith("first")


def test_a_mark_that_cannot_be_lifted_is_an_error(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BridgeError, match="could not be lifted"):
        marks.lift_stop(tmp_path / "gone")
    marks.set_stop(shared, "")
    monkeypatch.setattr(Path, "unlink", fail(errno.EACCES))
    with pytest.raises(BridgeError, match="could not be lifted: Permission denied"):
        marks.lift_stop(shared)


def test_marks_that_cannot_be_read_are_unknown(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownState, match="drain marks cannot be read"):
        marks.marks(tmp_path / "gone")
    monkeypatch.setattr(Path, "iterdir", fail(errno.EIO))
    with pytest.raises(UnknownState, match="drain marks cannot be read"):
        marks.marks(shared)


# --------------------------------------------------------------------------- sweeping


def test_sweep_takes_old_marks_of_pilots_that_are_gone_and_no_others(shared: Path) -> None:
    marks.set_drain(shared, "leonardo.dcgp", "")
    for name in ("1_1", "1_2", "2"):
        marks.set_drain(shared, name, "")
        marks.set_drain(shared, name, "", tail=True)
    now = time.time()
    assert marks.sweep(shared, {"1_2"}, now) == (), "a mark may be newer than the listing of Slurm's jobs"
    assert sorted(marks.sweep(shared, {"1_2"}, now + 2 * 86400)) == ["1_1", "1_1", "2", "2"]
    assert {mark.name for mark in marks.marks(shared)} == {"leonardo.dcgp", "1_2"}


def test_sweep_leaves_another_users_marks(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks.set_drain(shared, "1_1", "")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert marks.sweep(shared, set(), time.time() + 2 * 86400) == ()
