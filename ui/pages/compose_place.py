"""Where each adapter acts: the canvas, the table of the same numbers, and the words that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.pipelines.errors import ConfigError
from studio.ui.parts.html import card_head, note
from studio.ui.parts.plan_form import canvas_of_table, in_front, table_of
from studio.ui.parts.widgets import box_canvas, html, word_binder
from studio.ui.strings import label

COLUMNS = ("box_name", "box_left", "box_top", "box_right", "box_bottom", "box_layer")
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


@dataclass(frozen=True)
class Place:
    """The parts that the rest of the page needs."""

    canvas: gr.HTML
    words: gr.HTML
    table: gr.Dataframe
    active: gr.Radio
    buttons: gr.Row

    def choices(self, canvas: dict[str, Any]) -> tuple[Any, Any]:
        """What the radio and the buttons show for this canvas."""
        names = [(one["name"], number) for number, one in enumerate(canvas["boxes"])]
        return gr.update(choices=names, value=canvas["active"] if names else None), gr.update(visible=bool(names))


def build_place() -> Place:
    """The card."""
    with gr.Column(elem_classes="card"):
        html(card_head("place", hint=True))
        active = gr.Radio([], label=label("place_active"), elem_id="place-active")
        canvas = box_canvas("compose-canvas")
        with gr.Row(visible=False) as buttons:
            front = gr.Button(label("place_front"), size="sm", min_width=120)
            everywhere = gr.Button(label("place_everywhere"), size="sm", min_width=120)
        html(card_head("bind", hint=True))
        words = word_binder("compose-words")
        with gr.Accordion(label("place_numbers"), open=False):
            table = gr.Dataframe(
                headers=[label(name) for name in COLUMNS],
                datatype=["str", "number", "number", "number", "number", "number"],
                value=[],
                interactive=True,
                type="array",
                static_columns=[0],
                elem_id="compose-table",
                show_label=False,
            )
            told = html()

    def from_canvas(value: dict[str, Any], words: dict[str, Any]) -> tuple[Any, ...]:
        return table_of(value), value.get("active", 0), {**words, "active": value.get("active", 0)}

    def from_table(rows: list[list[Any]], value: dict[str, Any]) -> tuple[Any, str]:
        try:
            return canvas_of_table(rows, value), ""
        except ConfigError as error:
            return gr.skip(), note(str(error), "bad")

    def choose(number: int | None, value: dict[str, Any], words: dict[str, Any]) -> tuple[Any, Any]:
        chosen = 0 if number is None else int(number)
        return {**value, "active": chosen}, {**words, "active": chosen}

    def act_everywhere(value: dict[str, Any]) -> tuple[Any, Any]:
        boxes = [{**one, "box": None} if n == value.get("active") else one for n, one in enumerate(value.get("boxes", []))]
        now = {**value, "boxes": boxes}
        return now, table_of(now)

    def to_front(value: dict[str, Any]) -> tuple[Any, Any]:
        now = in_front(value)
        return now, table_of(now)

    canvas.input(from_canvas, [canvas, words], [table, active, words], **_QUIET)
    table.input(from_table, [table, canvas], [canvas, told], **_QUIET)
    active.input(choose, [active, canvas, words], [canvas, words], **_QUIET)
    everywhere.click(act_everywhere, canvas, [canvas, table], **_QUIET)
    front.click(to_front, canvas, [canvas, table], **_QUIET)
    return Place(canvas, words, table, active, buttons)
