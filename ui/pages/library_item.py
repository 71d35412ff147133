"""One thing of the library: what it is, its name and notes, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import Item, ItemFilter, Kind, Studio
from studio.ui.parts.commands import FORMATS, export_adapter, exports_of, merge_adapters
from studio.ui.parts.html import act, card_head, empty, facts, link, megabytes, note, table
from studio.ui.parts.timing import first_time
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


@dataclass(frozen=True)
class ItemPart:
    """The parts that the rest of the page needs."""

    selected: gr.Textbox


def build_item(studio: Studio, settings: UiSettings) -> ItemPart:
    """The column."""
    selected = gr.Textbox(visible=False, label="item id", elem_id="library-item")
    with gr.Column(elem_classes="card"):
        about = board(elem_id="library-about")
        with gr.Column(visible=False) as editing:
            name = gr.Textbox(label=label("name"), max_length=300)
            with gr.Row():
                trigger = gr.Textbox(label=label("trigger_words"), max_length=300)
                tags = gr.Textbox(label=label("tags"), placeholder=label("tags_info"), max_length=500)
            notes = gr.Textbox(label=label("notes"), lines=2, max_length=20_000)
            save = gr.Button(label("save"), size="sm", variant="primary")
            told = html(elem_id="item-told")
    with gr.Column(elem_classes="card", visible=False) as working:
        html(card_head("export_title"))
        form = gr.Dropdown([(label(f"format_{key}"), key) for key in FORMATS], value="kohya", label=label("format"))
        export = gr.Button(label("export"), elem_id="export")
        files = gr.File(label=label("exported"), interactive=False, visible=False, elem_id="exported")
        html(card_head("two_title"))
        other = gr.Dropdown([], allow_custom_value=True, label=label("other_adapter"), value=None)
        with gr.Row():
            compare = gr.Button(label("compare_two"), size="sm")
            merge = gr.Button(label("merge_two"), size="sm")
        two = html(elem_id="two-told")
    outputs = [about, editing, name, trigger, tags, notes, working, files, other]

    def look(item_id: str, request: gr.Request) -> tuple[Any, ...]:
        words = words_for(request)
        item = _find(studio, item_id)
        if item is None:
            hidden = gr.update(visible=False)
            return empty(words("choose_one"), words("choose_one_hint")), hidden, "", "", "", "", hidden, hidden, gr.update()
        is_adapter = item.kind == Kind.ADAPTER and item.trashed is None
        made = [str(path) for path in exports_of(studio, item)] if is_adapter else []
        others = [
            (each.name, each.id) for each in studio.items(ItemFilter(kind=Kind.ADAPTER), limit=200).items if each.id != item.id
        ]
        return (
            _about(item, words), gr.update(visible=True), item.name, item.trigger or "", ", ".join(item.tags), item.notes,
            gr.update(visible=is_adapter), gr.update(value=made or None, visible=bool(made)), gr.update(choices=others),
        )  # fmt: skip

    def keep(item_id: str, name: str, trigger: str, tags: str, notes: str, request: gr.Request) -> str:
        words = words_for(request)

        def change() -> None:
            item = studio.edit(item_id, name=name, trigger=trigger or None, notes=notes)
            wanted = [tag.strip() for tag in tags.split(",") if tag.strip()]
            studio.untag(item_id, *[tag for tag in item.tags if tag not in wanted])
            studio.tag(item_id, *wanted)

        return _said(change, words("saved"))

    def do(item_id: str, event: gr.EventData) -> str:
        actions: dict[str, Callable[[], object]] = {
            "favourite": lambda: studio.edit(item_id, favourite=not studio.item(item_id).favourite),
            "trash": lambda: studio.trash(item_id),
            "restore": lambda: studio.restore(item_id),
        }
        what = str(event.act)
        return _said(actions[what], "") if what in actions else ""

    def write(item_id: str, form: str, request: gr.Request) -> tuple[str, Any]:
        """Write an adapter of the library in another format. Returns a note and the file."""
        words = words_for(request)
        try:
            path = export_adapter(studio, studio.item(item_id), form)
        except StudioError as error:
            return note(str(error), "bad"), gr.skip()
        return note(words("exported_as", name=path.name), "good"), gr.update(value=[str(path)], visible=True)

    def side_by_side(item_id: str, other_id: str | None, request: gr.Request) -> str:
        words = words_for(request)
        if not other_id:
            return note(words("choose_other"), "warn")
        return _two(studio.item(item_id), studio.item(other_id), words)

    def melt(item_id: str, other_id: str | None, request: gr.Request) -> str:
        words = words_for(request)
        if not other_id:
            return note(words("choose_other"), "warn")
        try:
            merged = merge_adapters(studio, [studio.item(item_id), studio.item(other_id)])
        except StudioError as error:
            return note(str(error), "bad")
        return note(words("merged_as", name=merged.name), "good")

    def wanted(request: gr.Request) -> str:
        return str(request.query_params.get("item", ""))

    selected.change(look, selected, outputs, **_QUIET)
    save.click(keep, [selected, name, trigger, tags, notes], told, **_QUIET).then(look, selected, outputs, **_QUIET)
    about.pick(do, selected, told, **_QUIET).then(look, selected, outputs, **_QUIET)
    export.click(write, [selected, form], [told, files], api_name="export", concurrency_limit=1, show_progress="minimal")
    compare.click(side_by_side, [selected, other], two, **_QUIET)
    merge.click(melt, [selected, other], two, api_visibility="private", concurrency_limit=1, show_progress="minimal")
    first_time(wanted, [selected])
    first_time(look, outputs, inputs=[selected])
    return ItemPart(selected)


def _find(studio: Studio, item_id: str) -> Item | None:
    return studio.library.catalogue.find(item_id) if item_id else None


def _said(action: Callable[[], object], done: str) -> str:
    try:
        action()
    except StudioError as error:
        return note(str(error), "bad")
    return note(done, "good")


def _about(item: Item, words: Words) -> str:
    """Picture, facts and buttons."""
    picture = f'<img class="pic" style="max-width:180px" src="/media/items/{item.id}/small" alt="">' if item.has_thumbnail else ""
    values = [
        (words("kind"), words.known(f"kinds_{item.kind}", item.kind)),
        (words("type"), item.type or ""),
        (words("rank"), str(item.rank or "")),
        (words("family"), item.family or ""),
        (words("trigger_words"), item.trigger or ""),
        (words("score"), "" if item.score is None else f"{item.score:.3f}"),
        (words("size"), megabytes(item.num_bytes)),
        (words("photos_word"), str(item.facts.get("num_photos", ""))),
        (words("dialect"), str(item.facts.get("dialect", ""))),
        (words("parameters"), f"{item.facts['num_parameters']:,}" if item.facts.get("num_parameters") else ""),
        (words("sha"), item.id[:12]),
    ]
    buttons = [act("favourite", item.id, ("★ " if item.favourite else "☆ ") + words("favourite"), pressed=item.favourite)]
    if item.kind == Kind.ADAPTER and item.trashed is None:
        buttons.insert(0, link(f"/create?adapter={item.id}", words("use_it"), main=True))
    buttons.append(act("restore" if item.trashed else "trash", item.id, words("restore" if item.trashed else "to_trash")))
    reason = note(str(item.facts["reason"])) if item.facts.get("reason") else ""
    return (
        f'<h2 class="card-title">{escape(item.name)}</h2><div class="stack" style="margin-top:12px">{picture}{facts(values)}'
        f'{reason}<div class="actions">{"".join(buttons)}</div></div>'
    )


def _two(first: Item, second: Item, words: Words) -> str:
    """Two adapters side by side."""
    rows = [
        (words("type"), first.type, second.type),
        (words("rank"), first.rank, second.rank),
        (words("family"), first.family, second.family),
        (words("trigger_words"), first.trigger, second.trigger),
        (words("score"), first.score, second.score),
        (words("size"), megabytes(first.num_bytes), megabytes(second.num_bytes)),
        (words("parameters"), first.facts.get("num_parameters"), second.facts.get("num_parameters")),
        (words("same_content"), *(words("yes" if first.content == second.content else "no"),) * 2),
    ]

    def cell(value: object) -> str:
        return "–" if value is None else escape(f"{value:.3f}" if isinstance(value, float) else str(value))

    return table(["", escape(first.name), escape(second.name)], [[escape(name), cell(a), cell(b)] for name, a, b in rows])
