"""What the unit tests share: an example configuration, fake Slurm commands, the command line in-process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import htcebridge
from htcebridge.cli import main
from htcebridge.config import file
from htcebridge.config.tables import Config

# How long an example takes is no property of the code: a busy machine would fail it. CI runs often: it sees many.
settings.register_profile("untimed", deadline=None, max_examples=60)
settings.load_profile("untimed")

# A full configuration as a site would write it.
DESIGN_EXAMPLE = """\
[tier1]
collector = "cm01.cr.example.org:9618"
schedds = []                       # empty: every schedd in the collector that schedd_constraint accepts
schedd_constraint = "true"
token_directory = "~/.condor/tokens.d"     # READ is enough for the controller

[grant]                            # what the CE route sets, the controller counts, the startd accepts
attribute = "OpportunisticSite"
value = "leonardo"

[[vo]]                             # who may have it; a job's own WantOpportunistic is only a request
name = "cms"
issuers = ["https://cms-auth.cern.ch/"]    # token issuers (AuthTokenIssuer can't be forged) ...
owners = ["cmspil*"]                       # ... and/or local accounts the CE's mapfile gives
request = "always"                 # "always": no flag needed (CMS); "flag": only jobs with WantOpportunistic = true
placement = "either"               # "only" Leonardo, or "either" Tier-1 or Leonardo

[pressure]
interval = "60s"
instance = "leonardo"              # goes into every pilot's Slurm comment
min_fill = 0.25                    # open a node only if this much of it would be used ...
max_wait = "15m"                   # ... or a job has waited this long

[pilot]                            # the same for every resource; a resource may override any of it
condor = "system"                  # or "cvmfs:/cvmfs/...", or "tarball:/shared/condor.tar.gz"
token_file = "~/.config/htcebridge/pilot.idtoken"   # ADVERTISE_STARTD, ADVERTISE_MASTER, READ
shared_dir = "$WORK/htcebridge"    # on the HPC's shared file system: drain marks, logs of failed pilots
scratch = "$TMPDIR"
setup = ["source /cvmfs/datacloud.infn.it/repo/wn-leonardo/v1/etc/profile.d/wn-leonardo-setup.sh"]
cvmfs = ["cms.cern.ch"]            # repositories that must be mounted; empty: none asked
idle_timeout = "20m"
default_walltime = "8h"            # for a job that declares none

[resource.dcgp]
partition = "dcgp_usr_prod"
account = "INF24_lhc_2"
qos = "qos_lowprio"
cpus = 112
memory = "494000M"
gpus = 0
gres = ["tmpfs:3t"]
walltime = "12h"
min_walltime = "2h"                # sbatch --time-min: not in the shipped example; its description says why
job_name = "GP_CMS_CVMFS_STARTD"   # on Leonardo a job name with CVMFS in it mounts /cvmfs (afuse)
max_running = 100
max_pending = 5
max_node_hours = 20000
mode = "demand"                    # or "constant": keep max_running/max_pending whatever the demand
"""


@pytest.fixture
def design_example() -> str:
    return DESIGN_EXAMPLE


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the configuration, tokens or Slurm settings of whoever runs it; children find this package."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    monkeypatch.delenv(file.ENVIRONMENT, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(htcebridge.__file__).parent.parent))
    return home


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Config]:
    """TOML text -> validated configuration."""

    def load_text(text: str) -> Config:
        path = tmp_path / "htcebridge.toml"
        path.write_text(text, encoding="utf-8")
        return file.load(path)

    return load_text


@pytest.fixture
def config(load: Callable[[str], Config]) -> Config:
    return load(DESIGN_EXAMPLE)


@pytest.fixture
def collector() -> Iterator[str]:
    """host:port of something that can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def fake_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """fake_command("squeue", stdout=..., stderr=..., code=...): a program of that name, first on PATH.

    Returns a directory where each call leaves `NAME.args` (one argument per line), `NAME.env` and `NAME.stdin`.
    """
    folder, seen = tmp_path / "fakes", tmp_path / "seen"
    folder.mkdir()
    seen.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, stdout: str | bytes = "", stderr: str = "", code: int = 0, first: str = "") -> Path:
        out = stdout if isinstance(stdout, bytes) else stdout.encode()
        (seen / f"{name}.out").write_bytes(out)
        (seen / f"{name}.err").write_text(stderr)
        program = folder / name
        program.write_text(
            "#!/bin/sh\n"
            f"printf '%s\\n' \"$@\" >> '{seen}/{name}.args'\n"
            f"env > '{seen}/{name}.env'\n"
            f"cat > '{seen}/{name}.stdin'\n"
            f"{first}\n"
            f"cat '{seen}/{name}.out'\ncat '{seen}/{name}.err' >&2\nexit {code}\n"
        )
        program.chmod(0o755)
        return seen

    return make


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def htcebridge_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs the console script's function; an exception that a person would see as a traceback fails the test."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["htcebridge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main()
        said = capsys.readouterr()
        return Said(int(ending.value.code or 0), said.out, said.err)

    return run
