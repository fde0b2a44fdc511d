"""Chromium over a running pipeline. `make test-browser` runs these; each leaves its pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PICTURES = Path(os.environ.get("HEADRACE_PICTURES", "build/pictures"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 20_000


@pytest.fixture(scope="session")
def browser():
    if os.environ.get("HEADRACE_TEST_BROWSER") != "1":
        pytest.skip("the dashboard is walked through by make test-browser")
    from playwright import sync_api  # noqa: PLC0415 - installed by make test-browser alone

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "there is no Chromium: apt-get install chromium fonts-dejavu-core"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class Visit:
    """A page of a pipeline's dashboard, and all that a person would not like about it."""

    def __init__(self, browser, url, name, **look):
        self.url = url
        self.name = name
        self.complaints = []
        look = {"viewport": {"width": 1200, "height": 800}, "accept_downloads": True, **look}
        self.context = browser.new_context(base_url=url, **look)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.expected = ()

    def _on_console(self, message):
        if message.type in {"error", "warning"} and not any(
            word in message.text for word in self.expected
        ):
            self.complaints.append(f"{message.type}: {message.text}")

    def _on_request(self, request):
        if not request.url.startswith((self.url, f"blob:{self.url}")):
            self.complaints.append(f"another host: {request.url}")

    def to(self, path):
        self.page.goto(path, wait_until="load")
        self.page.wait_for_load_state("domcontentloaded")
        return self.page

    def picture(self, name):
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{self.name}-{name}.png", full_page=True)

    def width(self):
        return self.page.evaluate("document.documentElement.scrollWidth")

    def close(self):
        self.context.close()
        assert self.complaints == []


@pytest.fixture
def visit(browser):
    visits = []

    def open_visit(url, name="wide", **look):
        visits.append(Visit(browser, url, name, **look))
        return visits[-1]

    yield open_visit
    for one in visits:
        one.close()
