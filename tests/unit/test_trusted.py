"""What decides what runs here and on every node can be changed by nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from htcebridge import trusted
from htcebridge.config import file
from htcebridge.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)
    path = folder / "htcebridge.toml"
    path.write_text("")
    for each, mode in ((path, 0o644), (folder, 0o755), (folder.parent, 0o755)):
        each.chmod(mode)
    return path


def why(path: Path) -> list[str]:
    return list(trusted.others(path))


def test_what_only_its_owner_can_write_is_trusted(config: Path) -> None:
    assert why(config) == why(config.parent) == []
    trusted.check_file(config)


@pytest.mark.parametrize(
    ("which", "mode", "says"),
    [
        ("htcebridge.toml", 0o666, "chmod go-w"),
        ("htcebridge.toml", 0o646, "chmod go-w"),
        (".", 0o777, "chmod go-w"),
        ("..", 0o777, "chmod o-w"),
    ],
)
def test_what_others_can_write_or_replace_is_named_with_what_to_do(
    config: Path, which: str, mode: int, says: str
) -> None:
    changed = (config.parent / which).resolve()
    changed.chmod(mode)
    assert why(config) == [f"others may write {changed}: {says} {changed}"]
    with pytest.raises(ConfigError, match=f"says what runs here and on every node, and others may write {changed}"):
        file.load(config)


def test_in_a_sticky_folder_nobody_takes_away_what_is_not_theirs(config: Path) -> None:
    config.parent.chmod(0o1777)
    assert why(config) == []


def test_a_link_is_as_good_as_where_it_stands_and_where_it_leads(config: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    link = elsewhere / "htcebridge.toml"
    link.symlink_to(config)
    assert why(link) == []
    elsewhere.chmod(0o777)
    assert why(link) == [f"others may write {elsewhere}: chmod go-w {elsewhere}"]
    elsewhere.chmod(0o755)
    config.parent.chmod(0o777)
    assert why(link) == [f"others may write {config.parent}: chmod go-w {config.parent}"]


def test_a_group_of_ones_own_is_nobody_else(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.chmod(0o664)
    monkeypatch.setattr(trusted, "_own_group", lambda gid: gid == config.stat().st_gid)
    assert why(config) == []
    monkeypatch.setattr(trusted, "_own_group", lambda gid: False)
    assert len(why(config)) == 1


def test_a_group_with_others_in_it_or_another_name_is_others(monkeypatch: pytest.MonkeyPatch) -> None:
    me = trusted.pwd.getpwuid(os.getuid()).pw_name

    def group(name: str, *members: str) -> None:
        found = trusted.grp.struct_group((name, "x", 7, list(members)))
        monkeypatch.setattr(trusted.grp, "getgrgid", lambda gid: found)

    for name, members, own in ((me, (), True), (me, (me,), True), (me, ("eve",), False), ("users", (), False)):
        group(name, *members)
        assert trusted._own_group(7) is own


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_somebody_else_owns_is_named(config: Path) -> None:
    os.chown(config, 54321, -1)
    assert why(config) == [f"user 54321 owns {config}: let it be yours or root's"]


def test_what_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        why(tmp_path / "none")
