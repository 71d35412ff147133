"""How a job's pictures come along, as a picture in its folder, at little cost."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor

from studio.jobs.folder import JobFolder
from studio.pipelines.base_model import BaseModel, decode_latents
from studio.pipelines.files import atomic_write_bytes
from studio.pipelines.generation import to_images

SECONDS_BETWEEN = 1.0
MOST_SHARE = 0.1
"""Of the time that drawing takes, at most, goes into previews."""

MOST_PICTURES = 4
LARGEST = 320


class Previews:
    """Previews of one job. They are made between steps, no oftener than once a second, and never for a tenth of the time."""

    def __init__(self, folder: JobFolder) -> None:
        self.path = folder.preview
        self._next = time.monotonic() + SECONDS_BETWEEN

    def show(self, make: Callable[[], Image.Image], *, last: bool = False) -> None:
        """Write what `make` draws if it is time for it, or if it is the last one."""
        began = time.monotonic()
        if began < self._next and not last:
            return
        buffer = io.BytesIO()
        make().save(buffer, format="WEBP", quality=85)
        atomic_write_bytes(self.path, buffer.getvalue())
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, (now - began) / MOST_SHARE)

    def forget(self) -> None:
        """There is nothing to preview any more."""
        self.path.unlink(missing_ok=True)


def strip_of(base: BaseModel, latents: Tensor) -> Image.Image:
    """The first few of a batch's pictures side by side, from their latents `[B, C, h, w]`."""
    return side_by_side(to_images(decode_latents(base, latents[:MOST_PICTURES].to(base.dtype))))


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, none larger than a preview needs."""
    for picture in pictures:
        picture.thumbnail((LARGEST, LARGEST))
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * width, 0))
    return row
