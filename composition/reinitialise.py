"""Latent re-initialisation (LoRA-Composer, arXiv 2403.11627): begin with noise in which each thing lies where it should."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.composition.attention_losses import bounding_box
from studio.composition.map_masks import best_window, region_on_grid


def reinitialised(latents: Tensor, maps: Sequence[Tensor | None], masks: Sequence[Tensor]) -> Tensor:
    """Latents `[B, C, h, w]` with, in each region's box, the patch whose places read the region's words most.

    Of all windows of the box's size, the one with the largest sum of attention is copied into the box, from the latents as
    they were. Afterwards each picture's latents have the mean and the standard deviation that they had.

    Args:
        maps: attention `[B, h', w']` of each region's words, on any grid with the canvas's aspect; None for no change there.
        masks: the regions' masks `[H, W]`, what is behind before what is in front: later ones cover earlier ones.
    """
    height, width = latents.shape[-2:]
    made = latents.clone()
    for attention, mask in zip(maps, masks, strict=True):
        if attention is None:
            continue
        rows, columns = attention.shape[-2:]
        top, bottom, left, right = bounding_box(region_on_grid(mask, height, width))
        tall, wide = bottom - top, right - left
        window = (max(1, round(tall * rows / height)), max(1, round(wide * columns / width)))
        for picture, (row, column) in enumerate(best_window(attention, *window).tolist()):
            first = min(round(row * height / rows), height - tall), min(round(column * width / columns), width - wide)
            patch = latents[picture, :, first[0] : first[0] + tall, first[1] : first[1] + wide]
            made[picture, :, top:bottom, left:right] = patch
    return _restandardised(made, latents)


def _restandardised(made: Tensor, like: Tensor) -> Tensor:
    dimensions = tuple(range(1, made.ndim))
    std, mean = torch.std_mean(made, dim=dimensions, keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(like, dim=dimensions, keepdim=True)
    return (made - mean) / std.clamp(min=1e-8) * wanted_std + wanted_mean
