"""A real Chromium, as Debian packages it, without a screen: what a page shows, on a desk, a phone and paper."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.testbed.places import cache_dir, locked
from tests.testbed.root import apt_install

PROJECT = Path(__file__).parents[2]
SCREENSHOTS = PROJECT / "build" / "screenshots"
_PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    # Nothing that Chromium would ask by itself gets anywhere; a page may only come from a file or from this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


class Browser:
    """One window. Everything that any page has written to the console or asked for is kept."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._said: list[str] = []
        self._asked: list[str] = []

    def open(self, where: Path | str) -> None:
        self.driver.get(where.resolve().as_uri() if isinstance(where, Path) else where)

    def looks(self, width: int, height: int, scheme: str = "light", phone: bool = False) -> None:
        """From now on, the window is so large, and the user prefers this colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._do("Emulation.setDeviceMetricsOverride", size)
        self._do(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}], "media": ""}
        )

    def asks(self, script: str, *values: object) -> Any:
        """What this JavaScript returns in the page."""
        return self.driver.execute_script(script, *values)

    def press(self, *keys: str) -> None:
        """Keys as a keyboard sends them, to whatever has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def shoot(self, name: str, whole: bool = True) -> Path:
        """A picture of the window or of the whole page, kept in build/screenshots."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        picture = self._do("Page.captureScreenshot", {"captureBeyondViewport": whole, **self._clip(whole)})
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def _clip(self, whole: bool) -> dict[str, object]:
        if not whole:
            return {}
        size = self._do("Page.getLayoutMetrics", {})["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def prints(self, name: str) -> Path:
        """The page on A4 paper, as PDF, kept beside the pictures."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.pdf"
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True, "preferCSSPageSize": False}
        path.write_bytes(base64.b64decode(self._do("Page.printToPDF", paper)["data"]))
        return path

    def console(self) -> list[str]:
        """What stands in the console since the last `forget`: errors, warnings, what a security policy refused."""
        self._said += [str(entry["message"]) for entry in self._log("browser")]
        return list(self._said)

    def requests(self) -> list[str]:
        """What the pages have asked for since the last `forget`, by address; also what was refused."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        self._asked += [
            each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"
        ]
        return list(self._asked)

    def forget(self) -> None:
        """From now on only what comes is kept; Chromium's own first page asks for much."""
        for name in ("browser", "performance"):
            self._log(name)
        self._said.clear()
        self._asked.clear()

    def _log(self, name: str) -> list[dict[str, Any]]:
        """What is new in a log of the driver; reading it empties it."""
        return list(self.driver.get_log(name))  # type: ignore[no-untyped-call]

    def _do(self, command: str, values: Mapping[str, object]) -> Any:
        return self.driver.execute_cdp_cmd(command, dict(values))


def ensure_chromium() -> None:
    """Install Chromium and its driver through apt, once. Half a minute on a good network."""
    with locked(cache_dir() / "apt.lock"):
        missing = sorted(package for program, package in _PROGRAMS.items() if shutil.which(program) is None)
        if missing:
            # What renders text needs a font.
            apt_install([*missing, "fonts-dejavu-core"], print)


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with an empty profile, gone with the block."""
    ensure_chromium()
    with tempfile.TemporaryDirectory(prefix="htcebridge-chromium-") as profile:
        options = ChromeOptions()
        for option in (*_OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.binary_location = str(shutil.which("chromium"))
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options, ChromeService(str(shutil.which("chromedriver"))))
        try:
            seen = Browser(driver)
            seen.open("about:blank")
            seen.forget()
            yield seen
        finally:
            driver.quit()
