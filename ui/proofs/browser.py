"""A headless Chromium that writes down everything it should not have done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOCAL = ("127.0.0.1", "localhost")
STATE_PATH = "/run/predict"
SETTLE_MS = 1000
WAIT_MS = 120_000
"""Browsers of busy machines take their time."""

ENDED_STREAMS = ("BodyStreamBuffer was aborted", "Connection errored out")
LEAVING_SECONDS = 2.0
"""Gradio ends its streams when a page is left, and sometimes its own handler of that still runs and complains. Next to a change
of the page these words are no error; anywhere else they are one."""


def browser_path() -> str | None:
    """A Chromium of this machine; None if there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name)) is not None), None)


@dataclass
class Seen:
    """What a page did. errors: of its console. away: requests to other machines. failed: answers of 500 and up."""

    errors: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _ended: list[tuple[float, str]] = field(default_factory=list)
    _left: float = float("-inf")

    def watch(self, page: Page) -> None:
        """Write down what `page` does from now on."""
        page.on("console", lambda message: self._complained(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._complained(str(error)))
        page.on("framenavigated", lambda frame: self._was_left() if frame == page.main_frame else None)
        page.on("request", lambda request: self.away.append(request.url) if not is_local(request.url) else None)
        page.on("response", lambda answer: self.failed.append(f"{answer.status} {answer.url}") if answer.status >= 500 else None)

    def _complained(self, text: str) -> None:
        now = time.monotonic()
        if any(words in text for words in ENDED_STREAMS):
            if now - self._left < LEAVING_SECONDS:
                return
            self._ended.append((now, text))
        self.errors.append(text)

    def _was_left(self) -> None:
        self._left = time.monotonic()
        for when, text in self._ended:
            if self._left - when < LEAVING_SECONDS:
                self.errors.remove(text)
        self._ended.clear()

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to complain about."""
        return not (self.errors or self.away or self.failed)


def is_local(url: str) -> bool:
    """Whether a request stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in LOCAL


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The browser; an AssertionError where there is none."""
    path = browser_path()
    assert path is not None, "no Chromium was found: apt-get install chromium"
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, seen: Seen, **options: Any) -> Iterator[Page]:
    """A page with nothing in its memory; options as in `Browser.new_context`."""
    context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    seen.watch(page)
    try:
        yield page
    finally:
        context.close()


def go(page: Page, address: str, name: str) -> None:
    """Open one of our pages, and wait until it can be used: it has read its state for the first time."""
    with page.expect_response(lambda answer: STATE_PATH in answer.url, timeout=WAIT_MS):
        page.goto(f"{address}/{'' if name == 'start' else name}", timeout=WAIT_MS)
    page.wait_for_selector(f"#page-{name.partition('?')[0]}")
    page.wait_for_timeout(SETTLE_MS)
