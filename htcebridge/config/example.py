"""The configuration as text: a first one with every key explained, and the one in force."""

from __future__ import annotations

import textwrap
from typing import Any

import tomli_w

from htcebridge.config import data, resource, tables, types
from htcebridge.config.tables import Config

# What a first configuration says; every other key is shown as a comment with its default.
_LEONARDO: tuple[tuple[str, type[types.Table], dict[str, Any]], ...] = (
    ("[tier1]", tables.Tier1, {"collector": "cm01.cr.example.org:9618"}),
    ("[grant]", tables.Grant, {"attribute": "OpportunisticSite", "value": "leonardo"}),
    (
        "[[vo]]",
        tables.VO,
        {
            "name": "cms",
            "issuers": ["https://cms-auth.cern.ch/"],
            "owners": ["cmspil*"],
            "request": "always",
            "placement": "either",
        },
    ),
    ("[routes]", tables.Routes, {}),
    ("[demand]", tables.Demand, {}),
    ("[pressure]", tables.Pressure, {"interval": "60s", "instance": "leonardo"}),
    ("[history]", tables.History, {}),
    ("[metrics]", tables.Metrics, {}),
    ("[log]", tables.Log, {}),
    (
        "[pilot]",
        resource.PilotSettings,
        {
            "shared_dir": "$WORK/htcebridge",
            "scratch": "$TMPDIR",
            "setup": ["source /cvmfs/datacloud.infn.it/repo/wn-leonardo/v1/etc/profile.d/wn-leonardo-setup.sh"],
            "cvmfs": ["cms.cern.ch"],
        },
    ),
    ("[connectivity.cern]", resource.Endpoint, {"endpoint": "eoscms.cern.ch:1094"}),
    ("[data]", data.Data, {"cms_site": "T1_IT_CNAF", "cms_subsite": "CNAF-LEONARDO"}),
    ("[[data.read]]", data.Door, {"name": "CNAF_Disk", "prefix": "root://door.cr.example.org:1094/"}),
    ("[[data.read]]", data.Door, {"name": "Federation", "prefix": "root://proxy.cr.example.org:1094/"}),
    ("[data.write]", data.Output, {"name": "CNAF_WebDAV", "prefix": "davs://door.cr.example.org:8443/cms"}),
    (
        "[resource.dcgp]",
        resource.Resource,
        {
            "partition": "dcgp_usr_prod",
            "account": "INF24_lhc_2",
            "qos": "qos_lowprio",
            "cpus": 112,
            "memory": "494000M",
            "gres": ["tmpfs:3t"],
            "walltime": "12h",
            "job_name": "GP_CMS_CVMFS_STARTD",
            "max_running": 10,
            "max_pending": 5,
            "template": "leonardo-dcgp",
        },
    ),
    (
        "[resource.booster]",
        resource.Resource,
        {
            "partition": "boost_usr_prod",
            "account": "INF24_lhc_1",
            "qos": "qos_lowprio",
            "cpus": 32,
            "memory": "494000M",
            "gpus": 4,
            "disk": "1T",
            "walltime": "12h",
            "job_name": "BOOST_CMS_CVMFS_STARTD",
            "max_running": 10,
            "max_pending": 5,
            "template": "leonardo-booster",
            "job_scratch": "$SCRATCH/htcebridge",
        },
    ),
)


def example() -> str:
    """A configuration for Leonardo's DCGP and Booster nodes, every key with its meaning. It validates as it stands."""
    head = (
        "# htcebridge.toml: routes, controller and pilots are all made from this file.\n"
        "# A key behind '#' has the value shown. After an edit: htcebridge config check\n"
    )
    return head + "".join(_table(header, model, values) for header, model, values in _LEONARDO)


def dump(settings: Config) -> str:
    """The configuration in force as TOML, defaults included."""
    return tomli_w.dumps(_without_none(settings.model_dump(mode="json", by_alias=True)))


def _table(header: str, model: type[types.Table], values: dict[str, Any]) -> str:
    purpose = (model.__doc__ or "").strip().splitlines()[0]
    lines = ["", f"# {purpose}", header]
    # What every pilot shares stands in [pilot]; a resource's own table shows its own keys.
    inherited = resource.PilotSettings.model_fields if model is resource.Resource else {}
    for name, field in model.model_fields.items():
        if (name in inherited and name not in values) or types.table_in(field.annotation):
            continue
        lines += textwrap.wrap(field.description or "", width=100, initial_indent="# ", subsequent_indent="# ")
        if name in values:
            lines.append(_line(name, values[name]))
        else:
            default = _plain_default(model, name)
            lines.append(f"# {_line(name, default)}" if default is not None else f"# {name} =")
    return "\n".join(lines) + "\n"


def _plain_default(model: type[types.Table], name: str) -> Any:
    """A key's default as an admin would write it."""
    blank = model.model_construct(**{name: model.model_fields[name].get_default(call_default_factory=True)})
    return blank.model_dump(mode="json", include={name}, warnings=False)[name]


def _line(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{name} = {{ {', '.join(_line(key, item) for key, item in value.items())} }}".replace("{  }", "{}")
    text = " ".join(tomli_w.dumps({name: value}).split())
    return text.replace("[ ", "[").replace(", ]", "]")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
