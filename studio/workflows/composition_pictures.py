"""Pictures about a composition: masks and attention maps while it is drawn, and layouts with their boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from studio.composition.layout import Layout
from studio.composition.plan import CompositionPlan
from studio.composition.views import OnPreview, Preview
from studio.pipelines.base_model import BaseModel, decode_latents
from studio.pipelines.generation import to_images
from studio.pipelines.pictures import contact_sheet, save_picture

COLOURS = ((230, 85, 30), (0, 110, 200), (20, 150, 70), (160, 60, 180), (200, 150, 0), (0, 160, 170))
"""Of the concepts, in the plan's order; further ones begin anew."""

DIMMED = 0.25
"""What is left of the picture where a concept is not."""

LARGEST = 512
"""Pictures in previews are no larger than this, a side."""


def preview_writer(base: BaseModel, folder: Path, every: int, *, prefix: str = "") -> OnPreview:
    """A callback that writes a sheet into `folder` after every `every` steps and after the last: `step-005.png`, …

    A row per picture: the picture so far, and for each concept where it acts and where its words are read. For a second batch
    the names go on with `batch-2-step-005.png`.
    """
    batches = 0

    def write(preview: Preview) -> None:
        nonlocal batches
        batches += preview.done == 1
        if preview.done % every and preview.done != preview.steps:
            return
        batch = f"batch-{batches}-" if batches > 1 else ""
        path = folder / f"{prefix}{batch}step-{preview.done:03d}.png"
        save_picture(path, preview_sheet(base, preview), None)

    return write


def preview_sheet(base: BaseModel, preview: Preview) -> Image.Image:
    """A batch after a step, with its concepts."""
    batch = _batch_of(preview)
    pictures = _pictures(base, preview.latents) if preview.latents is not None else [_grey(preview)] * batch
    images, labels = [], ["so far"]
    for view in preview.concepts:
        labels += [f"{view.title}: where it acts"] if view.mask is not None else []
        labels += [f"{view.title}: where its words are read"] if view.attention is not None else []
    for row, picture in enumerate(pictures):
        images.append(picture)
        for number, view in enumerate(preview.concepts):
            if view.mask is not None:
                images.append(shown_on(picture, view.mask[row], number))
            if view.attention is not None:
                most = view.attention[row].max().clamp(min=1e-8)
                images.append(shown_on(picture, view.attention[row] / most, number))
    title = f"step {preview.done} of {preview.steps}"
    return contact_sheet(images, None, columns=len(labels), column_labels=labels, title=title)


def shown_on(picture: Image.Image, values: Tensor, number: int) -> Image.Image:
    """The picture, dimmed and tinted by how far values `[h, w]` in 0..1 are from 1 and from 0."""
    size = (picture.height, picture.width)
    weights = F.interpolate(values[None, None].float().cpu(), size, mode="nearest")[0, 0, :, :, None].numpy()
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    colour = np.asarray(COLOURS[number % len(COLOURS)], dtype=np.float32)
    dimmed = pixels.mean(axis=2, keepdims=True) * DIMMED
    return Image.fromarray((dimmed + weights * (0.75 * pixels + 0.25 * colour - dimmed)).clip(0, 255).astype(np.uint8))


def layout_picture(base: BaseModel, layout: Layout) -> Image.Image:
    """The first pass's picture with the boxes, and for each entry where its words are read."""
    (picture,) = _pictures(base, layout.latents)
    boxed = boxes_on(picture, layout.plan)
    large = picture.resize(boxed.size, Image.Resampling.NEAREST)
    images = [boxed, *(shown_on(large, values, number) for number, values in enumerate(layout.maps))]
    labels = ["proposed boxes", *layout.titles]
    return contact_sheet(images, None, columns=len(images), column_labels=labels, title=layout.plan.prompt)


def boxes_on(picture: Image.Image, plan: CompositionPlan) -> Image.Image:
    """The picture, enlarged, with the boxes of a plan's entries and their names."""
    factor = max(1, -(-384 // max(picture.size)))
    large = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(large), ImageFont.load_default(14)
    boxes = [(number, entry.title, entry.region.box) for number, entry in enumerate(plan.entries) if entry.region is not None]
    for number, title, box in boxes:
        if box is None:
            continue
        left, top, right, bottom = (round(side * length) for side, length in zip(box, (*large.size, *large.size), strict=True))
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((left, top, min(right, large.width) - 1, min(bottom, large.height) - 1), outline=colour, width=3)
        width = draw.textlength(title, font=font)
        draw.rectangle((left, top, left + width + 8, top + 19), fill=colour)
        draw.text((left + 4, top + 1), title, (255, 255, 255), font=font)
    return large


@torch.no_grad()
def _pictures(base: BaseModel, latents: Tensor) -> list[Image.Image]:
    found = to_images(decode_latents(base, latents.to(base.dtype)))
    return [_at_most(image) for image in found]


def _at_most(image: Image.Image) -> Image.Image:
    if max(image.size) <= LARGEST:
        return image
    share = LARGEST / max(image.size)
    return image.resize((round(image.width * share), round(image.height * share)))


def _batch_of(preview: Preview) -> int:
    tensors = [tensor for view in preview.concepts for tensor in (view.mask, view.attention) if tensor is not None]
    return len(preview.latents) if preview.latents is not None else len(tensors[0]) if tensors else 1


def _grey(preview: Preview) -> Image.Image:
    """Stands for a picture of which nothing is known yet."""
    masks = [view.mask for view in preview.concepts if view.mask is not None]
    height, width = masks[0].shape[-2:] if masks else (96, 96)
    share = 96 / max(height, width)
    return Image.new("RGB", (max(1, round(width * share)), max(1, round(height * share))), (128, 128, 128))
