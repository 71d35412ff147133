"""The content of one picture in the style of another: two B-LoRAs, one picture or a table of several."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import AdapterChoice, ItemFilter, JobFilter, Kind, Studio, StylizeSpec
from studio.ui.pages.create_results import build_results
from studio.ui.parts.asking import hand_in
from studio.ui.parts.html import card_head, empty, note, table
from studio.ui.parts.timing import first_time, refresh
from studio.ui.parts.widgets import html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

MOST_CELLS = 25
HALVES = frozenset({"content", "style"})
"""Roles that a B-LoRA's file names; other adapters are whole."""

_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    seen = gr.State(None)
    with gr.Row(elem_classes="two"):
        with gr.Column():
            with gr.Column(elem_classes="card"):
                content = gr.Dropdown(
                    [],
                    multiselect=True,
                    allow_custom_value=True,
                    label=label("stylize_content"),
                    info=label("stylize_content_info"),
                )
                content_strength = gr.Slider(0, 2, value=1, step=0.05, label=label("content_strength"))
                style = gr.Dropdown(
                    [], multiselect=True, allow_custom_value=True, label=label("stylize_style"), info=label("stylize_style_info")
                )
                style_strength = gr.Slider(0, 2, value=1, step=0.05, label=label("style_strength"))
                prompt = gr.Textbox(label=label("stylize_prompt"), info=label("stylize_prompt_info"), max_length=20_000)
                keep_colours = gr.Checkbox(label=label("keep_colours"), value=False)
                with gr.Row():
                    num_images = gr.Number(label=label("num_images"), value=1, precision=0, minimum=1, maximum=16, min_width=90)
                    seed = gr.Number(label=label("seed"), value=0, precision=0, minimum=0, min_width=110)
                    steps = gr.Number(
                        label=label("denoising_steps"), value=30, precision=0, minimum=1, maximum=1000, min_width=90
                    )
                with gr.Accordion(label("more_controls"), open=False):
                    base = gr.Textbox(label=label("base"), info=label("base_info"), value="embedded")
                go = gr.Button(label("stylize_go"), variant="primary", size="lg", elem_id="stylize-go")
                told = html(elem_id="stylize-told")
        with gr.Column():
            results = build_results(studio, settings, ("stylize",), "stylize")
            with gr.Column(elem_classes="card"):
                html(card_head("matrix", hint=True))
                matrix = html(elem_id="matrix")
    form = [content, content_strength, style, style_strength, prompt, keep_colours, num_images, seed, steps, base]

    def stylize(
        content: list[str], content_strength: float, style: list[str], style_strength: float, prompt: str, keep_colours: bool,
        num_images: int, seed: int, steps: int, base: str, request: gr.Request,
    ) -> tuple[str, str]:  # fmt: skip
        """Draw every content in every style. `content`, `style`: ids of B-LoRAs in the library, either may be empty. Returns the
        last job's id and a note."""
        words = words_for(request)

        def spec(one: str, other: str) -> StylizeSpec:
            return StylizeSpec(
                content=AdapterChoice(adapter=one, strength=content_strength) if one else None,
                style=AdapterChoice(adapter=other, strength=style_strength) if other else None,
                prompt=prompt.strip() or None,
                keep_colours=keep_colours,
                num_images=int(num_images),
                seed=int(seed or 0),
                steps=int(steps),
                base=base.strip() or "embedded",
            )

        pairs = [(one, other) for one in content or [""] for other in style or [""]]
        if len(pairs) > MOST_CELLS:
            return "", note(words("too_many_cells", count=len(pairs), most=MOST_CELLS), "bad")
        job_id, said = "", ""
        for one, other in pairs:
            job_id, said = hand_in(studio, settings, words, partial(spec, one, other))
            if not job_id:
                break
        return job_id, said

    def begin(request: gr.Request) -> tuple[Any, ...]:
        words = words_for(request)
        items = studio.items(ItemFilter(kind=Kind.ADAPTER), limit=200).items
        halves = [(item.name, item.id) for item in items if HALVES & set(item.facts.get("roles", ()))]
        missing = note(words("no_b_lora"), "warn") if not halves else ""
        return gr.update(choices=halves), gr.update(choices=halves), missing

    def look(known: Any, request: gr.Request) -> Any:
        cells = _cells(studio)
        state = repr((cells, words_for(request).language))
        return (gr.skip(), gr.skip()) if state == known else (state, _matrix(studio, cells, words_for(request)))

    go.click(stylize, form, [results.job_id, told], api_name="stylize").then(
        results.look, [results.job_id], results.outputs, **_QUIET
    )
    first_time(begin, [content, style, told])
    refresh(look, [seen, matrix], inputs=[seen], every=3.0)


def _cells(studio: Studio) -> dict[tuple[str, str], tuple[str, int]]:
    """The latest job of each content and style, and how many pictures it has."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for job in studio.jobs(JobFilter(kinds=("stylize",)), limit=4 * MOST_CELLS):
        try:
            spec = studio.request(job.id).spec
        except StudioError:
            continue
        if isinstance(spec, StylizeSpec) and spec.content is not None and spec.style is not None:
            key = (spec.content.adapter, spec.style.adapter)
            found.setdefault(key, (job.id, len(studio.result(job.id).pictures)))
    return found


def _matrix(studio: Studio, cells: dict[tuple[str, str], tuple[str, int]], words: Words) -> str:
    """Contents as rows, styles as columns."""
    if not cells:
        return empty(words("no_matrix"), words("no_matrix_hint"))
    contents, styles = (list(dict.fromkeys(key[n] for key in cells)) for n in (0, 1))

    def name(item_id: str) -> str:
        item = studio.library.catalogue.find(item_id)
        return escape(item.name if item is not None else Path(item_id).stem)

    def cell(content: str, style: str) -> str:
        job_id, count = cells.get((content, style), ("", 0))
        return f'<img src="/media/jobs/{job_id}/0/small" alt="{name(content)} × {name(style)}" loading="lazy">' if count else "–"

    rows = [[f"<b>{name(content)}</b>", *[cell(content, style) for style in styles]] for content in contents]
    return table(["", *[name(style) for style in styles]], rows)
