"""Adapters of the library as rows of a picker, and their trigger words as chips."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from studio.service import ItemFilter, Kind, Studio
from studio.ui.parts.html import act
from studio.ui.strings import Words, words_for

MOST_ADAPTERS = 60

Row = dict[str, Any]


def adapter_rows(studio: Studio, words: Words, *, on: Sequence[str] = ()) -> list[Row]:
    """The library's adapters, the latest first; those in `on` are switched on."""
    items = [item for item in studio.items(ItemFilter(kind=Kind.ADAPTER), limit=MOST_ADAPTERS).items if not item.missing]
    wanted = [item for item in items if item.id in on]
    return [
        {
            "id": item.id,
            "name": item.name,
            "trigger": item.trigger or "",
            "picture": f"/media/items/{item.id}/small" if item.has_thumbnail else None,
            "on": item.id in on,
            "strength": 1.0,
            "label": words("strength_of", name=item.name),
        }
        for item in [*wanted, *[item for item in items if item.id not in on]]
    ]


def chosen(rows: Sequence[Row] | None) -> list[tuple[str, float]]:
    """(id, strength) of those that are switched on."""
    return [(str(row["id"]), float(row.get("strength", 1.0))) for row in rows or () if row.get("on", True)]


def trigger_chips(rows: Sequence[Row] | None, words: Words) -> str:
    """The trigger words of those that are on, to be clicked into the prompt."""
    triggers = dict.fromkeys(str(row["trigger"]) for row in rows or () if row.get("on") and row.get("trigger"))
    if not triggers:
        return ""
    chips = "".join(act("word", trigger, f"+ {escape(trigger)}", style="chip") for trigger in triggers)
    return f'<div class="chips" role="group" aria-label="{words("trigger_words")}">{chips}</div>'


def show_chips(rows: list[Row], request: gr.Request) -> str:
    """A handler for a picker: the chips of what is on."""
    return trigger_chips(rows, words_for(request))


def put_words(text: str, event: gr.EventData) -> str:
    """A handler for the chips: the prompt with what was clicked."""
    return with_words(text, str(event.id))


def with_words(text: str, words: str) -> str:
    """The prompt with `words` at its end, unless they are in it already."""
    if words.lower() in text.lower():
        return text
    return f"{text.rstrip()} {words}".strip() if not text.strip() or text.rstrip()[-1:] in ",." else f"{text.rstrip()}, {words}"
