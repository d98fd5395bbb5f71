"""The docs as pages: they build without a warning, no link of theirs is dead, and nothing is fetched from elsewhere.

And the plots: they are there, and what the docs say of each simulated day is what `simulate` says.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner

import htcebridge
from htcebridge.cli import cli

pytest.importorskip("mkdocs")
ROOT = Path(htcebridge.__file__).resolve().parent.parent
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("not a checkout: no docs", allow_module_level=True)
DECIDES = (ROOT / "docs" / "how-it-decides.md").read_text(encoding="utf-8")


class Page(HTMLParser):
    """A built page's anchors, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    where = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(where)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return where


def test_no_link_of_a_page_is_dead(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 15
    links = 0
    # 404.html is for a web server: its links begin at the server's root.
    for path, page in pages.items():
        for link in page.links + page.loads if path.name != "404.html" else ():
            parts = urlsplit(link)
            if parts.scheme:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else path
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
    assert links > 500


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert [link for link in Page(path).loads if urlsplit(link).netloc] == [], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_a_page_has_the_tables_and_code_of_its_markdown(site: Path) -> None:
    names = {page: page.stem for page in (ROOT / "docs").glob("*.md")}
    for page, name in {**names, ROOT / "README.md": "index", ROOT / "CHANGELOG.md": "changelog"}.items():
        text, html = page.read_text(encoding="utf-8"), (site / f"{name}.html").read_text(encoding="utf-8")
        assert len(re.findall(r"^ *\|(?:---\|)+$", text, re.MULTILINE)) == html.count("<table"), page.name
        assert len(re.findall(r"^ *```\w+$", text, re.MULTILINE)) == html.count("<pre"), page.name


def test_every_page_stands_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    there = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert there - set(re.findall(r"[\w-]+\.md", nav)) == set()


SIMULATED = re.findall(r"^htcebridge (simulate [^\n]*)\n```\n\n```text\n(.*?)^```$", DECIDES, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("command", "shown"), SIMULATED)
def test_a_simulated_day_comes_out_as_the_page_says(command: str, shown: str) -> None:
    arguments, _, plot = command.partition(" --plot ")
    assert (ROOT / plot).is_file()
    said = CliRunner().invoke(cli, arguments.split(), env={"COLUMNS": "120"}).output.splitlines()
    assert [line for line in shown.splitlines() if line not in said] == []


def test_every_plot_is_one_that_make_plots_draws() -> None:
    drawn = {re.search(r"--plot (\S+)", command)[1] for command, _ in SIMULATED}  # type: ignore[index]
    assert drawn == {f"docs/images/{path.name}" for path in (ROOT / "docs" / "images").iterdir()}
