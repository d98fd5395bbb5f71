from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from htcebridge.config.data import Data
from htcebridge.pilot import siteconf

DOOR = {"name": "CNAF_Disk", "prefix": "root://door.cr.example.org:1094/"}
PROXY = {"name": "Federation", "prefix": "root://proxy.cr.example.org/"}
WRITE = {"name": "CNAF_WebDAV", "prefix": "davs://door.cr.example.org:8443/cms"}
SUBSITE = {"cms_site": "T1_IT_CNAF", "cms_subsite": "CNAF-LEONARDO"}


def data(**keys: object) -> Data:
    return Data.model_validate({"read": [DOOR, PROXY], "write": WRITE, **keys})


def urls(files: dict[str, str], path: str, lfn: str) -> list[str]:
    """The physical names of a file in the order in which CMSSW tries them (SiteLocalConfigService, FileLocator)."""
    site = ElementTree.fromstring(files[f"{path}/JobConfig/site-local-config.xml"]).find("site")
    assert site is not None
    own, found = site.get("name"), []
    for catalog in site.iter("catalog"):
        storage = json.loads(files[f"{catalog.get('site') or own}/storage.json"])
        (volume,) = [each for each in storage if each["volume"] == catalog.get("volume")]
        assert volume["site"] == (catalog.get("site") or own)
        (protocol,) = [each for each in volume["protocols"] if each["protocol"] == catalog.get("protocol")]
        found.append(protocol["prefix"] + "/" + lfn.removeprefix("/"))
    return found


def test_files_are_read_from_the_door_first_and_then_through_the_proxy() -> None:
    files = siteconf.files(data(**SUBSITE))
    assert urls(files, "T1_IT_CNAF/CNAF-LEONARDO", "/store/file") == [
        "root://door.cr.example.org:1094//store/file",
        "root://proxy.cr.example.org//store/file",
    ]


def test_a_subsite_finds_its_storage_one_level_up_and_a_site_beside_jobconfig() -> None:
    assert set(siteconf.files(data(**SUBSITE))) == {
        "T1_IT_CNAF/CNAF-LEONARDO/JobConfig/site-local-config.xml",
        "T1_IT_CNAF/storage.json",
    }
    assert set(siteconf.files(data(cms_site="T2_IT_Bari"))) == {
        "T2_IT_Bari/JobConfig/site-local-config.xml",
        "T2_IT_Bari/storage.json",
    }


def test_another_sites_storage_stands_under_its_own_name() -> None:
    files = siteconf.files(data(**SUBSITE, read=[DOOR, {**PROXY, "site": "T2_IT_Bari"}]))
    assert {volume["site"] for volume in json.loads(files["T2_IT_Bari/storage.json"])} == {"T2_IT_Bari"}
    assert urls(files, "T1_IT_CNAF/CNAF-LEONARDO", "/store/f")[1] == "root://proxy.cr.example.org//store/f"


def test_what_else_cms_reads_there() -> None:
    servers = {"frontier_servers": ["http://cmsfrontier:8000/F"], "frontier_proxies": ["http://squid:3128"]}
    text = siteconf.files(data(**SUBSITE, **servers))["T1_IT_CNAF/CNAF-LEONARDO/JobConfig/site-local-config.xml"]
    site = ElementTree.fromstring(text).find("site")
    assert site is not None
    subsite, method = site.find("subsite"), site.find("stage-out/method")
    assert subsite is not None
    assert (subsite.attrib, list(subsite)) == ({"name": "CNAF-LEONARDO"}, [])
    assert method is not None
    assert method.attrib == {"volume": "CNAF_WebDAV", "protocol": "WebDAV", "command": "gfal2"}
    assert [each.tag for each in site.iterfind("calib-data/frontier-connect/*")] == ["proxy", "server"]


def test_without_a_cms_site_jobs_have_the_environment_alone() -> None:
    assert siteconf.files(data()) == {}
    assert siteconf.environment(data()) == {
        "HTCEBRIDGE_DATA_READ": "root://door.cr.example.org:1094/ root://proxy.cr.example.org/",
        "HTCEBRIDGE_DATA_WRITE": "davs://door.cr.example.org:8443/cms",
    }
    assert siteconf.environment(Data()) == {}


@pytest.mark.parametrize(
    ("prefix", "endpoint", "protocol"),
    [
        ("root://door/", "door:1094", "XRootD"),
        ("xroots://door:1095//x", "door:1095", "XRootD"),
        ("davs://door", "door:443", "WebDAV"),
        ("http://door/cms", "door:80", "WebDAV"),
    ],
)
def test_a_prefix_says_where_to_look(prefix: str, endpoint: str, protocol: str) -> None:
    (door,) = Data.model_validate({"read": [{"name": "d", "prefix": prefix}]}).read
    assert (door.endpoint, door.protocol) == (endpoint, protocol)


@pytest.mark.parametrize(
    "keys",
    [
        {"read": [DOOR, DOOR]},
        {"write": {**WRITE, "name": "CNAF_Disk"}},
        {"cms_subsite": "CNAF-LEONARDO"},
        {"read": [{"name": "d", "prefix": "root://door/$(touch X)"}]},
        {"read": [{"name": "d", "prefix": "root://door/ x"}]},
        {"read": [{"name": "d", "prefix": "root://door/'"}]},
        {"read": [{"name": "d", "prefix": "ftp://door/"}]},
        {"read": [{"name": "a-b", "prefix": "root://door/"}]},
        {"cms_site": "T1 IT"},
    ],
)
def test_what_would_not_work_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        data(**keys)
