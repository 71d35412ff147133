"""The library: cards, search, bringing in; beside them what is known of one thing, and what can be done with it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import Imported, Item, ItemFilter, Studio
from studio.ui.pages.library_item import build_item
from studio.ui.parts.html import act, empty, item_tile, link, note
from studio.ui.parts.timing import refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

PAGE_SIZE = 48
KINDS = ("adapter", "concept", "plan", "base")
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    seen = gr.State(None)
    with gr.Row(elem_classes="two wide-left"):
        with gr.Column(elem_classes="card"):
            with gr.Row(elem_classes="line"):
                words_box = gr.Textbox(
                    label=label("search"),
                    placeholder=label("search_hint"),
                    max_length=200,
                    min_width=240,
                    elem_id="library-search",
                )
                kind = gr.Dropdown(
                    [(label(f"kinds_{name}"), name) for name in KINDS], value="adapter", label=label("kind"), min_width=120
                )
                in_trash = gr.Checkbox(label=label("in_trash"), value=False, min_width=90, container=False)
            shown = board(elem_id="library-board")
            with gr.Accordion(label("bring_in"), open=False):
                files = gr.File(
                    label=label("bring_in_files"),
                    file_types=[".safetensors", ".png", ".yaml", ".yml", ".json"],
                    file_count="multiple",
                    type="filepath",
                    height=130,
                    elem_id="library-import",
                    elem_classes="drop",
                )
                told = html(elem_id="library-told")
        with gr.Column():
            item = build_item(studio, settings)
    limit = gr.State(PAGE_SIZE)

    def look(
        text: str, kind: str, trash: bool, selected: str, limit: int, known: Any = None, request: gr.Request | None = None
    ) -> Any:
        words = words_for(request)
        wanted = ItemFilter(kind=kind, words=text, in_trash=trash)
        page = studio.items(wanted, limit=min(limit, 5000))
        state = repr(
            ([(each.id, each.name, each.favourite, each.has_thumbnail) for each in page.items], selected, words.language)
        )
        if state == known:
            return gr.skip(), gr.skip()
        if not page.items:
            return state, _nothing(text, kind, words)
        cards = "".join(item_tile(each, _under(each), pressed=each.id == selected, badge=_badge(each)) for each in page.items)
        more = act("more", "", words("show_more")) if page.next else ""
        return state, f'<div class="grid">{cards}</div><div class="actions" style="margin-top:14px">{more}</div>'

    def bring_in(paths: list[str] | None, request: gr.Request) -> tuple[str, None]:
        """Bring in adapter files, plans and pictures. Returns a note with what was taken and what was refused, and why."""
        words = words_for(request)
        lines, refused = [], False
        for path in paths or ():
            try:
                done: Imported = studio.library.add_anything(Path(path), owner=studio.owner)
                key = "brought_in" if done.new else "was_there"
                lines.append(words(key, name=done.item.name if done.item else Path(path).name))
            except StudioError as error:
                refused = True
                lines.append(str(error).replace(str(Path(path).parent) + "/", ""))
        return note("\n".join(lines), "bad" if refused else "good"), None

    def choose(selected: str, limit: int, event: gr.EventData) -> tuple[str, int]:
        return (selected, limit + PAGE_SIZE) if str(event.act) == "more" else (str(event.id), limit)

    given = [words_box, kind, in_trash, item.selected, limit]
    refresh(look, [seen, shown], inputs=[*given, seen], every=3.0)
    for part in (words_box, kind, in_trash, item.selected, limit):
        part.change(look, given, [seen, shown], **_QUIET)
    shown.pick(choose, [item.selected, limit], [item.selected, limit], **_QUIET)
    files.upload(bring_in, files, [told, files], api_name="bring_in", show_progress="minimal").then(
        look, given, [seen, shown], **_QUIET
    )


def _under(item: Item) -> str:
    about = item.trigger or item.class_noun or item.type or ""
    return f"<b>{escape(item.name[:60])}</b><br>{escape(about[:60])}"


def _badge(item: Item) -> str:
    star = '<span class="badge star" aria-hidden="true">★</span>' if item.favourite else ""
    return star + (f'<span class="badge">{escape(item.type)}</span>' if item.type else "")


def _nothing(text: str, kind: str, words: Words) -> str:
    if text.strip():
        return empty(escape(words("nothing_found", text=text[:60])), words("nothing_found_hint"))
    return empty(words(f"no_{kind}"), words(f"no_{kind}_hint"), link("/train", words("train_one"), main=True))
