"""Several adapters in one picture: boxes on a canvas, words bound to adapters, a strategy; and how strategies compare."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.composition.plan import CompositionPlan
from studio.pipelines.errors import StudioError
from studio.service import CompareSpec, ComposeSpec, ConflictsSpec, JobFilter, Studio
from studio.ui.pages.compose_place import build_place
from studio.ui.pages.create_results import build_results
from studio.ui.parts.adapters import adapter_rows, put_words, trigger_chips
from studio.ui.parts.asking import hand_in
from studio.ui.parts.html import card_head, note
from studio.ui.parts.plan_form import canvas_value, plan_of, table_of, words_value
from studio.ui.parts.timing import first_time
from studio.ui.parts.widgets import adapter_picker, board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

KINDS = ("compose", "compare", "conflicts")
FIRST_STRATEGY = "regional"
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    with gr.Row(elem_classes="two even"):
        with gr.Column():
            with gr.Column(elem_classes="card"):
                prompt = gr.Textbox(label=label("prompt"), lines=2, max_lines=6, max_length=20_000, elem_id="compose-prompt")
                chips = board(elem_id="compose-chips")
                negative = gr.Textbox(label=label("negative"), placeholder=label("negative_hint"), max_length=20_000)
            with gr.Column(elem_classes="card"):
                html(card_head("adapters"))
                picker = adapter_picker("compose-adapters")
                nothing = html()
            with gr.Column(elem_classes="card"):
                html(card_head("strategy_title"))
                strategy = gr.Dropdown(
                    [FIRST_STRATEGY], value=FIRST_STRATEGY, allow_custom_value=True, label=label("strategy"), elem_id="strategy"
                )
                when = html(elem_id="strategy-when")
                with gr.Row():
                    num_images = gr.Number(label=label("num_images"), value=1, precision=0, minimum=1, maximum=64, min_width=90)
                    seed = gr.Number(label=label("seed"), value=7, precision=0, minimum=0, min_width=110)
                    steps = gr.Number(
                        label=label("denoising_steps"), value=30, precision=0, minimum=1, maximum=1000, min_width=90
                    )
                with gr.Accordion(label("more_controls"), open=False):
                    base = gr.Textbox(label=label("base"), info=label("base_info"), value="embedded")
                    with gr.Row():
                        guidance, width, height = (
                            gr.Number(label=label(name), info=label("zero_is_default"), value=0, minimum=0, min_width=90)
                            for name in ("guidance", "width", "height")
                        )
                go = gr.Button(label("compose_go"), variant="primary", size="lg", elem_id="compose-go")
                with gr.Row():
                    conflicts = gr.Button(label("conflicts_go"), size="sm", elem_id="conflicts-go")
                    compare = gr.Button(label("compare_go"), size="sm", elem_id="compare-go")
                chosen = gr.Dropdown(
                    [],
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label=label("compare_which"),
                    info=label("compare_info"),
                )
                told = html(elem_id="compose-told")
        with gr.Column():
            place = build_place()
            results = build_results(studio, settings, KINDS, "compose")
    form = [prompt, negative, picker, place.canvas, place.words, strategy, num_images, seed, steps, base, guidance, width, height]

    def plan(
        prompt: str, negative: str, rows: Any, canvas: Any, words: Any, strategy: str, num: int, seed: int, steps: int,
        base: str, guidance: float, width: int, height: int,
    ) -> CompositionPlan:  # fmt: skip
        uses = {each.name: each.uses_regions for each in studio.strategies()}
        return plan_of(
            prompt.strip(), rows, canvas, words, strategy=strategy, uses_regions=uses.get(strategy, False), settings={},
            negative_prompt=negative, num_images=int(num), seed=int(seed or 0), steps=int(steps),
            base=base.strip() or "embedded", guidance_scale=float(guidance or 0) or None,
            width=int(width or 0) or None, height=int(height or 0) or None,
        )  # fmt: skip

    def ask(request: gr.Request, make: Any, values: tuple[Any, ...]) -> tuple[str, str]:
        words = words_for(request)
        if not str(values[0]).strip():
            return "", note(words("no_prompt"), "bad")
        return hand_in(studio, settings, words, lambda: make(plan(*values)))

    def compose(
        prompt: str, negative: str, adapters: Any, canvas: Any, words: Any, strategy: str, num_images: int, seed: int, steps: int,
        base: str, guidance: float, width: int, height: int, request: gr.Request,
    ) -> tuple[str, str]:  # fmt: skip
        """Draw a composition. `adapters`: a list of {"id", "on", "strength"}. `canvas`: {"boxes": [{"id", "box": [left, top,
        right, bottom]}]} in fractions. `words`: {"words": [[word, start]], "owners": {word number: adapter number}}, or {} for
        the trigger words. 0 for `guidance`, `width` and `height` is the base model's default. Returns the job's id and a note."""
        values = (prompt, negative, adapters, canvas, words, strategy, num_images, seed, steps, base, guidance, width, height)
        return ask(request, lambda plan: ComposeSpec(plan=plan), values)

    def look_for_conflicts(request: gr.Request, *values: Any) -> tuple[str, str]:
        return ask(request, lambda plan: ConflictsSpec(plan=plan), values)

    def side_by_side(request: gr.Request, chosen: list[str], *values: Any) -> tuple[str, str]:
        return ask(request, lambda plan: CompareSpec(plan=plan, strategies=tuple(chosen or ("all",))), values)

    def explain(name: str, request: gr.Request) -> str:
        return _when(studio, name, words_for(request))

    def changed(prompt: str, rows: Any, canvas: Any, words: Any, request: gr.Request) -> tuple[Any, ...]:
        now = canvas_value(rows, canvas, int((canvas or {}).get("active", 0)))
        bound = words_value(prompt, rows, words, now["active"])
        return now, bound, table_of(now), trigger_chips(rows, words_for(request)), *place.choices(now)

    def begin(request: gr.Request) -> tuple[Any, ...]:
        words = words_for(request)
        last = _last_plan(studio)
        rows = _rows(studio, last, words)
        text = last.prompt if last is not None else _first_prompt(rows)
        canvas = _canvas_of_plan(rows, last)
        bound = words_value(text, rows, None)
        names = [(words.known(f"strategy_{each.name}", each.name), each.name) for each in studio.strategies()]
        name = last.strategy.name if last is not None else FIRST_STRATEGY
        number = last.num_images if last is not None else 1
        return (
            text, rows, canvas, bound, table_of(canvas), trigger_chips(rows, words), *place.choices(canvas),
            gr.update(choices=names, value=name), gr.update(choices=names), _when(studio, name, words),
            number, last.seed if last is not None else 7, last.steps if last is not None else 30,
            last.base if last is not None else "embedded",
            "" if rows else f'<p class="hint">{words("no_adapters")} <a href="/train">{words("train_one")}</a></p>',
        )  # fmt: skip

    shown = [place.canvas, place.words, place.table, chips, place.active, place.buttons]
    go.click(compose, form, [results.job_id, told], api_name="compose").then(
        results.look, [results.job_id], results.outputs, **_QUIET
    )
    conflicts.click(look_for_conflicts, form, [results.job_id, told], api_visibility="private").then(
        results.look, [results.job_id], results.outputs, **_QUIET
    )
    compare.click(side_by_side, [chosen, *form], [results.job_id, told], api_visibility="private").then(
        results.look, [results.job_id], results.outputs, **_QUIET
    )
    strategy.change(explain, strategy, when, **_QUIET)
    picker.input(changed, [prompt, picker, place.canvas, place.words], shown, **_QUIET)
    prompt.change(changed, [prompt, picker, place.canvas, place.words], shown, **_QUIET)
    chips.pick(put_words, prompt, prompt, **_QUIET)
    first_time(
        begin,
        [prompt, picker, place.canvas, place.words, place.table, chips, place.active, place.buttons, strategy, chosen, when,
         num_images, seed, steps, base, nothing],
    )  # fmt: skip


def _when(studio: Studio, name: str, words: Words) -> str:
    """When to use a strategy."""
    titles = {each.name: each for each in studio.strategies()}
    if name not in titles:
        return ""
    regions = "" if titles[name].uses_regions else f" {words('no_regions')}"
    return note(words.known(f"when_{name}", titles[name].title) + regions)


def _last_plan(studio: Studio) -> CompositionPlan | None:
    jobs = studio.jobs(JobFilter(kinds=KINDS), limit=1)
    if not jobs:
        return None
    try:
        spec = studio.request(jobs[0].id).spec
    except StudioError:
        return None
    return spec.plan if isinstance(spec, ComposeSpec) else None


def _rows(studio: Studio, last: CompositionPlan | None, words: Words) -> list[dict[str, Any]]:
    """The library's adapters; those of the last plan, or else the two latest, are on."""
    rows = adapter_rows(studio, words)
    if last is None:
        return [{**row, "on": number < 2} for number, row in enumerate(rows)]
    strengths = {entry.sha256: entry.strength for entry in last.entries}
    now = [{**row, "on": row["id"] in strengths, "strength": strengths.get(row["id"], 1.0)} for row in rows]
    return sorted(now, key=lambda row: not row["on"])


def _first_prompt(rows: list[dict[str, Any]]) -> str:
    """Names the things from left to right, as their boxes stand: words that say where things are help more than boxes alone."""
    named = [f"a {row['trigger']}" for row in rows if row["on"] and row["trigger"]]
    return " to the left of ".join(named) if len(named) == 2 else " and ".join(named)


def _canvas_of_plan(rows: list[dict[str, Any]], last: CompositionPlan | None) -> dict[str, Any]:
    canvas = canvas_value(rows, None)
    regions = {entry.sha256: entry.region for entry in last.entries} if last is not None else {}
    for one in canvas["boxes"]:
        region = regions.get(one["id"])
        if region is not None and region.box is not None:
            one["box"], one["z"] = list(region.box), region.z if region.z is not None else one["z"]
    return canvas
