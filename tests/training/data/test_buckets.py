"""Buckets: sizes of one area, little cropping, no needless enlarging."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from studio.training.data.buckets import (
    CENTER,
    CROP_POSITIONS,
    Buckets,
    Crop,
    Size,
    covering_size,
    crop_at,
    resize_to_cover,
)


@pytest.mark.parametrize(("resolution", "step"), [(96, 16), (96, 8), (512, 64), (1024, 64), (768, 64)])
def test_sizes_fit_area_step_and_shape(resolution: int, step: int) -> None:
    sizes = Buckets(resolution=resolution, step=step).sizes()
    assert Size(resolution, resolution) in sizes
    assert len(sizes) == len(set(sizes))
    assert {Size(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height * width <= resolution**2
        assert height % step == width % step == 0
        assert max(height, width) <= 2.0 * min(height, width)
        assert height * width >= 0.75 * resolution**2


def test_known_sizes() -> None:
    assert Buckets(resolution=96, step=16).sizes() == ((128, 64), (112, 80), (96, 96), (80, 112), (64, 128))
    assert len(Buckets(resolution=1024, step=64).sizes()) >= 9
    assert Buckets(resolution=96, step=16, square=True).sizes() == ((96, 96),)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (3000, 3000, (512, 512)),
        (3000, 4000, (448, 576)),
        (4000, 3000, (576, 448)),
        (1080, 1920, (384, 640)),
        (2000, 3900, (320, 640)),
        (500, 4000, (320, 640)),
        (512, 512, (512, 512)),
        (400, 400, (384, 384)),
        (60, 60, (256, 256)),
        (300, 600, (256, 576)),
        (40, 600, (256, 576)),
    ],
)
def test_size_for(height: int, width: int, expected: tuple[int, int]) -> None:
    buckets = Buckets(resolution=512, step=64)
    size = buckets.size_for(height, width)
    assert size == expected
    kept = min(size.width * height / (size.height * width), size.height * width / (size.width * height))
    if max(height, width) <= 2 * min(height, width):
        assert kept > 0.75


def test_upscale_gives_the_full_area() -> None:
    assert Buckets(resolution=512, step=64, upscale=True).size_for(60, 60) == (512, 512)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 411), (96, 96), (37, 41)])
def test_cover_is_tight_and_keeps_shape(shape: tuple[int, int]) -> None:
    for size in Buckets(resolution=96, step=16).sizes():
        covering = covering_size(*shape, size)
        assert covering.height >= size.height and covering.width >= size.width
        assert covering.height == size.height or covering.width == size.width
        assert covering.height / covering.width == pytest.approx(shape[0] / shape[1], rel=0.02)
        assert covering_size(*covering, size) == covering, "covering twice changes nothing"
        pixels = resize_to_cover(Image.new("RGB", (shape[1], shape[0])), size)
        assert pixels.shape == (*covering, 3)


def test_reducing_is_antialiased() -> None:
    stripes = np.zeros((960, 960, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_to_cover(Image.fromarray(stripes), Size(96, 96))
    assert np.abs(small.astype(int) - 127).max() <= 6, "thin stripes become grey, not coarse stripes"


def test_crops_stay_inside() -> None:
    assert crop_at((100, 200), Size(100, 100), CENTER) == Crop(0, 50)
    crops = [crop_at((100, 203), Size(96, 96), position) for position in range(CROP_POSITIONS)]
    assert crops[0] == (0, 0) and crops[-1] == (4, 107)
    assert len(set(crops)) == CROP_POSITIONS
