"""K-LoRA's choice of one adapter for each layer and step (Ouyang et al. 2025, arXiv 2502.18461). Pure functions.

Of a layer's changes ΔW the K largest numbers count. Content is brought to the style's level by γ, the mean ratio of both over the
layers; the style's sum grows along the steps with S. What the published code does otherwise: it counts calls of layers instead of
steps, so that the count runs on from picture to picture; its K is 64 whatever the ranks; γ keeps outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from studio.pipelines.adapters import ParameterPath

ALPHA, BETA = 1.5, 0.5
"""Of S = α·t/T + β, in the paper."""

USUAL_RANK = 8
"""Of a change that has none: the published K is 64 = 8 · 8."""


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """How large one adapter's change of a layer is. `top`: Σ of its K largest |numbers|. `all`: Σ of all."""

    top: float
    all: float


def layer_size(delta: Tensor, count: int) -> LayerSize:
    """Sizes of a change with `count` for K, which is at most the number of numbers."""
    numbers = delta.detach().abs().flatten().float()
    return LayerSize(top=float(numbers.topk(min(count, numbers.numel())).values.sum()), all=float(numbers.sum()))


def top_count(content_ranks: Sequence[int], style_ranks: Sequence[int]) -> int:
    """K = r_content · r_style, of the largest ranks on either side; a side without ranks counts as the other one."""
    content, style = max(content_ranks, default=0), max(style_ranks, default=0)
    known = max(content, style) if max(content, style) > 0 else USUAL_RANK
    return (content if content > 0 else known) * (style if style > 0 else known)


def level(sizes: Sequence[tuple[float, float]]) -> float:
    """γ: the mean of own / reference over the layers that both change, without those above three times the first mean.

    Args:
        sizes: (own Σ|ΔW|, the reference's) of each shared layer. Layers where one of them is 0 say nothing.
    """
    ratios = torch.tensor([own / reference for own, reference in sizes if own > 0 and reference > 0], dtype=torch.float64)
    if len(ratios) == 0:
        return 1.0
    kept = ratios[ratios <= 3 * ratios.mean()]
    return float(kept.mean())


def style_scale(progress: float, variant: Literal["s", "s*"] = "s", alpha: float = ALPHA, beta: float = BETA) -> float:
    """S = α·t/T + β, from β at pure noise to α + β at the end; s* is the same modulo α."""
    scale = alpha * min(max(progress, 0.0), 1.0) + beta
    return scale % alpha if variant == "s*" and alpha > 0 else scale


def choose(
    sizes: Mapping[ParameterPath, Mapping[int, LayerSize]],
    levels: Mapping[int, float],
    style: frozenset[int],
    active: frozenset[int],
    scale: float,
) -> tuple[tuple[ParameterPath, int], ...]:
    """(layer, number of the adapter that acts there) for each layer that an active adapter changes.

    The content wins a layer if its sum over γ is larger than the style's times `scale`; at equality the style, as published.
    """
    found = []
    for path, changes in sizes.items():
        scored = [
            (changes[index].top / levels[index] * (scale if index in style else 1.0), index in style, -index)
            for index in changes
            if index in active
        ]
        if scored:
            found.append((path, -max(scored)[2]))
    return tuple(found)
