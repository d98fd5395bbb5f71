"""docs/quickstart.md, typed as it stands: the CE admin's part on ce01 and tier1, the user's on the edge node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.e2e.chain import CE_ENVIRONMENT, PROJECT, Chain, wait_until
from tests.testbed import Testbed
from tests.testbed.files import File
from tests.testbed.wheels import wheelhouse

pytestmark = [pytest.mark.testbed, pytest.mark.one_suite("trixie")]

PAGE = PROJECT / "docs" / "quickstart.md"
# Who "on the ..." is, on the testbed.
HOSTS = {"CE": ("ce01", "root"), "central manager": ("tier1", "root"), "edge node": ("edge", "leo")}
HOMES = {"root": "/root", "leo": "/leonardo/home/leo"}
PLACE = re.compile(r"# on the ([\w ]+?)(?:, in (\S+)|, as root)?(, after some seconds)?(, Ctrl-C ends it)?")
WHEELS = "/tmp/wheels"
CE_D, POOL_D = "/etc/condor-ce/config.d", "/etc/condor/config.d"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Step:
    """One fenced block: where it is typed, or into which file it goes, and what is shown below it."""

    line: int
    host: str
    user: str
    text: str
    file: str = ""
    until_shown: bool = False
    interrupted: bool = False
    shown: str = ""


def steps() -> list[Step]:
    """The blocks of the page, in its order."""
    text = PAGE.read_text(encoding="utf-8")
    found: list[Step] = []
    for fence in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, fence.start()) + 1
        if fence[1] == "text":
            found[-1] = replace(found[-1], shown=fence[2])
            continue
        head, _, body = fence[2].partition("\n")
        where = re.fullmatch(
            r"# on the ([\w ]+?)(?:, in (\S+)|, as root)?(, after some seconds)?(, Ctrl-C ends it)?", head
        )
        assert where, f"{PAGE.name}:{line}: the first line does not say where this is typed: {head}"
        host, user = HOSTS[where[1]]
        found.append(Step(line, host, user, body, where[2] or "", bool(where[3]), bool(where[4])))
    return found


class Typist:
    """Types the steps on the testbed's hosts. What a terminal remembers, its exported variables, is kept."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._exported: dict[str, list[str]] = {}

    def do(self, step: Step) -> str:
        """What the step prints. Raises AssertionError where it fails, or does not print what the page shows."""
        if step.file:
            self.chain.bed.write(step.host, step.file.replace("~", HOMES[step.user]), step.text, owner=step.user)
            return ""
        if not step.until_shown:
            said = self._type(step)
            assert not (missing := not_shown(step.shown, said)), f"{PAGE.name}:{step.line}: no {missing!r} in\n{said}"
            return said
        return wait_until(lambda: self._as_shown(step), PATIENCE_S, f"{PAGE.name}:{step.line}: {step.shown}")

    def _as_shown(self, step: Step) -> str:
        said = self._type(step)
        return "" if not_shown(step.shown, said) else said

    def _type(self, step: Step) -> str:
        exported = self._exported.setdefault(step.host, [])
        script = "\n".join([*exported, step.text])
        exported += [line for line in step.text.splitlines() if line.startswith("export ")]
        command = ["bash", "-e", "-c", f"exec 2>&1\n{script}"]
        if step.interrupted:
            command = ["timeout", "--preserve-status", "--signal=INT", "8", *command]
        env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "COLUMNS": "100"}
        done = self.chain.bed.on(step.host, command, user=step.user, env=env, check=False)
        fine = (0, 130) if step.interrupted else (0,)
        assert done.returncode in fine, f"{PAGE.name}:{step.line}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout


def not_shown(shown: str, said: str) -> str:
    """The first line that the page shows and the output lacks; "" if there is none. Numbers may differ, other words may
    stand between those of a line, and what is at a time of today on the page may be tomorrow."""
    place = 0
    for line in shown.splitlines():
        parts = [re.escape(part) for part in line.split()]
        pattern = re.sub(r"\d+", r"\\d+", ".*?".join(parts)).replace(r"\.\.\.", ".*?")
        pattern = pattern.replace(r"\d+:\d+:\d+", r"(\d+:\d+:\d+|\d+-\d+ \d+:\d+)")
        found = re.compile(pattern).search(said, place)
        if not found:
            return line
        place = found.end()
    return ""


def test_a_missing_line_would_be_noticed() -> None:
    assert not_shown("1 job runs\n...\ndone", "17 job  runs\nmore\ndone\n") == ""
    assert not_shown("1 job runs\ndone", "17 job  runs\nfailed\n") == "done"
    assert not_shown("b\na", "a\nb\n") == "a"
    assert not_shown("at 04:53:12", "at 14:00:01\n") == not_shown("at 04:53:12", "at 11-29 02:00\n") == ""


@pytest.fixture
def typist(chain: Chain) -> Iterator[Typist]:
    """ce01 without our route, a wheel and its dependencies where both people work; all as it was at the end."""
    bed = chain.bed
    files = (f"{CE_D}/60-htcebridge.conf", f"{POOL_D}/60-htcebridge.conf")
    theirs = {path: bed.read("ce01", path) for path in files}
    bed.on("ce01", ["rm", "-f", *files])
    bed.on("edge", ["rm", "-rf", "htcebridge"], user="leo")  # what another test on this bed has left there
    reconfigure(bed)
    wheels = sorted(wheelhouse(PROJECT, bed.suite).glob("*.whl"))
    for host, home in (("ce01", HOMES["root"]), ("edge", HOMES["leo"])):
        bed.unpack(host, [File(f"{WHEELS}/{wheel.name}", wheel.read_bytes()) for wheel in wheels])
        bed.on(host, ["sh", "-c", f"cp {WHEELS}/htcebridge-*.whl {home}"])
    yield Typist(chain)
    bed.on("edge", ["scancel", "--user=leo"], user="leo")
    bed.on("edge", ["sh", "-c", "rm -rf htcebridge htcebridge-*.whl $WORK/htcebridge"], user="leo")
    bed.on("ce01", ["sh", "-c", f"rm -rf /opt/htcebridge htcebridge-*.whl {CE_D}/../htcebridge {' '.join(files)}"])
    for path, text in theirs.items():
        bed.write("ce01", path, text)
    reconfigure(bed)


def reconfigure(bed: Testbed) -> None:
    bed.on("ce01", ["condor_reconfig"])
    bed.on("ce01", ["condor_reconfig"], env=CE_ENVIRONMENT)


def test_the_quickstart_as_it_is_written(typist: Typist) -> None:
    """Between the steps only what others do there: a grid user submits, the admin hands the tokens over."""
    bed, chain, job = typist.chain.bed, typist.chain, ""
    for step in steps():
        if "condor_q" in step.text:
            # They are at work until the page has shown it.
            job = chain.submit(gate="shown", seconds=30, count=20, cpus=8, wants=False)[0].id
        if "install -m 600" in step.text:
            for name in ("controller.idtoken", "pilot.idtoken"):
                bed.write("edge", f"{HOMES['leo']}/{name}", bed.read("tier1", f"/root/{name}"), 0o600, "leo")
        said = typist.do(replace(step, text=re.sub(r"explain \d+\.\d+", f"explain {job}", step.text)))
        print(f"--- {PAGE.name}:{step.line}\n{said}")
        if step.text.strip() == "htcebridge pilots":
            chain.open("shown")
