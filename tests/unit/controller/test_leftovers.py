from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from htcebridge.controller.leftovers import sweep
from htcebridge.errors import BridgeError


def left(folder: Path, name: str, hours: float = 2) -> Path:
    path = folder / name
    (path / "execute" / "dir_1").mkdir(parents=True)
    (path / "execute" / "file").write_text("x")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


def test_what_dead_pilots_left_goes_and_nothing_else_does(tmp_path: Path) -> None:
    dead, single = left(tmp_path, "htcebridge-7_1"), left(tmp_path, "htcebridge-9")
    kept = [left(tmp_path, name) for name in ("htcebridge-7_2", "htcebridge-7_1.keep", "mine", "htcebridge-x")]
    kept.append(left(tmp_path, "htcebridge-8_1", hours=0.5))
    (tmp_path / "htcebridge-6_1").symlink_to(tmp_path / "mine")
    assert sweep(tmp_path, {"7_2"}, time.time()) == (dead, single)
    assert all(path.exists() for path in kept)
    assert (tmp_path / "htcebridge-6_1").is_symlink()
    assert not dead.exists()


def test_it_takes_a_few_at_a_time(tmp_path: Path) -> None:
    for number in range(12):
        left(tmp_path, f"htcebridge-{number}")
    assert [len(sweep(tmp_path, (), time.time())) for _ in range(4)] == [5, 5, 2, 0]


def test_a_directory_that_is_not_there_yet_is_nothing(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", (), time.time()) == ()


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BridgeError, match="file: what a killed pilot left cannot be removed"):
        sweep(tmp_path / "file", (), time.time())
