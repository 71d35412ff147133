"""What stands around every page: the bar with the links, the title and the sentence below it."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from studio.ui.strings import Words, translated

_SHOW_ACTIVE = """
const nav = element.querySelector('nav'), active = element.querySelector('[aria-current]');
if (nav && active) nav.scrollLeft = active.offsetLeft - nav.offsetLeft - (nav.clientWidth - active.clientWidth) / 2;
"""
"""On a narrow screen the bar scrolls: it begins with the page that is open."""


def page_frame(active: str, addresses: Sequence[tuple[str, str]]) -> None:
    """The bar and the head of page `active`.

    Args:
        addresses: name and path of every page.
    """

    def frame(words: Words) -> str:
        anchors = "".join(
            f'<a href="/{path}"{" aria-current=page" if name == active else ""}>{words(f"nav_{name}")}</a>'
            for name, path in addresses
        )
        return (
            f'<a class="skip" href="#page-{active}">{words("skip_link")}</a>'
            f'<header class="bar"><a class="brand" href="/"><span class="mark" aria-hidden="true"></span>Studio</a>'
            f'<nav aria-label="{words("nav_label")}">{anchors}</nav></header>'
            f'<div class="headline"><h1>{words(f"{active}_title")}</h1><p>{words(f"{active}_lead")}</p></div>'
        )

    gr.HTML(translated(frame), elem_classes="frame plain", apply_default_css=False, js_on_load=_SHOW_ACTIVE)
