"""Renders ce_routes/, startd_configs/ and slurm_scripts/ (Jinja2, strict about undefined names).

Every value that comes from the configuration passes a quoting filter where it is used: `sh` in shell, `classad`
in ClassAd expressions, `condor` in HTCondor configuration, `heredoc` for a file that a script writes. `aligned` is for
a block of facts.
"""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from htcebridge.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment


FOLDERS = ("ce_routes", "startd_configs", "slurm_scripts")
OWN = "own"
_COMMENTS_AT = 46


def render(template: str, own: Path | None = None, **values: object) -> str:
    """The text of "folder/name" with these values; the folder "own" is `own`, a directory of the admin's.

    Raises ConfigError for an unknown template or name, and for a template that is not one.
    """
    with _named_errors(template, own):
        return _environment(own).get_template(template).render(**values)


def stray_blocks(template: str, parent: str, own: Path | None) -> list[str]:
    """Blocks of `template` that `parent`, which it extends, does not have: they are in vain. Raises ConfigError."""
    with _named_errors(template, own):
        known = _environment(own).get_template(parent).blocks
        return [name for name in _environment(own).get_template(template).blocks if name not in known]


@contextmanager
def _named_errors(template: str, own: Path | None) -> Iterator[None]:
    """What Jinja2 raises, as a ConfigError with file and line."""
    from jinja2 import TemplateNotFound, TemplateSyntaxError, UndefinedError

    try:
        yield
    except TemplateNotFound as error:
        raise ConfigError(f"no template {error.name}; there are: {', '.join(names(str(error.name), own))}") from None
    except TemplateSyntaxError as error:
        raise ConfigError(f"template {error.filename or template}, line {error.lineno}: {error.message}") from None
    except UndefinedError as error:
        raise ConfigError(f"template {_place(error, template)}: {error.message}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {template}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # An expression in it that fails.
        raise ConfigError(f"template {_place(error, template)}: {error}") from None


def _place(error: Exception, template: str) -> str:
    """File and line in a template where this was raised: Jinja2 puts them into the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else template


def names(template: str, own: Path | None = None) -> list[str]:
    """The templates of that one's folder, or all if it has none."""
    known = [name for name in _environment(own).list_templates() if name.endswith(".j2")]
    folder = template.partition("/")[0]
    return [name for name in known if name.startswith(f"{folder}/")] or known


def classad_string(value: object) -> str:
    """A ClassAd literal: numbers and booleans as they are, anything else as a quoted string."""
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def condor_value(value: object) -> str:
    """Text for the right side of a line of HTCondor configuration, where $ begins a macro.

    Raises ConfigError for a line break: it would begin another knob.
    """
    text = str(value)
    if any(not character.isprintable() for character in text):
        raise ConfigError(
            f"{text!r} cannot stand in HTCondor configuration: a line break or control character is in it"
        )
    return text.replace("$", "$(DOLLAR)")


def condor_classad(value: object) -> str:
    """A ClassAd literal inside HTCondor configuration.

    There the old syntax holds, in which a backslash is one unless a quote follows (23.9, 25.14). Raises ConfigError for
    a text in which one does.
    """
    if isinstance(value, (bool, int, float)):
        return classad_string(value)
    text = str(value)
    if re.search(r'\\("|$)', text):
        raise ConfigError(f"{text!r} cannot stand in HTCondor configuration: a backslash before a quote or at the end")
    return condor_value('"' + text.replace('"', '\\"') + '"')


def sbatch_path(value: object) -> str:
    """A path for a #SBATCH line, where % begins a pattern. Raises ConfigError for what cannot be quoted there."""
    text = str(value)
    if re.fullmatch(r"[\w./@+=,:-]+", text):
        return text
    if re.search(r'["\\%\n]', text):
        raise ConfigError(f"{text!r} cannot stand in a #SBATCH line: choose a path without quotes, backslashes and %")
    return f'"{text}"'


def heredoc(value: object) -> str:
    """Text as a shell's here-document in which nothing is expanded, with a delimiter that no line of it is."""
    text, delimiter = str(value).removesuffix("\n"), "END_OF_FILE"
    while delimiter in text.splitlines():
        delimiter += "_"
    return f"<< '{delimiter}'\n{text}\n{delimiter}"


def node_path(value: object) -> str:
    """A path of the worker node as a shell word: one variable in front is expanded there, and is /tmp if unset."""
    found = re.fullmatch(r"\$\{?(\w+)\}?(.*)", str(value))
    if not found:
        return shlex.quote(str(value))
    return f"${{{found[1]}:-/tmp}}" + (shlex.quote(found[2]) if found[2] else "")


def aligned(value: object) -> str:
    """Shell lines with their comments below each other, as far as the lines are not too long for that."""
    cut = [line.rpartition("  # ") for line in str(value).split("\n")]
    return "\n".join(f"{code.ljust(_COMMENTS_AT)}{mark}{comment}" if mark else comment for code, mark, comment in cut)


@cache
def _environment(own: Path | None = None) -> Environment:
    from jinja2 import BaseLoader, Environment, FileSystemLoader, PackageLoader, PrefixLoader, StrictUndefined

    loaders: dict[str, BaseLoader] = {folder: PackageLoader("htcebridge", folder) for folder in FOLDERS}
    if own is not None:
        loaders[OWN] = FileSystemLoader(own)
    environment = Environment(
        loader=PrefixLoader(loaders),
        undefined=StrictUndefined,
        # "${#name}" is shell.
        comment_start_string="{%#",
        comment_end_string="#%}",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  shell and HTCondor configuration, not HTML: see the filters
    )
    environment.filters.update(sh=lambda value: shlex.quote(str(value)), classad=classad_string)
    environment.filters.update(sbatch=sbatch_path, condor=condor_value, condor_classad=condor_classad)
    environment.filters.update(heredoc=heredoc, node_path=node_path, aligned=aligned)
    return environment
