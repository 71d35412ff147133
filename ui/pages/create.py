"""Create pictures: a prompt, adapters with strengths, and what the base model can be told; beside it what came of it."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import AdapterChoice, GenerateSpec, JobFilter, Studio
from studio.ui.pages.create_pictures import build_pictures
from studio.ui.pages.create_results import build_results
from studio.ui.parts.adapters import adapter_rows, chosen, put_words, show_chips, trigger_chips
from studio.ui.parts.asking import hand_in
from studio.ui.parts.html import card_head, note
from studio.ui.parts.recipes import Recipe, recipe_of_file, recipe_of_item
from studio.ui.parts.timing import first_time
from studio.ui.parts.widgets import adapter_picker, board, html
from studio.ui.settings import UiSettings
from studio.ui.start_pictures import StartPictures
from studio.ui.strings import Words, label, words_for

SCHEDULERS = ("ddim", "euler", "euler_a", "dpm++")
OWN_FIELDS = 12
"""Of the form, besides those of `create_pictures`."""

FIRST_PROMPT = "a photo of a red cat in the snow"
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    with gr.Row(elem_classes="two"):
        with gr.Column():
            with gr.Column(elem_classes="card"):
                prompt = gr.Textbox(
                    label=label("prompt"), lines=3, max_lines=8, max_length=20_000, elem_id="prompt", value=FIRST_PROMPT
                )
                chips = board(elem_id="trigger-chips")
                negative = gr.Textbox(label=label("negative"), lines=1, max_length=20_000, placeholder=label("negative_hint"))
                with gr.Row():
                    seed = gr.Number(label=label("seed"), value=0, precision=0, minimum=0, min_width=120)
                    num_images = gr.Number(label=label("num_images"), value=4, precision=0, minimum=1, maximum=64, min_width=90)
                with gr.Row(elem_classes="line"):
                    locked = gr.Checkbox(label=label("seed_lock"), value=False, container=False, min_width=120)
                    dice = gr.Button(label("seed_dice"), size="sm", min_width=90)
                go = gr.Button(label("create_go"), variant="primary", size="lg", elem_id="create-go")
                told = html(elem_id="create-told")
            with gr.Column(elem_classes="card"):
                html(card_head("adapters"))
                picker = adapter_picker("adapters")
                nothing = html()
            with gr.Column(elem_classes="card"), gr.Accordion(label("more_controls"), open=False):
                with gr.Row():
                    steps = gr.Slider(1, 100, value=30, step=1, label=label("denoising_steps"))
                    guidance = gr.Slider(0, 20, value=0, step=0.5, label=label("guidance"), info=label("zero_is_default"))
                with gr.Row():
                    width = gr.Number(label=label("width"), value=0, precision=0, minimum=0, info=label("zero_is_default"))
                    height = gr.Number(label=label("height"), value=0, precision=0, minimum=0, info=label("zero_is_default"))
                scheduler = gr.Dropdown([(label("base_default"), ""), *SCHEDULERS], value="", label=label("scheduler"))
                base = gr.Textbox(label=label("base"), info=label("base_info"), value="embedded")
                dropped = gr.File(
                    label=label("recipe_drop"),
                    file_types=[".png"],
                    type="filepath",
                    height=130,
                    elem_id="recipe",
                    elem_classes="drop",
                )
            pictures = build_pictures(StartPictures(studio))
        with gr.Column():
            results = build_results(studio, settings)
    form = [prompt, negative, picker, seed, locked, num_images, steps, guidance, width, height, scheduler, base, *pictures.form]
    shown = [*form, *pictures.editors]

    def create(
        prompt: str,
        negative: str,
        adapters: list[dict[str, Any]],
        seed: int | None,
        locked: bool,
        num_images: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        scheduler: str,
        base: str,
        start: dict[str, Any] | None,
        change: float,
        control: dict[str, Any] | None,
        control_model: str,
        control_scale: float,
        request: gr.Request,
    ) -> tuple[str, str]:
        """Ask for pictures. `adapters`: a list of {"id", "on", "strength"}. Without `locked` the seed is drawn anew; 0 for
        `guidance`, `width` and `height` is the base model's default. `start`, `control`: {"picture": id of a picture in the
        library}; `start` may have "mask", another id, or "boxes": [{"box": [left, top, right, bottom]}], what is drawn anew.
        Returns the job's id and a note."""
        words, starts = words_for(request), pictures.starts

        def spec() -> GenerateSpec:
            return GenerateSpec(
                prompts=(prompt.strip(),),
                negative_prompt=negative,
                adapters=tuple(AdapterChoice(adapter=each, strength=strength) for each, strength in chosen(adapters)),
                num_images=int(num_images),
                seed=int(seed or 0) if locked else None,
                steps=int(steps),
                guidance_scale=float(guidance) or None,
                width=int(width or 0) or None,
                height=int(height or 0) or None,
                scheduler=scheduler or None,
                base=base.strip() or "embedded",
                start=starts.start_of(start, change),
                control=starts.control_of(control, control_model, control_scale),
            )

        if not prompt.strip():
            return "", note(words("no_prompt"), "bad")
        return hand_in(studio, settings, words, spec)

    def seed_of(job_id: str, locked: bool, seed: int) -> Any:
        spec = studio.request(job_id).spec if job_id and not locked else None
        return spec.seed if isinstance(spec, GenerateSpec) else gr.skip()

    def begin(request: gr.Request) -> tuple[Any, ...]:
        words, asked = words_for(request), request.query_params
        wanted, start = str(asked.get("adapter", "")), str(asked.get("start", ""))
        rows = adapter_rows(studio, words, on=[wanted] if wanted else [])
        recipe = _recipe(studio, str(asked.get("recipe", "") or start)) if not wanted else None
        filled = _filled(recipe, rows, words) if recipe is not None else (gr.skip(),) * OWN_FIELDS
        now = rows if recipe is None else filled[2]
        if start:
            recipe = replace(recipe or Recipe(prompt=""), start={"sha256": start})
        beside = pictures.filled(recipe, words) if recipe is not None else (gr.skip(),) * (len(shown) - OWN_FIELDS)
        text = _first_prompt(rows, filled[0]) if wanted else filled[0]
        nothing = "" if rows else _no_adapters(words)
        return (text, filled[1], now, *filled[3:], *beside, trigger_chips(now, words), nothing)

    def use_recipe(path: str | None, adapters: list[dict[str, Any]], request: gr.Request) -> tuple[Any, ...]:
        words, nothing = words_for(request), (gr.skip(),) * len(shown)
        try:
            recipe = recipe_of_file(studio, path) if path else None
        except StudioError as error:
            return (*nothing, note(str(error), "bad"))
        if recipe is None:
            return (*nothing, note(words("no_recipe"), "warn") if path else "")
        return (*_filled(recipe, adapters, words), *pictures.filled(recipe, words), note(words("recipe_taken"), "good"))

    go.click(create, form, [results.job_id, told], api_name="create", concurrency_limit=8).then(
        seed_of, [results.job_id, locked, seed], seed, **_QUIET
    ).then(results.look, [results.job_id], results.outputs, **_QUIET)
    prompt.submit(create, form, [results.job_id, told], api_visibility="private").then(
        results.look, [results.job_id], results.outputs, **_QUIET
    )
    picker.input(show_chips, picker, chips, **_QUIET)
    chips.pick(put_words, prompt, prompt, **_QUIET)
    dice.click(_dice, None, [seed, locked], **_QUIET)
    dropped.change(use_recipe, [dropped, picker], [*shown, told], **_QUIET)
    first_time(begin, [*shown, chips, nothing])


def _dice() -> tuple[int, bool]:
    return secrets.randbelow(2**32), True


def _no_adapters(words: Words) -> str:
    return f'<p class="hint">{words("no_adapters")} <a href="/train">{words("train_one")}</a></p>'


def _first_prompt(rows: list[dict[str, Any]], otherwise: Any) -> Any:
    """A prompt that shows what has just been trained."""
    first = next((row for row in rows if row["on"]), None)
    return f"a photo of a {first['trigger']} in the snow" if first and first["trigger"] else otherwise


def _recipe(studio: Studio, picture: str) -> Recipe | None:
    """Of a picture of the library, or else of what was asked for last, so that the form is as it was left."""
    if picture:
        return recipe_of_item(studio, picture)
    jobs = studio.jobs(JobFilter(kinds=("generate",)), limit=1)
    if not jobs:
        return None
    try:
        spec = studio.request(jobs[0].id).spec
    except StudioError:
        return None
    return Recipe.of_spec(spec) if isinstance(spec, GenerateSpec) else None


def _filled(recipe: Recipe, rows: list[dict[str, Any]], words: Words) -> tuple[Any, ...]:
    """Values for the form's own fields, in their order."""
    strengths = dict(recipe.adapters)
    now = [{**row, "on": row["id"] in strengths, "strength": strengths.get(row["id"], row["strength"])} for row in rows]
    return (
        recipe.prompt, recipe.negative, now, recipe.seed, recipe.locked, recipe.num_images, recipe.steps, recipe.guidance or 0,
        recipe.width or 0, recipe.height or 0, recipe.scheduler or "", recipe.base,
    )  # fmt: skip
