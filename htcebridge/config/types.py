"""The types of what the admin writes: durations and sizes with units, words that need no quoting, paths, addresses."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from htcebridge.units import format_duration, format_megabytes, parse_duration, parse_megabytes

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(lambda value: format_duration(value.total_seconds()), return_type=str),
]
Megabytes = Annotated[
    int,
    BeforeValidator(parse_megabytes),
    Field(gt=0),
    PlainSerializer(format_megabytes, return_type=str),
]


def _one_line(text: str) -> str:
    """Values end up in shell scripts, ClassAds and #SBATCH lines: one line, no control characters."""
    if any(not character.isprintable() for character in text):
        raise ValueError(f"{text!r} has a line break or a control character in it")
    return text


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


def _with_a_port(text: str) -> str:
    if not 0 < int(text.rpartition(":")[2]) < 65536:
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Text = Annotated[Line, Field(min_length=1)]
# A word that Slurm takes for an account, partition, QOS, job name or gres without quoting.
Word = Annotated[Line, _matching(r"[A-Za-z0-9_.+-]+", "a plain word (letters, digits, '_', '.', '+', '-')")]
# Route names with '-' make the whole CE configuration unreadable (HTCondor 23.9 and 25.14).
Identifier = Annotated[Line, _matching(r"[A-Za-z][A-Za-z0-9_]*", "a name (a letter, then letters, digits or '_')")]
Gres = Annotated[Line, _matching(r"\w+(:[\w.-]+)*", "a Slurm gres such as 'tmpfs:3t' or 'gpu:4'")]
HostPort = Annotated[Line, _matching(r"[A-Za-z0-9_.-]+(:\d+)?", "a host or host:port")]
# Of several collectors behind one port HTCondor's shared port finds one by its socket's name.
CollectorAddress = Annotated[
    Line, _matching(r"[A-Za-z0-9_.-]+(:\d+(\?sock=[A-Za-z0-9_-]+)?)?", "a host, host:port or host:port?sock=NAME")
]
Address = Annotated[
    Line,
    _matching(r"[A-Za-z0-9_.-]+:\d+", "an address host:port"),
    AfterValidator(_with_a_port),
]
# What stands in front of a file's name; no blank, quote or $, for it ends up in shell, XML and HTCondor configuration.
DataUrl = Annotated[
    Line,
    _matching(
        r"(xroots?|roots?|davs?|https?)://[A-Za-z0-9_.-]+(:\d+)?(/[\w.~/+=%-]*)?",
        "a URL such as 'root://host:1094/' or 'davs://host:8443/cms'",
    ),
]
WebUrl = Annotated[Line, _matching(r"https?://[A-Za-z0-9_.-]+(:\d+)?(/[\w.~/+-]*)?", "a URL (http://host:port...)")]
Options = Annotated[Line, _matching(r"[\w :,.=-]*", "options (letters, digits, blanks, '-', ':', ',', '.', '=')")]
TemplateName = Annotated[
    Line, _matching(r"[A-Za-z0-9_](?!.*\.j2$)[A-Za-z0-9_.-]*", "a template's name, without .conf.j2")
]
Issuer = Annotated[Line, _matching(r"https?://[^\s\"\\$]+", "a token issuer's URL (https://...)")]
Pattern = Annotated[Line, _matching(r"[A-Za-z0-9_.@*-]+", "an account name or pattern such as 'cmspil*'")]
Subject = Annotated[Line, _matching(r"[\w.:@/=+-]+", "a token's subject or group")]
Identity = Annotated[Line, _matching(r"[\w.-]+@[\w.-]+", "an identity such as 'condor@cr.example.org'")]
GroupName = Annotated[Line, _matching(r"[A-Za-z]\w*(\.\w+)*", "an accounting group such as 'opp_cms'")]
Walltime = Annotated[Line, _matching(r"[A-Za-z_]\w*( \* \d+)?", "a job attribute in seconds, or 'Attribute * factor'")]
# A path on the worker node: only a variable of the node's environment in front is expanded there.
NodePath = Annotated[
    Line, _matching(r"(/|\$[A-Za-z_]\w*(/|$)|\$\{[A-Za-z_]\w*\})[^$`~]*", "an absolute path (/... or $VARIABLE/...)")
]
Mount = Annotated[Line, _matching(r"/[\w./+-]*(:/[\w./+-]*)?", "an absolute path, or /ON_THE_NODE:/IN_THE_CONTAINER")]
CondorSource = Annotated[
    Line, _matching(r"system|cvmfs:/cvmfs/.+|tarball:/.+", "system, cvmfs:/cvmfs/... or tarball:/...")
]


class Table(BaseModel):
    """A TOML table: frozen, and a key that it doesn't know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)


def table_in(annotation: Any) -> type[Table] | None:
    """The table that a field of this type holds: as it is, in a list or in a table of tables."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    return next((found for part in get_args(annotation) if (found := table_in(part))), None)
