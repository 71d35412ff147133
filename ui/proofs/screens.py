"""Pictures of every page, at two widths and in two themes: `python -m studio.ui.proofs.screens`."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from studio.pipelines.files import atomic_write_bytes
from studio.service import ItemFilter, Kind
from studio.ui.proofs.browser import Seen, go, open_browser, open_page
from studio.ui.proofs.content import fill
from studio.ui.proofs.serving import Served

PAGES = ("start", "train", "create", "compose", "stylize", "batch", "library", "gallery", "queue", "system")
WIDTHS = {1280: 800, 390: 390}
"""Width of the window, and of the picture that is kept of it."""

THEMES = ("light", "dark")
MAX_HEIGHT = 2400
QUALITY = 72
SETTLE_MS = 1500
SLOW = {"system": "#doctor-report table"}
"""What comes last on a page that takes its time."""


def main() -> None:
    """Make the pictures; says what the browser complained about, and fails if it did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a studio's folder with things in it; by default one is filled, in minutes")
    parser.add_argument("--output", type=Path, default=Path("docs/screens"))
    parser.add_argument("--pages", default=",".join(PAGES))
    parser.add_argument("--language", default="en-GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        served = Served(options.home if options.home is not None else Path(folder) / "home", worker=True)
        try:
            fill(served.studio)
            seen = Seen()
            take(served, options.output, options.pages.split(","), options.language, seen)
        finally:
            served.close()
    for problem in (*seen.errors, *seen.away, *seen.failed):
        print(problem)
    raise SystemExit(0 if seen.is_clean else 1)


def take(served: Served, output: Path, pages: list[str], language: str, seen: Seen) -> None:
    """One picture for each page, width and theme."""
    output.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for theme in THEMES:
            for width, kept_width in WIDTHS.items():
                viewport = {"width": width, "height": 900}
                with open_page(browser, seen, viewport=viewport, color_scheme=theme, locale=language) as page:
                    for name in pages:
                        go(page, served.address, name + _chosen(served, name))
                        _settle(page, name)
                        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width}"
                        keep_picture(page.screenshot(full_page=True), output / f"{name}-{width}-{theme}.webp", kept_width)


def _chosen(served: Served, name: str) -> str:
    """Something to look at, on pages that show one thing beside many."""
    kind = {"library": Kind.ADAPTER, "gallery": Kind.PICTURE}.get(name)
    items = served.studio.items(ItemFilter(kind=kind), limit=1).items if kind is not None else ()
    return f"?item={items[0].id}" if items else ""


def _settle(page: Page, name: str) -> None:
    """Wait until everything is there, pictures further down too."""
    if name in SLOW:
        page.wait_for_selector(SLOW[name])
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(SETTLE_MS)
    page.wait_for_function("[...document.images].every((picture) => picture.complete)")
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(SETTLE_MS // 5)


def keep_picture(png: bytes, path: Path, width: int) -> None:
    """Write a screenshot as a small picture, `width` pixels wide."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, MAX_HEIGHT)))
    image.thumbnail((width, MAX_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY, method=6)
    atomic_write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    main()
