"""The command line of the testbed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from . import lifecycle
from .bed import Testbed
from .errors import TestbedError, UsageError
from .root import SUITES, ensure_root

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="testbed", description="A Tier-1 with two CEs and a Slurm cluster, real software, on this machine."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a bed; it runs until `testbed down`")
    up.add_argument(
        "--suite", default="trixie", help=f"Debian release of all hosts: {' or '.join(SUITES)} (default trixie)"
    )
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="DCGP nodes, lrdn0001.. (default 2)")
    up.add_argument("--gpu-nodes", type=int, default=1, metavar="N", help="Booster nodes, lrdn1001.. (default 1)")
    up.add_argument("--name", help="name of the bed (default: the suite)")
    up.add_argument(
        "--ce-config", type=Path, metavar="DIR", help="a real HTCondor-CE's configuration instead of the testbed's own"
    )
    up.set_defaults(run=run_up)

    commands.add_parser(
        "on", help="run a command on a host: testbed on [--name NAME] HOST [--user U] [--env K=V] CMD..."
    )

    status = commands.add_parser("status", help="running beds, their hosts and daemons")
    status.set_defaults(run=run_status)

    down = commands.add_parser("down", help="end a bed and leave nothing")
    down.add_argument("--name", help="which bed; not needed if only one is running")
    down.add_argument("--all", action="store_true", help="all of them")
    down.set_defaults(run=run_down)

    build = commands.add_parser("build", help="build the root directory of a suite, if it isn't there")
    build.add_argument("--suite", default="trixie", help=" or ".join(SUITES))
    build.set_defaults(run=run_build)

    selftest = commands.add_parser("selftest", help="start a bed and show that every part of it works")
    selftest.add_argument("--suite", default="trixie", help=" or ".join(SUITES))
    selftest.add_argument("--ce-config", type=Path, metavar="DIR")
    selftest.set_defaults(run=run_selftest)
    return top


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["on"]:  # what follows the host is the command's, whatever it looks like
            return run_on(words[1:])
        options = parser().parse_args(words)
        code: int = options.run(options)
    except UsageError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return EXIT_USAGE
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def run_up(options: argparse.Namespace) -> int:
    bed = Testbed.up(options.suite, options.nodes, options.gpu_nodes, options.name, options.ce_config, say)
    bed.detach()
    say(f"hosts: {' '.join(bed.hosts)}")
    return 0


def run_on(words: list[str]) -> int:
    """The command gets terminal, input, output and signals; its exit code becomes ours (128 + N for signal N)."""
    asked = parse_on(words)
    bed = Testbed.attach(asked.name or only_bed())
    # The terminal sends Ctrl-C to the command as well: it decides, we wait. It starts with the default action again.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    process = bed.popen(asked.host, asked.argv, asked.user, dict(map(variable, asked.env)))
    interrupted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    for passed_on in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(passed_on, lambda number, _: process.send_signal(number))
    code = int(process.wait())
    if interrupted and code == 1:  # nsenter, which ignores it too, can't say that the command died of Ctrl-C
        return EXIT_INTERRUPTED
    return code if code >= 0 else 128 - code


def parse_on(words: list[str]) -> argparse.Namespace:
    """Options may stand before and after HOST; from the command's name on, everything is the command's."""
    shape = argparse.ArgumentParser(
        prog="testbed on", usage="testbed on [--name NAME] HOST [--user U] [--env K=V] CMD..."
    )
    shape.add_argument("--name", help="which bed; not needed if only one is running")
    shape.add_argument("--user", help="account to run as (default root)")
    shape.add_argument("--env", action="append", default=[], metavar="K=V", help="set a variable; may be repeated")
    ours: list[str] = []
    plain: list[str] = []
    rest = list(words)
    while rest and len(plain) < 2:
        word = rest.pop(0)
        if word == "--" and plain:
            break
        if not word.startswith("-"):
            plain.append(word)
        else:
            ours.append(word)
            if word in ("--name", "--user", "--env") and rest:
                ours.append(rest.pop(0))
    asked = shape.parse_args(ours)
    if not plain or not plain[1:] + rest:
        shape.error("give a host and a command")
    asked.host, asked.argv = plain[0], plain[1:] + rest
    return asked


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--env {text}: write it as NAME=VALUE")
    return name, value


def run_status(options: argparse.Namespace) -> int:
    need_root()
    names = lifecycle.live_names()
    if not names:
        say("no bed is running")
    for name in names:
        try:
            bed = Testbed.attach(name)
        except UsageError:
            say(f"{name}: starting or ending")
            continue
        say(f"{name}: {bed.suite}, {len(bed.hosts)} hosts, process {bed.init_pid}")
        for host, daemons in bed.status().items():
            shown = "  ".join(f"{daemon} {'alive' if alive else 'DEAD'}" for daemon, alive in daemons.items())
            say(f"  {bed.host(host).fqdn:28} {bed.host(host).address:10} {shown}")
    return 0


def run_down(options: argparse.Namespace) -> int:
    need_root()
    started = time.monotonic()
    names = lifecycle.live_names()
    if not options.all:
        name = options.name or only_bed()
        if name not in names:
            lifecycle.load(name)
        names = [name]
    for name in names:
        lifecycle.end(name)
        say(f"bed {name} is down ({time.monotonic() - started:.1f} s)")
    lifecycle.live_names()
    return 0


def run_build(options: argparse.Namespace) -> int:
    say(str(ensure_root(options.suite, say)))
    return 0


def run_selftest(options: argparse.Namespace) -> int:
    from .killtest import killtest
    from .selftest import selftest

    selftest(options.suite, options.ce_config, say)
    if options.ce_config is None:
        killtest(options.suite, say)
    return 0


def only_bed() -> str:
    need_root()
    names = lifecycle.live_names()
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError("no bed is running; `testbed up` starts one")
    raise UsageError(f"several beds are running, say which with --name: {', '.join(names)}")


def need_root() -> None:
    if os.geteuid() != 0:
        raise UsageError("the testbed makes namespaces and mounts: run it as root")
