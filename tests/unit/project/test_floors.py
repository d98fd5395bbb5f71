"""The floors of the house (setup.cfg, [importlinter]) hold, and an import that runs upwards fails `make lint`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import htcebridge

ROOT = Path(htcebridge.__file__).resolve().parent.parent

pytest.importorskip("importlinter", reason="import-linter comes with the lint extra")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package that may be spoilt."""
    shutil.copytree(ROOT / "htcebridge", tmp_path / "htcebridge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def linted(house: Path) -> subprocess.CompletedProcess[str]:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = [sys.executable, "-c", lint, "--no-logo", "--no-cache", "setup.cfg"]
    return subprocess.run(
        arguments, cwd=house, env={"PYTHONPATH": str(house)}, capture_output=True, text=True, check=False
    )


WRONG = {
    "plan/packing.py": ("from htcebridge import logs", "htcebridge.plan is not allowed to import htcebridge.logs"),
    "plan/tail.py": ("from htcebridge.slurm import text", "htcebridge.plan is not allowed to import htcebridge.slurm"),
    "state/memory.py": ("from htcebridge.cli import main", "htcebridge.state is not allowed to import htcebridge.cli"),
    "state/ledger.py": (
        "from htcebridge.pilot import script",
        "htcebridge.state is not allowed to import htcebridge.pilot",
    ),
    "controller/act.py": ("import htcondor2", "htcebridge.controller is not allowed to import htcondor2"),
    "controller/learn.py": ("import subprocess", "htcebridge.controller is not allowed to import subprocess"),
}


def test_a_wrong_import_fails(house: Path) -> None:
    for room, (wrong, _) in WRONG.items():
        with (house / "htcebridge" / room).open("a") as file:
            file.write(f"\n{wrong}\n")
    done = linted(house)
    assert done.returncode != 0
    assert [said for _, said in WRONG.values() if said not in done.stdout] == []


def test_a_module_without_a_room_fails(house: Path) -> None:
    (house / "htcebridge" / "loose.py").touch()
    done = linted(house)
    assert done.returncode != 0
    assert "loose" in done.stdout + done.stderr
