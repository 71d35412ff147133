"""Teach it something: photos, a name, what to learn, how long; beside it the training as it goes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import ItemFilter, Kind, Studio, TrainSpec
from studio.ui.drafts import Drafts
from studio.ui.pages.train_photos import Photos, build_photos
from studio.ui.pages.train_run import build_run
from studio.ui.parts.asking import hand_in
from studio.ui.parts.html import clock, facts, note, step_head
from studio.ui.parts.timing import first_time
from studio.ui.parts.training_form import EFFORTS, GOALS, METHODS, TrainingWishes, proposed_token, settings_of, with_effort
from studio.ui.parts.widgets import board, html
from studio.ui.samples import SAMPLES, sample_noun
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

NOUNS = ("dog", "cat", "mug", "backpack", "robot", "house", "person")


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    drafts = Drafts(studio.home.root / "drafts")
    with gr.Row(elem_classes="two even"):
        with gr.Column():
            photos = build_photos(drafts)
            with gr.Column(elem_classes="card"):
                html(step_head(2, "train_name"))
                noun = gr.Textbox(label=label("class_noun"), info=label("class_noun_info"), max_length=80, elem_id="class-noun")
                nouns = board(_noun_chips())
                token = gr.Textbox(label=label("token"), info=label("token_info"), max_length=40, value="ohwx")
            with gr.Column(elem_classes="card"):
                html(step_head(3, "train_goal"))
                goal = gr.Radio(
                    [(label(f"goal_{name}"), name) for name in GOALS],
                    value="thing",
                    label=label("goal"),
                    show_label=False,
                    elem_id="goal",
                )
            with gr.Column(elem_classes="card"):
                html(step_head(4, "train_effort"))
                effort = gr.Slider(
                    1, len(EFFORTS), value=3, step=1, label=label("effort"), info=label("effort_info"), elem_id="effort"
                )
                estimate = html(elem_id="estimate")
                with gr.Accordion(label("all_settings"), open=False):
                    base = gr.Textbox(label=label("base"), info=label("base_info"), value="embedded")
                    method = gr.Dropdown([(label("by_goal"), ""), *METHODS], value="", label=label("method"))
                    with gr.Row():
                        steps = gr.Number(label=label("steps"), info=label("zero_is_default"), precision=0, minimum=0, value=0)
                        rank = gr.Number(label=label("rank"), info=label("zero_is_default"), precision=0, minimum=0, value=0)
                        rate = gr.Number(label=label("learning_rate"), minimum=0, value=0, info=label("zero_is_default"))
                    more = gr.Textbox(label=label("more_settings"), info=label("more_settings_info"), lines=3)
                start = gr.Button(label("train_start"), variant="primary", size="lg", elem_id="train-start")
                told = html(elem_id="train-told")
        with gr.Column():
            run = build_run(studio, settings)
    form = [noun, token, goal, effort, base, method, steps, rank, rate, more]

    def wishes(values: tuple[Any, ...]) -> TrainingWishes:
        names = ("class_noun", "token", "goal", "effort", "base", "method", "steps", "rank", "learning_rate", "more")
        given = dict(zip(names, values, strict=True))
        return TrainingWishes(**{name: value for name, value in given.items() if value is not None})  # an empty field is None

    def show_estimate(request: gr.Request, draft_id: str | None, *values: Any) -> str:
        words = words_for(request)
        return _estimate(studio, wishes(values), len(drafts.open(draft_id).photos()), words)

    def train(
        files: list[str] | None,
        draft_id: str | None,
        noun: str,
        token: str,
        goal: str,
        effort: int,
        base: str,
        method: str,
        steps: int | None,
        rank: int | None,
        learning_rate: float | None,
        more: str,
        request: gr.Request,
    ) -> tuple[str, str]:
        """Start a training. Give `photos` as files. `goal`: thing, style, split or many. `effort`: 1 (quick) to 5 (long).
        Returns the job's id and a note; the id is empty when it was refused, and the note says why."""
        words = words_for(request)
        asked = wishes((noun, token, goal, effort, base, method, steps, rank, learning_rate, more))

        def spec() -> TrainSpec:
            draft = photos.taken_in(drafts, draft_id, files)
            tables = settings_of(asked)
            found = studio.estimate_training(tables, len(draft.photos()))
            name = asked.class_noun.strip() or "pictures"
            item = studio.import_concept(
                draft.photos_dir, name=f"{asked.token} {name}", class_noun=asked.class_noun.strip() or None, trigger=asked.token
            ).item
            assert item is not None
            tables = with_effort(tables, asked.effort, found.steps)
            return TrainSpec(settings={**tables, "concept": {**tables.get("concept", {}), "images": item.id}})

        return hand_in(studio, settings, words, spec)

    given = [photos.files, photos.draft_id, *form]
    start.click(train, given, [run.job_id, told], api_name="train", concurrency_limit=4).then(
        run.look, [run.job_id, run.logarithmic], run.outputs, show_progress="hidden", api_visibility="private"
    )
    for part in (photos.draft_id, effort, goal, base, method, steps, rank, rate, more):
        part.change(
            show_estimate, [photos.draft_id, *form], estimate, show_progress="hidden", queue=False, api_visibility="private"
        )
    _chips(nouns, noun)
    _samples(photos, noun)

    def new_word() -> str:
        kinds = (Kind.ADAPTER, Kind.CONCEPT)  # a concept is there before its adapter has been learned
        items = [item for kind in kinds for item in studio.items(ItemFilter(kind=kind), limit=200).items]
        return proposed_token([item.trigger for item in items if item.trigger])

    def another_thing() -> tuple[str, str]:
        return "", new_word()

    first_time(new_word, [token])
    photos.clear.click(another_thing, None, [noun, token], show_progress="hidden", queue=False, api_visibility="private")
    first_time(show_estimate, [estimate], inputs=[photos.draft_id, *form])


def _chips(nouns: gr.HTML, noun: gr.Textbox) -> None:
    def choose(event: gr.EventData) -> str:
        return str(event.id)

    nouns.pick(choose, None, noun, queue=False, show_progress="hidden", api_visibility="private")


def _samples(photos: Photos, noun: gr.Textbox) -> None:
    def choose(event: gr.EventData) -> Any:
        return sample_noun(str(event.id)) if str(event.id) in SAMPLES else gr.skip()

    photos.samples.pick(choose, None, noun, queue=False, show_progress="hidden", api_visibility="private")


def _noun_chips() -> str:
    chips = "".join(f'<button type="button" class="chip" data-act="noun" data-id="{noun}">{noun}</button>' for noun in NOUNS)
    return f'<div class="chips">{chips}</div>'


def _estimate(studio: Studio, asked: TrainingWishes, num_photos: int, words: Words) -> str:
    """What will be trained, and for how long."""
    try:
        tables = settings_of(asked)
        plain = studio.estimate_training(tables, num_photos)
        found = studio.estimate_training(with_effort(tables, asked.effort, plain.steps), num_photos)
    except StudioError as error:
        return note(str(error), "bad")
    config = found.config
    time = clock(found.seconds) if found.seconds is not None else words("time_unknown")
    return facts(
        [
            (words("method"), config.adapter.method),
            (words("steps"), str(found.steps)),
            (words("rank"), str(config.adapter.rank)),
            (words("learning_rate"), f"{config.optimizer.learning_rate:g}"),
            (words("resolution"), f"{config.data.resolution} px"),
            (words("about"), time),
        ]
    )
