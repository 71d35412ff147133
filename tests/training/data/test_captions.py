"""Captions: from files or templates, and always with the trigger."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.pipelines.errors import DatasetError
from studio.training.config import ConceptConfig
from studio.training.data.captions import Captions, captions_for, with_trigger

CONCEPT = ConceptConfig(images=Path("photos"), class_noun="dog")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of a dog on grass", "a photo of a ohwx dog on grass"),
        ("Dog in the snow", "ohwx Dog in the snow"),
        ("a photo of OHWX dog", "a photo of OHWX dog"),
        ("sitting on a chair", "ohwx dog, sitting on a chair"),
        ("two hotdogs", "ohwx dog, two hotdogs"),
        ("a {token} {class_noun} {outside}", "a ohwx dog {outside}"),
        ("a xohwx thing", "ohwx dog, a xohwx thing"),
    ],
)
def test_trigger_is_put_in(caption: str, expected: str) -> None:
    assert with_trigger(caption, "ohwx", "dog") == expected


def test_templates_without_a_file(tmp_path: Path) -> None:
    captions = captions_for(tmp_path / "a.png", CONCEPT)
    assert captions.full[0] == "a photo of a ohwx dog"
    assert captions.bare == "a ohwx dog"
    assert not captions.from_file


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert not captions_for(tmp_path / "a.png", CONCEPT).from_file


def test_lines_are_alternatives(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa dog   barks\r\n\r\nein ohwx Hund läuft\n".encode())
    captions = captions_for(tmp_path / "a.jpg", CONCEPT)
    assert captions.full == ("a ohwx dog barks", "ein ohwx Hund läuft")
    assert captions.from_file


def test_captions_stay_as_they_are_written_if_told_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("three red cats\n", encoding="utf-8")
    concept = CONCEPT.model_copy(update={"caption_words": "as-written"})
    assert captions_for(tmp_path / "a.png", concept).full == ("three red cats",)
    assert captions_for(tmp_path / "b.png", concept).full[0] == "a photo of a ohwx dog"


@pytest.mark.parametrize(("content", "expected"), [(b"\xff\xfeh\x00", "UTF-8"), (b"x" * 30_000, "no caption")])
def test_bad_file(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=expected):
        captions_for(tmp_path / "a.png", CONCEPT)


def test_shares() -> None:
    captions = Captions(full=("x", "y"), bare="b")
    drawn = [captions.choose((i + 0.5) / 1000, (i % 10 + 0.5) / 10, bare_share=0.4, dropout=0.1) for i in range(1000)]
    assert drawn.count("") == 100
    assert drawn.count("b") == 360
    assert drawn.count("x") == drawn.count("y") == 270
    assert set(captions.all()) == set(drawn)
    assert captions.choose(0.0, 0.999, bare_share=0.0, dropout=0.0) == "y"
