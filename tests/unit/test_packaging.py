from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import htcebridge

ROOT = Path(htcebridge.__file__).resolve().parent.parent
TEMPLATES = {
    f"{folder}/{path.name}"
    for folder in ("ce_routes", "startd_configs", "slurm_scripts")
    for path in (ROOT / folder).glob("*")
    if path.is_file()
}
if not (ROOT / "setup.cfg").is_file():
    pytest.skip("not a checkout: nothing to build from", allow_module_level=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without what earlier builds left, so that a stale build/ can't stand in for what is missing."""
    copy = tmp_path_factory.mktemp("checkout") / "htcebridge"
    leave = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "benchmarks", "docs")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=leave)
    return copy


def build(source: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and ("No module named" in done.stderr or "invalid command" in done.stderr):
        pytest.skip(f"setuptools and wheel cannot build here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("htcebridge-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_file(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("wheels"))


def test_the_checkout_finds_its_templates() -> None:
    package = importlib.resources.files("htcebridge")
    assert {name.split("/")[0] for name in TEMPLATES} == {"ce_routes", "startd_configs", "slurm_scripts"}
    for name in TEMPLATES:
        assert package.joinpath(name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


def test_a_wheel_has_every_template_module_and_the_command(wheel_file: Path) -> None:
    with zipfile.ZipFile(wheel_file) as wheel:
        names = set(wheel.namelist())
        assert {f"htcebridge/{name}" for name in TEMPLATES} <= names
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "htcebridge").rglob("*.py")}
        assert modules <= names
        page = {f"htcebridge/report_page/page.{kind}" for kind in ("html.j2", "css", "js")}
        assert {"htcebridge/py.typed", *page} <= names
        assert not any(name.startswith("tests/") for name in names)
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "htcebridge = htcebridge.cli:main" in wheel.read(entry_points).decode()


def test_what_a_wheel_installs_renders_a_pilot(wheel_file: Path, tmp_path: Path, design_example: str) -> None:
    with zipfile.ZipFile(wheel_file) as wheel:
        wheel.extractall(tmp_path / "site")  # noqa: S202  our own wheel
    (tmp_path / "c.toml").write_text(design_example)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import htcebridge\n"
        f"from htcebridge import config_file, pilot; from pathlib import Path\n"
        f"print(htcebridge.__file__)\n"
        f"print(pilot.script(config_file.load(Path({str(tmp_path / 'c.toml')!r})), 'dcgp'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path / "site")), done.stderr
    assert "condor_master -f" in done.stdout


def test_an_sdist_has_the_templates_as_files(checkout: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "sdist", "-d", tmp_path],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("htcebridge-*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for name in TEMPLATES:
        assert (source / "htcebridge" / name).read_text() == (ROOT / name).read_text()
    with zipfile.ZipFile(build(source, tmp_path / "wheels")) as wheel:
        assert {f"htcebridge/{name}" for name in TEMPLATES} <= set(wheel.namelist())
