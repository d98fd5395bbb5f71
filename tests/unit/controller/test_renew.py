from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import observe, renew
from htcebridge.errors import ConfigError

NOW = 1_800_000_000
WALLTIME_S = 12 * 3600


def token(expires: int | None) -> str:
    claims = {"sub": "pilot@pool", "iss": "pool", **({"exp": expires} if expires is not None else {})}
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims, {})
    )


class Site:
    """A configuration with a command that prints what `prints` holds, and counts how often it was asked."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.prints, self.asked, self.file = folder / "prints", folder / "asked", folder / "pilot.idtoken"
        self.config = config

    def renewed(self) -> list[str]:
        return renew.tokens_of_pilots(self.config, NOW)

    @property
    def times(self) -> int:
        return len(self.asked.read_text().splitlines()) if self.asked.exists() else 0


@pytest.fixture
def site(load: Callable[[str], Config], design_example: str, tmp_path: Path) -> Site:
    command = tmp_path / "a token"
    command.write_text(f'#!/bin/sh\necho >> "{tmp_path}/asked"\n. "{tmp_path}/before" 2>&1\ncat "{tmp_path}/prints"\n')
    command.chmod(0o755)
    (tmp_path / "before").write_text("")
    own = f"[resource.dcgp]\ntoken_file = '{tmp_path}/pilot.idtoken'\ntoken_command = \"'{command}' --fresh\"\n"
    text = re.sub("^token_directory = .*\n", "", design_example, flags=re.MULTILINE)
    text = text.replace("[tier1]\n", f"[tier1]\ntoken_directory = '{tmp_path}/controller'\n")
    return Site(load(text.replace("[resource.dcgp]\n", own)), tmp_path)


def test_a_token_that_is_missing_or_would_end_too_soon_is_renewed_and_a_good_one_left_alone(site: Site) -> None:
    fresh = token(NOW + WALLTIME_S + 3600)
    site.prints.write_text(fresh + "\n")
    assert site.renewed() == []
    assert site.file.read_text() == fresh + "\n"
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
    assert site.renewed() == []
    assert site.times == 1
    for old in (token(NOW + WALLTIME_S - 1), token(NOW + WALLTIME_S + 60), "not a token"):
        site.file.write_text(old)
        assert site.renewed() == []
        assert site.file.read_text() == fresh + "\n"
    site.file.chmod(0o644)
    assert site.renewed() == []
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
    assert [path.name for path in site.file.parent.glob(".pilot*")] == []


@pytest.mark.parametrize(
    ("prints", "before", "says"),
    [
        ("secret-but-no-token", "", "what it printed: holds no IDTOKEN"),
        ("", "", "holds no IDTOKEN"),
        (token(NOW + 60), "", "its token lives 60 s, a pilot 43200 s"),
        (token(None), "echo no such identity >&2; exit 3", "ended with code 3"),
    ],
)
def test_what_goes_wrong_is_said_without_the_secret_and_the_old_token_stays(
    site: Site, tmp_path: Path, prints: str, before: str, says: str
) -> None:
    site.prints.write_text(prints)
    (tmp_path / "before").write_text(before)
    site.file.write_text(token(NOW + WALLTIME_S + 60))
    site.file.chmod(0o600)
    (said,) = site.renewed()
    assert said.startswith(f"token_command for {site.file}: ")
    assert says in said
    assert "secret" not in said
    assert token(NOW + 60) not in said
    assert site.file.read_text() == token(NOW + WALLTIME_S + 60)


def test_a_command_that_is_not_there_is_said(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a token").unlink()
    (said,) = site.renewed()
    assert "No such file" in said


def test_a_plan_does_not_miss_what_the_next_cycle_brings_and_a_cycle_does(site: Site, tmp_path: Path) -> None:
    (tmp_path / "controller").mkdir(mode=0o700)
    controller = tmp_path / "controller" / "token"
    controller.write_text(token(None))
    controller.chmod(0o600)
    observe.check_pilots_can_start(site.config, NOW)
    with pytest.raises(ConfigError, match="token cannot be read"):
        observe.check_pilots_can_start(site.config, NOW, must_be_there=True)
