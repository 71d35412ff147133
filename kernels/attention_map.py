"""Attention maps averaged over heads, without ever holding all heads' scores.

The map of what a picture's positions look at is Ā = 1/H · Σ_h softmax(Q_h K_hᵀ · s), `[Q, K]`. Fused attention gives the
output only, and the plain way to the map stores H scores for every pair and keeps them for the backward pass. Here one
head's scores exist at a time, in forward and backward, and nothing but queries and keys is kept: Q·K numbers instead of
H·Q·K. The columns of a few tokens can be picked (or summed) at once, which shrinks the result to `[Q, S]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_map(
    query: Tensor, key: Tensor, columns: Tensor | None = None, allowed: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Ā · columns, differentiable in queries and keys; float32, or float64 where they are.

    Args:
        query: `[B, H, Q, d]`. key: `[B, H, K, d]`.
        columns: `[B, K, S]` or `[K, S]`, what is summed: ones pick tokens, fractions take means of them; None for all of Ā.
        allowed: `[Q, K]` bool, which keys a query may see; each must see one. None for all.
        scale: s; None for 1/√d.

    Returns:
        `[B, Q, S]`, or `[B, Q, K]` without `columns`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _AttentionMap.apply(query, key, columns, allowed, scale)
    return result


def attention_map_reference(
    query: Tensor, key: Tensor, columns: Tensor | None = None, allowed: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The same in three lines, with the scores of all heads at once."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * scale
    scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
    mean = scores.softmax(dim=-1).mean(dim=1)
    return mean if columns is None else mean @ columns.to(wide)


class _AttentionMap(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, columns: Tensor | None, allowed: Tensor | None, scale: float) -> Tensor:
        context.save_for_backward(query, key, columns, allowed)
        context.scale = scale
        num_heads = query.shape[1]
        total: Tensor | None = None
        for head in range(num_heads):
            probabilities = _probabilities(query, key, allowed, scale, head)
            part = probabilities if columns is None else probabilities @ columns.to(probabilities.dtype)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.div_(num_heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        """dS = P ∘ (G − rowsum(P ∘ G)) with G = gradient · columnsᵀ / H, one head after the other."""
        query, key, columns, allowed = context.saved_tensors
        num_heads = query.shape[1]
        upstream = gradient / num_heads
        if columns is not None:
            upstream = upstream @ columns.to(upstream.dtype).transpose(-1, -2)
        needs_query, needs_key = context.needs_input_grad[:2]
        query_gradient = torch.empty_like(query) if needs_query else None
        key_gradient = torch.empty_like(key) if needs_key else None
        for head in range(num_heads):
            probabilities = _probabilities(query, key, allowed, context.scale, head)
            weighted = probabilities * upstream
            scores = weighted.sub_(probabilities * weighted.sum(dim=-1, keepdim=True)).mul_(context.scale)
            if query_gradient is not None:
                query_gradient[:, head] = (scores @ key[:, head].to(scores.dtype)).to(query.dtype)
            if key_gradient is not None:
                key_gradient[:, head] = (scores.transpose(-1, -2) @ query[:, head].to(scores.dtype)).to(key.dtype)
        return query_gradient, key_gradient, None, None, None


def _probabilities(query: Tensor, key: Tensor, allowed: Tensor | None, scale: float, head: int) -> Tensor:
    """softmax of one head's scores, `[B, Q, K]`, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query[:, head].to(wide) * scale) @ key[:, head].to(wide).transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill_(~allowed, float("-inf"))
    return scores.softmax(dim=-1)
