"""Pictures besides words: one to start from with what is to be drawn anew, one that a ControlNet follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.ui.parts.html import note
from studio.ui.parts.recipes import Recipe
from studio.ui.parts.widgets import box_canvas, html
from studio.ui.start_pictures import CHANGE, NOTHING, WHOLE, StartPictures
from studio.ui.strings import Words, label, translated, words_for

KINDS = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"]
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


@dataclass(frozen=True)
class Pictures:
    """The parts that the rest of the page needs. form: what a request takes. editors: shown, and their
    cards open, where there is a picture."""

    starts: StartPictures
    form: list[Any]
    editors: list[Any]

    def filled(self, recipe: Recipe, words: Words) -> tuple[Any, ...]:
        """Values for `form`, then for `editors`."""
        start, control = recipe.start or {}, recipe.control or {}
        canvas = self.starts.shown(start.get("sha256"), mask=start.get("mask_sha256"), title=words("redrawn"))
        followed = self.starts.shown(control.get("sha256"))
        values = (canvas, start.get("change", CHANGE), followed, control.get("model", ""), control.get("scale", 1.0))
        there = ["picture" in each for each in (canvas, followed)]
        return (*values, *(gr.update(visible=each) for each in there), *(gr.update(open=each) for each in there))


def build_pictures(starts: StartPictures) -> Pictures:
    """The two cards."""
    with gr.Column(elem_classes="card"), gr.Accordion(label("begin_from"), open=False) as start_card:
        start_file = gr.File(
            label=label("start_picture"),
            file_types=KINDS,
            type="filepath",
            height=130,
            elem_id="start-picture",
            elem_classes="drop",
        )
        with gr.Column(visible=False) as start_editor:
            html(translated(lambda words: f'<p class="hint">{words("redraw_hint")}</p>'))
            canvas = box_canvas("start-canvas")
            change = gr.Slider(0.05, 1, value=CHANGE, step=0.05, label=label("change"), info=label("change_info"))
            with gr.Row():
                everything = gr.Button(label("redraw_all"), size="sm")
                mask = gr.UploadButton(label("mask_file"), file_types=KINDS, type="filepath", size="sm", elem_id="start-mask")
                forget = gr.Button(label("start_forget"), size="sm", variant="stop")
        start_told = html(elem_id="start-told")
    with gr.Column(elem_classes="card"), gr.Accordion(label("control_title"), open=False) as control_card:
        control_file = gr.File(
            label=label("control_picture"),
            file_types=KINDS,
            type="filepath",
            height=130,
            elem_id="control-picture",
            elem_classes="drop",
        )
        with gr.Column(visible=False) as control_editor:
            followed = box_canvas("control-canvas")
            scale = gr.Slider(0, 2, value=1, step=0.05, label=label("control_scale"))
            leave = gr.Button(label("start_forget"), size="sm", variant="stop")
        model = gr.Textbox(label=label("control_model"), info=label("control_model_info"), value="", max_length=4000)
        control_told = html()

    def take_start(path: str | None, request: gr.Request) -> tuple[Any, ...]:
        return _taken(starts, path, words_for(request)("redrawn"))

    def take_control(path: str | None) -> tuple[Any, ...]:
        return _taken(starts, path, "")

    def take_mask(path: str | None, value: dict[str, Any], request: gr.Request) -> tuple[Any, ...]:
        try:
            kept = starts.keep(Path(path)) if path else None
        except StudioError as error:
            return gr.skip(), note(str(error), "bad")
        boxes = [{**one, "box": None} for one in value.get("boxes", [])]
        return {**value, "boxes": boxes, "mask": kept}, note(words_for(request)("mask_taken"), "good")

    def redraw_all(value: dict[str, Any]) -> tuple[Any, ...]:
        boxes = [{**one, "box": WHOLE} for one in value.get("boxes", [])]
        return {**value, "boxes": boxes, "mask": None}, ""

    start_file.upload(take_start, start_file, [canvas, start_editor, start_told, start_file], **_QUIET)
    control_file.upload(take_control, control_file, [followed, control_editor, control_told, control_file], **_QUIET)
    mask.upload(take_mask, [mask, canvas], [canvas, start_told], **_QUIET)
    everything.click(redraw_all, canvas, [canvas, start_told], **_QUIET)
    forget.click(_nothing, None, [canvas, start_editor, start_told], **_QUIET)
    leave.click(_nothing, None, [followed, control_editor, control_told], **_QUIET)
    return Pictures(starts, [canvas, change, followed, model, scale], [start_editor, control_editor, start_card, control_card])


def _taken(starts: StartPictures, path: str | None, title: str) -> tuple[Any, ...]:
    try:
        value = starts.shown(starts.keep(Path(path)) if path else None, title=title)
    except StudioError as error:
        said = str(error).replace(f"{Path(path or '').parent}/", "")
        return gr.skip(), gr.skip(), note(said, "bad"), None
    return value, gr.update(visible=True), "", None


def _nothing() -> tuple[Any, ...]:
    return NOTHING, gr.update(visible=False), ""
