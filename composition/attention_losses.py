"""Losses on attention maps: what makes words look at one place each, and at the place they should.

Pure functions with a value for each picture of a batch, differentiable in the maps. (h, w) is the maps' grid, B pictures, S
words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TOP_SHARE = 0.2
"""Of a region's cells, the share whose attention counts: LoRA-Composer's k = 0.2 · |M|."""


def contrastive_loss(maps: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """InfoNCE over maps (CLoRA, Meral et al. 2024, arXiv 2403.19776), `[B]`: those of one concept alike, those of two not.

    The mean over ordered pairs (a, b) of one label of −log(e^{s_ab/τ} / (e^{s_ab/τ} + Σ_k e^{s_ak/τ})), k of other labels, with
    cosine similarity s of maps that are scaled to 0..1 each.

    Args:
        maps: `[B, S, h, w]`. labels: `[S]`, which concept each is of.

    Returns:
        Zeros where no label comes twice, or there is one label only.
    """
    flat = scaled_to_one(maps).flatten(2)
    flat = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-8)
    similarity = flat @ flat.transpose(1, 2) / temperature
    same = labels[:, None] == labels[None, :]
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not bool(pairs.any()) or bool(same.all()):
        return maps.sum(dim=(1, 2, 3)) * 0.0
    others = similarity.masked_fill(same, float("-inf")).logsumexp(dim=2, keepdim=True)
    return F.softplus(others - similarity)[:, pairs].mean(dim=1)


def enhancement_loss(maps: Tensor, mask: Tensor, share: float = TOP_SHARE) -> Tensor:
    """L_ce of LoRA-Composer (Yang et al. 2024, arXiv 2403.11627), `[B]`: each word is read in the region, in its middle most.

    Σ over words of max(0, 1 − mean of the k largest of A·M·G), k = share · |M|, G a Gaussian over the region's box.

    Args:
        maps: A, `[B, S, h, w]`. mask: M, `[h, w]` of zeros and ones.
    """
    inside = (maps * mask * box_gaussian(mask)).flatten(2)
    return (1.0 - inside.topk(_count(mask, share), dim=2).values.mean(dim=2)).clamp(min=0.0).sum(dim=1)


def fill_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """L_fill of the same, `[B]`: each word is read in every row and every column of the region.

    Σ over words of mean |max_y(A·M) − max_y M| + mean |max_x(A·M) − max_x M|.
    """
    inside = maps * mask
    columns = (inside.amax(dim=2) - mask.amax(dim=0)).abs().mean(dim=2)
    rows = (inside.amax(dim=3) - mask.amax(dim=1)).abs().mean(dim=2)
    return (columns + rows).sum(dim=1)


def region_loss(places: Tensor, mask: Tensor, share: float = TOP_SHARE) -> Tensor:
    """L_region of the same, `[B]`: what lies in the region does not look outside of it.

    The mean of the k largest self-attention values from a place in the region to one outside, k = share · |M|.

    Args:
        places: `[B, h·w, h·w]`, row looks at column. mask: `[h, w]`.
    """
    inside = mask.flatten() > 0
    if bool(inside.all()):
        return places.sum(dim=(1, 2)) * 0.0
    leaving = places[:, inside][:, :, ~inside].flatten(1)
    return leaving.topk(min(_count(mask, share), leaving.shape[1]), dim=1).values.mean(dim=1)


def smoothed(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """A 3×3 Gaussian blur of `[B, S, h, w]`, mirrored at the edges."""
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2))
    line = (line / line.sum()).to(maps)
    kernel = torch.outer(line, line).expand(maps.shape[1], 1, 3, 3)
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    return F.conv2d(F.pad(maps, (1, 1, 1, 1), mode=mode), kernel, groups=maps.shape[1])


def scaled_to_one(maps: Tensor) -> Tensor:
    """Each map `[…, h, w]` brought to 0..1 by its smallest and largest value; a flat one is zeros."""
    least = maps.amin(dim=(-2, -1), keepdim=True)
    return (maps - least) / (maps.amax(dim=(-2, -1), keepdim=True) - least).clamp(min=1e-12)


def box_gaussian(mask: Tensor, sigma: float = 1.0) -> Tensor:
    """`[h, w]`: exp(−(x² + y²) / 2σ²) with x and y from −1 to 1 across the box around the mask, at most 1; zeros outside."""
    top, bottom, left, right = bounding_box(mask)
    rows, columns = _bell(bottom - top, sigma), _bell(right - left, sigma)
    bell = torch.zeros_like(mask)
    bell[top:bottom, left:right] = torch.outer(rows, columns).to(mask)
    return bell


def bounding_box(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the cells above zero, bottom and right not included."""
    rows, columns = (mask > 0).any(dim=1).nonzero().flatten(), (mask > 0).any(dim=0).nonzero().flatten()
    assert len(rows), "a region has a cell"
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _bell(length: int, sigma: float) -> Tensor:
    if length == 1:
        return torch.ones(1)
    values = torch.exp(-(torch.linspace(-1.0, 1.0, length) ** 2) / (2 * sigma**2))
    return values / values.max()


def _count(mask: Tensor, share: float) -> int:
    return max(1, round(share * int((mask > 0).sum())))
