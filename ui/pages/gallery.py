"""The gallery: all pictures, small ones first; beside them one of them with how it was made."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import Item, ItemFilter, Kind, Studio
from studio.ui.parts.html import act, empty, facts, item_tile, link, note
from studio.ui.parts.timing import first_time, refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

PAGE_SIZE = 48
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    seen, limit = gr.State(None), gr.State(PAGE_SIZE)
    selected = gr.Textbox(visible=False, label="item id", elem_id="gallery-item")
    with gr.Row(elem_classes="two wide-left"):
        with gr.Column(elem_classes="card"):
            with gr.Row(elem_classes="line"):
                text = gr.Textbox(
                    label=label("search"), placeholder=label("search_pictures"), max_length=200, elem_id="gallery-search"
                )
                favourites = gr.Checkbox(label=label("only_favourites"), value=False, min_width=170, container=False)
            shown = board(elem_id="gallery-board")
        with gr.Column(elem_classes="card"):
            about = board(elem_id="gallery-about")
            told = html()

    def look(text: str, favourites: bool, selected: str, limit: int, known: Any = None, request: gr.Request | None = None) -> Any:
        words = words_for(request)
        wanted = ItemFilter(kind=Kind.PICTURE, words=text, favourite=True if favourites else None)
        page = studio.items(wanted, limit=min(limit, 5000))
        state = repr(([(each.id, each.favourite) for each in page.items], selected, words.language))
        if state == known:
            return gr.skip(), gr.skip()
        if not page.items:
            key = "nothing_found" if text.strip() or favourites else "no_pictures"
            title = escape(words(key, text=text[:60]))
            return state, empty(title, words(f"{key}_hint"), link("/create", words("make_one"), main=True))
        more = act("more", "", words("show_more")) if page.next else ""
        return state, f'{_by_run(page.items, selected, words)}<div class="actions" style="margin-top:14px">{more}</div>'

    def choose(selected: str, limit: int, event: gr.EventData) -> tuple[str, int]:
        return (selected, limit + PAGE_SIZE) if str(event.act) == "more" else (str(event.id), limit)

    def show(item_id: str, request: gr.Request) -> str:
        words = words_for(request)
        item = studio.library.catalogue.find(item_id) if item_id else None
        return empty(words("choose_picture"), words("choose_picture_hint")) if item is None else _about(item, words)

    def do(item_id: str, event: gr.EventData) -> tuple[str, str]:
        what = str(event.act)
        try:
            if what == "favourite":
                studio.edit(item_id, favourite=not studio.item(item_id).favourite)
            elif what == "trash":
                studio.trash(item_id)
                return "", ""
        except StudioError as error:
            return item_id, note(str(error), "bad")
        return item_id, ""

    def wanted(request: gr.Request) -> str:
        return str(request.query_params.get("item", ""))

    given = [text, favourites, selected, limit]
    refresh(look, [seen, shown], inputs=[*given, seen], every=4.0)
    for part in (text, favourites, limit, selected):
        part.change(look, given, [seen, shown], **_QUIET)
    shown.pick(choose, [selected, limit], [selected, limit], **_QUIET)
    selected.change(show, selected, about, **_QUIET)
    about.pick(do, selected, [selected, told], **_QUIET).then(show, selected, about, **_QUIET)
    first_time(wanted, [selected])
    first_time(show, [about], inputs=[selected])


def _by_run(items: tuple[Item, ...], selected: str, words: Words) -> str:
    """The pictures, those of one request together under its words."""
    parts: list[str] = []
    tiles: list[str] = []
    job: object = None

    def close() -> None:
        if tiles:
            parts.append(f'<div class="grid" style="margin-bottom:16px">{"".join(tiles)}</div>')
            tiles.clear()

    for item in items:
        own = item.facts.get("job") or item.id
        if own != job:
            close()
            job = own
            parts.append(
                f'<p class="hint" style="margin-bottom:8px">{escape(str(item.facts.get("prompt", item.name))[:140])}</p>'
            )
        star = '<span class="badge star" aria-hidden="true">★</span>' if item.favourite else ""
        tiles.append(item_tile(item, "", pressed=item.id == selected, badge=star))
    close()
    return "".join(parts)


def _about(item: Item, words: Words) -> str:
    known = item.facts
    values = [
        (words("prompt"), str(known.get("prompt", ""))),
        (words("negative"), str(known.get("negative_prompt", ""))),
        (words("adapters_word"), str(known.get("adapters", ""))),
        (words("seed"), str(known.get("seed", ""))),
        (words("denoising_steps"), str(known.get("steps", ""))),
        (words("size"), f"{known.get('width', '?')} × {known.get('height', '?')}"),
        (words("base"), str(known.get("base", ""))),
    ]
    source = f"/media/items/{item.id}/whole"
    buttons = [
        link(f"/create?recipe={item.id}", words("again"), main=True),
        f'<a class="link" download="{escape(item.path.name)}" href="{source}">{words("download")}</a>',
        act("favourite", item.id, ("★ " if item.favourite else "☆ ") + words("favourite"), pressed=item.favourite),
        act("trash", item.id, words("to_trash")),
    ]
    return (
        f'<img class="pic" style="object-fit:contain;max-height:420px" src="{source}" alt="{escape(item.name)}">'
        f'<div style="display:grid;gap:14px;margin-top:14px">{facts(values)}<div class="actions">{"".join(buttons)}</div></div>'
    )
