"""The command line. Each command group is a module of its own, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from htcebridge import __version__
from htcebridge.config import file
from htcebridge.errors import BridgeError, ExitCode

if TYPE_CHECKING:
    from htcebridge.config.tables import Config

# command -> (module, one line for --help, so that --help imports none of them). The module has it as `command`, or, if
# it has several, by name.
_COMMANDS = {
    "demand": ("demand", "What waits, who may run it, and why the rest can't."),
    "pressure": ("pressure", "Decide how many pilots to start, and start them."),
    "pilots": ("pilots", "Slurm jobs and startds side by side."),
    "drain": ("drain", "Stop taking jobs, softly; reversible."),
    "undrain": ("drain", "Take jobs again."),
    "routes": ("routes", "The CE routes that tag jobs."),
    "pool": ("pool", "The central manager: a collector of the pilots' own."),
    "explain": ("explain", "Why a job does or does not go to the HPC, clause by clause."),
    "report": ("report", "What was used, lost and wasted: table, CSV, JSON, a page with plots."),
    "render": ("render", "Print exactly what a pilot will run."),
    "doctor": ("doctor", "Is everything in place, here and now? Each check with its fix."),
    "accounting": ("accounting", "Usage records of what ran on the HPC, for APEL or AUDITOR."),
    "simulate": ("simulate", "Try a policy on a recorded or made-up workload."),
    "config": ("config", "Write, check and show the configuration."),
}


@dataclass
class App:
    """What the global options say."""

    config_path: str | None = None
    verbosity: int = 0
    _loaded: dict[Path, Config] = field(default_factory=dict)

    def path(self) -> Path:
        """The configuration file. Raises ConfigError where there is none."""
        return file.find(self.config_path)

    def config(self) -> Config:
        """The configuration. Raises ConfigError with every mistake in it."""
        path = self.path()
        if path not in self._loaded:
            self._loaded[path] = file.load(path)
        return self._loaded[path]


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"htcebridge.cli.{_COMMANDS[cmd_name][0]}")
        by_name = getattr(module, cmd_name, None)
        command = by_name if isinstance(by_name, click.Command) else module.command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="htcebridge")
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    help="Configuration. Default: $HTCEBRIDGE_CONFIG, ~/.config/htcebridge/htcebridge.toml, "
    "/etc/htcebridge/htcebridge.toml.",
)
@click.option("-v", "--verbose", count=True, help="Say more (-vv: everything).")
@click.option("-q", "--quiet", count=True, help="Say only what is wrong.")
@click.pass_context
def cli(ctx: click.Context, config_path: str | None, verbose: int, quiet: int) -> None:
    """Run a Tier-1's opportunistic jobs in an HPC's free, low-priority Slurm QOS.

    \b
    On the CE:         htcebridge routes show
    On the edge node:  htcebridge demand; htcebridge pressure plan; htcebridge pressure run
    """
    ctx.obj = App(config_path, verbose - quiet)


def main() -> None:
    """The console script: a BridgeError is one clear message and its exit code, never a traceback."""
    try:
        sys.exit(cli(standalone_mode=False) or ExitCode.OK)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except BridgeError as error:
        click.echo(f"htcebridge: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.PROBLEM)
    except OSError as error:
        # Writing the answer failed, such as on a full disk.
        click.echo(f"htcebridge: {error}", err=True)
        os._exit(ExitCode.PROBLEM)
