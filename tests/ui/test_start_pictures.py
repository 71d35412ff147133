"""Pictures to start from: kept by their hash, named by ids and never by paths, with a mask of the box that was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import ImageError, MissingFileError, UserError
from studio.service import GenerateSpec, StartPicture, Studio
from studio.ui.parts.recipes import Recipe
from studio.ui.samples import sample_photos
from studio.ui.start_pictures import NOTHING, WHOLE, StartPictures


@pytest.fixture
def starts(tmp_path: Path):
    with Studio(tmp_path / "home") as studio:
        yield StartPictures(studio)


def test_a_picture_is_kept_under_the_hash_of_its_file_and_shown_on_the_canvas(starts: StartPictures):
    kept = starts.keep(sample_photos("cat")[0])
    assert file_sha256(starts.path(kept)) == kept == starts.keep(sample_photos("cat")[0])
    value = starts.shown(kept, title="drawn anew")
    assert value["picture"] == kept and value["boxes"] == [{"name": "drawn anew", "box": WHOLE}]
    assert starts.shown(None) == starts.shown("0" * 64) == NOTHING


def test_a_box_is_a_mask_and_the_whole_picture_is_none(starts: StartPictures):
    value = starts.shown(starts.keep(sample_photos("cat")[0]), title="drawn anew")
    assert starts.start_of(NOTHING, 0.5) is None
    whole = starts.start_of(value, 0.5)
    assert whole == StartPicture(picture=str(starts.path(value["picture"])), change=0.5)
    value["boxes"][0] = {**value["boxes"][0], "box": [0.5, 0.0, 1.0, 0.5]}
    part = starts.start_of(value, 0.5)
    assert part is not None and part.mask is not None
    mask = np.array(Image.open(part.mask))
    height, width = mask.shape
    assert mask[: height // 2, width // 2 :].min() == 255 and mask.sum() == 255 * (height // 2) * (width // 2)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "", "A" * 64, "0" * 64])
def test_what_is_no_id_names_nothing(starts: StartPictures, name: str):
    with pytest.raises(MissingFileError):
        starts.path(name)


def test_bombs_and_what_is_no_picture_are_refused(starts: StartPictures, tmp_path: Path):
    bomb, text = tmp_path / "bomb.png", tmp_path / "no.png"
    Image.new("1", (12_000, 12_000)).save(bomb)
    text.write_text("hello")
    for path in (bomb, text):
        with pytest.raises(ImageError):
            starts.keep(path)
    assert not starts.root.exists()


def test_a_picture_to_follow_needs_a_control_net(starts: StartPictures, tmp_path: Path):
    value = starts.shown(starts.keep(sample_photos("cat")[0]))
    with pytest.raises(UserError, match="needs a ControlNet"):
        starts.control_of(value, " ", 1.0)
    assert starts.control_of(NOTHING, "", 1.0) is None
    found = starts.control_of(value, str(tmp_path), 0.5)
    assert found is not None and (found.model, found.scale) == (str(tmp_path), 0.5)


def test_the_form_gets_its_pictures_back_from_a_job_and_from_a_record(starts: StartPictures):
    kept = starts.keep(sample_photos("cat")[0])
    spec = GenerateSpec(prompts=("a",), start=StartPicture(picture=str(starts.path(kept)), change=0.3))
    job = starts.studio.generate(spec)
    asked = starts.studio.request(job.id).spec
    assert isinstance(asked, GenerateSpec)
    again = Recipe.of_spec(asked).start
    assert again is not None and (again["sha256"], again["change"]) == (kept, 0.3)
    recorded = Recipe.of_record({"prompt": "a", "steered": {"start": {"sha256": kept, "change": 0.3}}}).start
    assert recorded == {"sha256": kept, "change": 0.3}
