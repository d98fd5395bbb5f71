"""Paths of the edge node: as the admin wrote them, and what they are here.

`~` and $VARIABLES are put in once, when the configuration is read; nobody expands anything later.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from htcebridge.errors import ConfigError, UnsetVariable

_WRITTEN = re.compile(r"(~|/|\$\w+|\$\{\w+\}).*")


@dataclass(frozen=True, order=True)
class EdgePath:
    """A path of the edge node. `str` gives it as written, `path` what it is here.

    A CE admin has the same file, and none of the HPC's variables: one that is not set is an error where the path is
    used, not where it is read.
    """

    written: str
    key: str = ""
    here: str = ""

    def __str__(self) -> str:
        return self.written

    @property
    def path(self) -> Path:
        """The absolute path. Raises UnsetVariable, ConfigError."""
        if "$" in self.here:
            raise UnsetVariable(
                f"{self.key} = {self.written!r}: an environment variable in it is not set here; set it or write the "
                "path"
            )
        if not os.path.isabs(self.here):
            raise ConfigError(f"{self.key} = {self.written!r}: not an absolute path")
        return Path(self.here)

    def check(self) -> None:
        """Raises as `path`."""
        self.path  # noqa: B018


def expand(written: str, key: str) -> EdgePath:
    """A path as the configuration's `key` has it, with ~ and $VARIABLES put in."""
    return EdgePath(written, key, os.path.expanduser(os.path.expandvars(written)))


@dataclass(frozen=True)
class Key:
    """Goes with EdgePath in a field's type: reads the text that stands there, `name` is for what is said of it."""

    name: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def _read(self, value: object) -> EdgePath:
        text = str(value) if isinstance(value, EdgePath) else value
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a text")
        if not text.isprintable():
            raise ValueError(f"{text!r} has a line break or a control character in it")
        if not _WRITTEN.fullmatch(text):
            raise ValueError(f"{text!r} is not an absolute path (it may begin with ~ or $VARIABLE)")
        return expand(text, self.name)
