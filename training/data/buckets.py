"""Aspect-ratio buckets: a few sizes of about one area, so that photos keep their shape and still make batches.

After NovelAI's bucketing (2022), with the difference that a photo is never stretched: it is scaled until it covers its
size, and what stands over is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

CROP_POSITIONS = 5
"""A photo that stands over its size is cropped at one of so many places; few, so that their latents can be kept."""

LEAST_AREA = 0.75
"""A size has at least this share of the square's area."""

CENTER = CROP_POSITIONS // 2


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Crop(NamedTuple):
    """Upper left corner of a crop, in pixels of the resized photo."""

    top: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The sizes of a run.

    Attributes:
        resolution: side of the square whose area no size exceeds, in pixels.
        step: all sides are multiples of it. max_aspect: longest side over shortest of a size.
        square: whether there is only the square. upscale: whether small photos are enlarged to the full area.
    """

    resolution: int
    step: int
    max_aspect: float = 2.0
    square: bool = False
    upscale: bool = False

    def sizes(self) -> tuple[Size, ...]:
        """The sizes of nearly full area, from tall to wide."""
        if self.square:
            return (Size(self.resolution, self.resolution),)
        side = self.resolution // self.step * self.step
        found = {Size(side, side)}
        for width in range(self.step, side + 1, self.step):
            longest = min(self.resolution**2 / width, self.max_aspect * width)
            height = int(longest / self.step) * self.step
            if height >= width and height * width >= LEAST_AREA * self.resolution**2:
                found |= {Size(height, width), Size(width, height)}
        return tuple(sorted(found, key=lambda size: (size.width / size.height, size.width)))

    def size_for(self, height: int, width: int) -> Size:
        """The size that keeps most of a `height` × `width` photo, the larger of two equal ones.

        Without `upscale` a photo that does not cover that size gets a smaller one, never under half the resolution.
        """
        best = max(self.sizes(), key=lambda size: (_kept_share(size, height, width), size.height * size.width))
        if self.upscale or self.square or (height >= best.height and width >= best.width):
            return best
        least = math.ceil(self.resolution / 2 / self.step) * self.step
        return Size(
            *(min(side, max(least, have // self.step * self.step)) for side, have in zip(best, (height, width), strict=True))
        )


def _kept_share(size: Size, height: int, width: int) -> float:
    """Share of a photo's area that is left after cropping it to the shape of `size`; rounded, so that ties are ties."""
    ratio = size.width * height / (size.height * width)
    return round(min(ratio, 1.0 / ratio), 9)


def covering_size(height: int, width: int, size: Size) -> Size:
    """The size of the photo scaled, in its own shape, until it just covers `size`."""
    scale = max(size.height / height, size.width / width)
    return Size(max(size.height, round(height * scale)), max(size.width, round(width * scale)))


def resize_to_cover(image: Image.Image, size: Size) -> np.ndarray:
    """Scale an RGB picture to its `covering_size`, once, with an antialiased Lanczos filter → uint8 [H, W, 3]."""
    height, width = covering_size(image.height, image.width, size)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def crop_at(covering: Sequence[int], size: Size, position: int) -> Crop:
    """Where a crop of `size` lies in a picture of `covering` (height, width); `position` 0 … CROP_POSITIONS − 1."""
    assert 0 <= position < CROP_POSITIONS, position
    share = position / (CROP_POSITIONS - 1)
    return Crop(round((covering[0] - size.height) * share), round((covering[1] - size.width) * share))
