"""What jobs are told of data: SITECONF as CMS's software reads it, and plain environment variables. Pure.

CMSSW (SiteLocalConfigService) and WMCore take JobConfig/site-local-config.xml below $SITECONFIG_PATH and find
storage.json from there: beside JobConfig, one level up for a subsite, and below the other site's name for its storage.
cmsset_default.sh leaves a $SITECONFIG_PATH that is set as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from xml.etree import ElementTree

from htcebridge.config.data import Data, Door


def site_path(data: Data) -> str:
    """Where $SITECONFIG_PATH points, below SITECONF: "T1_IT_CNAF/CNAF-LEONARDO". Empty without a cms_site."""
    return "/".join(part for part in (data.cms_site, data.cms_subsite) if part)


def files(data: Data) -> dict[str, str]:
    """Path below SITECONF -> text. None where no cms_site is configured."""
    if not data.cms_site:
        return {}
    storage: dict[str, list[Door]] = {}
    for door in data.doors:
        storage.setdefault(door.site or data.cms_site, []).append(door)
    return {
        f"{site_path(data)}/JobConfig/site-local-config.xml": _site_local_config(data, data.cms_site),
        **{f"{site}/storage.json": _storage(site, doors) for site, doors in storage.items()},
    }


def environment(data: Data) -> Mapping[str, str]:
    """What every job finds in its environment: prefixes, in the order in which to try them, and where to write."""
    variables = {
        "HTCEBRIDGE_DATA_READ": " ".join(door.prefix for door in data.read),
        "HTCEBRIDGE_DATA_WRITE": data.write.prefix if data.write else "",
    }
    return {name: value for name, value in variables.items() if value}


def _site_local_config(data: Data, cms_site: str) -> str:
    root = ElementTree.Element("site-local-config")
    site = ElementTree.SubElement(root, "site", name=cms_site)
    if data.cms_subsite:
        ElementTree.SubElement(site, "subsite", name=data.cms_subsite)
    if data.read:
        access = ElementTree.SubElement(site, "data-access")
        for door in data.read:
            ElementTree.SubElement(access, "catalog", _volume(door))
    if data.write:
        stage_out = ElementTree.SubElement(site, "stage-out")
        ElementTree.SubElement(stage_out, "method", {**_volume(data.write), "command": data.write.command})
    if data.frontier_servers:
        calibration = ElementTree.SubElement(site, "calib-data")
        connect = ElementTree.SubElement(calibration, "frontier-connect")
        for proxy in data.frontier_proxies:
            ElementTree.SubElement(connect, "proxy", url=proxy)
        for server in data.frontier_servers:
            ElementTree.SubElement(connect, "server", url=server)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _volume(door: Door) -> dict[str, str]:
    """`site` stands only where it is another one's storage: so does CMS's own lookup tell them apart."""
    return {**({"site": door.site} if door.site else {}), "volume": door.name, "protocol": door.protocol}


def _storage(site: str, doors: list[Door]) -> str:
    volumes = [
        {
            "site": site,
            "volume": door.name,
            # CMSSW and WMCore join prefix and /store/... as they stand: XRootD wants the two slashes of root://host:1094/.
            "protocols": [{"protocol": door.protocol, "access": "global-rw", "prefix": door.prefix}],
            "type": "DISK",
            "rse": door.rse or f"{site}_{door.name}",
            "fts": [],
        }
        for door in doors
    ]
    return json.dumps(volumes, indent=2) + "\n"
