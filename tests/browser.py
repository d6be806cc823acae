"""Run headless Chromium for tests of the HTML pages that ixtune writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str | None:
    """Return why no browser is available for tests, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian: chromium, chromium-driver)" if absent else None


def _start(profile: Path) -> Chrome:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # with its path given, selenium looks for no driver and downloads none
    return Chrome(options, ChromeService(str(shutil.which("chromedriver"))))


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Start a browser with a new folder named after `profile` that logs requests; see `requests` and `problems`."""
    from selenium.common.exceptions import WebDriverException

    for left in (2, 1, 0):  # the driver gives Chromium a minute to start, which may be too little on a busy machine
        try:
            browser = _start(profile.with_name(f"{profile.name}-{left}"))
            break
        except WebDriverException:
            if not left:
                raise
    browser.set_script_timeout(300)
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Chrome, page: Path | str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
    """Open a file or URL at a size and in a color scheme, and clear the log."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.resolve().as_uri() if isinstance(page, Path) else page)


def problems(browser: Chrome) -> list[str]:
    """Return the console messages since the page was opened: errors, refused scripts, warnings."""
    return [f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")]


def requests(browser: Chrome) -> list[str]:
    """Return the URLs requested since the page was opened, except `data:` URLs."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = (one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent")
    return [address for address in sent if not address.startswith("data:")]
