"""What a browser's console says counts, but for Gradio's own streams when a page is left."""

from __future__ import annotations

import os

import pytest

from studio.ui.proofs.browser import ENDED_STREAMS, LEAVING_SECONDS, Seen, browser_path, open_browser, open_page

pytestmark = pytest.mark.slow
if browser_path() is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium is installed, so no page is opened", allow_module_level=True)


def test_ended_streams_are_errors_unless_the_page_is_left():
    seen = Seen()
    stream = f"AbortError: {ENDED_STREAMS[0]}"
    with open_browser() as browser, open_page(browser, seen) as page:
        page.goto("data:text/html,first")
        page.wait_for_timeout(1000 * LEAVING_SECONDS + 200)
        page.evaluate("text => console.error(text)", stream)
        page.evaluate("console.error('something else')")
        page.goto("data:text/html,second")
        assert seen.errors == ["something else"]
        page.wait_for_timeout(1000 * LEAVING_SECONDS + 200)
        page.evaluate("text => console.error(text)", stream)
        page.wait_for_timeout(1000 * LEAVING_SECONDS + 200)
        page.goto("data:text/html,third")
        assert seen.errors == ["something else", stream] and not seen.is_clean
