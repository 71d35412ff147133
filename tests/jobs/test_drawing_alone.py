"""Jobs that draw by themselves: from a picture, with a mask; and what can be seen of them meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studio.composition.plan import CompositionPlan, Entry, Region, StrategyChoice
from studio.jobs.work import previews
from studio.jobs.work.drawing import run_drawing
from studio.jobs.work.models import Models
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import ImageError, MissingFileError
from studio.pipelines.pictures import sidecar_path
from studio.service import ComposeSpec, ControlPicture, GenerateSpec, Job, StartPicture, Studio
from tests.library.test_library import write_adapter
from tests.support.tiny_bases import tiny_sd15_dir


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sd15_dir(tmp_path_factory.mktemp("base")))


@pytest.fixture
def studio(tmp_path: Path):
    (tmp_path / "home").mkdir()
    with Studio(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


def run(studio: Studio, job: Job) -> dict[str, Any]:
    folder = studio.store.folder(job.id)
    return run_drawing(folder, folder.read_job(), Models(studio.library, "cpu"), lambda: False)


def test_a_picture_to_start_from_is_named_by_its_hash_in_the_record(studio: Studio, base: str, photo: Path):
    mask = photo.with_name("mask.png")
    Image.new("L", (64, 64), 255).save(mask)
    start = StartPicture(picture=str(photo), change=0.5, mask=str(mask))
    job = studio.generate(GenerateSpec(prompts=("a cat", "a dog"), base=base, steps=2, num_images=2, seed=5, start=start))
    assert run(studio, job)["facts"] == {"num_pictures": 4}
    pictures = studio.result(job.id).pictures
    records = [json.loads(sidecar_path(path).read_text()) for path in pictures]
    assert [record["seed"] for record in records] == [5, 6, 5, 6]
    about = {"sha256": file_sha256(photo), "change": 0.5, "mask_sha256": file_sha256(mask)}
    assert all(record["steered"] == {"start": about} for record in records)
    plain = studio.generate(GenerateSpec(prompts=("a cat",), base=base, steps=2, seed=5))
    assert not studio.request(plain.id).spec.is_steered  # type: ignore[attr-defined]


def test_what_is_not_there_or_has_changed_is_told(studio: Studio, base: str, photo: Path):
    with pytest.raises(MissingFileError):
        studio.generate(GenerateSpec(prompts=("a",), start=StartPicture(picture="/nowhere.png")))
    with pytest.raises(MissingFileError, match="There is no ControlNet"):
        studio.generate(GenerateSpec(prompts=("a",), control=ControlPicture(picture=str(photo), model="/nowhere")))
    job = studio.generate(GenerateSpec(prompts=("a",), base=base, steps=2, start=StartPicture(picture=str(photo))))
    Image.new("RGB", (64, 64)).save(photo)
    with pytest.raises(ImageError, match="has changed since"):
        run(studio, job)


def test_a_composition_shows_where_its_concepts_act(studio: Studio, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(previews, "SECONDS_BETWEEN", 0.0)
    entries = []
    for seed, box in enumerate(((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))):
        path = write_adapter(tmp_path / f"{seed}.safetensors", seed=seed)
        entries.append(Entry(adapter=str(path), region=Region(box=box)))
    plan = CompositionPlan(
        prompt="a cat", entries=tuple(entries), strategy=StrategyChoice(name="regional"), base=base, steps=2, width=64, height=64
    )
    job = studio.compose(ComposeSpec(plan=plan))
    run(studio, job)
    with Image.open(studio.store.folder(job.id).preview) as sheet:
        assert sheet.format == "WEBP" and sheet.width > 3 * 64


def test_previews_take_no_more_than_their_share_of_the_time(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    moment = [0.0]
    monkeypatch.setattr(previews.time, "monotonic", lambda: moment[0])
    folder = studio.store.folder("260101-000000-aaaaaa")
    folder.path.mkdir(parents=True)
    made = []

    def make() -> Image.Image:
        moment[0] += 2.0
        made.append(moment[0])
        return Image.new("RGB", (8, 8))

    shown = previews.Previews(folder)
    while moment[0] < 60.0:
        moment[0] += 0.25
        shown.show(make)
    assert len(made) >= 2 and 2.0 * len(made) <= 0.15 * moment[0]
    shown.forget()
    assert not folder.preview.exists()
