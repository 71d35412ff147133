"""From five photos to a composed picture with nothing but the page, in a real browser; then a batch and an export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.service import ItemFilter, Kind
from studio.ui.proofs.browser import WAIT_MS, Seen, browser_path, go, open_browser, open_page
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos

pytestmark = pytest.mark.slow
if browser_path() is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium is installed, so the page is not walked through", allow_module_level=True)

SETTINGS = "run.sample_every = 0\nrun.checkpoint_every = 20\ndata.batch_size = 1"


def test_from_five_photos_to_a_composed_picture(working: Served):
    seen = Seen()
    with open_browser() as browser, open_page(browser, seen) as page:
        learn(page, working)
        create(page, working)
        export_and_bring_in(page, working)
        compose(page, working)
        batch(page, working)
    assert seen.away == [], "a request left this machine"
    assert seen.errors == [] and seen.failed == []


def succeeded(page: Page, where: str) -> None:
    """Wait for the pill of a job that is done."""
    expect(page.locator(f"{where} .pill").first).to_have_text("done", timeout=4 * WAIT_MS)


def learn(page: Page, working: Served) -> None:
    go(page, working.address, "train")
    page.set_input_files("#photos input[type=file]", [str(path) for path in sample_photos("cat")])
    expect(page.locator("#photo-board button.tile")).to_have_count(5)
    page.get_by_label("It is a …").fill("cat")
    page.get_by_text("All settings").click()
    page.get_by_label("Steps", exact=False).first.fill("20")
    page.get_by_label("Any other setting").fill(SETTINGS)
    page.click("#train-start")
    expect(page.locator("#train-told .note.good")).to_be_visible()
    page.reload()
    expect(page.locator("#photo-board button.tile")).to_have_count(5)
    succeeded(page, "#train-run")
    expect(page.locator("#train-curves svg").first).to_be_visible()


def create(page: Page, working: Served) -> None:
    page.get_by_role("link", name="Draw with it").click()
    expect(page.locator("#adapters .one input[type=checkbox]").first).to_be_checked()
    expect(page.locator("#prompt textarea")).to_have_value("a photo of a ohwx cat in the snow")
    few_steps(page)
    page.click("#create-go")
    succeeded(page, "#create-run")
    page.locator("#create-pictures button.tile").first.click()
    expect(page.locator("#create-large img")).to_be_visible()


def few_steps(page: Page) -> None:
    page.get_by_label("Pictures").fill("1")
    page.get_by_text("More controls").click()
    page.locator("input[type=number][aria-label*=Steps]").fill("3")


def export_and_bring_in(page: Page, working: Served) -> None:
    go(page, working.address, "library")
    page.locator("#library-board button.tile").first.click()
    page.click("#export")
    expect(page.locator("#item-told .note.good")).to_be_visible(timeout=4 * WAIT_MS)
    (exported,) = (working.home / "exports").rglob("*.safetensors")
    page.get_by_text("Bring in files").click()
    page.set_input_files("#library-import input[type=file]", str(exported))
    expect(page.locator("#library-told .note.good")).to_be_visible()
    assert len(working.studio.items(ItemFilter(kind=Kind.ADAPTER)).items) == 2


def compose(page: Page, working: Served) -> None:
    go(page, working.address, "compose")
    page.locator("#compose-prompt textarea").fill("a ohwx cat and a robot in the snow")
    expect(page.locator("#compose-canvas .box")).to_have_count(2)
    before = [box.get_attribute("aria-label") for box in page.locator("#compose-canvas .box").all()]
    drag(page, page.locator("#compose-canvas .box").nth(0), 0.5, -40)
    drag(page, page.locator("#compose-canvas .box .grip").nth(1), 0.5, -30)
    after = [box.get_attribute("aria-label") for box in page.locator("#compose-canvas .box").all()]
    assert before[0] != after[0] and before[1] != after[1]
    page.locator("#place-active input").nth(1).check()
    page.locator("#compose-words .word", has_text="robot").click()
    page.get_by_label("Steps").fill("3")
    page.click("#compose-go")
    expect(page.locator("#compose-told .note.good")).to_be_visible()
    succeeded(page, "#compose-run")
    expect(page.locator("#compose-pictures button.tile")).to_have_count(1)
    (job,) = [job for job in working.studio.jobs() if job.kind == "compose"]
    plan = working.studio.request(job.id).spec.plan
    assert [entry.region is not None for entry in plan.entries] == [True, True]
    assert plan.entries[1].words == "robot"


def drag(page: Page, what, share: float, by: float) -> None:
    box = what.bounding_box()
    x, y = box["x"] + box["width"] * share, box["y"] + box["height"] * share
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by / 2, y + by / 2)
    page.mouse.move(x + by, y + by)
    page.mouse.up()


def batch(page: Page, working: Served) -> None:
    go(page, working.address, "batch")
    page.locator("#batch-text textarea").fill("a {red|blue} cat --num_images 2 --steps 2")
    page.click("#batch-look")
    expect(page.locator("#batch-expansion tbody tr")).to_have_count(4)
    page.click("#batch-go")
    succeeded(page, "#batch-run")
    expect(page.get_by_role("link", name="Open the report")).to_be_visible()
    (job,) = [job for job in working.studio.jobs() if job.kind == "batch"]
    assert len(list(Path(working.studio.request(job.id).output_dir).rglob("*.png"))) >= 4
