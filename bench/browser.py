"""A page in a headless Chromium, for tests, measurements and screenshots.

The browser is the system's own (Debian's `chromium`), driven by Playwright.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """The path of the browser; None where there is none."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


class Visit:
    """A page that is open, and what it complained of or asked the network for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def wait(self, condition: str, seconds: float = 10.0) -> None:
        """Wait until `condition` (JavaScript) holds; RuntimeError if it does not. (The page's own
        policy forbids it the evaluation that Playwright would wait by.)"""
        last = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            if time.monotonic() > last:
                raise RuntimeError(f"{condition}: still not so after {seconds:g} s")
            time.sleep(0.02)

    @property
    def requests_outside(self) -> list[str]:
        """The addresses asked for that are not the page's own file, or data within it."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


@contextlib.contextmanager
def visit(file: Path, fragment: str = "", width: int = 1600, height: int = 900,
          **options: Any) -> Iterator[Visit]:
    """The page in `file`, open at ``#fragment`` in a window of this size.

    options: of Playwright's `new_page`, e.g. color_scheme="dark", reduced_motion="reduce".
    Raises RuntimeError where there is no browser.
    """
    from playwright.sync_api import sync_playwright

    path = executable()
    if path is None:
        raise RuntimeError(f"no browser: none of {', '.join(CHROMIUM)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, **options)
            result = Visit(page)
            page.goto(file.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
            yield result
        finally:
            browser.close()
