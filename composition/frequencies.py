"""How much of a tensor is fine and how much is coarse, by the Fourier transform. Pure functions.

Radii are relative: 1 is Nyquist's frequency along an axis (two cells a period), √2 the corner. So a number means the same at
every size of latents, and each function is finite at every size, down to one cell. (CMLoRA's published code cuts its profile at
the absolute radius 80, which latents of 64 × 64 do not have: the mean over nothing is NaN, and every comparison with it false.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

HIGH_RADIUS = 0.2
"""Where high frequencies begin: the 0.2 of CMLoRA's ΔH₀.₂."""

CORNER = math.sqrt(2.0)


def relative_radius(height: int, width: int) -> Tensor:
    """Distance of each frequency of `fft2` from the mean, `[height, width]`, from 0 to √2."""
    vertical, horizontal = 2.0 * torch.fft.fftfreq(height), 2.0 * torch.fft.fftfreq(width)
    return (vertical[:, None].square() + horizontal[None, :].square()).sqrt()


def amplitudes(x: Tensor) -> Tensor:
    """|FFT| of `[…, h, w]`, the mean over everything before, `[h, w]`, float32 on the CPU."""
    spectrum = torch.fft.fft2(x.detach().float().cpu(), norm="ortho").abs()
    return spectrum.flatten(0, -3).mean(dim=0) if spectrum.ndim > 2 else spectrum


def high_share(x: Tensor, radius: float = HIGH_RADIUS) -> float:
    """Which share of the amplitude of `[…, h, w]` lies beyond a relative radius, 0 to 1; 0 of nothing at all."""
    found = amplitudes(x)
    beyond = relative_radius(*found.shape) > radius
    total = float(found.sum())
    return float(found[beyond].sum()) / total if total > 0 else 0.0


def high_mean(x: Tensor, radius: float = HIGH_RADIUS) -> float:
    """The mean amplitude beyond a relative radius: CMLoRA's H. 0 where there is no frequency that high."""
    found = amplitudes(x)
    beyond = found[relative_radius(*found.shape) > radius]
    return float(beyond.mean()) if beyond.numel() else 0.0


def radial_profile(x: Tensor, num_rings: int = 8) -> tuple[float, ...]:
    """Mean amplitude in rings of equal width from radius 0 to √2, over the largest of them; all zero of nothing at all.

    Rings that hold no frequency, as small latents have, lie on the line between their neighbours.
    """
    found = amplitudes(x)
    ring = (relative_radius(*found.shape) / CORNER * num_rings).long().clamp(max=num_rings - 1).flatten()
    sums = torch.zeros(num_rings).index_add_(0, ring, found.flatten())
    counts = torch.bincount(ring, minlength=num_rings)
    filled = counts.nonzero().flatten().numpy()
    means = np.interp(np.arange(num_rings), filled, (sums / counts.clamp(min=1)).numpy()[filled])
    top = float(means.max())
    return tuple(float(mean) / top for mean in means) if top > 0 else (0.0,) * num_rings


def late_measure(latents: Tensor, radius: float = 80.0 / (64.0 * CORNER)) -> float:
    """CMLoRA's m: how strong the highest frequencies of the channels' mean are, beside the strongest of all, 0 to 1.

    Args:
        latents: `[B, C, h, w]`; the result is over all of B.
        radius: where they begin, as a share of the corner's. The published 80 of at most 90 is for latents of 128 × 128.
    """
    found = amplitudes(latents.float().mean(dim=1))
    radii = relative_radius(*found.shape)
    profile = torch.tensor([float(found[radii == value].mean()) for value in radii.unique()])
    beyond = profile[radii.unique() >= radius * float(radii.max())]
    top = float(profile.max())
    return float(beyond.mean()) / top if top > 0 else 0.0
