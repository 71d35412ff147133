"""Photos that were handed to the page: copied at once, edited, and never outside their folder."""

from __future__ import annotations

import pytest
from PIL import Image

from studio.pipelines.errors import MissingFileError, UserError
from studio.ui.drafts import Drafts
from studio.ui.samples import SAMPLES, sample_noun, sample_photos


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def draft(tmp_path):
    draft = Drafts(tmp_path / "drafts").new()
    assert draft.add(sample_photos("cat")) == []
    return draft


def test_a_draft_is_there_again_after_a_reload_and_an_unknown_id_is_an_empty_one(draft, tmp_path):
    drafts = Drafts(tmp_path / "drafts")
    assert [path.name for path in drafts.open(draft.id).photos()] == [f"{n:02d}.png" for n in range(1, 6)]
    for bad in (None, "", "../../etc", "0" * 16, "x" * 16):
        assert drafts.open(bad).photos() == []
    with pytest.raises(MissingFileError):
        drafts.folder("../x")


def test_captions_and_crops_are_what_is_trained_on_and_the_original_stays(draft):
    draft.write_caption("01.png", "  in a \n room ")
    draft.crop("01.png", (0.25, 0.25, 0.75, 0.75))
    assert (draft.photos_dir / "01.txt").read_text() == "in a room"
    assert size_of(draft.photos_dir / "01.png") == (144, 144)
    draft.crop("01.png", None)
    assert size_of(draft.photos_dir / "01.png") == (288, 288)
    draft.write_caption("01.png", "")
    assert draft.caption("01.png") == ""
    with pytest.raises(UserError, match="16 pixels"):
        draft.crop("01.png", (0.5, 0.5, 0.51, 0.51))


def test_bombs_and_what_is_no_picture_are_refused_with_a_sentence_each_and_the_rest_is_taken(draft, tmp_path):
    bomb, text = tmp_path / "bomb.png", tmp_path / "no.png"
    Image.new("1", (12_000, 12_000)).save(bomb)
    text.write_text("hello")
    problems = draft.add([bomb, text, sample_photos("mug")[0]])
    assert len(problems) == 2 and "144 megapixels" in problems[0] and "no picture" in problems[1]
    assert not any(str(tmp_path) in problem for problem in problems)
    assert len(draft.photos()) == 6


def test_the_upright_photo_is_what_is_cropped(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (80, 40)).save(path, exif=exif)
    draft = Drafts(tmp_path / "drafts").new()
    draft.add([path])
    draft.crop("01.jpg", (0.0, 0.0, 1.0, 0.5))
    assert size_of(draft.photos_dir / "01.jpg") == (40, 40)


def test_samples_are_five_photos_of_something_that_has_a_noun():
    assert {name: (len(sample_photos(name)), sample_noun(name)) for name in SAMPLES} == {name: (5, name) for name in SAMPLES}
