from __future__ import annotations

import importlib.resources
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import htcebridge
from htcebridge.cli import cli

NAME = "htcebridge"
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


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packaging_generate", ROOT / "packaging" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def share() -> dict[str, str]:
    """What packaging/generate.py makes, by its path below share/."""
    files: dict[str, str] = generator().files()
    return files


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
        page = {f"htcebridge/report/page/page.{kind}" for kind in ("html.j2", "css", "js")}
        assert {"htcebridge/py.typed", "htcebridge/tier1/condor_config", *page} <= names
        assert not any(name.startswith("tests/") for name in names)
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "htcebridge = htcebridge.cli:main" in wheel.read(entry_points).decode()


def test_a_wheel_has_every_file_of_deploy(wheel_file: Path) -> None:
    deploy = {f"deploy/{path.relative_to(ROOT / 'deploy')}" for path in (ROOT / "deploy").rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel_file) as wheel:
        inside = {name.partition(".data/data/share/htcebridge/")[2] for name in wheel.namelist()} - {""}
    assert inside == deploy, "a file of deploy/ that [options.data_files] in setup.cfg does not name"


def test_every_command_has_a_man_page_of_its_options(share: dict[str, str]) -> None:
    def walk(context: click.Context) -> Iterator[click.Context]:
        yield context
        if isinstance(context.command, click.Group):
            for name in context.command.list_commands(context):
                command = context.command.get_command(context, name)
                assert command is not None
                yield from walk(click.Context(command, info_name=name, parent=context))

    commands = {context.command_path.replace(" ", "-"): context for context in walk(click.Context(cli, info_name=NAME))}
    pages = {Path(name).stem for name in share if name.startswith("man/man1/")}
    assert pages == set(commands)
    for page, context in commands.items():
        text = share[f"man/man1/{page}.1"].replace("\\-", "-")
        for parameter in context.command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert option in text, (page, option)
        if context.parent is not None:
            assert f"{page}(1)" in share[f"man/man1/{context.parent.command_path.replace(' ', '-')}.1"].replace(
                "\\-", "-"
            )


def test_the_page_of_the_configuration_has_every_key(share: dict[str, str]) -> None:
    text = share["man/man5/htcebridge.toml.5"].replace("\\-", "-")
    reference = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in re.findall(r"(?m)^\| `(\w+)` \|", reference):
        assert f"\\fB{key}\\fR" in text, key


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_has_no_complaint(share: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MAN_KEEP_STDERR": "1"}
    for name in ("man/man1/htcebridge.1", "man/man1/htcebridge-routes-try.1", "man/man5/htcebridge.toml.5"):
        page = tmp_path / Path(name).name
        page.write_text(share[name], encoding="utf-8")
        done = subprocess.run(
            ["man", "--warnings", "-l", page], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert "\\f" not in done.stdout
        assert "`" not in done.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (".leading dot", r"\&.leading dot"),
        ("'quote", r"\&'quote"),
        ("a\\b --c", r"a\eb \-\-c"),
        ("see [there](x.md#y), `key`", r"see there, \fBkey\fR"),
    ],
)
def test_what_man_would_take_for_a_command_is_text(text: str, shown: str) -> None:
    assert generator().roff(text) == shown


def test_each_shell_has_its_completion(share: dict[str, str]) -> None:
    for name in ("bash-completion/completions/htcebridge", "fish/vendor_completions.d/htcebridge.fish"):
        assert "_HTCEBRIDGE_COMPLETE" in share[name]
    # How zsh finds it.
    assert share["zsh/site-functions/_htcebridge"].startswith("#compdef htcebridge\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rpm", "--el", "nine"), "--el 9"),
        (("deb", "--debian", "trixie"), "--debian 13"),
        (("deb", "--debian", "13", "--python", "3.9"), "3.11 or newer"),
        (("tarball",), "wheel|deb|rpm"),
        (("deb", "--debian"), "--debian N"),
    ],
)
def test_a_build_that_cannot_be_is_refused_with_what_to_write(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run([ROOT / "packaging" / "build", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr


def test_what_a_wheel_installs_renders_a_pilot(wheel_file: Path, tmp_path: Path, design_example: str) -> None:
    with zipfile.ZipFile(wheel_file) as wheel:
        wheel.extractall(tmp_path / "site")  # noqa: S202  our own wheel
    (tmp_path / "c.toml").write_text(design_example)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import htcebridge\n"
        f"from htcebridge.config import file; from htcebridge.pilot import script; from pathlib import Path\n"
        f"print(htcebridge.__file__)\n"
        f"print(script.script(file.load(Path({str(tmp_path / 'c.toml')!r})), 'dcgp'))"
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
