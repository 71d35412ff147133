"""Pages in a real browser, with nobody at work: they open clean, and what is clicked is what is asked for."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import Page, expect

from studio.service import GenerateSpec
from studio.ui.proofs.browser import Seen, browser_path, go, open_browser, open_page
from studio.ui.proofs.screens import PAGES
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos

pytestmark = pytest.mark.slow
if browser_path() is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium is installed, so no page is opened", allow_module_level=True)


def test_every_page_opens_clean_and_a_part_of_a_picture_is_redrawn(served: Served):
    seen = Seen()
    with open_browser() as browser, open_page(browser, seen) as page:
        for name in PAGES:
            go(page, served.address, name)
            expect(page.locator("h1")).to_be_visible()
        redraw(page, served)
    assert seen.is_clean, seen


def redraw(page: Page, served: Served) -> None:
    go(page, served.address, "create")
    page.get_by_text("Start from a picture").click()
    page.set_input_files("#start-picture input[type=file]", str(sample_photos("cat")[0]))
    box = page.locator("#start-canvas .box")
    expect(box).to_have_attribute("aria-label", "drawn anew: 0.00, 0.00, 1.00, 1.00")
    box.focus()
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    expect(box).to_have_attribute("aria-label", "drawn anew: 0.00, 0.00, 0.90, 1.00")
    page.click("#create-go")
    expect(page.locator("#create-told .note.good")).to_be_visible()
    spec = served.studio.request(served.studio.jobs(limit=1)[0].id).spec
    assert isinstance(spec, GenerateSpec) and spec.start is not None
    assert spec.start.mask is not None and spec.start.change == 0.6
    page.reload()
    expect(page.locator("#start-canvas .box")).to_have_count(0)  # a mask says it now, whose picture is there again
    expect(page.locator("#start-canvas img")).to_have_count(1)
