"""Class pictures for prior preservation: drawn by the base model once, and kept for every later run.

Ruiz et al. 2022 (DreamBooth), section 3.3: pictures of the bare class from the frozen model, trained on beside the photos,
keep the class from becoming the concept. Base-output preservation needs none of this.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from studio.pipelines.errors import ImageError
from studio.pipelines.files import atomic_write_bytes, atomic_write_json
from studio.training.data.buckets import Size
from studio.training.data.dataset import Picture
from studio.training.data.draws import bits
from studio.training.data.images import ImageLimits, read_photo
from studio.training.data.tensor_store import store_key

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and as many seeds → as many pictures; a seed's picture doesn't depend on the others in the call."""

PICTURES_PER_CALL = 4


@dataclass(frozen=True, kw_only=True)
class ClassPictures:
    """What decides the class pictures; the same values name the same folder.

    Attributes:
        base_hash: of the base model's weights. prompts: used in turn. num_images: how many pictures.
        size: of each, in pixels. steps, guidance_scale, scheduler: of the denoising loop.
    """

    base_hash: str
    prompts: tuple[str, ...]
    num_images: int
    size: Size
    steps: int
    guidance_scale: float
    scheduler: str
    seed: int = 0

    def folder(self, cache_dir: Path) -> Path:
        """Where they are kept. More or fewer pictures share the folder: the first ones are the same."""
        facts = {name: value for name, value in asdict(self).items() if name != "num_images"}
        return cache_dir / "class-pictures" / store_key("class pictures 1", *facts.items())[:24]

    def prompt_and_seed(self, number: int) -> tuple[str, int]:
        """What picture `number` is drawn from."""
        return self.prompts[number % len(self.prompts)], bits(self.seed, "class picture", number) >> 32


def class_pictures(
    wanted: ClassPictures,
    cache_dir: Path,
    generate: Generate,
    on_picture: Callable[[int, int], None] | None = None,
    *,
    pictures_per_call: int = PICTURES_PER_CALL,
) -> tuple[Picture, ...]:
    """The class pictures: those that are there, and the missing or damaged ones drawn now.

    An interrupted call loses at most the pictures of one call of `generate`.

    Args:
        generate: draws pictures of `wanted.size`. on_picture: called with (pictures there, pictures wanted).

    Raises:
        OutputError: they cannot be written.
    """
    folder = wanted.folder(cache_dir)
    found: dict[int, Picture] = {}
    for number in range(wanted.num_images):
        picture = _read(_path(folder, number), wanted.size)
        if picture is not None:
            found[number] = picture
    _report(on_picture, found, wanted)
    missing = [number for number in range(wanted.num_images) if number not in found]
    if missing:
        atomic_write_json(folder / "made-from.json", asdict(wanted))
    for start in range(0, len(missing), pictures_per_call):
        numbers = missing[start : start + pictures_per_call]
        prompts, seeds = zip(*map(wanted.prompt_and_seed, numbers), strict=True)
        for number, image in zip(numbers, generate(prompts, seeds), strict=True):
            _write(_path(folder, number), image)
            picture = _read(_path(folder, number), wanted.size)
            assert picture is not None, f"generate() gave {image.size}, wanted {wanted.size}"
            found[number] = picture
        _report(on_picture, found, wanted)
    return tuple(found[number] for number in range(wanted.num_images))


def _report(on_picture: Callable[[int, int], None] | None, found: dict[int, Picture], wanted: ClassPictures) -> None:
    if on_picture is not None:
        on_picture(len(found), wanted.num_images)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())


def _read(path: Path, size: Size) -> Picture | None:
    """The picture, or None if it is not there, damaged or of another size."""
    if not path.is_file():
        return None
    try:
        photo = read_photo(path, ImageLimits(max_pixels=size.height * size.width, max_aspect=float("inf"), min_side=1))
    except ImageError:
        return None
    if (photo.image.height, photo.image.width) != size:
        return None
    return Picture(name=path.name, pixels=np.asarray(photo.image), original_size=size, content_hash=photo.content_hash)
