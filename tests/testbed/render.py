"""Fills the `{{ name }}` marks of the files in etc/. HTCondor, nft and shell use `$`, so string.Template won't do."""

from __future__ import annotations

import re

from .places import ETC

MARK = re.compile(r"\{\{ *(\w+) *\}\}")


def render(template: str, **values: str) -> str:
    """The text of `etc/<template>` with its marks filled.

    Raises KeyError for a mark without a value and ValueError for a value without a mark: both are our own mistakes.
    """
    text = (ETC / template).read_text()
    unused = set(values) - set(MARK.findall(text))
    if unused:
        raise ValueError(f"etc/{template} has no mark for {', '.join(sorted(unused))}")
    return MARK.sub(lambda mark: values[mark.group(1)], text)
