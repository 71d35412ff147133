"""The library: what comes in, what is refused, finding it again, and the way back from the trash."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.library.catalogue import ItemFilter
from studio.library.library import Library
from studio.library.upkeep import empty_trash, remove_leftovers, rescan, restore, trash
from studio.pipelines.adapters import AdapterInfo, save_adapter
from studio.pipelines.errors import AdapterFileError, ConfigError, DatasetError, MissingFileError, UserError
from studio.service import AdapterChoice, GenerateSpec, Studio, TrainSpec
from studio.service import ItemFilter as FacadeFilter
from studio.storage.home import Home
from tests.support.adapters import random_adapter
from tests.support.tiny_bases import tiny_sd15_dir
from tests.support.tiny_models import tiny_sd15

TARGETS = {"unet": r".*mid_block\.attentions\.0\..*attn2\.to_[qk]"}


def write_adapter(path: Path, seed: int = 0, dialect: str = "peft", name: str = "Rex", **info: object) -> Path:
    about = AdapterInfo(name=name, family="sd15", trigger="ohwx dog", class_noun="dog", tags=("pet",), **info)  # type: ignore[arg-type]
    save_adapter(random_adapter(tiny_sd15(), targets=TARGETS, rank=2, seed=seed, info=about), path, dialect)
    return path


@pytest.fixture
def library(tmp_path: Path):
    opened = Library(Home(tmp_path / "home"))
    yield opened
    opened.close()


@pytest.mark.parametrize("dialect", ["peft", "kohya", "lycoris"])
def test_an_adapter_of_any_dialect_comes_in_with_what_it_says(library: Library, tmp_path: Path, dialect: str):
    thumbnail = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    done = library.add_adapter(write_adapter(tmp_path / "a.safetensors", dialect=dialect, thumbnail=thumbnail), tags=["mine"])
    item = done.item
    assert done.new
    assert item is not None
    assert (item.name, item.family, item.type, item.rank) == ("Rex", "sd15", "lora", 2)
    assert (item.trigger, item.class_noun, item.tags) == ("ohwx dog", "dog", ("pet", "mine"))
    assert item.path.is_relative_to(library.folder)
    assert item.path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert item.has_thumbnail
    with Image.open(library.thumbnail(item.id)) as small:  # type: ignore[arg-type]
        assert small.size == (1, 1)
    again = library.add_adapter(tmp_path / "a.safetensors", name="another name")
    assert (again.new, again.item) == (False, item)


def test_a_folder_comes_in_and_every_refusal_is_named(library: Library, tmp_path: Path):
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    write_adapter(folder / "good.safetensors", seed=1)
    write_adapter(folder / "deep" / "other.safetensors", seed=2)
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-10])
    (folder / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00(X\x05\x00\x00\x00stateq\x01")
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {f"{layer}.lora_down.weight": torch.full((2, 4), torch.nan), f"{layer}.lora_up.weight": torch.ones(6, 2)},
        folder / "nan.safetensors",
    )
    secret = write_adapter(tmp_path / "secret.safetensors", seed=3)
    (folder / "link.safetensors").symlink_to(secret)
    (folder / "inner.safetensors").symlink_to(folder / "good.safetensors")
    done = {each.source.name: each for each in library.add_folder(folder)}
    assert {name for name, each in done.items() if each.new} == {"good.safetensors", "other.safetensors"}
    assert not done["inner.safetensors"].refused
    refusals = {
        "cut.safetensors": "cut off",
        "pickle.safetensors": "is a pickle",
        "nan.safetensors": "NaN or infinite",
        "link.safetensors": "leads out of",
    }
    for name, words in refusals.items():
        assert words in done[name].refused, done[name]
        assert name in done[name].refused
    assert library.catalogue.count() == 2
    assert not list(library.folder.rglob("*.part"))


def test_names_of_files_are_safe_whatever_the_item_is_called(library: Library, tmp_path: Path):
    for seed, name in enumerate(["../../etc/passwd", "CON", "a\x00b", "日本語", "  ", "x" * 299, "<b>Rex</b>"]):
        path = write_adapter(tmp_path / f"{seed}.safetensors", seed=seed, name=name if name.strip() else "fine")
        item = library.add_adapter(path).item
        assert item is not None
        assert item.path.resolve().is_relative_to((library.folder / "adapters").resolve())
        assert item.path.name.isascii()
        assert len(item.path.name) < 100
    with pytest.raises(ConfigError, match="should not be empty"):
        library.add_adapter(write_adapter(tmp_path / "9.safetensors", seed=9), name="  ")


def test_words_are_found_wherever_they_stand(library: Library, tmp_path: Path):
    first = library.add_adapter(write_adapter(tmp_path / "a.safetensors", seed=1, name="Rex on the beach")).item
    second = library.add_adapter(write_adapter(tmp_path / "b.safetensors", seed=2, name="Café"), tags=["Ink Style"]).item
    assert first is not None and second is not None
    library.edit(second.id, notes="learned from my grandmother's drawings", favourite=True)

    def found(words: str, **more: object) -> list[str]:
        return [item.name for item in library.catalogue.page(ItemFilter(words=words, **more)).items]  # type: ignore[arg-type]

    assert found("beach") == ["Rex on the beach"]
    assert found("REX bea") == ["Rex on the beach"]
    assert found("grandm") == found("ink") == found("cafe") == ["Café"]
    assert set(found("ohwx")) == set(found("lora sd15")) == {"Café", "Rex on the beach"}
    for odd in ('"', "a OR b", "NEAR(", "*", "rex AND (", "tags:ink", "-beach", "'; DROP TABLE items; --"):
        found(odd)
    assert found("*") == []
    assert found("", tags=["ink style"]) == found("", favourite=True) == ["Café"]
    assert library.catalogue.tags() == {"pet": 2, "Ink Style": 1}
    assert library.catalogue.get(first.id[:8]) == library.catalogue.get("Rex on the beach") == first


def test_pages_go_through_all_and_a_lost_catalogue_is_made_anew(library: Library, tmp_path: Path):
    for seed in range(7):
        library.add_adapter(write_adapter(tmp_path / f"{seed}.safetensors", seed=seed, name=f"number {seed}"))
    names, cursor = [], None
    while True:
        page = library.catalogue.page(limit=3, cursor=cursor)
        names += [item.name for item in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert names == [f"number {seed}" for seed in reversed(range(7))]
    with pytest.raises(UserError, match="no place in a list"):
        library.catalogue.page(cursor="nonsense")
    before = list(library.catalogue.all())
    library.close()
    library.home.library_database.write_bytes(b"garbage" * 999)
    again = Library(library.home)
    assert list(again.catalogue.all()) == before
    assert {item.name for item in again.catalogue.page(ItemFilter(words="number", tags=["pet"])).items} == set(names)
    again.close()


def test_the_trash_has_a_way_back(library: Library, tmp_path: Path):
    item = library.add_adapter(write_adapter(tmp_path / "a.safetensors")).item
    assert item is not None
    gone = trash(library, item.id)
    assert not item.path.exists()
    assert gone.path.exists()
    assert library.catalogue.page().items == ()
    with pytest.raises(MissingFileError, match="no adapter"):
        library.resolve(item.id)
    back = restore(library, item.id[:12])
    assert back.path == item.path
    assert library.resolve("Rex") == (item.path, item.id)
    trash(library, item.id)
    assert empty_trash(library, older_than_seconds=3600) == 0
    assert empty_trash(library) == 1
    assert library.catalogue.find(item.id) is None
    assert not list(library.folder.rglob("*.safetensors"))
    with pytest.raises(MissingFileError, match="no .* in the trash"):
        restore(library, item.id)


def test_what_lies_elsewhere_stays_there(library: Library, tmp_path: Path):
    path = write_adapter(tmp_path / "mine.safetensors")
    item = library.add_adapter(path, in_place=True).item
    assert item is not None
    assert item.path == path
    trash(library, item.id)
    empty_trash(library)
    assert path.exists()


def test_a_file_moved_by_hand_is_found_by_its_hash(library: Library, tmp_path: Path):
    items = [library.add_adapter(write_adapter(tmp_path / f"{n}.safetensors", seed=n, name=f"n{n}")).item for n in range(3)]
    first, second, third = (item for item in items if item is not None)
    elsewhere = library.folder / "sorted by me"
    elsewhere.mkdir()
    first.path.rename(elsewhere / "new name.safetensors")
    second.path.rename(tmp_path / "far away.safetensors")
    same_size = third.path.with_name("same-size.safetensors")
    same_size.write_bytes(bytes(third.num_bytes))
    assert library.resolve("n0") == (elsewhere / "new name.safetensors", first.id)
    found = rescan(library)
    assert [item.name for item in found.missing] == ["n1"]
    assert library.catalogue.get("n1").missing
    found = rescan(library, [tmp_path])
    assert [(item.name, item.path) for item in found.moved] == [("n1", tmp_path / "far away.safetensors")]
    assert not library.catalogue.get("n1").missing
    third.path.unlink()
    with pytest.raises(MissingFileError, match="no longer at .*rescan"):
        library.resolve("n2")


def test_what_does_the_same_is_found_though_the_files_differ(library: Library, tmp_path: Path):
    first = library.add_adapter(write_adapter(tmp_path / "a.safetensors", dialect="peft")).item
    second = library.add_adapter(write_adapter(tmp_path / "b.safetensors", dialect="kohya")).item
    library.add_adapter(write_adapter(tmp_path / "c.safetensors", seed=5))
    assert first is not None and second is not None
    (group,) = library.catalogue.same_content()
    assert {item.id for item in group} == {first.id, second.id}


def test_concepts_bases_plans_and_pictures(library: Library, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (number * 60, 0, 0)).save(photos / f"{number}.png")
    (photos / "0.txt").write_text("a dog on grass")
    concept = library.add_concept(photos, name="my dog", class_noun="dog", trigger="ohwx").item
    assert concept is not None
    assert (concept.facts["num_photos"], concept.facts["num_captions"]) == (4, 1)
    assert sorted(path.name for path in concept.path.iterdir()) == ["0.png", "0.txt", "1.png", "2.png", "3.png"]
    assert not library.add_concept(photos).new
    (photos / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"bad\.png"):
        library.add_concept(photos)
    base = library.add_base(tiny_sd15_dir(tmp_path / "base")).item
    assert base is not None
    assert (base.kind, base.family, base.path) == ("base", "sd15", tmp_path / "base")
    plan_file = tmp_path / "both.yaml"
    plan_file.write_text("prompt: a cat and a dog\nentries:\n  - adapter: cat.safetensors\n    words: a cat\n")
    plan = library.add_plan(plan_file).item
    assert plan is not None
    assert plan.facts["prompt"] == "a cat and a dog"
    picture = library.add_picture(photos / "1.png", tags=["red"]).item
    assert picture is not None
    assert picture.has_thumbnail
    assert library.catalogue.count(ItemFilter(kind="picture")) == 1


def test_a_job_takes_what_the_library_has(tmp_path: Path):
    with Studio(tmp_path / "home") as studio:
        item = studio.import_adapter(write_adapter(tmp_path / "a.safetensors")).item
        assert item is not None
        job = studio.generate(GenerateSpec(prompts=("a ohwx dog",), adapters=(AdapterChoice(adapter="Rex", strength=0.5),)))
        asked = studio.request(job.id).spec
        assert isinstance(asked, GenerateSpec)
        assert asked.adapters == (AdapterChoice(adapter=item.id, strength=0.5, sha256=item.id),)
        photos = tmp_path / "photos"
        photos.mkdir()
        Image.new("RGB", (40, 30)).save(photos / "a.png")
        concept = studio.import_concept(photos, name="my dog", class_noun="dog", trigger="zwx").item
        assert concept is not None
        training = studio.train(TrainSpec(settings={"concept": {"images": "my dog"}}))
        asked_training = studio.request(training.id).spec
        assert isinstance(asked_training, TrainSpec)
        assert asked_training.settings["concept"] == {"images": str(concept.path), "class_noun": "dog", "token": "zwx"}
        assert studio.search("zwx") == [concept]
        assert studio.items(FacadeFilter(kind="adapter")).items == (item,)


def test_leftovers_of_killed_copies_are_removed(library: Library):
    left = library.folder / "adapters" / ".a.safetensors.0123456789ab.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert remove_leftovers(library) == 0
    os.utime(left, (1.0, 1.0))
    assert remove_leftovers(library) == 1
    shutil.rmtree(left.parent)


def test_a_refused_file_leaves_nothing_behind(library: Library, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(AdapterFileError, match="is a pickle"):
        library.add_anything(tmp_path / "x.safetensors")
    assert [path for path in library.folder.rglob("*") if path.is_file()] == []
