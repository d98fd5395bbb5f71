"""Hooks of mkdocs.yml: what makes one set of Markdown files read well both in the repository and as pages.

- README.md and CHANGELOG.md are pages too, the first one the front page.
- A link out of docs/ leads to their pages; one to any other file of the repository is left as its text.
- Headings have the anchors that GitHub gives them.
- What belongs to an item of a list is indented as Python-Markdown wants it, by four columns.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# A file beside docs/ -> its page.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub makes them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made from files beside docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links and lists as the pages need them; code is left alone."""
    made_from = {there: here for here, there in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_LINK.sub(lambda link: _link(link, posixpath.dirname(made_from)), part) for part in parts[::2]]
    return "\n".join(_indented("".join(parts).split("\n")))


def _indented(lines: list[str]) -> Iterator[str]:
    """CommonMark wants an item's further lines below its text, Python-Markdown four columns in."""
    more, fence = "", False
    for line in lines:
        item = re.match(r"(\d+\. |- )", line)
        if not fence and item:
            more = " " * (4 - len(item[1]))
            yield line
            continue
        if line and not line.startswith(" "):
            more = ""
        yield more + line if line else line
        fence ^= line.lstrip().startswith("```")


def _link(link: re.Match[str], directory: str) -> str:
    text, target, anchor = link[1], posixpath.normpath(posixpath.join(directory, link[2])), link[3] or ""
    if target in PAGES:
        return f"[{text}]({PAGES[target]}{anchor})"
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')}{anchor})"
    return text


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as GitHub makes it. https://docs.github.com (section links)"""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", separator)
