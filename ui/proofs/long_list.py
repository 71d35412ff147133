"""What the page must stand, in a real browser: `make proof-ui`. Every check prints a line; a failed one ends with exit code 1."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect
from playwright.sync_api import Error as PlaywrightError

from studio.pipelines.files import atomic_write_json
from studio.service import ItemFilter, Kind
from studio.ui.proofs.browser import WAIT_MS, Seen, go, open_browser, open_page
from studio.ui.proofs.content import fill
from studio.ui.proofs.screens import PAGES
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos

FIRST_PAINT_MS = 1500.0
NUM_PICTURES = 500
NUM_PHOTOS = 200
SERIOUS = ("serious", "critical")
SETTINGS = "run.sample_steps = 2\nrun.checkpoint_every = 20"


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a studio's folder with things in it; by default one is filled, in minutes")
    parser.add_argument("--only", default="", help="names of checks, with commas")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name]
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        served = Served(options.home if options.home is not None else Path(folder) / "home", worker=True)
        try:
            fill(served.studio)
            with open_browser() as browser:
                for name, check in CHECKS.items():
                    if not chosen or name in chosen:
                        results.append(_result(name, check, browser, served))
        finally:
            served.close()
    if options.record is not None:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(options.record, {"when": time.strftime("%Y-%m-%d"), "checks": results})
    failed = [str(one["check"]) for one in results if not one["passed"]]
    print("all passed" if not failed else f"failed: {', '.join(failed)}")
    raise SystemExit(1 if failed else 0)


def _result(name: str, check: Callable[[Browser, Served], str], browser: Browser, served: Served) -> dict[str, object]:
    started = time.monotonic()
    try:
        said, passed = check(browser, served), True
    except (AssertionError, PlaywrightError) as error:
        said, passed = " ".join(str(error).split())[:1500], False
    seconds = time.monotonic() - started
    print(f"{'passed' if passed else 'FAILED'}  {name} ({seconds:.0f} s){': ' if said else ''}{said}", flush=True)
    tried = " ".join((check.__doc__ or "").split())
    return {"check": name, "tried": tried, "passed": passed, "seconds": round(seconds), "seen": said}


# ------------------------------------------------------------------------------------------------------------------ checks


def reload_in_training(browser: Browser, served: Served) -> str:
    """A reload, a second tab and a restart of the page in the middle of a training show the same training, further on."""
    seen = Seen()
    with open_page(browser, seen) as page, open_page(browser, Seen()) as second:
        go(page, served.address, "train")
        page.click("[data-act=sample][data-id=mug]")
        expect(page.locator("#photo-board button.tile")).to_have_count(5)
        page.get_by_text("All settings").click()
        page.get_by_label("Steps", exact=False).first.fill("60")
        page.get_by_label("Any other setting").fill(SETTINGS)
        page.click("#train-start")
        expect(page.locator("#train-told .note.good")).to_be_visible()
        expect(page.locator("#train-run .pill")).to_have_text("running", timeout=2 * WAIT_MS)
        page.reload()
        expect(page.locator("#train-run .name")).to_contain_text("mug")
        go(second, served.address, "train")
        expect(second.locator("#train-run .name")).to_contain_text("mug")
        served.restart()
        go(page, served.address, "train")
        expect(page.locator("#train-run .name")).to_contain_text("mug")
        expect(page.locator("#photo-board button.tile")).to_have_count(5)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#train-run .pill")).to_have_text("canceled", timeout=2 * WAIT_MS)
    return "the second tab and the restarted page showed it, too"


def many_photos(browser: Browser, served: Served) -> str:
    """Two hundred photos at once: all are there, and the button to start is, too."""
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder, open_page(browser, seen) as page:
        paths = _noise(Path(folder), NUM_PHOTOS, 128)
        go(page, served.address, "train")
        page.set_input_files("#photos input[type=file]", paths)
        expect(page.locator("#photo-board button.tile")).to_have_count(NUM_PHOTOS, timeout=4 * WAIT_MS)
        expect(page.locator("#train-start")).to_be_enabled()
    assert seen.is_clean, seen
    return ""


def many_pictures(browser: Browser, served: Served) -> str:
    """The gallery with five hundred pictures: first paint in time, 48 of them on the page."""
    seen = Seen()
    missing = NUM_PICTURES - len(served.studio.items(ItemFilter(kind=Kind.PICTURE), limit=NUM_PICTURES).items)
    with tempfile.TemporaryDirectory() as folder:
        for path in _noise(Path(folder), max(0, missing), 96):
            served.studio.import_picture(path)
    with open_page(browser, seen) as page:
        go(page, served.address, "gallery")
        paint = float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        assert page.locator("#gallery-board button.tile").count() == 48
        page.get_by_role("button", name="Show more").click()
        expect(page.locator("#gallery-board button.tile")).to_have_count(96)
    assert seen.is_clean, seen
    assert paint < FIRST_PAINT_MS, f"first paint after {paint:.0f} ms"
    return f"first paint after {paint:.0f} ms"


def hostile_files(browser: Browser, served: Served) -> str:
    """A bomb, a corrupt picture, a pickle by another name: a sentence each, next to where they were dropped."""
    with tempfile.TemporaryDirectory() as folder, open_page(browser, Seen()) as page:
        bomb, corrupt, pickled = (Path(folder) / name for name in ("bomb.png", "corrupt.png", "evil.safetensors"))
        Image.new("1", (12_000, 12_000)).save(bomb)
        corrupt.write_bytes(sample_photos("cat")[0].read_bytes()[:900])
        pickled.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR." * 40)
        go(page, served.address, "train")
        page.set_input_files("#photos input[type=file]", [str(bomb), str(corrupt)])
        expect(page.locator(".note.bad").first).to_contain_text("144 megapixels")
        expect(page.locator(".note.bad").first).to_contain_text("corrupt.png")
        go(page, served.address, "library")
        page.get_by_text("Bring in files").click()
        page.set_input_files("#library-import input[type=file]", str(pickled))
        expect(page.locator("#library-told .note.bad")).to_be_visible()
        said = page.locator("#library-told .note.bad").inner_text()
    return said[:120]


def strange_prompts(browser: Browser, served: Served) -> str:
    """Emoji, right-to-left words, markup and ten thousand letters are prompts like any other."""
    seen = Seen()
    with open_page(browser, seen) as page:
        for text in ("🐱🤖 in the snow", "قطة حمراء في الثلج", "<img src=x onerror=alert(1)> </script>", "cat " * 2500):
            go(page, served.address, "create")
            page.get_by_label("Pictures").fill("1")
            page.locator("#prompt textarea").fill(text)
            page.click("#create-go")
            expect(page.locator("#create-told .note.good")).to_be_visible()
            job = served.studio.jobs(limit=1)[0]
            assert served.studio.request(job.id).spec.prompts == (text.strip(),)  # type: ignore[attr-defined]
            served.studio.cancel(job.id)
    assert seen.is_clean, seen
    return ""


def slow_network(browser: Browser, served: Served) -> str:
    """400 ms each way and 400 kbit/s: the page says what it does, and a double click asks once."""
    with open_page(browser, Seen()) as page:
        session = page.context.new_cdp_session(page)
        go(page, served.address, "create")
        slow = {"offline": False, "latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
        session.send("Network.emulateNetworkConditions", slow)
        before = len(served.studio.jobs())
        page.get_by_label("Pictures").fill("1")
        page.dblclick("#create-go")
        expect(page.locator("#create-told .note.good")).to_be_visible(timeout=2 * WAIT_MS)
        page.wait_for_timeout(3000)
        made = served.studio.jobs(limit=5)[: len(served.studio.jobs()) - before]
        for job in made:
            served.studio.cancel(job.id)
        assert len(made) == 1, f"{len(made)} jobs of one double click"
    return ""


def keyboard_alone(browser: Browser, served: Served) -> str:
    """From the address to a request with Tab and Enter only, and a box that moves with the arrow keys."""
    seen = Seen()
    with open_page(browser, seen) as page:
        go(page, served.address, "create")
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "create-go":
                break
        assert page.evaluate("document.activeElement.id") == "create-go", "the button is not reached by Tab"
        page.keyboard.press("Enter")
        expect(page.locator("#create-told .note.good")).to_be_visible()
        served.studio.cancel(served.studio.jobs(limit=1)[0].id)
        go(page, served.address, "compose")
        box = page.locator("#compose-canvas .box").first
        before = box.get_attribute("aria-label")
        box.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Shift+ArrowUp")
        assert box.get_attribute("aria-label") != before
    assert seen.is_clean, seen
    return ""


def accessible(browser: Browser, served: Served) -> str:
    """axe finds nothing serious on any page, light or dark; no page complains or asks another machine."""
    from axe_playwright_python.sync_playwright import Axe

    seen, problems = Seen(), []
    for theme in ("light", "dark"):
        with open_page(browser, seen, color_scheme=theme) as page:
            for name in PAGES:
                go(page, served.address, name)
                page.wait_for_timeout(1500)
                problems += [f"{name} {theme}: {text}" for text in _serious(Axe().run(page).response["violations"])]
    assert not problems, "; ".join(problems)
    assert seen.is_clean, seen
    return f"{len(PAGES)} pages, two themes"


CHECKS: dict[str, Callable[[Browser, Served], str]] = {
    "accessible": accessible,
    "keyboard_alone": keyboard_alone,
    "hostile_files": hostile_files,
    "strange_prompts": strange_prompts,
    "slow_network": slow_network,
    "many_photos": many_photos,
    "many_pictures": many_pictures,
    "reload_in_training": reload_in_training,
}


def _serious(violations: list[dict[str, object]]) -> list[str]:
    found = []
    for one in violations:
        if one["impact"] in SERIOUS:
            nodes = one["nodes"]
            assert isinstance(nodes, list)
            found.append(f"{one['id']} at {[node['target'] for node in nodes][:3]}")
    return found


def _noise(folder: Path, count: int, side: int) -> list[Path]:
    """Pictures that are all different."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        tiles = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((side, side), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
