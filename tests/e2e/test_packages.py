"""The Debian package and the RPM: built, installed, run and removed on the edge node. A shared venv. docs/install.md"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from htcebridge import __version__
from tests.e2e.chain import CONFIG, CONFIGURATION, HTCEBRIDGE, PROJECT, STATE, Chain, wait_until
from tests.testbed.pace import scaled
from tests.testbed.places import cache_dir, locked
from tests.testbed.root import apt_install
from tests.testbed.wheels import PYTHONS, wheelhouse

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("trixie")]

RELEASES = {"trixie": "13", "forky": "14"}
LINTED = "trixie"
PROGRAM = "/usr/bin/htcebridge"
UNIT = "htcebridge@leo.service"
# Debian's rpm says that this is no machine for it.
DEBIANS_RPM = ("rpm: RPM should not be used", "rpm: However assuming you know")
# All of a host but what belongs to no package: dpkg's, rpm's, apt's and man's own notes, logs, users' files.
EVERYTHING = r"""find / -xdev \( -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/lib/apt -o -path /var/cache \
  -o -path /var/log -o -path /run -o -path /tmp -o -path /leonardo -o -path /var/lib/slurm -o -path /proc \) -prune \
  -o -print"""
# What a Tab after these words offers, in a new shell of a user.
TAB = """
. /usr/share/bash-completion/bash_completion
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
{ declare -F _comp_load && _comp_load htcebridge || __load_completion htcebridge; } > /dev/null
$(complete -p htcebridge | sed 's/.* -F \\([^ ]*\\) .*/\\1/') htcebridge && printf '%s\\n' "${COMPREPLY[@]}"
"""


def build(kind: str, suite: str, out: Path, *options: str) -> Path:
    """Build a package of this checkout for the Python of a suite."""
    command = [str(PROJECT / "packaging" / "build"), kind, "--out", str(out), "--python", PYTHONS[suite]]
    command += ["--wheelhouse", str(wheelhouse(PROJECT, suite)), *options]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=scaled(300), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.splitlines()[-1])


def ensure(command: str) -> None:
    """Install a checker of packages, which is Debian's package of the same name."""
    with locked(cache_dir() / "apt.lock"):
        if subprocess.run(["sh", "-c", f"command -v {command}"], capture_output=True, check=False).returncode:
            apt_install([command], print)


def files(chain: Chain) -> set[str]:
    return set(chain.bed.on("edge", ["sh", "-c", EVERYTHING]).stdout.splitlines())


def apt(chain: Chain, *arguments: str, check: bool = True) -> str:
    command = ["apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold", *arguments]
    done = chain.bed.on("edge", command, env={"DEBIAN_FRONTEND": "noninteractive"}, check=check, timeout=120)
    return done.stdout + done.stderr


def as_leo(chain: Chain, *command: str, **env: str) -> str:
    done = chain.bed.on("edge", list(command), user="leo", env=env)
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def deb(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("deb", suite, tmp_path_factory.mktemp("deb"), "--debian", RELEASES[suite])


@pytest.fixture
def edge(chain: Chain) -> Iterator[Chain]:
    """The edge node without any package of htcebridge, before and after."""
    chain.bed.on("edge", ["rm", "-rf", "/opt/htcebridge", "/etc/htcebridge"])
    yield chain
    apt(chain, "purge", "htcebridge", check=False)
    chain.bed.on("edge", ["rm", "-rf", "/opt/htcebridge", "/etc/htcebridge", "/root/packages"])


def copy(chain: Chain, package: Path) -> str:
    """Put a package on the edge node."""
    inside = f"/root/packages/{package.name}"
    target = chain.bed.door("edge").root / inside.lstrip("/")
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(package.read_bytes())
    return inside


def works_for_a_user(chain: Chain) -> None:
    """The command, its man pages and completion, and units that systemd understands and nobody has enabled."""
    # What an environment module may have set.
    as_leo(chain, "sh", "-c", "mkdir -p poison && echo 'raise SystemExit(9)' > poison/click.py")
    for directory in ("/", "/leonardo/home/leo/poison"):
        said = as_leo(
            chain, "sh", "-c", f"cd {directory} && htcebridge --version", PYTHONPATH="/leonardo/home/leo/poison"
        )
        assert said == f"htcebridge, version {__version__}\n"
    assert "htcebridge-routes(1)" in as_leo(chain, "man", "htcebridge")
    assert "Do one cycle: observe, plan" in as_leo(chain, "man", "htcebridge-pressure-once")
    assert "schedd_constraint" in as_leo(chain, "man", "5", "htcebridge.toml")
    assert as_leo(chain, "bash", "-c", TAB, "tab", "htcebridge", "press").split()[-1].endswith("pressure")
    on = chain.bed.on
    assert on("edge", ["systemd-analyze", "verify", UNIT, "htcebridge-once@leo.timer"]).stderr == ""
    assert on("edge", ["systemctl", "is-enabled", UNIT], check=False).stdout == "disabled\n"
    assert on("edge", ["pgrep", "-f", "pressure run"], check=False).returncode == 1
    shown = on("edge", ["cat", "/usr/share/htcebridge/ce_routes/"], check=False).stderr
    assert "Is a directory" in shown


def test_the_debian_package_runs_pilots_and_leaves_nothing(edge: Chain, deb: Path) -> None:
    chain, before = edge, files(edge)
    apt(chain, "install", copy(chain, deb))
    works_for_a_user(chain)
    # No line that is one site's is in force.
    assert "WORK" not in re.sub(r"(?m)^#.*", "", chain.bed.read("edge", "/etc/htcebridge/environment"))
    for quiet in ("/etc/cron.d/htcebridge", "/usr/lib/tmpfiles.d/htcebridge.conf"):
        assert "leo" not in re.sub(r"(?m)^#.*", "", chain.bed.read("edge", quiet))

    # The configuration of the machine, as its units read it.
    chain.bed.on("edge", ["rm", CONFIG])
    chain.bed.write("edge", "/etc/htcebridge/htcebridge.toml", CONFIGURATION)
    jobs = chain.submit(count=2)
    wait_until(lambda: len(chain.pool_jobs("ce01")) == 2, 60, "the jobs are routed")
    as_leo(chain, PROGRAM, "pressure", "once")
    wait_until(lambda: chain.done(jobs), 90, "the jobs have run on a pilot")

    chain.bed.write("edge", "/etc/htcebridge/environment", "WORK=/mine\n")
    apt(chain, "install", copy(chain, newer(deb)))
    assert chain.bed.on("edge", ["dpkg-query", "-Wf", "${Version}", "htcebridge"]).stdout.endswith("newer")
    assert chain.bed.read("edge", "/etc/htcebridge/environment") == "WORK=/mine\n"
    assert chain.bed.read("edge", "/etc/htcebridge/htcebridge.toml") == CONFIGURATION
    assert chain.bed.on("edge", ["ls", STATE]).stdout
    assert __version__ in as_leo(chain, "htcebridge", "--version")

    apt(chain, "remove", "htcebridge")
    assert chain.bed.read("edge", "/etc/htcebridge/environment") == "WORK=/mine\n"
    apt(chain, "purge", "htcebridge")
    chain.bed.on("edge", ["rm", "-r", "/root/packages"])
    assert files(chain) - before == set()
    # An empty /opt goes with the last package in it: no package of Debian's own has that directory.
    assert before - files(chain) <= {"/opt"}
    assert chain.bed.on("edge", ["ls", STATE]).stdout, "the user's own"


def newer(deb: Path) -> Path:
    """The same package in a higher version, whose own /etc/htcebridge/environment has changed."""
    unpacked = deb.parent / "unpacked"
    subprocess.run(["dpkg-deb", "-R", deb, unpacked], check=True)
    control = unpacked / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+newer", control.read_text()))
    with (unpacked / "etc" / "htcebridge" / "environment").open("a") as file:
        file.write("# new\n")
    package = deb.parent / "newer.deb"
    subprocess.run(["dpkg-deb", "-b", "-Znone", unpacked, package], check=True, capture_output=True)
    return package


def test_the_debian_package_does_not_mix_with_a_venv_made_by_hand(edge: Chain, deb: Path) -> None:
    edge.bed.on("edge", ["python3", "-m", "venv", "--without-pip", "/opt/htcebridge"])
    before = files(edge)
    said = apt(edge, "install", copy(edge, deb), check=False)
    assert "/opt/htcebridge is there already and belongs to no package. Move it away" in said
    assert files(edge) - before == {"/root/packages", f"/root/packages/{deb.name}"}


def test_the_package_is_as_debian_wants_it(deb: Path, suite: str) -> None:
    """lintian has nothing to say that is not judged in its overrides. One suite's package is enough of it."""
    told = subprocess.run(
        ["dpkg-deb", "-f", deb, "Package", "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("Package: htcebridge\n")
    assert f"python{PYTHONS[suite]}" in told
    if suite == LINTED:
        ensure("lintian")
        command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(180), check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_the_rpm_runs_and_leaves_nothing(edge: Chain, suite: str, tmp_path: Path) -> None:
    """The edge node's rpm installs it, for that Python: no Enterprise Linux is to be had here."""
    package = build("rpm", suite, tmp_path, "--el", "10")
    ensure("rpmlint")
    linted = ["rpmlint", "--config", str(PROJECT / "packaging" / "rpmlint.toml"), str(package)]
    done = subprocess.run(linted, capture_output=True, text=True, timeout=scaled(120), check=False)
    assert "0 errors, 0 warnings" in done.stdout, done.stdout + done.stderr

    inside = copy(edge, package)

    def rpm(*arguments: str) -> str:
        # Debian's rpm would have its database in a home.
        done = edge.bed.on("edge", ["rpm", "--dbpath", "/var/lib/rpm", *arguments], check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(DEBIANS_RPM)]
        return "\n".join(said)

    requires = set(rpm("-qp", "--requires", inside).splitlines())
    python = f"python{PYTHONS[suite]}"
    assert {python, f"/usr/bin/{python}", "glibc >= 2.28"} <= requires
    assert not any(".so" in each for each in requires)
    edge.bed.on("edge", ["mkdir", "-p", "/var/lib/rpm"])
    before = files(edge)
    # No package of Debian is in rpm's database.
    assert rpm("-i", "--nodeps", inside) == ""
    works_for_a_user(edge)
    edge.bed.write("edge", "/etc/htcebridge/environment", "WORK=/mine\n")
    assert [line for line in rpm("-V", "--nodeps", "htcebridge").splitlines() if " c " not in line] == []
    # RPM keeps what an admin has edited.
    said = rpm("-e", "htcebridge")
    assert "/etc/htcebridge/environment saved as /etc/htcebridge/environment.rpmsave" in said
    kept = {"/etc/htcebridge", "/etc/htcebridge/environment.rpmsave"}
    # An Enterprise Linux has this directory itself.
    assert files(edge) - before - {"/usr/share/licenses"} == kept
    edge.bed.on("edge", ["rm", "-rf", "/var/lib/rpm"])


@pytest.mark.parametrize(
    ("el", "python", "package"),
    [("9", "3.11", "python3.11"), ("9", "3.12", "python3.12"), ("10", "3.12", "python3")],
)
def test_the_rpm_asks_for_the_python_that_the_system_has(el: str, python: str, package: str) -> None:
    ensure("rpm")
    values = {"bridge_version": __version__, "target_python": python, "rhel": el, "dist": f".el{el}"}
    command = ["rpmspec", "-q", "--requires", *(f"--define={key} {value}" for key, value in values.items())]
    asked = subprocess.run(
        [*command, PROJECT / "packaging" / "htcebridge.spec"],
        capture_output=True,
        text=True,
        check=True,
        timeout=scaled(60),
    ).stdout.split("\n")
    assert {package, f"/usr/bin/python{python}"} <= set(asked)


def test_a_venv_on_the_shared_file_system_serves_other_hosts_and_other_paths_read_only(chain: Chain) -> None:
    venv = str(Path(HTCEBRIDGE).parents[1])
    version = f"htcebridge, version {__version__}\n"
    node = chain.bed.nodes[0]
    assert chain.bed.on(node, [HTCEBRIDGE, "--version"], user="leo").stdout == version
    # Another host mounts it elsewhere, and without a right to write. The script in bin/ names the path of the first.
    leo = chain.bed.door("edge").account("leo")
    elsewhere = 'mount --bind "$1" /mnt && mount -o remount,bind,ro /mnt && shift && exec "$@"'
    become = ["setpriv", f"--reuid={leo.uid}", f"--regid={leo.gid}", "--clear-groups", "env", f"HOME={leo.home}"]
    shell = ["unshare", "--mount", "sh", "-c", elsewhere, "sh", venv, *become]
    where = "import htcebridge; print(htcebridge.__file__)"
    assert chain.bed.on("edge", [*shell, "/mnt/bin/python", "-c", where]).stdout.startswith("/mnt/lib/python3")
    ask = [*shell, "/mnt/bin/python", "-m", "htcebridge", "pressure", "plan"]
    done = chain.bed.on("edge", ask, env={"WORK": "/leonardo/work/leo"})
    assert "dcgp" in done.stdout
