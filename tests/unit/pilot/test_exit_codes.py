"""The table of a pilot's exit codes, and that script and checks have no other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

import htcebridge
from htcebridge.config.tables import Config
from htcebridge.model import Fault
from htcebridge.pilot import checks as pilot_checks
from htcebridge.pilot import script as pilot_script
from htcebridge.pilot.exit_codes import FAULTS, OF_CHECKS, PilotExit, before_joining

SCRIPTS = Path(htcebridge.__file__).resolve().parent.parent / "slurm_scripts"
NAMED = re.compile(r"\bEXIT_([A-Z]\w*)")


@pytest.fixture(params=["pilot", "executor"])
def script(request: pytest.FixtureRequest, load: Callable[[str], Config], design_example: str) -> str:
    raw = tomllib.loads(design_example)
    raw["resource"]["dcgp"].update(gpus=4, gres=[])
    if request.param == "executor":
        raw["resource"]["dcgp"].update(executor="/x/glidein.sh", mode="constant")
    return pilot_script.script(load(tomli_w.dumps(raw)), "dcgp")


def test_every_name_in_the_script_has_its_code_before_it_is_used(script: str) -> None:
    given = {name: int(code) for name, code in re.findall(r"^readonly EXIT_(\w+)=(\d+)", script, re.MULTILINE)}
    assert given == {name: PilotExit[name].value for name in given}
    assert set(NAMED.findall(script)) == set(given)


def test_no_script_ends_with_a_number_that_has_no_name() -> None:
    """0, 1 and 143 (128 + TERM) are the shell's."""
    for path in SCRIPTS.rglob("*sh*"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert not set(re.findall(r"\b(?:finish|exit) (\d+)", text)) - {"0", "1", "143"}, path


def test_every_code_is_ended_with_somewhere() -> None:
    texts = [path.read_text(encoding="utf-8") for path in SCRIPTS.rglob("*sh*") if path.is_file()]
    assert {name for text in texts for name in NAMED.findall(text)} == {each.name for each in PilotExit}


def test_a_check_that_hangs_ends_with_the_first_code_that_it_names(
    load: Callable[[str], Config], design_example: str
) -> None:
    raw = tomllib.loads(design_example)
    raw["resource"]["dcgp"].update(gpus=4, gres=[])
    config = load(tomli_w.dumps(raw))
    first = {
        name.removeprefix("checks/"): re.search(r"^readonly EXIT_[A-Z_]*=(\d*)$", text, re.MULTILINE)
        for name, text in pilot_checks.files(config, config.resources["dcgp"], None).items()
        if name.startswith("checks/")
    }
    assert {name: int(found[1]) if found else None for name, found in first.items()} == {
        "10-scratch": 13,
        "20-cvmfs": 11,
        "30-connectivity": 24,
        "60-collector": 28,
        "70-gpus": 27,
    }


def test_whose_fault_a_code_is() -> None:
    blamed: dict[Fault, set[int]] = {}
    for code, fault in FAULTS.items():
        blamed.setdefault(fault, set()).add(code)
    assert blamed == {
        Fault.NODE: {11, 13, 17, 19, 23, 24, 25, 26, 27, 29, 31},
        Fault.CONFIGURATION: {12, 14, 15, 16, 18, 20, 21, 22},
        Fault.POOL: {28},
        Fault.UNCLEAR: {30},
        Fault.NOBODY: {0},
    }


def test_a_pilot_that_ends_with_a_checks_code_never_joined() -> None:
    joined = {each.value for each in PilotExit if not before_joining(each)}
    assert joined == {PilotExit.GOOD, PilotExit.DAEMON_DIED, PilotExit.NEVER_SEEN}
    assert [each for each in PilotExit if each not in OF_CHECKS and before_joining(each)] == [
        PilotExit.OWN_CHECK_FAILED
    ]
