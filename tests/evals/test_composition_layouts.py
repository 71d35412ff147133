"""Layouts of other people's pictures with toy things, and concepts from folders of photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.composition.strategies import STRATEGIES
from studio.evals.composition_layouts import (
    canvas_of,
    draw_layout,
    draw_photo_concepts,
    photo_concepts,
    photo_folder,
    prompt_of,
    read_layouts,
)
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import ConfigError, MissingFileError, UserError
from tests.support.scenes import lora
from tests.support.tiny_bases import tiny_world_dir

LAYOUTS = {
    "layouts": [
        {"name": "row", "width": 1024, "height": 512, "boxes": [[n / 5, 0.12, n / 5 + 0.156, 1.0] for n in range(5)]},
        {"name": "two", "width": 1024, "height": 768, "boxes": [[0.01, 0.013, 0.3, 0.9987], [0.586, 0.09, 0.879, 0.9987]]},
    ]
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_world_dir(tmp_path_factory.mktemp("base")))


@pytest.fixture
def layouts(tmp_path: Path) -> Path:
    path = tmp_path / "layouts.json"
    path.write_text(json.dumps(LAYOUTS), encoding="utf-8")
    return path


@pytest.mark.parametrize("strategy", [kind.name for kind in STRATEGIES if kind.uses_regions])
def test_every_layout_is_drawn_in_its_aspect(base: BaseModel, layouts: Path, strategy: str):
    found = read_layouts(layouts)
    assert [canvas_of(layout, base) for layout in found] == [(128, 64), (88, 64)]  # the tiny base draws 64 pixels
    for number, layout in enumerate(found):
        prompt = prompt_of(layout, number)
        assert prompt.boxes == layout.boxes and len({thing.words for thing in prompt.things}) == len(layout.boxes)
        adapters = {thing.name: lora(base, seed, targets={"unet": r".*attn.*"}) for seed, thing in enumerate(prompt.things)}
        pictures = draw_layout(base, prompt, strategy, adapters, steps=1, num=1)
        assert [picture.size for picture in pictures] == [canvas_of(layout, base)]


@pytest.mark.parametrize("text", ["{", "[]", '{"layouts": [{"name": "x"}]}', '{"layouts": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.json holds no layouts: it should have a list"):
        read_layouts(tmp_path / "x.json")
    with pytest.raises(MissingFileError, match=r"There is no file .*none\.json"):
        read_layouts(tmp_path / "none.json")


def test_concepts_from_photos_are_composed(base: BaseModel, tmp_path: Path):
    rng = np.random.default_rng(0)
    folders = []
    for noun in ("dog", "backpack"):  # the second is no word of the toy world
        folder = tmp_path / noun
        folder.mkdir()
        for number in range(2):
            pixels = rng.integers(0, 255, (90, 120 + 20 * number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
        folders.append((folder, noun))
    concepts = photo_concepts(base, folders, tmp_path / "out", steps=1)
    assert [thing.words for thing, _ in concepts] == ["sks dog", "ohwx backpack"]
    for strategy in ("merge", "regional", "composite", "lora-composer"):
        (picture,) = draw_photo_concepts(base, concepts, strategy, steps=1, num=1)
        assert picture.size == (base.size, base.size)


def test_a_folder_of_photos_has_a_noun():
    assert photo_folder("photos/a:b:dog") == (Path("photos/a:b"), "dog")
    for text in ("photos", ":dog", "photos:"):
        with pytest.raises(UserError, match="should be FOLDER:NOUN"):
            photo_folder(text)
