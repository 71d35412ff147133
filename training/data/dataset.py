"""The concept's photos, ready for training: framed, captioned, one of them held out."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

import numpy as np
from PIL import Image

from studio.pipelines.errors import DatasetError
from studio.pipelines.families import ModelFamily
from studio.training.config import DataConfig, TrainConfig, resolve_defaults
from studio.training.config.methods import MethodPreset, preset_of
from studio.training.data.batches import BatchPlan, PlanItem, PriorPlan
from studio.training.data.buckets import Buckets, Size, resize_to_cover
from studio.training.data.captions import Captions, captions_for
from studio.training.data.draws import bits
from studio.training.data.folder import duplicates, find_images, read_photos
from studio.training.data.images import ImageLimits, Photo

T = TypeVar("T")

FEWEST_FOR_HOLDING_OUT = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """Pixels that training can be shown.

    Attributes:
        name: file name, for messages. pixels: uint8 RGB `[H, W, 3]`, scaled down to what is needed.
        original_size: of the photo before that. content_hash: of the original pixels, 64 hex digits.
    """

    name: str
    pixels: np.ndarray
    original_size: Size
    content_hash: str

    def image(self) -> Image.Image:
        """The whole scaled picture."""
        return Image.fromarray(self.pixels)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConceptItem:
    """One photo: its picture, the size it is trained at, and its captions."""

    picture: Picture
    size: Size
    captions: Captions


@dataclass(frozen=True, eq=False, kw_only=True)
class ConceptDataset:
    """The photos of one concept.

    Attributes:
        train_items: what is trained on. held_out: the photo kept apart to judge checkpoints, or None.
        notes: what a person should know about the photos, a sentence each.
    """

    train_items: tuple[ConceptItem, ...]
    held_out: ConceptItem | None
    notes: tuple[str, ...]

    @property
    def signature(self) -> str:
        """SHA-256 (64 hex digits) of all that decides the batches: pixels, sizes, captions, order. Not of paths."""
        digest = hashlib.sha256()
        for item in (*self.train_items, *(() if self.held_out is None else (self.held_out,))):
            parts = (item.picture.content_hash, *map(str, item.size), *item.captions.full, item.captions.bare)
            digest.update("\x1f".join(parts).encode() + b"\x1e")
        digest.update(b"held out" if self.held_out is not None else b"all trained on")
        return digest.hexdigest()

    def plan(self, config: TrainConfig) -> BatchPlan:
        """The batches of a run with a resolved `config`."""
        concept, data, loss = config.concept, config.data, config.loss
        prior = None
        if loss.prior != "none":
            num_class_images = _filled(loss.num_class_images) if loss.prior == "class-images" else 0
            prompts = class_prompts(config)
            prior = PriorPlan(batch_size=_filled(loss.prior_batch_size), prompts=prompts, num_class_images=num_class_images)
        return BatchPlan(
            seed=config.run.seed,
            items=tuple(PlanItem(size=item.size, captions=item.captions) for item in self.train_items),
            batch_size=_filled(data.batch_size),
            accumulation=config.run.gradient_accumulation_steps,
            prior=prior,
            bare_share=_filled(concept.bare_caption_share),
            dropout=_filled(concept.caption_dropout),
            random_crop=data.crop == "random",
            flip=data.flip,
        )


def class_prompts(config: TrainConfig) -> tuple[str, ...]:
    """The prompts of the prior half: the class without the token."""
    return tuple(
        prompt.replace("{token} ", "").replace("{token}", "").replace("{class_noun}", config.concept.class_noun)
        for prompt in _filled(config.loss.class_prompts)
    )


def load_concept(
    config: TrainConfig, family: ModelFamily, on_photo: Callable[[int, int], None] | None = None
) -> tuple[TrainConfig, ConceptDataset]:
    """Read the photos that `config` names, and complete the configuration by the family and their number.

    Args:
        on_photo: called with (photos read, photos in all).

    Raises:
        DatasetError: no photos, or some that cannot be used: every one is named.
        ConfigError: settings contradict each other.
    """
    paths = find_images(config.concept.images)
    data = resolve_defaults(config, family, len(paths)).data
    photos = read_photos(paths, ImageLimits(max_pixels=int(data.max_megapixels * 1e6)), on_photo)
    held_out = choose_held_out(photos, config.concept.hold_out, config.run.seed)
    buckets = make_buckets(data)
    items = {photo.path: make_item(photo, buckets, config) for photo in photos}
    dataset = ConceptDataset(
        train_items=tuple(item for path, item in items.items() if held_out is None or path != held_out.path),
        held_out=None if held_out is None else items[held_out.path],
        notes=(*_note_on_number(preset_of(config.adapter.method), photos), *_notes(photos, buckets, held_out)),
    )
    return resolve_defaults(config, family, len(dataset.train_items)), dataset


def make_buckets(data: DataConfig) -> Buckets:
    """The sizes that a resolved `data` section allows."""
    return Buckets(
        resolution=_filled(data.resolution),
        step=_filled(data.bucket_step),
        max_aspect=data.max_bucket_aspect,
        square=not data.buckets,
        upscale=data.upscale,
    )


def make_item(photo: Photo, buckets: Buckets, config: TrainConfig) -> ConceptItem:
    """Frame and caption one photo."""
    original = Size(photo.image.height, photo.image.width)
    size = buckets.size_for(*original)
    pixels = resize_to_cover(photo.image, size)
    picture = Picture(name=photo.path.name, pixels=pixels, original_size=original, content_hash=photo.content_hash)
    return ConceptItem(picture=picture, size=size, captions=captions_for(photo.path, config.concept))


def choose_held_out(photos: Sequence[Photo], wanted: str, seed: int) -> Photo | None:
    """The photo to keep out of training, or None.

    Args:
        wanted: "auto" for one of four or more different photos, by `seed` and content; "none"; or a file name.

    Raises:
        DatasetError: no photo has that name, or none would be left to train on.
    """
    if wanted == "none":
        return None
    copies = Counter(photo.content_hash for photo in photos)
    if wanted == "auto":
        single = [photo for photo in photos if copies[photo.content_hash] == 1]
        if len(copies) < FEWEST_FOR_HOLDING_OUT or not single:
            return None
        return min(single, key=lambda photo: bits(seed, f"hold out {photo.content_hash}"))
    for photo in photos:
        if photo.path.name == wanted:
            if len(copies) == 1:
                raise DatasetError(f"concept.hold_out = {wanted!r} leaves no other photo to train on; add photos or use none")
            if copies[photo.content_hash] > 1:
                raise DatasetError(f"concept.hold_out = {wanted!r}: the same picture is also trained on; delete the copy")
            return photo
    near = get_close_matches(wanted, [photo.path.name for photo in photos], n=1)
    hint = f"did you mean {near[0]!r}?" if near else 'use "auto", "none" or the name of one of the photos'
    raise DatasetError(f"concept.hold_out = {wanted!r} is none of the photos; {hint}")


def _notes(photos: Sequence[Photo], buckets: Buckets, held_out: Photo | None) -> list[str]:
    notes = [f"{photo.path.name}: {note}." for photo in photos for note in photo.notes]
    notes += [
        f"{copy.path.name} is the same picture as {first.path.name}; it counts twice. Delete one unless that is meant."
        for first, copy in duplicates(photos)
    ]
    small = [photo.path.name for photo in photos if math.prod(photo.image.size) < buckets.resolution**2]
    if small:
        names = ", ".join(small[:5]) + (", …" if len(small) > 5 else "")
        notes.append(f"{len(small)} photos have fewer pixels than the model works with ({names}); details may be soft.")
    if held_out is not None:
        notes.append(f"{held_out.path.name} is kept out of training to judge the checkpoints.")
    elif len(photos) < FEWEST_FOR_HOLDING_OUT:
        some = "one photo" if len(photos) == 1 else f"{len(photos)} photos"
        notes.append(f"With {some} none is kept apart to judge the checkpoints; from four on, one is.")
    return notes


def _note_on_number(preset: MethodPreset, photos: Sequence[Photo]) -> list[str]:
    if preset.num_images is None or len(photos) <= preset.num_images:
        return []
    return [f"{len(photos)} pictures: {preset.many_images}."]


def _filled(value: T | None) -> T:
    assert value is not None, "the configuration was not resolved"
    return value
