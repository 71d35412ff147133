"""What is said about somebody's photos: blur, copies, size, and where the subject is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from studio.training.data.photo_check import BLURRED_BELOW, detail_square, difference_hash, laplacian_variance, look_at_photos

SAMPLES = sorted(Path(str(resources.files("studio.assets") / "concepts")).glob("*/*.png"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_sample_photos_are_sharp_and_their_blurred_versions_are_not(path: Path, tmp_path):
    blurred = tmp_path / "blurred.png"
    Image.open(path).convert("RGB").filter(ImageFilter.GaussianBlur(6)).save(blurred)
    sharp, soft = look_at_photos([path, blurred], 96)
    assert not sharp.blurred and sharp.sharpness > 2 * BLURRED_BELOW
    assert soft.blurred and soft.sharpness < BLURRED_BELOW


def test_a_rescaled_and_recompressed_copy_is_called_alike_and_other_photos_are_not(tmp_path):
    copy = tmp_path / "copy.jpg"
    Image.open(SAMPLES[0]).convert("RGB").resize((200, 200)).save(copy, quality=70)
    looks = look_at_photos([*SAMPLES[:5], copy], 96)
    assert looks[-1].alike == SAMPLES[0].name
    assert [look.alike for look in looks[:5]] == [None] * 5


def test_small_photos_are_named_by_their_shorter_side(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (300, 90)).save(path)
    assert look_at_photos([path], 96)[0].small
    assert not look_at_photos([path], 90)[0].small


def test_the_suggested_square_holds_the_subject():
    grey = np.full((120, 200), 128.0)
    generator = np.random.default_rng(0)
    grey[40:90, 130:180] = generator.uniform(0, 255, (50, 50))
    box = detail_square(grey)
    assert box is not None
    left, top, right, bottom = (box[0] * 200, box[1] * 120, box[2] * 200, box[3] * 120)
    assert left <= 131 and right >= 179 and top <= 41 and bottom >= 89
    assert right - left == pytest.approx(bottom - top)


def test_nothing_to_see_suggests_nothing():
    assert detail_square(np.zeros((64, 64))) is None
    assert laplacian_variance(np.zeros((64, 64))) == 0.0
    assert difference_hash(Image.new("RGB", (32, 32))) == 0
