"""A path of the configuration is expanded once, when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config.example import dump
from htcebridge.config.paths import expand
from htcebridge.config.tables import Config
from htcebridge.controller.situation import fingerprint
from htcebridge.errors import ConfigError, UnsetVariable


def test_a_path_is_what_it_was_when_the_configuration_was_read(
    config: Config, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK", "/elsewhere")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert config.resources["dcgp"].shared_dir.path == tmp_path / "work" / "htcebridge"
    assert config.pressure.state_dir.path == own_home / ".local/state/htcebridge"


def test_an_unset_variable_is_an_error_where_the_path_is_used(
    load: Callable[[str], Config], design_example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORK")
    config = load(design_example)
    assert config.tier1.token_directory.path.is_absolute()
    with pytest.raises(UnsetVariable, match=r"^shared_dir = '\$WORK/htcebridge': an environment variable in it is not"):
        config.resources["dcgp"].shared_dir.check()


def test_a_variable_that_makes_it_relative_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK", "work")
    with pytest.raises(ConfigError, match=r"log\.file = '\$WORK/x': not an absolute path"):
        expand("$WORK/x", "log.file").check()


@pytest.mark.parametrize("path", ["relative", "", "a\nb", 'x"', "/a\nb"])
def test_what_is_no_path_is_refused_with_its_line(
    load: Callable[[str], Config], design_example: str, path: str
) -> None:
    written = path.replace("\n", "\\n").replace('"', '\\"')
    with pytest.raises(ConfigError, match=r"htcebridge.toml:\d+: pilot.shared_dir: "):
        load(design_example.replace('"$WORK/htcebridge"', f'"{written}"'))


def test_what_is_shown_is_what_was_written(config: Config, load: Callable[[str], Config]) -> None:
    """So a shown configuration can be copied, and an upgrade changes no resource's fingerprint."""
    text = dump(config)
    assert 'shared_dir = "$WORK/htcebridge"' in text
    assert fingerprint(load(text).resources["dcgp"]) == fingerprint(config.resources["dcgp"])
