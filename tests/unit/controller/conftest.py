"""What the tests of the controller share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from tests.unit.controller.made import World


@pytest.fixture
def token(own_home: Path) -> Path:
    token = own_home / ".config/htcebridge/pilot.idtoken"
    token.parent.mkdir(parents=True)
    token.write_text("e30.e30.c2lnbmF0dXJl")  # a token that says nothing, not even when it expires
    token.chmod(0o600)
    return token


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path / "work/htcebridge"
    shared.mkdir(parents=True)
    return shared


@pytest.fixture
def two(load: Callable[[str], Config], design_example: str) -> Config:
    second = design_example.partition("[resource.dcgp]")[2]
    return load((design_example + "\n[resource.zweite]" + second).replace("max_node_hours = 20000\n", ""))


@pytest.fixture
def world(token: Path, shared: Path, fake_command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> World:
    return World(fake_command, monkeypatch)
