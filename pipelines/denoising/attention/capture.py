"""Reading attention maps: which, of which words, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.pipelines.denoising.attention.layers import AttentionLayer


@dataclass(frozen=True, eq=False)
class Capture:
    """Which maps a pass shall keep. They carry gradients where these are enabled.

    Attributes:
        layers: where; cross-attention layers give maps of words, self-attention layers those of places.
        columns: which words of the pass's text, `[T, S]` or for each picture `[B, T, S]`, see `token_columns`.
        region_columns: the same for the text of each of the pass's regions, in their order; None for none.
    """

    layers: tuple[AttentionLayer, ...]
    columns: Tensor | None = None
    region_columns: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What a pass looked at, averaged over heads, by the layer's name. (h, w) is the layer's grid, and Q = h · w.

    Attributes:
        words: `[B, S, h, w]`. regions: one such mapping for each region's own text. places: `[B, Q, Q]`, rows sum to one.
    """

    words: Mapping[str, Tensor] = field(default_factory=dict)
    regions: tuple[Mapping[str, Tensor], ...] = ()
    places: Mapping[str, Tensor] = field(default_factory=dict)


def token_columns(tokens: Sequence[Sequence[int]], num_tokens: int, reduce: str = "sum") -> Tensor:
    """`[T, S]`: column s has ones at `tokens[s]`, so that its map is their maps' sum, or with "mean" their mean.

    Args:
        tokens: S lists of positions in the text, of T = `num_tokens`.

    Raises:
        ValueError: a position outside of the text, or no position at all.
    """
    columns = torch.zeros(num_tokens, len(tokens))
    for index, positions in enumerate(tokens):
        if not positions or not all(0 <= position < num_tokens for position in positions):
            raise ValueError(f"A map is of one token or more of {num_tokens}; got {list(positions)}.")
        columns[list(positions), index] = 1.0 if reduce == "sum" else 1.0 / len(positions)
    return columns


def mean_map(maps: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """The mean over layers, `[B, S, h, w]`, at `size` or the first map's own.

    Maps of another size are averaged or interpolated to it.

    Raises:
        ValueError: there is no map.
    """
    if not maps:
        raise ValueError("There is no attention map: the pass was asked for none.")
    first = next(iter(maps.values()))
    size = (first.shape[-2], first.shape[-1]) if size is None else size
    resized = [each if each.shape[-2:] == size else _resized(each, size) for each in maps.values()]
    return torch.stack(resized).mean(dim=0)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.interpolate(maps, size, mode="area")
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
