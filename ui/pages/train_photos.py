"""The first step of a training: photos, what is wrong with them, their captions and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.pipelines.errors import DatasetError, StudioError
from studio.training.data.photo_check import PhotoLook, look_at_photos
from studio.ui.drafts import Box, Draft, Drafts
from studio.ui.parts.html import note, step_head, tile
from studio.ui.parts.timing import first_time
from studio.ui.parts.widgets import board, box_canvas, html
from studio.ui.samples import SAMPLES, sample_photos
from studio.ui.strings import Words, label, translated, words_for

RESOLUTION = 96
FEW = 3
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Photos:
    """The parts that the rest of the page needs."""

    files: gr.File
    draft_id: gr.BrowserState
    samples: gr.HTML
    clear: gr.Button

    def taken_in(self, drafts: Drafts, draft_id: str | None, files: Sequence[str] | None) -> Draft:
        """The draft with the files that a client sent along. Raises DatasetError when there are no photos at all."""
        draft = drafts.new() if files else drafts.open(draft_id)
        problems = draft.add([Path(file) for file in files]) if files else []
        if problems:
            raise DatasetError("\n".join(problems))
        if not draft.photos():
            raise DatasetError("There are no photos yet: drop some into the field of step 1, or take a sample.")
        return draft


def build_photos(drafts: Drafts) -> Photos:
    """The card."""
    draft_id = gr.BrowserState(None, storage_key="studio-draft", secret="studio-draft")  # noqa: S106 - only an id, and no secret
    with gr.Column(elem_classes="card"):
        html(step_head(1, "train_photos"))
        files = gr.File(
            label=label("photos"),
            file_count="multiple",
            file_types=["image", ".txt"],
            type="filepath",
            height=150,
            elem_id="photos",
            elem_classes="drop",
        )
        samples = board(translated(_sample_chips))
        said = html()
        shown = board(elem_id="photo-board")
        with gr.Column(visible=False) as editor:
            name = gr.State("")
            canvas = box_canvas("crop-canvas")
            caption = gr.Textbox(label=label("caption"), info=label("caption_info"), lines=2, max_length=2000)
            with gr.Row():
                save = gr.Button(label("save"), variant="primary", size="sm")
                suggest = gr.Button(label("crop_suggested"), size="sm")
                whole = gr.Button(label("crop_whole"), size="sm")
                remove = gr.Button(label("remove_photo"), size="sm", variant="stop")
        clear = gr.Button(label("photos_clear"), size="sm", visible=False)
    everything = [draft_id, shown, said, editor, clear]

    def state(draft: Draft, words: Words, problems: Sequence[str] = ()) -> tuple[Any, ...]:
        looks = _looks(draft)
        return (
            draft.id,
            _photo_tiles(draft, looks, words),
            note("\n".join(problems), "bad") + _advice(looks, words),
            gr.update(visible=False),
            gr.update(visible=bool(looks)),
        )

    def upload(chosen: list[str] | None, known: str | None, request: gr.Request) -> tuple[Any, ...]:
        draft = drafts.open(known)
        problems = draft.add([Path(file) for file in chosen or () if not file.endswith(".txt")])
        return (*state(draft, words_for(request), problems), None)

    def take_sample(request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        draft = drafts.new()
        draft.add(sample_photos(str(event.id)) if str(event.id) in SAMPLES else [])
        return state(draft, words_for(request))

    def edit(known: str | None, event: gr.EventData) -> tuple[Any, ...]:
        draft, photo = drafts.open(known), str(event.id)
        try:
            look = look_at_photos([draft.folder / "originals" / draft.photo(photo).name], RESOLUTION)[0]
        except StudioError:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        value = _crop_value(draft, photo, look, None)
        return gr.update(visible=True), photo, value, draft.caption(photo)

    def keep(known: str | None, photo: str, value: dict[str, Any], text: str, request: gr.Request) -> tuple[Any, ...]:
        draft = drafts.open(known)
        problems = _attempts(lambda: draft.write_caption(photo, text), lambda: draft.crop(photo, _box_of(value)))
        return state(draft, words_for(request), problems)

    def crop_as_suggested(known: str | None, photo: str) -> Any:
        draft = drafts.open(known)
        look = look_at_photos([draft.folder / "originals" / draft.photo(photo).name], RESOLUTION)[0]
        return _crop_value(draft, photo, look, look.crop)

    def crop_to_whole(known: str | None, photo: str) -> Any:
        draft = drafts.open(known)
        look = look_at_photos([draft.folder / "originals" / draft.photo(photo).name], RESOLUTION)[0]
        return _crop_value(draft, photo, look, (0.0, 0.0, 1.0, 1.0))

    def take_out(known: str | None, photo: str, request: gr.Request) -> tuple[Any, ...]:
        draft = drafts.open(known)
        return state(draft, words_for(request), _attempts(lambda: draft.remove(photo)))

    def start_over(request: gr.Request) -> tuple[Any, ...]:
        return (None, *state(drafts.new(), words_for(request))[1:])

    def restore(known: str | None, request: gr.Request) -> tuple[Any, ...]:
        return (gr.skip(), *state(drafts.open(known), words_for(request))[1:])

    files.upload(upload, [files, draft_id], [*everything, files], **_QUIET)
    samples.pick(take_sample, None, everything, **_QUIET)
    shown.pick(edit, draft_id, [editor, name, canvas, caption], **_QUIET)
    save.click(keep, [draft_id, name, canvas, caption], everything, **_QUIET)
    suggest.click(crop_as_suggested, [draft_id, name], canvas, **_QUIET)
    whole.click(crop_to_whole, [draft_id, name], canvas, **_QUIET)
    remove.click(take_out, [draft_id, name], everything, **_QUIET)
    clear.click(start_over, None, everything, **_QUIET)
    first_time(restore, everything, inputs=[draft_id])
    return Photos(files, draft_id, samples, clear)


def _attempts(*actions: Any) -> list[str]:
    problems = []
    for action in actions:
        try:
            action()
        except StudioError as error:
            problems.append(str(error))
    return problems


def _looks(draft: Draft) -> list[PhotoLook]:
    try:
        return look_at_photos(draft.photos(), RESOLUTION)
    except StudioError:
        return []


def _box_of(value: dict[str, Any]) -> Box | None:
    box = tuple(value["boxes"][0]["box"]) if value.get("boxes") and value["boxes"][0]["box"] else (0.0, 0.0, 1.0, 1.0)
    return None if box == (0.0, 0.0, 1.0, 1.0) else box


def _crop_value(draft: Draft, photo: str, look: PhotoLook, box: Box | None) -> dict[str, Any]:
    whole = (0.0, 0.0, 1.0, 1.0) if box is None else box
    return {
        "boxes": [{"name": photo, "box": list(whole)}],
        "active": 0,
        "plain": True,
        "background": f"/media/drafts/{draft.id}/{photo}/original",
        "aspect": look.width / look.height,
    }


def _sample_chips(words: Words) -> str:
    chips = "".join(
        f'<button type="button" class="chip" data-act="sample" data-id="{name}"><img src="/media/samples/{name}/0" alt="">'
        f"{words(f'sample_{name}')}</button>"
        for name in SAMPLES
    )
    return f'<p class="hint" style="margin-bottom:8px">{words("or_sample")}</p><div class="chips">{chips}</div>'


def _photo_tiles(draft: Draft, looks: Sequence[PhotoLook], words: Words) -> str:
    tiles = []
    for look in looks:
        name = look.path.name
        problem = "blurred" if look.blurred else "small" if look.small else "alike" if look.alike else ""
        badge = f'<span class="badge warn">{escape(words(f"photo_{problem}"))}</span>' if problem else ""
        caption = draft.caption(name)
        stamp = look.path.stat().st_mtime_ns
        under = escape(caption) if caption else f"{look.width} × {look.height}"
        tiles.append(
            tile(
                "photo", name, f"/media/drafts/{draft.id}/{name}/now?{stamp}", f"{words('edit_photo')} {name}", under, badge=badge
            )
        )
    return f'<div class="grid">{"".join(tiles)}</div>' if tiles else ""


def _advice(looks: Sequence[PhotoLook], words: Words) -> str:
    """Sentences about what could be better; a good word if nothing."""
    if not looks:
        return ""
    said = []
    for key, bad in (
        ("blurred", [look for look in looks if look.blurred]),
        ("small", [look for look in looks if look.small]),
        ("alike", [look for look in looks if look.alike]),
    ):
        if bad:
            said.append(words(f"advice_{key}", names=", ".join(look.path.name for look in bad[:6])))
    if len(looks) < FEW:
        said.append(words("advice_few", count=len(looks)))
    return note("\n".join(said), "warn") if said else note(words("advice_good", count=len(looks)), "good")
