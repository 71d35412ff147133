"""From a folder to a dataset: what is trained on, what is held out, what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.pipelines.errors import DatasetError, ImageError
from studio.pipelines.families import family_named
from studio.training.config import TrainConfig, load_config
from studio.training.data.buckets import Size
from studio.training.data.dataset import ConceptDataset, class_prompts, load_concept

EMBEDDED = family_named("embedded")


def write_photos(folder: Path, count: int, width: int = 120, height: int = 120) -> Path:
    """`count` different noise pictures, named 0.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def load(folder: Path, **overrides: object) -> tuple[TrainConfig, ConceptDataset]:
    """The dataset of a folder with `section__key` settings."""
    settings = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_concept(load_config(None, {"concept.images": str(folder), "concept.class_noun": "dog", **settings}), EMBEDDED)


@pytest.mark.parametrize(("count", "trained"), [(1, 1), (3, 3), (4, 3), (5, 4)])
def test_one_of_four_or_more_is_held_out(tmp_path: Path, count: int, trained: int) -> None:
    config, dataset = load(write_photos(tmp_path / "p", count))
    assert len(dataset.train_items) == trained
    assert (dataset.held_out is not None) == (count >= 4)
    hashes = {item.picture.content_hash for item in dataset.train_items}
    assert dataset.held_out is None or dataset.held_out.picture.content_hash not in hashes
    train = EMBEDDED.train
    assert config.schedule.steps == min(max(trained * train.steps_per_image, train.min_steps), train.max_steps)
    assert any("kept" in note for note in dataset.notes)


def test_held_out_choice_is_fixed_by_seed_and_content(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 6)

    def chosen(folder: Path, seed: int) -> str:
        held_out = load(folder, run__seed=seed)[1].held_out
        assert held_out is not None
        return held_out.picture.content_hash

    assert len({chosen(folder, seed) for seed in range(12)}) > 2
    before = chosen(folder, 0)
    for number in range(6):
        (folder / f"{number}.png").rename(folder / f"renamed {9 - number}.png")
    assert chosen(folder, 0) == before


def test_copies_are_not_held_out(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 4)
    for number in range(3):
        (folder / f"copy{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    for seed in range(5):
        _, dataset = load(folder, run__seed=seed)
        assert dataset.held_out is not None and dataset.held_out.picture.name == "3.png"
    assert sum("same picture" in note for note in dataset.notes) == 3
    (folder / "copy3.png").write_bytes((folder / "3.png").read_bytes())
    assert load(folder)[1].held_out is None


def test_held_out_by_name(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 3)
    held_out = load(folder, concept__hold_out="1.png")[1].held_out
    assert held_out is not None and held_out.picture.name == "1.png"
    assert load(write_photos(tmp_path / "p", 5), concept__hold_out="none")[1].held_out is None
    with pytest.raises(DatasetError, match="did you mean '1.png'"):
        load(folder, concept__hold_out="1.jpg")
    with pytest.raises(DatasetError, match="leaves no other photo"):
        load(write_photos(tmp_path / "one", 1), concept__hold_out="0.png")
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(DatasetError, match="the same picture is also trained on"):
        load(folder, concept__hold_out="1.png")


def test_pictures_are_scaled_to_their_sizes(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 2, width=400, height=300)
    write_photos(folder, 1, width=200, height=200)
    _, dataset = load(folder)
    assert [item.size for item in dataset.train_items] == [(96, 96), (80, 112)]
    assert dataset.train_items[1].picture.original_size == Size(300, 400)
    assert dataset.train_items[1].picture.pixels.shape == (84, 112, 3)
    _, squares = load(folder, data__buckets=False)
    assert {item.size for item in squares.train_items} == {Size(96, 96)}


def test_small_photos_are_noted(tmp_path: Path) -> None:
    _, dataset = load(write_photos(tmp_path / "p", 2, width=40, height=40))
    assert any("2 photos have fewer pixels" in note for note in dataset.notes)
    assert dataset.train_items[0].size == (48, 48)


def test_signature_follows_content_and_not_place(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 3)
    _, dataset = load(folder)
    moved = folder.rename(tmp_path / "moved")
    assert load(moved)[1].signature == dataset.signature
    (moved / "0.txt").write_text("a dog on grass")
    assert load(moved)[1].signature != dataset.signature
    (moved / "0.txt").unlink()
    assert load(moved, data__resolution=64)[1].signature != dataset.signature
    write_photos(moved, 4)
    assert load(moved)[1].signature != dataset.signature


def test_megapixel_limit_is_a_setting(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="megapixels"):
        load(write_photos(tmp_path / "p", 1), data__max_megapixels=0.01)


@pytest.mark.parametrize(("prior", "num_class_images"), [("none", None), ("base-output", 0), ("class-images", 12)])
def test_plan_follows_the_configuration(tmp_path: Path, prior: str, num_class_images: int | None) -> None:
    config, dataset = load(write_photos(tmp_path / "p", 5), loss__prior=prior, loss__num_class_images=12, data__flip=True)
    plan = dataset.plan(config)
    assert len(plan.items) == 4 and plan.batch_size == 4 and plan.flip and not plan.random_crop
    assert (None if plan.prior is None else plan.prior.num_class_images) == num_class_images
    assert (plan.bare_share, plan.dropout) == (0.4, 0.1)


def test_class_prompts_have_no_token(tmp_path: Path) -> None:
    config, _ = load(write_photos(tmp_path / "p", 1), loss__class_prompts=["a {token} {class_noun}", "my {class_noun}"])
    assert class_prompts(config) == ("a dog", "my dog")
    config, _ = load(tmp_path / "p", concept__class_noun="apple")
    assert class_prompts(config) == ("a photo of an apple", "a picture of an apple", "an apple")
