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
        """What goes wrong where a pilot is on its way."""
        return renew.keep(self.config, ["dcgp"], NOW)

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
    site.file.write_text(token(NOW + WALLTIME_S - 60))
    site.file.chmod(0o600)
    (said,) = site.renewed()
    assert said.startswith(f"token_command for {site.file}: ")
    assert says in said
    assert "secret" not in said
    assert token(NOW + 60) not in said
    assert site.file.read_text() == token(NOW + WALLTIME_S - 60)


def test_a_command_that_is_not_there_is_said(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a token").unlink()
    (said,) = site.renewed()
    assert "No such file" in said


def test_without_a_pilot_on_its_way_no_token_lies_there(site: Site) -> None:
    site.prints.write_text(token(None))
    assert site.renewed() == []
    assert renew.keep(site.config, [], NOW) == []
    assert not site.file.exists()
    assert site.times == 1
    pressure = site.config.pressure.model_copy(update={"demand_source": "negotiator"})
    assert renew.keep(site.config.model_copy(update={"pressure": pressure}), [], NOW) == []
    assert site.file.exists()


def test_a_token_that_somebody_else_renews_or_reads_too_stays(site: Site) -> None:
    renew.have(site.config, site.config.resources["dcgp"].token_file.__class__("/nowhere", here="/nowhere"), NOW)
    assert site.times == 0
    other = site.config.resources["dcgp"].model_copy(update={"token_command": ""})
    both = site.config.model_copy(update={"resources": {**site.config.resources, "other": other}})
    site.prints.write_text(token(None))
    renew.have(both, other.token_file, NOW)
    assert renew.keep(both, [], NOW) == []
    assert site.file.exists()


def test_a_file_that_cannot_be_removed_is_said(site: Site) -> None:
    site.file.mkdir()
    (said,) = renew.keep(site.config, [], NOW)
    assert said.startswith(f"{site.file}: no pilot needs it, and it cannot be removed: ")


def test_an_old_token_that_will_do_is_no_problem(site: Site, tmp_path: Path) -> None:
    (tmp_path / "before").write_text("exit 3")
    site.file.write_text(token(NOW + WALLTIME_S + 60))
    site.file.chmod(0o600)
    assert site.renewed() == []
    assert site.times == 1


def test_a_token_that_a_command_makes_is_missed_by_nobody_before_it_is_needed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "controller").mkdir(mode=0o700)
    controller = tmp_path / "controller" / "token"
    controller.write_text(token(None))
    controller.chmod(0o600)
    observe.check_pilots_can_start(site.config, NOW)
