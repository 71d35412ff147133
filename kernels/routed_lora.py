"""LoRAs that act on some tokens each: the tokens of an adapter together, as one product.

Where regions overlap, a token stands in several adapters' lists with a weight in each. The lists depend on the regions and the
resolution alone, and serve every layer and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.kernels.paths import path_of


@dataclass(frozen=True, eq=False)
class TokenRoutes:
    """(token, adapter, weight) triples, sorted by adapter.

    Attributes:
        tokens: `[M]` int64, positions in the flattened tokens. weights: `[M]` float32.
        offsets: `[n + 1]`, where each adapter's triples begin, and the end. masks: `[T, n]`, the same as weights for all pairs.
    """

    tokens: Tensor
    weights: Tensor
    offsets: tuple[int, ...]
    masks: Tensor

    @classmethod
    def make(cls, masks: Tensor) -> TokenRoutes:
        """From the adapters' weights for all tokens, `[n, T]`."""
        tokens, weights, offsets = [], [], [0]
        for mask in masks:
            chosen = mask.nonzero().flatten()
            tokens.append(chosen)
            weights.append(mask[chosen])
            offsets.append(offsets[-1] + len(chosen))
        return cls(torch.cat(tokens), torch.cat(weights).float(), tuple(offsets), masks.t().contiguous().float())


def routed_lora_(out: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], routes: TokenRoutes) -> Tensor:
    """out += Σ weight · B A x for each adapter's tokens; changes `out`, and returns it. No gradients.

    Args:
        out: `[T, N]`. x: `[T, K]`. downs: A of each adapter, `[r, K]`. ups: B, `[N, r]`, scales and strengths included.
    """
    path = path_of("routed_lora", x, len(x), x.shape[-1])
    if path == "plain":
        return out.copy_(reference_routed_lora(out, x, downs, ups, routes))
    if path == "triton":
        from studio.kernels.triton.routed_lora import routed_lora_ as compiled

        return compiled(out, x, downs, ups, routes)
    # All first products at once, with x as it lies; only h, which is narrow, is taken apart by token.
    stacked = x @ torch.cat(list(downs)).t()
    start = 0
    for index, up in enumerate(ups):
        tokens = routes.tokens[routes.offsets[index] : routes.offsets[index + 1]]
        weights = routes.weights[routes.offsets[index] : routes.offsets[index + 1], None].to(x.dtype)
        inner = stacked[:, start : start + up.shape[1]].index_select(0, tokens).mul_(weights)
        out.index_add_(0, tokens, inner @ up.t())
        start += up.shape[1]
    return out


def masked_lora_(out: Tensor, x: Tensor, downs: Tensor, ups: Tensor, inner_factor: Tensor) -> Tensor:
    """The same with every adapter computed for every token and h multiplied by the weights: three calls, no gathering.

    Args:
        downs: `[R, K]`, all A. ups: `[N, R]`, all B. inner_factor: `[T, R]`.
    """
    return out.addmm_((x @ downs.t()).mul_(inner_factor), ups.t())


def reference_routed_lora(out: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], routes: TokenRoutes) -> Tensor:
    """The plain path, differentiable: each adapter over all tokens, then its mask."""
    for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
        out = out + routes.masks[:, index, None].to(out.dtype) * ((x @ down.t()) @ up.t())
    return out
