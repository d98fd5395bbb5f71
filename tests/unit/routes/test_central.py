"""The central manager's part: what is rendered, and how what runs is judged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from htcebridge.config import file
from htcebridge.config.tables import Config
from htcebridge.errors import ConfigError
from htcebridge.pilot import ghost
from htcebridge.routes import RouteFile, central, disk
from htcebridge.routes.ce import Knob
from tests.unit.conftest import DESIGN_EXAMPLE
from tests.unit.routes.test_install import EXCLUDED

KEYS = """[tier1]
pilot_collector = "cm01.cr.example.org:9618?sock=htcebridge"
pilot_identity = "leonardo-pilot@cr.example.org"
"""


def configured(tmp_path: Path, keys: str = KEYS, site: str = "leonardo") -> Config:
    path = tmp_path / "htcebridge.toml"
    text = DESIGN_EXAMPLE.replace("[tier1]\n", keys).replace('value = "leonardo"', f'value = "{site}"')
    path.write_text(text)
    return file.load(path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("[tier1]\n", r'pilot_collector: not set.*"cm01.cr.example.org:9618\?sock=htcebridge"'),
        ('[tier1]\npilot_collector = "cm02:9618"\n', "pilot_collector: cm02:9618; .* behind the pool's port"),
        ('[tier1]\npilot_collector = "cm02:9618?sock=x"\n', "it begins with cm01.cr.example.org:9618"),
        ('[tier1]\npilot_collector = "cm01.cr.example.org:9618?sock=x"\n', "pilot_identity: not set"),
    ],
)
def test_what_the_configuration_does_not_say_is_named(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        central.of(configured(tmp_path, keys))


@pytest.mark.parametrize("address", ["cm01:9618?sock=a b", "cm01?sock=x", "cm01:9618?sock=", "cm01:9618?other=x"])
def test_a_collectors_address_is_host_port_and_socket(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="pilot_collector"):
        configured(tmp_path, f'[tier1]\npilot_collector = "{address}"\n')


def test_what_pilots_join_is_in_the_pilots_configuration_and_nowhere_else(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert config.tier1.joined == "cm01.cr.example.org:9618?sock=htcebridge"
    assert configured(tmp_path, "[tier1]\n").tier1.joined == config.tier1.collector == "cm01.cr.example.org:9618"


@pytest.mark.parametrize("site", ["leonardo", "marconi-100", "a.b+c_d"])
def test_a_name_of_this_hpc_and_no_other_is_a_pilots(tmp_path: Path, site: str) -> None:
    config = configured(tmp_path, site=site)
    text = central.of(config).file.text
    (pattern,) = set(re.findall(r'regexp\("([^"]*invalid[^"]*)", Name\)', text))
    (own,) = re.findall(r'(?<!\w)Name = "([^"]*)"', ghost.ad_text(config, "dcgp", "[ ]", 0))
    domain = own.partition("@")[2].partition(".")[2]
    for name in (own, f"slot1_2@pilot_1_1@lrdn0001.pilot-1-1.{domain}", f"pilot_1_1@lrdn0001.pilot-1-1.{domain}"):
        assert re.search(pattern, name), name
    for name in (
        "slot1@wn-001.cr.example.org",
        f"slot1@x.{domain}.cr.example.org",
        f"slot1@x.other-{domain}",
        f"slot1@x.{domain.replace('.', '-')}",
    ):
        assert not re.search(pattern, name), name


def test_of_two_hpcs_each_has_its_own_file_and_daemon(tmp_path: Path) -> None:
    one, other = (central.of(configured(tmp_path, site=site)).file for site in ("leonardo", "marconi-100"))
    assert (one.name, other.name) == ("60-htcebridge-leonardo.conf", "60-htcebridge-marconi-100.conf")
    assert "DAEMON_LIST = $(DAEMON_LIST) HTCEBRIDGE_MARCONI_100\n" in other.text
    assert set(central._SETS.findall(one.text)) & set(central._SETS.findall(other.text)) == set(central._LISTS)


def test_in_the_transition_the_pools_collector_takes_pilots(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert central._closes(central.of(config).file)
    assert not central._closes(central.of(config, closed=False).file)


def test_it_is_not_taken_for_the_routes_file_beside_it(tmp_path: Path) -> None:
    """A host may be central manager and CE."""
    routes = RouteFile("pool", "60-htcebridge.conf", "A = 1\n")
    ours = central.of(configured(tmp_path)).file
    for each in (routes, ours):
        disk.carry_out(disk.Change(each.side, tmp_path, None, each))
    found = disk.find(tmp_path, EXCLUDED)
    assert found is not None
    assert found.path.name == routes.name
    there = disk.read(tmp_path / ours.name)
    assert there is not None
    assert (there.command, there.intact, there.body) == ("pool", True, ours.text)


class Condor:
    """What a central manager's configuration comes to."""

    def __init__(self, text: str, path: str, **others: str) -> None:
        self.text, self.path, self.others = text, path, others

    def knobs(self) -> dict[str, Knob]:
        found = {name.upper(): Knob(name, "", self.path, 1) for name in central._SETS.findall(self.text)}
        return found | {
            name.replace("__", ".").upper(): Knob(name, "", where, 7) for name, where in self.others.items()
        }

    def value(self, name: str) -> str:
        return "MASTER, COLLECTOR,HTCEBRIDGE_LEONARDO" if name == "DAEMON_LIST" else "x@y"


def test_what_is_set_again_behind_the_file_is_named_with_its_place(tmp_path: Path) -> None:
    ours = central.of(configured(tmp_path), closed=False).file
    good = Condor(ours.text, "ours", DAEMON_LIST="later")
    assert list(central._overridden(good, ours, "ours")) == []  # type: ignore[arg-type]
    bad = Condor(ours.text, "ours", HTCEBRIDGE_LEONARDO__CONDOR_VIEW_HOST="later")
    said = list(central._overridden(bad, ours, "ours"))  # type: ignore[arg-type]
    assert said == ["HTCEBRIDGE_LEONARDO.CONDOR_VIEW_HOST: set again in later:7"]
    closed = central.of(configured(tmp_path)).file
    (first, second) = central._overridden(Condor(closed.text, "ours"), closed, "ours")  # type: ignore[arg-type]
    assert first.startswith("COLLECTOR.DENY_ADVERTISE_STARTD: leonardo-pilot@cr.example.org is not in it")
    assert second.startswith("COLLECTOR.DENY_ADVERTISE_MASTER")


def test_a_right_that_could_not_be_tried_is_neither() -> None:
    allowed = dict.fromkeys(central._RIGHTS, False) | dict.fromkeys(central._OF_PILOTS, True)
    assert central._judged("at x", allowed, central._OF_PILOTS, "p@y").good is True
    assert central._judged("at x", {**allowed, "DAEMON": None}, central._OF_PILOTS, "p@y").good is None
    wrong = central._judged("at x", {**allowed, "DAEMON": True, "NEGOTIATOR": None}, central._OF_PILOTS, "p@y")
    assert (wrong.good, wrong.said) == (False, "to p@y DAEMON is allowed")
    closed = central._judged("at x", allowed, (), "p@y")
    assert closed.said == "to p@y ADVERTISE_STARTD is allowed, ADVERTISE_MASTER is allowed"
