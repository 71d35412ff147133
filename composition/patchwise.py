"""Weights for predictions, place by place, by how far each is from the base model's. Pure functions.

LoRAtorio's observation (Foteinopoulou et al. 2025, arXiv 2508.11624): where an adapter has nothing to say, its prediction stays
near the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_distances(prediction: Tensor, plain: Tensor, patch_size: int) -> Tensor:
    """1 − cos between two predictions `[B, C, h, w]` in each patch of `patch_size` cells a side, `[B, ⌈h/p⌉, ⌈w/p⌉]`, 0 to 2.

    The patches at the right and lower edge may be smaller. Where one of the two is all zero they are as good as equal: 0.
    """
    one, other = prediction.double(), plain.double()
    dot, first, second = (_sums(product, patch_size) for product in (one * other, one * one, other * other))
    length = (first * second).sqrt()
    cosine = torch.where(length > 0, dot / length.clamp(min=1e-300), 1.0)
    return (1.0 - cosine).clamp(min=0.0).float()


def softmin_weights(distances: Tensor, temperature: float) -> Tensor:
    """LoRAtorio's Ω: SoftMin of the similarities over the adapters, the first dimension of `[N, …]`; sums to 1 over it."""
    return torch.softmax(distances / temperature, dim=0)


def proportional_weights(distances: Tensor) -> Tensor:
    """Weights in proportion to the distances `[N, …]`; all alike where nobody differs. Sums to 1 over the first dimension."""
    total = distances.sum(dim=0, keepdim=True)
    return torch.where(total > 0, distances / total.clamp(min=1e-30), 1.0 / len(distances))


def farthest(distances: Tensor, count: int) -> Tensor:
    """Which adapters are among the `count` that differ most over a whole picture: bool `[N, B, 1, 1]` of `[N, B, …]`."""
    means = distances.flatten(2).mean(dim=2)
    chosen = means.topk(min(count, len(means)), dim=0).indices
    return torch.zeros_like(means, dtype=torch.bool).scatter_(0, chosen, True)[..., None, None]


def over_cells(weights: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Weights of patches `[N, B, ⌈h/p⌉, ⌈w/p⌉]` as weights of cells `[N, B, 1, h, w]`."""
    cells = weights.repeat_interleave(patch_size, dim=-2).repeat_interleave(patch_size, dim=-1)
    return cells[:, :, None, :height, :width]


def placewise_mean(predictions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ wₙ·predictionₙ of `[B, C, h, w]` with weights `[N, B, 1, h, w]` that sum to 1, built up one by one.

    Where all predictions are equal the mean is them, to the last bit, whatever the weights.
    """
    mean, total = predictions[0], weights[0]
    for prediction, weight in zip(predictions[1:], weights[1:], strict=True):
        total = total + weight
        mean = mean + (prediction - mean) * torch.where(total > 0, weight / total.clamp(min=1e-30), 0.0)
    return mean


def _sums(product: Tensor, patch_size: int) -> Tensor:
    """Sums over channels and patches."""
    pooled = F.avg_pool2d(product.sum(dim=1, keepdim=True), patch_size, ceil_mode=True, divisor_override=1)
    return pooled[:, 0]
