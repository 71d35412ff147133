"""How long it takes, and how many clicks, from five photos each of two things to a picture of both: with nothing but the page.

`python -m studio.ui.proofs.first_composition --output FOLDER` on a fresh home; every default as it stands, unless `--effort`
moves the slider of quality and time. It keeps a picture of every stage, and the clicks and seconds as `walk.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from studio.pipelines.files import atomic_write_json
from studio.ui.proofs.browser import Seen, go, open_browser, open_page
from studio.ui.proofs.screens import WIDTHS, keep_picture
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos

HOUR_MS = 3_600_000
WIDTH = 1280
NOUNS = ("cat", "robot")
DEFAULT_EFFORT = 3


class Person:
    """Somebody at the page who counts what they do."""

    def __init__(self, page: Page, output: Path, effort: int) -> None:
        self.page = page
        self.output = output
        self.effort = effort
        self.clicks = 0
        self.started = time.monotonic()
        self.stages: list[dict[str, object]] = []

    def click(self, what: Locator) -> None:
        """One click."""
        self.clicks += 1
        what.click()

    def drop(self, files: list[Path]) -> None:
        """Photos from another window; counts as one."""
        self.clicks += 1
        self.page.set_input_files("#photos input[type=file]", files)
        expect(self.page.locator("#photo-board button.tile")).to_have_count(len(files))

    def say(self, what: str, picture: str = "", *, at: str = "") -> None:
        """Where they are; with a picture of it if it has a name. at: what is to be seen in it, by default the top."""
        seconds = time.monotonic() - self.started
        self.stages.append({"stage": what, "seconds": round(seconds), "clicks": self.clicks})
        print(f"{seconds:6.0f} s, {self.clicks:2d} clicks: {what}", flush=True)
        if picture:
            if at:
                self.page.locator(at).scroll_into_view_if_needed()
            self.page.wait_for_timeout(1500)
            keep_picture(self.page.screenshot(), self.output / f"{len(self.stages)}-{picture}.webp", WIDTHS[WIDTH])


def main() -> None:
    """Walk, and print the time and the clicks at every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/walk"))
    parser.add_argument("--home", type=Path, help="a folder that is empty or not there; by default one that is removed")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="place of the slider, 1 (quick) to 5 (thorough)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        served = Served(options.home if options.home is not None else Path(folder) / "home", worker=True)
        try:
            with open_page(browser, seen, viewport={"width": WIDTH, "height": 900}) as page:
                person = Person(page, options.output, options.effort)
                walk(person, page, served.address)
                atomic_write_json(options.output / "walk.json", {"effort": options.effort, "stages": person.stages})
        finally:
            served.close()
    print("the browser had nothing to complain about" if seen.is_clean else f"complaints: {seen}")
    raise SystemExit(0 if seen.is_clean else 1)


def walk(person: Person, page: Page, address: str) -> None:
    """Two trainings, one after the other, then the composition."""
    go(page, address, "start")
    person.say("the page is open", "start")
    person.click(page.locator("a.door").first)
    for noun in NOUNS:
        teach(person, page, noun)
    person.click(page.get_by_role("link", name="Compose", exact=True).last)
    expect(page.locator("#compose-canvas .box")).to_have_count(len(NOUNS))
    person.say("both are on the canvas, and their words are bound", "compose")
    person.click(page.locator("#compose-go"))
    expect(page.locator("#compose-told .note.good")).to_be_visible()
    expect(page.locator("#compose-run .pill")).to_have_text("done", timeout=HOUR_MS)
    expect(page.locator("#compose-pictures button.tile")).to_have_count(1)
    person.say("both are in one picture", "composed", at="#compose-pictures")


def teach(person: Person, page: Page, noun: str) -> None:
    """One training, until it is done."""
    first = noun == NOUNS[0]
    page.wait_for_selector("#page-train")
    if not first:
        person.click(page.get_by_text("Start over with other photos"))
        expect(page.locator("#photo-board button.tile")).to_have_count(0)
    person.drop(sample_photos(noun))
    person.click(page.locator(f"[data-act=noun][data-id={noun}]"))
    expect(page.get_by_label("It is a …")).to_have_value(noun)
    if person.effort != DEFAULT_EFFORT:
        person.clicks += 1
        page.locator("#effort input[type=number]").fill(str(person.effort))
        page.locator("#effort input[type=number]").press("Tab")
    if first:
        person.say("the photos are dropped and the thing has a name", "photos")
    person.click(page.locator("#train-start"))
    expect(page.locator("#train-told .note.good")).to_be_visible()
    expect(page.locator("#train-run .name")).to_contain_text(noun)
    person.say(f"the training of the {noun} is handed in")
    if first:
        expect(page.locator("#train-curves svg").first).to_be_visible(timeout=HOUR_MS)
        expect(page.locator("#page-train .samples .row").nth(2)).to_be_visible(timeout=HOUR_MS)
        person.say("it is being learned", "learning", at="#train-run")
    expect(page.locator("#train-run .pill")).to_have_text("done", timeout=HOUR_MS)
    expect(page.locator("#page-train .note.good").last).to_be_visible()
    person.say(f"the {noun} is learned", "" if first else "learned", at="#train-run")


if __name__ == "__main__":
    main()
