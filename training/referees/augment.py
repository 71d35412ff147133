"""What a referee's pictures go through: the autoencoder's copy, blur, noise and JPEG. Never sampled pictures."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

DECODED_SHARE = 0.7
BLUR_SHARE = 0.3
NOISE_SHARE = 0.3
JPEG_SHARE = 0.25


def augment(clean: NDArray[np.uint8], decoded: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Pictures `[N, S, S, 3]` in both copies to one batch of pixels `[N, 3, S, S]` in 0..1."""
    num = len(clean)
    pictures = np.where((rng.random(num) < DECODED_SHARE)[:, None, None, None], decoded, clean)
    for index in np.flatnonzero(rng.random(num) < JPEG_SHARE):
        pictures[index] = jpeg(pictures[index], quality=int(rng.integers(40, 96)))
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    blurred = torch.from_numpy(np.flatnonzero(rng.random(num) < BLUR_SHARE))
    pixels[blurred] = torch.lerp(pixels[blurred], blur(pixels[blurred]), _column(rng.random(len(blurred))))
    noisy = torch.from_numpy(np.flatnonzero(rng.random(num) < NOISE_SHARE))
    noise = torch.from_numpy(rng.standard_normal(pixels[noisy].shape, dtype=np.float32))
    pixels[noisy] += _column(rng.random(len(noisy)) * 0.05) * noise
    contrast, brightness = rng.uniform(0.94, 1.06, num), rng.uniform(-0.03, 0.03, num)
    return ((pixels - 0.5) * _column(contrast) + 0.5 + _column(brightness)).clamp(0, 1)


def blur(pixels: Tensor) -> Tensor:
    """Binomial 5x5 blur of `[N, 3, H, W]`, deviation one pixel."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row[None, :]).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)


def jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """A picture `[H, W, 3]` saved as JPEG and opened again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]
