"""Writes configuration.md and the tables of metrics.md and pilot.md from the code: python docs/generate.py"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import tomli_w
from pydantic.fields import FieldInfo

from htcebridge.config import data, resource
from htcebridge.config import tables as config_tables
from htcebridge.config import types as config_types
from htcebridge.config.paths import EdgePath
from htcebridge.metrics import table as metrics_table
from htcebridge.pilot.exit_codes import PilotExit

TARGET = Path(__file__).with_name("configuration.md")
METRICS = Path(__file__).with_name("metrics.md")
PILOT = Path(__file__).with_name("pilot.md")

# What the named types of the model are to a person. Told apart by the validators that they carry.
_NAMED: tuple[tuple[Any, str], ...] = (
    (config_types.Duration, "duration"),
    (config_types.Megabytes, "size"),
    (config_types.Identifier, "name"),
    (config_types.Word, "word"),
    (config_types.Gres, "gres"),
    (config_types.HostPort, "host:port"),
    (config_types.Address, "host:port"),
    (config_types.DataUrl, "URL"),
    (config_types.WebUrl, "URL"),
    (config_types.TemplateName, "template name"),
    (config_types.Options, "options"),
    (config_types.NodePath, "path on the node"),
    (config_types.Mount, "path on the node"),
    (config_types.Issuer, "URL"),
    (config_types.Pattern, "account pattern"),
    (config_types.Walltime, "job attribute"),
    (config_types.CondorSource, "HTCondor source"),
    (config_types.Line, "text"),
)
_PLAIN = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    date: "date",
    timedelta: "duration",
    EdgePath: "path",
}

TABLES: tuple[tuple[str, type[config_types.Table], str], ...] = (
    ("[tier1]", config_tables.Tier1, "Read by the controller; `collector` goes into the pilots, too. Required."),
    ("[grant]", config_tables.Grant, "Goes into the CE route, the demand query and the pilots' START."),
    ("[[vo]]", config_tables.VO, "One table for each VO. Goes into the CE route. Without any there is no route."),
    ("[[site]]", config_tables.Site, "One table for each further HPC that the same CEs serve. Goes into the CE route."),
    (
        "[routes]",
        config_tables.Routes,
        "The parts of the CE's policy: see [routes.md](routes.md). Goes into the CE's files.",
    ),
    ("[demand]", config_tables.Demand, "Read by the controller and by the pilots' START."),
    ("[pressure]", config_tables.Pressure, "Read by the controller; `instance` goes into the pilots, too."),
    ("[history]", config_tables.History, "Written by the controller, read for reports."),
    ("[metrics]", config_tables.Metrics, "Read by the controller: see [metrics.md](metrics.md)."),
    ("[log]", config_tables.Log, "Read by `pressure once`, `run` and `stop`, when they start."),
    (
        "[pilot]",
        resource.PilotSettings,
        "Shared by all resources. A resource inherits each key that it does not set itself. The CE route takes "
        "`default_walltime` from here alone, whatever a resource says.",
    ),
    (
        "[connectivity.NAME]",
        resource.Endpoint,
        "One table for each place on the network beside the collector. Goes into the pilots' checks.",
    ),
    (
        "[data]",
        data.Data,
        "Goes into the pilots: see [pilot.md](pilot.md#data). Each door is looked at by the pilots' checks, too.",
    ),
    ("[[data.read]]", data.Door, "One table for each door or proxy, in the order in which jobs try them."),
    ("[data.write]", data.Output, "The keys of `[[data.read]]`, and what CMS stages out with."),
    (
        "[resource.NAME]",
        resource.Resource,
        "One table for each kind of node. New nodes are taken from the resources that waste least "
        "([how it decides](how-it-decides.md#which-resource)); of equals the first is taken. Every key of `[pilot]` "
        "may stand here as well and wins over it.",
    ),
)

_HEAD = """\
# Configuration

<!-- Written by docs/generate.py from htcebridge/config/*.py. Edit those, then: python docs/generate.py -->

One TOML file makes the CE route, the controller and the pilots. It is looked for in this order:

1. the file after `--config`
2. `$HTCEBRIDGE_CONFIG`
3. `~/.config/htcebridge/htcebridge.toml`
4. `/etc/htcebridge/htcebridge.toml`

The CE and the edge node need the same `[grant]` and `[[vo]]`. Keep one file and copy it.

```sh
htcebridge config init my.toml              # a first file, every key with its meaning
htcebridge --config my.toml config check    # every mistake with its line
htcebridge --config my.toml config show     # what is in force: defaults and inherited keys too
```

An unknown key is an error, and the nearest known one is named. `pressure run` reads the file before each cycle.
A broken file changes nothing: the last good one stays in force and the mistake is logged. `pressure.instance` alone
cannot change while the controller runs.

The smallest file that runs pilots:

```toml
[tier1]
collector = "cm01.cr.example.org:9618"

[[vo]]
name = "cms"
issuers = ["https://cms-auth.cern.ch/"]
owners = ["cmspil*"]

[resource.dcgp]
partition = "dcgp_usr_prod"
account = "INF24_lhc_2"
qos = "qos_lowprio"
cpus = 112
memory = "494000M"
walltime = "12h"
```

## Units and types

| type | written as |
|---|---|
| duration | `"90s"`, `"15m"`, `"12h"`, `"2d"` or a sum such as `"1h30m"`. Always with a unit |
| size | `"494000M"`, `"494G"`, `"3T"`. M is 2^20 bytes, as in Slurm and HTCondor. A bare number is M |
| date | `2026-01-31`, without quotes or with |
| number, whole number | without quotes |
| name | a letter, then letters, digits or `_` |
| word | letters, digits, `_`, `.`, `+`, `-`: what Slurm takes without quotes |
| gres | as for `sbatch --gres`, one for each: `"tmpfs:3t"`, `"gpu:4"` |
| account pattern | an account; `*` stands for any text |
| job attribute | an attribute in seconds, or `"Attribute * factor"` |
| path | begins with `/`, `~` or `$VARIABLE`; see below |
| HTCondor source | `"system"` (the node's own), `"cvmfs:/cvmfs/PATH"` (an unpacked release) or `"tarball:/PATH"` |

No value may hold a line break or a control character.

## Where $VARIABLES are expanded

- `tier1.token_directory`, `pressure.state_dir`, `history.file`, `metrics.textfile_directory`, `log.file`,
  `token_file`, `shared_dir`, `job_scratch`, `checks`, `templates`, `executor`: on the edge node. `~` and any
  `$VARIABLE`, from the environment of the command. An unset variable is an error; `config check` only says so, for the
  CE has the same file and none of these.
- `scratch`: on the worker node. One `$VARIABLE` in front comes from the environment that Slurm
  gives the job, and is `/tmp` if unset. Nothing further on in the path is expanded.
- `setup`: on the worker node. These are shell lines; the shell does what it does.
- All other values are taken as they stand.

cron gives a command few variables. Set those that you use (`WORK=...`) in the crontab, or write the paths out.
"""


def main() -> int:
    """Write the files. Returns the exit code."""
    TARGET.write_text(render(), encoding="utf-8")
    METRICS.write_text(with_metrics(METRICS.read_text(encoding="utf-8")), encoding="utf-8")
    PILOT.write_text(with_exit_codes(PILOT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {TARGET}, {METRICS} and {PILOT}")
    return 0


def render() -> str:
    """The whole text of configuration.md."""
    return _HEAD + "".join(_section(*table) for table in TABLES)


def with_metrics(page: str) -> str:
    """metrics.md with its tables as they are now."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics_table.TABLE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.says} |")
    rows += ["", "A summary NAME is the two series NAME_sum and NAME_count.", "", "| label | values |", "|---|---|"]
    rows += [f"| `{label}` | {says} |" for label, says in metrics_table.LABELS.items()]
    return _between_marks(page, "metrics", rows)


def with_exit_codes(page: str) -> str:
    """pilot.md with its table of exit codes as it is now."""
    rows = ["| exit code | meaning | whose fault | what to do |", "|---|---|---|---|"]
    rows += [f"| {each.value} | {each.says}{each.more} | {each.fault} | {each.hint} |" for each in PilotExit]
    return _between_marks(page, "exit codes", rows)


def _between_marks(page: str, name: str, rows: Iterable[str]) -> str:
    tables = "\n".join(rows)
    return re.sub(
        rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{tables}\n{found[2]}",
        page,
        flags=re.DOTALL,
    )


def _section(header: str, model: type[config_types.Table], where: str) -> str:
    purpose = (model.__doc__ or "").strip().splitlines()[0]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in keys(model)]
    lines = [
        "",
        f"## `{header}`",
        "",
        purpose,
        "",
        textwrap.fill(where, 120),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *table]) + "\n"


def keys(model: type[config_types.Table]) -> list[tuple[str, str, str, str]]:
    """Each key of a table in Markdown: its name, type and bounds, default, and meaning."""
    inherited = resource.PilotSettings.model_fields if model is resource.Resource else {}
    # What is a table of its own has a section of its own.
    own = [
        (name, field)
        for name, field in model.model_fields.items()
        if name not in inherited and config_types.table_in(field.annotation) is None
    ]
    return [
        (
            f"`{name}`",
            ", ".join([_kind(field.annotation, field.metadata), *_bounds(field.metadata)]),
            _default(model, name, field),
            field.description or "",
        )
        for name, field in own
    ]


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, lists and choices included."""
    for alias, name in _NAMED:
        if all(any(part is own for own in metadata) for part in _validators(alias)):
            return name
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _kind(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' for choice in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"table of {_kind(arguments[0])} = {_kind(arguments[1])}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in arguments if part is not NoneType))
    return _PLAIN[annotation]


def _validators(alias: Any) -> Iterable[Any]:
    """What tells a named type from others; pydantic takes FieldInfo apart, so that does not count."""
    return [part for part in get_args(alias)[1:] if not isinstance(part, FieldInfo)]


def _bounds(metadata: Iterable[Any]) -> list[str]:
    bounds = []
    for part in metadata:
        if isinstance(part, annotated_types.Ge):
            bounds.append(f"{part.ge} or more")
        elif isinstance(part, annotated_types.Gt):
            bounds.append(f"more than {part.gt}")
        elif isinstance(part, annotated_types.Le):
            bounds.append(f"at most {part.le}")
    return bounds


def _default(model: type[config_types.Table], name: str, field: FieldInfo) -> str:
    """The default as an admin would write it."""
    if field.is_required():
        return "**required**"
    blank = model.model_construct(**{name: field.get_default(call_default_factory=True)})
    value = blank.model_dump(mode="json", include={name}, warnings=False)[name]
    if value is None:
        return "left out"
    text = " ".join(tomli_w.dumps({name: value}).split())
    text = text.partition(" = ")[2] if not isinstance(value, dict) else "{}"
    return f"`{text.replace('[ ', '[').replace(', ]', ']')}`"


if __name__ == "__main__":
    sys.exit(main())
