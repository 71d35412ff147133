"""A look at somebody's photos before they are trained on: blur, copies, size, and where the subject seems to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from studio.training.data.images import read_photo

LOOK_SIDE = 256
"""Photos are looked at with this longer side, so that sharpness means the same for all sizes."""

BLURRED_BELOW = 25.0
"""Variance of the Laplacian (grey levels squared) below which a photo is called blurred; usual values start at about 100.
A first guess, from "blurred" and "sharp" versions of the sample photos: see tests."""

ALIKE_BITS = 5
"""Photos whose 64-bit difference hashes differ in no more bits are called alike."""

CROP_SHARE = 0.85
"""The suggested square keeps this share of the photo's detail."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PhotoLook:
    """What was seen.

    Attributes:
        path: the file. width, height: upright, in pixels. sharpness: variance of the Laplacian.
        blurred, small: whether it should be replaced. alike: name of an earlier photo that shows the same, or None.
        crop: a square around most of the detail, as left, top, right, bottom in fractions; None where the whole is best.
    """

    path: Path
    width: int
    height: int
    sharpness: float
    blurred: bool
    small: bool
    alike: str | None
    crop: Box | None


def look_at_photos(paths: Sequence[Path], resolution: int) -> list[PhotoLook]:
    """Look at photos that can be read.

    Args:
        resolution: side in pixels that the base model is trained at; a photo with a shorter side under it is small.

    Raises:
        ImageError: one cannot be read.
    """
    looks: list[PhotoLook] = []
    hashes: list[tuple[str, int]] = []
    for path in paths:
        image = read_photo(path).image
        small = image.convert("L")
        small.thumbnail((LOOK_SIDE, LOOK_SIDE), Image.Resampling.LANCZOS)
        grey = np.asarray(small, dtype=np.float64)
        own_hash = difference_hash(image)
        alike = next((name for name, other in hashes if (own_hash ^ other).bit_count() <= ALIKE_BITS), None)
        hashes.append((path.name, own_hash))
        sharpness = laplacian_variance(grey)
        looks.append(
            PhotoLook(
                path=path,
                width=image.width,
                height=image.height,
                sharpness=sharpness,
                blurred=sharpness < BLURRED_BELOW,
                small=min(image.size) < resolution,
                alike=alike,
                crop=detail_square(grey),
            )
        )
    return looks


def laplacian_variance(grey: NDArray[np.float64]) -> float:
    """Variance of the 4-neighbour Laplacian of a (height, width) picture of grey levels 0 to 255 (Pech-Pacheco et al. 2000)."""
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 × 8 cells is darker than its right neighbour."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def detail_square(grey: NDArray[np.float64]) -> Box | None:
    """The smallest of a few squares that keeps `CROP_SHARE` of the gradient's energy, at its best place.

    Returns:
        Fractions of the picture; None when that is the whole (square) picture.
    """
    height, width = grey.shape
    energy = np.zeros_like(grey)
    energy[:-1, :] += np.abs(np.diff(grey, axis=0))
    energy[:, :-1] += np.abs(np.diff(grey, axis=1))
    total = energy.sum()
    if total <= 0 or min(height, width) < 16:
        return None
    summed = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    shorter = min(height, width)
    best: tuple[int, int, int] | None = None
    for share in (0.55, 0.65, 0.75, 0.85, 1.0):
        side = max(16, int(share * shorter))
        kept = summed[side:, side:] - summed[:-side, side:] - summed[side:, :-side] + summed[:-side, :-side]
        row, column = np.unravel_index(int(kept.argmax()), kept.shape)
        best = (int(column), int(row), side)
        if kept[row, column] >= CROP_SHARE * total:
            break
    assert best is not None
    left, top, side = best
    if side == height == width:
        return None
    return left / width, top / height, (left + side) / width, (top + side) / height
