"""Writes what a package has beside the program: man pages, shell completion, an example of the configuration.

python packaging/generate.py DIRECTORY: below it stand man/, bash-completion/ and so on, as below /usr/share.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from os import environ
from pathlib import Path
from types import ModuleType

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from htcebridge import __version__
from htcebridge.cli import cli
from htcebridge.config import file as config_file
from htcebridge.config import types as config_types
from htcebridge.config.example import example

NAME = "htcebridge"
# Where each shell looks: below /usr/share, and bash and fish below the share of a program's prefix, too.
COMPLETIONS: tuple[tuple[type[ShellComplete], str], ...] = (
    (BashComplete, f"bash-completion/completions/{NAME}"),
    (ZshComplete, f"zsh/site-functions/_{NAME}"),
    (FishComplete, f"fish/vendor_completions.d/{NAME}.fish"),
)
EXIT_STATUS = (
    ("0", "Fine."),
    ("1", "Something is wrong out there, and the message names it."),
    ("2", "The command line or the configuration cannot be used."),
    ("75", "Something did not answer, so nothing was done: try again."),
)


def main(arguments: list[str]) -> int:
    """Write all of it. Returns the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    for name, text in files().items():
        path = Path(arguments[0]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def files() -> dict[str, str]:
    """Each file, by its path below share/."""
    found = {f"man/man1/{page}.1": text for page, text in command_pages()}
    found[f"man/man5/{NAME}.toml.5"] = configuration_page()
    for shell, path in COMPLETIONS:
        # The text is the same on any machine; what the shell asks the program for is not.
        found[path] = ShellComplete.source(shell(cli, {}, NAME, f"_{NAME.upper()}_COMPLETE"))
    found[f"{NAME}/{NAME}.toml"] = example()
    return found


# --------------------------------------------------------------------------- htcebridge-COMMAND(1)
# click-man does not see commands that are imported when they are called, cuts the summary short after some words, and
# runs the lines of a "\b" block together (0.6.0).


def command_pages() -> Iterator[tuple[str, str]]:
    """The name and text of the page of each command and subcommand."""
    for context in contexts(click.Context(cli, info_name=NAME, **cli.context_settings)):
        page = context.command_path.replace(" ", "-")
        yield page, command_page(context)


def contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    for name, command in subcommands(context):
        yield from contexts(click.Context(command, info_name=name, parent=context, **command.context_settings))


def subcommands(context: click.Context) -> list[tuple[str, click.Command]]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    found = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    return [(name, command) for name, command in found if command is not None and not command.hidden]


def command_page(context: click.Context) -> str:
    command, page = context.command, context.command_path.replace(" ", "-")
    lines = [
        *title(page, 1),
        f"{roff(page)} \\- {roff(summary(command))}",
        ".SH SYNOPSIS",
        f"\\fB{roff(context.command_path)}\\fR {roff(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *paragraphs(command.help or ""),
        ".SH OPTIONS",
    ]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += entry(*record)
    children = subcommands(context)
    if children:
        lines.append(".SH COMMANDS")
        for name, child in children:
            lines += entry(f"{page}-{name}(1)", summary(child))
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_STATUS:
        lines += entry(code, meaning)
    lines.append(".SH ENVIRONMENT")
    lines += entry(config_file.ENVIRONMENT, "The configuration file, where no --config names one.")
    lines += entry("NO_COLOR", "Anything but nothing: no colour.")
    lines.append(".SH FILES")
    for place in config_file.PLACES:
        lines += entry(place, f"The configuration: see {NAME}.toml(5).")
    parent = [f"{context.parent.command_path.replace(' ', '-')}(1)"] if context.parent else []
    return "\n".join([*lines, *see_also(*parent, f"{NAME}.toml(5)")])


def summary(command: click.Command) -> str:
    """The first sentence or line of a command's help, whole."""
    first = inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[a-z)])\. ", first)[0].rstrip(".")


def paragraphs(text: str) -> list[str]:
    """click's help text; a paragraph that begins with "\\b" keeps its lines."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text.partition("\f")[0]).split("\n\n"):
        lines.append(".PP")
        if paragraph.startswith("\b\n"):
            lines += [".nf", *(roff(line) for line in paragraph.splitlines()[1:]), ".fi"]
        else:
            lines.append(roff(" ".join(paragraph.split())))
    return lines[1:]


# --------------------------------------------------------------------------- htcebridge.toml(5)


def configuration_page() -> str:
    reference = docs_generator()
    lines = [
        *title(f"{NAME}.toml", 5),
        f"{NAME}.toml \\- the configuration of {NAME}",
        ".SH DESCRIPTION",
        "One TOML file makes the CE route, the controller and the pilots. It is looked for in this order:",
    ]
    for place in ("--config FILE", f"${config_file.ENVIRONMENT}", *config_file.PLACES):
        lines += [".IP \\(bu 2", roff(place)]
    lines += [".PP", roff(f"`{NAME} config init` writes a first one, `{NAME} config check` names each mistake.")]
    tables: tuple[tuple[str, type[config_types.Table], str], ...] = reference.TABLES
    for header, model, where in tables:
        lines += [f'.SH "{roff(header)}"', roff(where)]
        for key, kind, default, meaning in reference.keys(model):
            lines += entry(key, f"{kind}; {default if default.startswith('*') else 'default: ' + default}. {meaning}")
    return "\n".join([*lines, *see_also(f"{NAME}(1)")])


def docs_generator() -> ModuleType:
    """docs/generate.py, which is no package's module."""
    path = Path(__file__).resolve().parent.parent / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------- man(7)


def title(page: str, section: int) -> list[str]:
    made = datetime.fromtimestamp(int(environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    return [
        f'.TH "{roff(page.upper())}" {section} "{made:%Y-%m-%d}" "{NAME} {__version__}"',
        ".ad l",
        ".nh",
        ".SH NAME",
    ]


def entry(term: str, text: str) -> list[str]:
    return [".TP", f"\\fB{roff(term)}\\fR", roff(text) or "\\&"]


def see_also(*pages: str) -> list[str]:
    return [".SH SEE ALSO", roff(", ".join(pages)), ""]


def roff(text: str) -> str:
    """Plain text or a line of Markdown as man(7) wants it: `code` is bold, a link is its text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("**", "")
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"^(?=[.'])", r"\\&", text)
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
