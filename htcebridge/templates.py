"""Renders ce_routes/, startd_configs/ and slurm_scripts/ (Jinja2, strict about undefined names).

Every value that comes from the configuration passes a quoting filter where it is used: `sh` in shell, `classad`
in ClassAd expressions, `condor` in HTCondor configuration.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import TYPE_CHECKING

from htcebridge.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """The text of "folder/name" with these values. Raises ConfigError for an unknown template or name."""
    from jinja2 import TemplateNotFound, UndefinedError

    try:
        return _environment().get_template(template).render(**values)
    except TemplateNotFound as error:
        raise ConfigError(f"no template {error.name} in ce_routes/, startd_configs/ or slurm_scripts/") from None
    except UndefinedError as error:
        raise ConfigError(f"template {template}: {error.message}") from None


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
    """A ClassAd literal inside HTCondor configuration."""
    return condor_value(classad_string(value))


def sbatch_path(value: object) -> str:
    """A path for a #SBATCH line, where % begins a pattern. Raises ConfigError for what cannot be quoted there."""
    text = str(value)
    if re.fullmatch(r"[\w./@+=,:-]+", text):
        return text
    if re.search(r'["\\%\n]', text):
        raise ConfigError(f"{text!r} cannot stand in a #SBATCH line: choose a path without quotes, backslashes and %")
    return f'"{text}"'


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined

    folders = ("ce_routes", "startd_configs", "slurm_scripts")
    environment = Environment(
        loader=PrefixLoader({folder: PackageLoader("htcebridge", folder) for folder in folders}),
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
    return environment
