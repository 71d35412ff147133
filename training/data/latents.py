"""Latents of framed pictures, encoded once each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studio.training.data.buckets import Crop, Size, covering_size, crop_at, resize_to_cover
from studio.training.data.dataset import Picture
from studio.training.data.tensor_store import TensorStore, store_key

Encode = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels `[1, 3, H, W]` in -1..1 and a CPU generator → latents `[1, C, h, w]`."""


def framed_pixels(picture: Picture, size: Size, crop_position: int, flip: bool) -> Tensor:
    """The part of `picture` that training sees: float32 `[3, H, W]` in -1..1 at `size`."""
    covering = resize_to_cover(Image.fromarray(picture.pixels), size)
    crop = crop_at(covering.shape[:2], size, crop_position)
    cut = covering[crop.top : crop.top + size.height, crop.left : crop.left + size.width]
    if flip:
        cut = cut[:, ::-1]
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0


def crop_corner(picture: Picture, size: Size, crop_position: int, flip: bool) -> Crop:
    """Upper left corner of that part in the scaled picture, as SDXL is told; counted in the mirrored picture if `flip`."""
    height, width, _ = picture.pixels.shape
    covering = covering_size(height, width, size)
    crop = crop_at(covering, size, crop_position)
    return Crop(crop.top, covering.width - size.width - crop.left) if flip else crop


class LatentCache:
    """Encodes each picture, crop and mirror image once.

    One picture at a time, with a generator seeded by what it is: the latents are the same whatever else is in the batch,
    on however many processes.

    Args:
        encode: see `Encode`. encoder_hash: of the autoencoder's weights; another autoencoder makes other entries.
        store: where they are kept.
    """

    def __init__(self, encode: Encode, encoder_hash: str, store: TensorStore) -> None:
        self._encode = encode
        self._encoder_hash = encoder_hash
        self._store = store

    def latents(self, picture: Picture, size: Size, crop_position: int, flip: bool) -> Tensor:
        """Latents `[C, h, w]` on the CPU, float32."""
        key = store_key("latents 1", self._encoder_hash, picture.content_hash, picture.pixels.shape, size, crop_position, flip)

        def make() -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(int(key[:15], 16))
            pixels = framed_pixels(picture, size, crop_position, flip)
            return {"latents": self._encode(pixels[None], generator)[0].float()}

        return self._store.get(key, make)["latents"]


def make_store(cache: str, folder: Path) -> TensorStore:
    """The store for `data.cache`: "memory", "disk" (and memory) or "off"."""
    assert cache in ("memory", "disk", "off"), cache
    return TensorStore(folder if cache == "disk" else None, in_memory=cache != "off")
