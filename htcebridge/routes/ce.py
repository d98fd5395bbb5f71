"""A CE on this machine: its effective configuration and its real router, through HTCondor's own tools.

The verdict of `condor_job_router_info` is in what it prints: it exits 0 for dropped routes, a disabled router and
failed routing alike (measured: 23.9.6, 25.14.1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from htcebridge.errors import BridgeError, ConfigError

CE_CONFIG = Path("/etc/condor-ce/condor_config")
# What the routes are written for and tried with: 23.9 and 25.14.
OLDEST_MAJOR = 23


@dataclass(frozen=True)
class Knob:
    """One setting as the CE sees it: raw text, macros not expanded; where it was last set (line from 1)."""

    name: str
    value: str
    file: str
    line: int | None

    @property
    def where(self) -> str:
        """File and line for a message."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class CE:
    """A CE's configuration root. `config` is its CONDOR_CONFIG."""

    config: Path = CE_CONFIG
    timeout_s: float = 60.0

    def version(self) -> str:
        """The CondorVersion that this host's daemons advertise. Raises ConfigError for one that is not supported."""
        text = self.run(["condor_version"]).partition("\n")[0].strip()
        found = re.search(r"(\d+)\.\d+", text)
        if not found or int(found[1]) < OLDEST_MAJOR:
            raise ConfigError(f"HTCondor {OLDEST_MAJOR} or newer is needed; condor_version says {text!r}")
        return text

    def knobs(self, pattern: str = "") -> dict[str, Knob]:
        """NAME (upper case) -> every setting whose name matches, defaults included. Raises ConfigError, BridgeError."""
        return parse_dump(self.run(["condor_config_val", "-dump", "-v", "-raw", *([pattern] if pattern else [])]))

    def value(self, name: str) -> str:
        """A setting with its macros expanded, "" if it is not set. Raises ConfigError, BridgeError."""
        done = self.call(["condor_config_val", name])
        if done.returncode == 0:
            return done.stdout.strip()
        if "Not defined" in done.stderr + done.stdout:
            return ""
        raise ConfigError(f"condor_config_val {name} cannot read {self.config}: {_last(done)}")

    def files(self) -> list[str]:
        """The configuration files in the order in which they are read; a script ends in "|"."""
        return [
            line.strip() for line in self.run(["condor_config_val", "-config"]).splitlines() if line.startswith("\t")
        ]

    def router_table(self) -> str:
        """What the real router makes of the configuration: its routes, and with -diagnostic why others are missing."""
        done = self.call(["condor_job_router_info", "-config", "-diagnostic"])
        return done.stdout + done.stderr

    def run(self, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> str:
        """Standard output of one of HTCondor's tools under this configuration. Raises ConfigError, BridgeError."""
        done = self.call(arguments, extra)
        if done.returncode != 0:
            raise ConfigError(f"{arguments[0]} cannot read {self.config}: {_last(done)}")
        return done.stdout

    def said(self, arguments: Sequence[str], stdin: str = "") -> str:
        """Both outputs of a tool in the order of its writing, whatever its exit code. Raises ConfigError, BridgeError.

        An error on stderr belongs to the job that stdout spoke of before it: stdout is written line by line.
        """
        if not shutil.which(arguments[0]):
            raise ConfigError(f"{arguments[0]}: not on PATH; HTCondor's tools are needed: run this on the CE")
        return self.call(["stdbuf", "-oL", *arguments], stdin=stdin, stderr=subprocess.STDOUT).stdout

    def call(
        self,
        arguments: Sequence[str],
        extra: Mapping[str, str] | None = None,
        stdin: str = "",
        stderr: int = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        if not os.access(self.config, os.R_OK):
            raise ConfigError(
                f"{self.config}: no CE configuration that can be read; run this on the CE, or name its directory "
                "(--config-dir; for explain --ce-config)"
            )
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER", "LANG") if key in os.environ}
        try:
            return subprocess.run(
                arguments,
                env={**kept, **(extra or {}), "CONDOR_CONFIG": str(self.config)},
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                errors="replace",
                timeout=self.timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigError(f"{arguments[0]}: not on PATH; HTCondor's tools are needed: run this on the CE") from None
        except subprocess.TimeoutExpired:
            raise BridgeError(f"{arguments[0]}: no answer in {self.timeout_s:g} s") from None


_SETTING = re.compile(r"([A-Za-z_][\w.:$-]*) (=|@=end)(?: (.*))?$")


def parse_dump(text: str) -> dict[str, Knob]:
    """`condor_config_val -dump -v -raw` -> NAME (upper case) -> Knob.

    A value of several lines is printed as a here-document that ends with "@end".
    """
    knobs: dict[str, Knob] = {}
    name, value, here, open_document = "", "", "", False
    for line in text.splitlines():
        setting = _SETTING.match(line)
        place = re.match(r" # at: (.*?)(?:, line (\d+))?(?:, use .*)?$", line)
        if open_document:
            if line.strip() == "@end":
                value, open_document = here, False
            else:
                here += line + "\n"
        elif setting:
            name, value = setting[1], setting[3] or ""
            open_document, here = setting[2] == "@=end", ""
        elif place and name:
            knobs[name.upper()] = Knob(name, value, place[1], int(place[2]) if place[2] else None)
            name = ""
    return knobs


def _last(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return said[-1]
