"""The doctor's questions to this machine and its HPC: Slurm, what is rendered, systemd, the last cycle."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from htcebridge.config.tables import Config
from htcebridge.doctor import judge
from htcebridge.doctor.checks import Check, Finding, Problem, Status, finding
from htcebridge.errors import BridgeError, ConfigError, UnknownState, UnsetVariable
from htcebridge.pilot import marks
from htcebridge.pilot import script as pilot_script
from htcebridge.slurm.commands import Slurm, SlurmRefused
from htcebridge.state import lock, memory, resets

_TOOL_S = 60.0
_UNITS = ("htcebridge{at}.service", "htcebridge-once{at}.timer")


def checks(config: Config, now: float, timeout_s: float, units: Sequence[str] = ()) -> list[Check]:
    """What is asked here. `timeout_s` bounds one answer of Slurm's; `units` are other names for systemd's."""
    slurm = Slurm(config.pressure.instance, timeout_s)
    found = [Check("versions", "slurm", partial(_slurm_version, slurm), timeout_s + 1)]
    for name in config.resources:
        found += [
            Check("slurm", name, partial(_limits, config, slurm, name), 6 * timeout_s),
            Check("sbatch", name, partial(_would_take, config, slurm, name), timeout_s + 1),
            Check("scripts", name, partial(_rendered, config, name), 2 * _TOOL_S + 1),
        ]
    return [
        *found,
        Check("account", "", partial(_account, config, slurm), 2 * timeout_s),
        Check("stop", "", partial(_stop, config), timeout_s),
        Check("resources", "", partial(_disabled, config), timeout_s),
        Check("unit", "", partial(_units, config, units), 2 * _TOOL_S + 1),
        Check("cycle", "", partial(_cycle, config, now), timeout_s),
    ]


# --------------------------------------------------------------------------- Slurm


def _slurm_version(slurm: Slurm) -> Finding:
    try:
        version = slurm.version()
    except BridgeError as error:
        return Finding("versions", "slurm", Status.FAIL, str(error), "put Slurm's commands on PATH")
    return judge.versions("Slurm", "slurm", version, judge.OLDEST_SLURM)


def _limits(config: Config, slurm: Slurm, name: str) -> list[Finding]:
    resource = config.resources[name]
    try:
        limits = slurm.limits(resource.account, resource.partition, resource.qos)
    except BridgeError as error:
        fix = "is slurmctld up, and does this machine reach it? scontrol ping; its log is on the controller's host"
        if isinstance(error, ConfigError):
            fix = "put Slurm's commands on PATH, or run this on the edge node"
        return [Finding("slurm", name, Status.FAIL, str(error), fix)]
    return judge.slurm(name, resource, limits, int(time.time()))


def _account(config: Config, slurm: Slurm) -> Finding:
    try:
        return judge.account(config, slurm.usable())
    except BridgeError as error:
        return Finding("account", "", Status.SKIP, f"not checked: {error}", "is slurmdbd up? sacctmgr show cluster")


def _would_take(config: Config, slurm: Slurm, name: str) -> Finding:
    """Slurm's own answer, without submitting."""
    try:
        slurm.would_take(pilot_script.script(config, name))
    except SlurmRefused as error:
        fix = (
            f"correct [resource.{name}]: partition, account, QOS, cpus, memory, gpus, gres, walltime; a configuration "
            "that is not available may also be one whose nodes are down: sinfo"
        )
        return Finding("sbatch", name, Status.FAIL, f"Slurm would not take a pilot: {error}", fix)
    except ConfigError as error:
        return Finding("sbatch", name, Status.SKIP, f"not checked: {error}", "see scripts")
    except BridgeError as error:
        return Finding("sbatch", name, Status.FAIL, str(error), "is slurmctld up? scontrol ping")
    return finding("sbatch", name, "Slurm would take a pilot")


# --------------------------------------------------------------------------- what is rendered


def _rendered(config: Config, name: str) -> Iterator[Finding]:
    try:
        script = pilot_script.script(config, name)
        shell = {"script": script, **pilot_script.shell_files(config, name)}
        startd = pilot_script.startd_config(config, name) if config.resources[name].executor is None else ""
    except UnsetVariable as error:
        fix = "set it where the controller runs, too: EnvironmentFile of the unit, a line in the crontab"
        yield Finding("scripts", name, Status.FAIL, str(error), fix)
        return
    except ConfigError as error:
        yield Finding("scripts", name, Status.FAIL, str(error), "then: htcebridge config check")
        return
    problems = []
    missing = [tool for tool in ("shellcheck", "condor_config_val") if not shutil.which(tool)]
    if "shellcheck" not in missing:
        problems += _shellcheck(shell, name)
    if startd and "condor_config_val" not in missing:
        problems += _config_val(startd, name)
    made = "its script" + (" and startd configuration render" if startd else " renders")
    checked = [tool for tool in ("shellcheck", *(["condor_config_val"] if startd else [])) if tool not in missing]
    yield finding("scripts", name, f"{made}{'; checked by ' if checked else ''}{' and '.join(checked)}", problems)
    for tool in missing:
        if tool == "shellcheck" or startd:
            package = {"shellcheck": "ShellCheck", "condor_config_val": "HTCondor"}[tool]
            yield Finding("scripts", name, Status.SKIP, f"not checked: {tool} is not on PATH", f"install {package}")


# What is sourced stands on the node, and what `setup` sets is for the jobs.
_NOT_HERE = "SC1090,SC1091,SC2034,SC2154"


def _shellcheck(shell: Mapping[str, str], name: str) -> list[Problem]:
    """Errors and warnings of these texts, the first one in full. https://www.shellcheck.net/wiki/"""
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as directory:
        paths = {Path(directory, what.replace("/", " ")): what for what in shell}
        for path, what in paths.items():
            path.write_text(shell[what], encoding="utf-8")
        done = _run(["shellcheck", "-s", "bash", "-S", "warning", "-e", _NOT_HERE, "-f", "gcc", *map(str, paths)])
    found = [
        (line.removeprefix(f"{path}:"), what)
        for line in done.stdout.splitlines()
        for path, what in paths.items()
        if line.startswith(f"{path}:")
    ]
    if done.returncode == 0 or not found:
        return [] if done.returncode == 0 else [Problem(Status.WARN, f"shellcheck: {_last(done)}", "")]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    status = Status.FAIL if any(": error:" in line for line, _ in found) else Status.WARN
    line, what = found[0]
    look = f"htcebridge render script {name} shows it" + (": setup is in [pilot]" if what == "setup" else "")
    return [Problem(status, f"shellcheck of {what}, line {line}{more}", look)]


def _config_val(startd: str, name: str) -> list[Problem]:
    """Whether HTCondor can read it. What only the node knows is left empty, as macros that are not set are."""
    with tempfile.NamedTemporaryFile("w", prefix="htcebridge-", suffix=".conf", encoding="utf-8") as file:
        file.write(f"PILOT_DIR = /nonexistent\n{startd}")
        file.flush()
        done = _run(["condor_config_val", "-dump"], extra={"CONDOR_CONFIG": file.name})
    if done.returncode == 0 and "rror" not in done.stderr:
        return []
    look = f"htcebridge render startd {name}; its template and [resource.{name}] make it"
    said = " ".join((done.stderr or done.stdout).replace(file.name, "it").split())
    return [Problem(Status.FAIL, f"condor_config_val: {said}", look)]


def _run(arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER", "XDG_RUNTIME_DIR") if key in os.environ}
    try:
        return subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            env={**kept, "LC_ALL": "C.UTF-8", **(extra or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BridgeError(f"{arguments[0]}: {error}") from None


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]


# --------------------------------------------------------------------------- the controller


def _stop(config: Config) -> Finding:
    shared = {each.shared_dir.path for each in config.resources.values()}
    try:
        return judge.kill_switch(marks.read_stop(sorted(path for path in shared if path.exists())))
    except UnknownState as error:
        return Finding("stop", "", Status.FAIL, str(error), "see directory: without it no pilot is started")


def _disabled(config: Config) -> Iterator[Finding]:
    known = memory.recall(config)
    forgiven = resets.requested(config)  # by the next cycle
    for name in (name for name in config.resources if name not in forgiven):
        if name in known.resources.disabled:
            fix = f"put it right, then: htcebridge pressure reset {name}"
            yield Finding("resources", name, Status.FAIL, f"disabled: {known.resources.disabled[name].why}", fix)
        elif name in known.resources.paused and known.resources.paused[name].until > time.time():
            paused = known.resources.paused[name]
            again = time.strftime("%H:%M:%S", time.localtime(paused.until))
            said = f"Slurm refused it for now, it is tried again at {again}: {paused.why}"
            yield Finding("resources", name, Status.WARN, said, f"at once: htcebridge pressure reset {name}")


def _cycle(config: Config, now: float) -> Finding:
    holder = lock.holder(config)
    return judge.cycle(memory.recall(config).upkeep.looked, now, config.pressure.cycle_s, str(holder) if holder else "")


def _units(config: Config, given: Sequence[str]) -> Finding:
    holder = lock.holder(config)
    who = str(holder) if holder else ""
    if not shutil.which("systemctl"):
        return judge.unit({}, who, "there is no systemctl here")
    at = f"@{getpass.getuser()}"
    system = list(given) or [unit.format(at=at) for unit in _UNITS]
    own = list(given) or [unit.format(at="") for unit in _UNITS]
    states = {**_states(system, []), **{f"--user {name}": state for name, state in _states(own, ["--user"]).items()}}
    return judge.unit(states, who, "" if states else "no systemd answers here")


def _states(names: Sequence[str], options: Sequence[str]) -> dict[str, str]:
    """Unit -> its state; none where no manager answers, such as a user's without a session."""
    done = _run(["systemctl", *options, "is-active", *names])
    said = done.stdout.split()
    return dict(zip(names, said, strict=True)) if len(said) == len(names) else {}
