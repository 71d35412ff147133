"""Latents, text features and class pictures: made once, found again, repaired when damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from studio.pipelines.base_model import BaseModel, encode_images, encode_text
from studio.training.data.batches import BatchPlan, PlanItem, PriorPlan
from studio.training.data.buckets import CENTER, Size
from studio.training.data.captions import Captions
from studio.training.data.dataset import ConceptDataset, ConceptItem, Picture
from studio.training.data.latents import LatentCache, crop_corner, framed_pixels, make_store
from studio.training.data.loader import Batch, BatchLoader, sample_noise
from studio.training.data.prior import ClassPictures, class_pictures
from studio.training.data.tensor_store import TensorStore
from studio.training.data.texts import TextCache
from tests.support.tiny_bases import tiny_base

SIZE = Size(32, 32)


@pytest.fixture(scope="module", params=["embedded", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny base with either kind of autoencoder and one or two text encoders."""
    return tiny_base(request.param, tmp_path_factory.mktemp("base"))


def picture(number: int, height: int = 32, width: int = 40) -> Picture:
    """A noise picture."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture(name=f"{number}.png", pixels=pixels, original_size=Size(height * 3, width * 3), content_hash=f"{number:064d}")


def encoder(base: BaseModel, calls: list[int]) -> LatentCache:
    """A cache in memory that counts what it encodes."""
    return LatentCache(counting(base, calls), "hash", make_store("memory", Path()))


def counting(base: BaseModel, calls: list[int]) -> object:
    """The base's encoder, which notes each call."""

    def encode(pixels: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(pixels))
        return encode_images(base, pixels, generator)

    return encode


def test_framing() -> None:
    shown = picture(0)
    pixels = framed_pixels(shown, SIZE, 0, flip=False)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert torch.equal(pixels, torch.from_numpy(shown.pixels[:, :32].copy()).permute(2, 0, 1) / 127.5 - 1.0)
    assert torch.equal(framed_pixels(shown, SIZE, 0, flip=True), pixels.flip(-1))
    assert crop_corner(shown, SIZE, 0, flip=False) == (0, 0)
    assert crop_corner(shown, SIZE, 0, flip=True) == (0, 8)
    assert crop_corner(shown, SIZE, CENTER, flip=False) == (0, 4)
    assert framed_pixels(shown, Size(64, 16), CENTER, flip=False).shape == (3, 64, 16)


def test_each_frame_is_encoded_once(base: BaseModel) -> None:
    calls: list[int] = []
    cache = encoder(base, calls)
    first = cache.latents(picture(0), SIZE, CENTER, False)
    assert torch.equal(first, cache.latents(picture(0), SIZE, CENTER, False))
    assert calls == [1]
    for variant in ((picture(1), SIZE, CENTER, False), (picture(0), SIZE, 0, False), (picture(0), SIZE, CENTER, True)):
        assert not torch.equal(first, cache.latents(*variant))
    assert calls == [1] * 4
    assert first.shape == (base.family.latent_channels if first.shape[0] != 4 else 4, *first.shape[1:])


def test_off_encodes_anew_and_gives_the_same(base: BaseModel) -> None:
    calls: list[int] = []
    cache = LatentCache(counting(base, calls), "hash", make_store("off", Path()))
    assert torch.equal(cache.latents(picture(0), SIZE, 0, False), cache.latents(picture(0), SIZE, 0, False))
    assert calls == [1, 1]


def test_disk_cache_is_found_again_and_repaired(base: BaseModel, tmp_path: Path) -> None:
    calls: list[int] = []

    def fresh(encoder_hash: str = "hash") -> LatentCache:
        return LatentCache(counting(base, calls), encoder_hash, make_store("disk", tmp_path))

    latents = fresh().latents(picture(0), SIZE, 0, False)
    assert torch.equal(fresh().latents(picture(0), SIZE, 0, False), latents)
    assert len(calls) == 1
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    flipped = whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    for damaged in (b"", whole[:30], whole[:-5], flipped, b"x" * 300):
        file.write_bytes(damaged)
        before = len(calls)
        assert torch.equal(fresh().latents(picture(0), SIZE, 0, False), latents)
        assert len(calls) == before + 1
        assert file.read_bytes() == whole
    fresh("another autoencoder").latents(picture(0), SIZE, 0, False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_an_entry_under_a_wrong_name_is_not_used(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.get("a" * 64, lambda: {"x": torch.ones(2)})
    (tmp_path / f"{'a' * 64}.safetensors").rename(tmp_path / f"{'b' * 64}.safetensors")
    assert torch.equal(TensorStore(tmp_path).get("b" * 64, lambda: {"x": torch.zeros(2)})["x"], torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_store_keeps_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    for value in (torch.arange(6).reshape(2, 3).to(dtype), torch.tensor(3).to(dtype)):
        key = f"{value.dim()}" * 64
        TensorStore(tmp_path).get(key, lambda value=value: {"x": value})  # type: ignore[misc]
        again = TensorStore(tmp_path).get(key, dict)
        assert again["x"].dtype == dtype and torch.equal(again["x"], value)


def test_text_features(base: BaseModel, tmp_path: Path) -> None:
    calls: list[str] = []

    def encode(prompts: Sequence[str]) -> object:
        calls.extend(prompts)
        with torch.no_grad():
            return encode_text(base, prompts)

    captions = ["a dog", "", "a dog", "a ohwx dog"]
    cached = TextCache(encode, "hash", TensorStore(tmp_path)).condition(captions)
    assert calls == ["a dog", "", "a ohwx dog"]
    direct = encode(captions)
    assert torch.allclose(cached.prompt_embeds, direct.prompt_embeds, atol=1e-5)
    assert (cached.pooled is None) == (direct.pooled is None)
    calls.clear()
    again = TextCache(encode, "hash", TensorStore(tmp_path)).condition(captions)
    assert calls == []
    assert torch.equal(again.prompt_embeds, cached.prompt_embeds)
    if cached.pooled is not None:
        assert torch.equal(again.pooled, cached.pooled)


def dataset_and_plan(num_class_images: int = 0) -> tuple[ConceptDataset, BatchPlan]:
    """Three photos of two sizes."""
    captions = Captions(full=("p",), bare="b")
    sizes = [SIZE, SIZE, Size(16, 48)]
    items = tuple(ConceptItem(picture=picture(n, 48, 48), size=size, captions=captions) for n, size in enumerate(sizes))
    plan = BatchPlan(
        seed=1,
        items=tuple(PlanItem(size=size, captions=captions) for size in sizes),
        batch_size=2,
        accumulation=2,
        prior=PriorPlan(batch_size=2, prompts=("c",), num_class_images=num_class_images),
    )
    return ConceptDataset(train_items=items, held_out=None, notes=()), plan


@pytest.mark.parametrize("num_class_images", [0, 5])
def test_batches_and_their_slices(base: BaseModel, num_class_images: int) -> None:
    dataset, plan = dataset_and_plan(num_class_images)
    pictures = tuple(picture(100 + number) for number in range(num_class_images))
    cache = encoder(base, [])

    def load(micro_step: int, rank: int = 0, world_size: int = 1) -> Batch:
        return BatchLoader(plan, dataset, cache, pictures, rank=rank, world_size=world_size).load(micro_step)

    for micro_step in range(8):
        whole, parts = load(micro_step), [load(micro_step, rank, 2) for rank in range(2)]
        assert whole.num_instance == 2 and len(whole.captions) == 4
        assert whole.noise.shape == whole.latents.shape
        assert whole.timestep_uniforms.shape == (4, 2)
        assert whole.captions[2:] == ("c", "c")
        assert whole.time_ids().shape == (4, 6)
        assert whole.time_ids()[0].tolist()[-2:] == list(whole.size)
        for name in ("latents", "noise", "timestep_uniforms"):
            rows = [getattr(part, name)[row] for row in range(2) for part in parts]
            assert torch.equal(torch.stack(rows), getattr(whole, name)), "two processes see the rows of one"


def test_noise_belongs_to_the_seed() -> None:
    noise = sample_noise(5, (4, 32, 32))
    assert torch.equal(noise, sample_noise(5, (4, 32, 32)))
    assert not torch.equal(noise, sample_noise(6, (4, 32, 32)))
    offset = sample_noise(5, (4, 32, 32), 0.5) - noise
    assert torch.allclose(offset, offset[:, :1, :1].expand_as(offset), atol=1e-6)
    assert offset.abs().max() > 0.01


def wanted(**changes: object) -> ClassPictures:
    """Six class pictures."""
    settings: dict[str, object] = {
        "base_hash": "h", "prompts": ("a dog", "one dog"), "num_images": 6, "size": Size(24, 32), "steps": 3,
        "guidance_scale": 2.0, "scheduler": "ddim",
    }  # fmt: skip
    return ClassPictures(**{**settings, **changes})


class Painter:
    """Paints a plain picture per seed, and stops after `patience` calls."""

    def __init__(self, patience: int = 100) -> None:
        self.painted: list[tuple[str, int]] = []
        self.patience = patience

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """The pictures."""
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.painted += list(zip(prompts, seeds, strict=True))
        return [Image.new("RGB", (32, 24), (seed % 256, len(prompt), 9)) for prompt, seed in zip(prompts, seeds, strict=True)]


def test_class_pictures_are_drawn_once_and_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        class_pictures(wanted(), tmp_path, Painter(patience=1))
    painter, counts = Painter(), []
    pictures = class_pictures(wanted(), tmp_path, painter, lambda there, total: counts.append((there, total)))
    assert len(painter.painted) == 2, "the first four were kept"
    assert counts == [(4, 6), (6, 6)]
    assert len({drawn.content_hash for drawn in pictures}) == 6
    assert all(drawn.pixels.shape == (24, 32, 3) for drawn in pictures)
    idle = Painter()
    again = class_pictures(wanted(), tmp_path, idle)
    assert idle.painted == []
    assert [drawn.content_hash for drawn in again] == [drawn.content_hash for drawn in pictures]


def test_damaged_and_additional_class_pictures_are_drawn(tmp_path: Path) -> None:
    first = class_pictures(wanted(), tmp_path, Painter())
    folder = wanted().folder(tmp_path)
    (folder / "00002.png").write_bytes((folder / "00002.png").read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(folder / "00004.png")
    painter = Painter()
    more = class_pictures(wanted(num_images=8), tmp_path, painter)
    assert [drawn.content_hash for drawn in more[:6]] == [drawn.content_hash for drawn in first]
    assert len(painter.painted) == 4
    assert len(class_pictures(wanted(num_images=3), tmp_path, Painter(patience=0))) == 3


@pytest.mark.parametrize(
    "change",
    [{"base_hash": "i"}, {"prompts": ("a cat",)}, {"size": Size(32, 24)}, {"steps": 4}, {"guidance_scale": 1.0}, {"seed": 1}],
)
def test_other_class_pictures_have_another_folder(tmp_path: Path, change: dict[str, object]) -> None:
    assert wanted(**change).folder(tmp_path) != wanted().folder(tmp_path)
