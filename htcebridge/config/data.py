"""What the admin writes of data: where jobs read from afar, in order, and where they write."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from htcebridge.config.types import DataUrl, Identifier, Table, WebUrl, Word

# IANA's ports, and XRootD's for its own scheme.
_PORTS = {"http": 80, "dav": 80, "https": 443, "davs": 443}
_XROOTD_PORT = 1094


class Door(Table):
    """One door or proxy: `prefix` in front of a file's logical name (/store/...) is its URL there."""

    name: Annotated[
        Identifier, Field(description="Its name: of the volume in storage.json, and in PilotReaches_NAME of the ads.")
    ]
    prefix: Annotated[
        DataUrl, Field(description='What stands in front of /store/...: "root://door:1094/", "davs://door:8443/cms".')
    ]
    site: Annotated[Word | None, Field(description="The CMS site whose storage it is. Left out: cms_site.")] = None
    rse: Annotated[Word | None, Field(description="Its name in Rucio. Left out: SITE_NAME.")] = None
    critical: Annotated[bool, Field(description="A pilot that cannot reach it ends.")] = False

    @property
    def endpoint(self) -> str:
        """host:port."""
        url = urlsplit(self.prefix)
        return f"{url.hostname}:{url.port or _PORTS.get(url.scheme, _XROOTD_PORT)}"

    @property
    def protocol(self) -> str:
        """As CMS's storage.json names it."""
        return "WebDAV" if urlsplit(self.prefix).scheme in _PORTS else "XRootD"


class Output(Door):
    """Where jobs write: a davs endpoint as a rule."""

    command: Annotated[Word, Field(description="CMS's stage-out command.")] = "gfal2"


class Data(Table):
    """What jobs read and write from afar: SITECONF for CMS, environment variables for all."""

    cms_site: Annotated[
        Word | None,
        Field(description='The CMS site that these nodes extend ("T1_IT_CNAF"). Left out: no SITECONF is made.'),
    ] = None
    cms_subsite: Annotated[
        Word | None, Field(description='Their name below it ("CNAF-LEONARDO"). Left out: they are the site itself.')
    ] = None
    read: Annotated[
        tuple[Door, ...], Field(description="Where jobs read, in this order: the local one first, then the federation.")
    ] = ()
    write: Annotated[Output | None, Field(description="Where jobs write.")] = None
    frontier_servers: Annotated[
        tuple[WebUrl, ...], Field(description="CMS's servers of conditions data. Empty: SITECONF names none.")
    ] = ()
    frontier_proxies: Annotated[tuple[WebUrl, ...], Field(description="Squids in front of them, tried in order.")] = ()

    @property
    def doors(self) -> tuple[Door, ...]:
        """All of them, in the order in which jobs try them."""
        return (*self.read, *((self.write,) if self.write else ()))

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        names = [door.name.lower() for door in self.read]
        if len(set(names)) != len(names):
            raise ValueError("two [[data.read]] tables have the same name")
        same = [door for door in self.read if self.write and door.name.lower() == self.write.name.lower()]
        if same:
            raise ValueError("[data.write] has the name of a [[data.read]] table; choose another name")
        if self.frontier_proxies and not self.frontier_servers:
            raise ValueError("frontier_proxies stand in front of frontier_servers: give those too")
        if self.cms_subsite and not self.cms_site:
            raise ValueError("cms_subsite is a part of a cms_site: give that too")
        return self
