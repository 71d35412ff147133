"""The first page: the three things to do, what is going on, and the latest pictures."""

from __future__ import annotations

import gradio as gr

from studio.jobs.job import AT_WORK
from studio.service import ItemFilter, JobFilter, Kind, Studio
from studio.ui.parts.html import card_head, empty, item_tile, job_card, link
from studio.ui.parts.timing import refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, translated, words_for

NUM_PICTURES = 12


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    html(translated(_doors))
    now = html()
    with gr.Column(elem_classes="card"):
        html(card_head("start_pictures", hint=True))
        pictures = board()

    def look(request: gr.Request) -> tuple[str, str]:
        words = words_for(request)
        return _now(studio, words), _pictures(studio, words)

    refresh(look, [now, pictures], every=3.0)
    pictures.pick(None, js="() => { window.location.href = '/gallery'; }", api_visibility="private")


def _doors(words: Words) -> str:
    def door(number: int, address: str, key: str, faces: str) -> str:
        return (
            f'<a class="door" href="{address}"><span class="faces" aria-hidden="true">{faces}</span>'
            f'<span class="no">{number}</span>'
            f"<b>{words(f'{key}_title')}</b><span>{words(f'{key}_hint')}</span></a>"
        )

    def faces(*sources: str) -> str:
        return "".join(f'<img src="/media/samples/{source}" alt="">' for source in sources)

    doors = (
        door(1, "/train", "door_train", faces("mug/0", "mug/1", "mug/3")),
        door(2, "/create", "door_create", faces("cat/3", "robot/2")),
        door(3, "/compose", "door_compose", faces("cat/1", "robot/1", "mug/2")),
    )
    return f'<div class="doors">{"".join(doors)}</div>'


def _now(studio: Studio, words: Words) -> str:
    running = studio.jobs(JobFilter(states=tuple(AT_WORK)), limit=3)
    if not running:
        return ""
    cards = "".join(job_card(job, words) for job in running)
    return f'<div class="card" style="display:grid;gap:14px"><h2 class="card-title">{words("start_now")}</h2>{cards}</div>'


def _pictures(studio: Studio, words: Words) -> str:
    items = studio.items(ItemFilter(kind=Kind.PICTURE), limit=NUM_PICTURES).items
    if not items:
        return empty(words("no_pictures"), words("no_pictures_hint"), link("/create", words("make_one"), main=True))
    return f'<div class="grid">{"".join(item_tile(item, "") for item in items)}</div>'
