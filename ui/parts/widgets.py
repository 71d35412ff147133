"""Small components of our own on top of `gr.HTML`: a board of things to choose from, adapters with sliders, words, boxes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.ui.look import script


def html(value: str = "", *, elem_id: str | None = None) -> gr.HTML:
    """HTML in our own style. It must have been escaped."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id, elem_classes="plain")


def board(value: str = "", *, elem_id: str | None = None, visible: bool = True) -> gr.HTML:
    """HTML in which everything with `data-act` can be chosen; listen with `.pick(handler)`, which takes a `gr.EventData` with
    `act` and `id`. The HTML must have been escaped."""
    return gr.HTML(
        value, js_on_load=script("board"), apply_default_css=False, elem_id=elem_id, elem_classes="plain", visible=visible
    )


def adapter_picker(elem_id: str) -> gr.HTML:
    """Adapters of the library with a switch and a strength each.

    The value is a list of tables: `id`, `name`, `trigger`, `picture`, `on`, `strength`, `label`. A client of the API needs to
    give only `id`, `on` and `strength`.
    """
    return _widget([], '<div class="picker"></div>', "picker", elem_id)


def word_binder(elem_id: str) -> gr.HTML:
    """The prompt's words as buttons; see `words.js` for the value."""
    nothing = {"words": [], "owners": {}, "active": 0, "names": []}
    return _widget(nothing, '<div class="words" role="group"></div>', "words", elem_id)


def box_canvas(elem_id: str) -> gr.HTML:
    """Boxes on a canvas, drawn with the mouse; see `canvas.js` for the value. A table of numbers beside it is its twin."""
    nothing = {"boxes": [], "active": 0, "background": None, "aspect": 1}
    return _widget(nothing, '<div class="stage"><div class="paper"></div></div>', "canvas", elem_id)


def _widget(value: Any, template: str, program: str, elem_id: str) -> gr.HTML:
    """A piece of HTML that its program draws from a value of plain lists and tables. (Not a class of its own: gradio would
    write a file of types beside the source of every subclass.)"""
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=script(program),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes="plain",
    )
