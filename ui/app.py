"""All pages in one application: each has an address of its own, so that reload, links and the back button work."""

from __future__ import annotations

import gradio as gr

from studio.service import Studio
from studio.ui.pages import PAGES
from studio.ui.parts.frame import page_frame
from studio.ui.settings import UiSettings

DAY_SECONDS = 86_400


def build_pages(studio: Studio, settings: UiSettings) -> gr.Blocks:
    """Every page of `PAGES`; the first one is at the root."""
    with gr.Blocks(
        title="Diffusion Customization Studio", analytics_enabled=False, fill_width=True, delete_cache=(DAY_SECONDS, DAY_SECONDS)
    ) as app:
        _page(studio, settings, 0)
    for number, page in enumerate(PAGES[1:], start=1):
        with app.route(page.name, page.path):
            _page(studio, settings, number)
    return app


def _page(studio: Studio, settings: UiSettings, number: int) -> None:
    page = PAGES[number]
    gr.Navbar(visible=False)
    page_frame(page.name, [(each.name, each.path) for each in PAGES])
    with gr.Column(elem_classes="page", elem_id=f"page-{page.name}"):
        page.build(studio, settings)
