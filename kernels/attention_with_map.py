"""Cross-attention that also says where it looked: the output, and the mean over heads of the probabilities of chosen words.

Fused attention gives no probabilities, and the plain way keeps all of them, H · Q · K numbers, for the backward pass. Here the
queries are taken a tile at a time: a tile's probabilities of all heads fit the cache, give its part of the output and its part
of the map, and are gone. Queries, keys and values are all that is kept; the way back computes the tiles anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.attention_map import attention_map
from studio.kernels.paths import path_of

TILE = 256
"""Queries of a tile."""


def attention_with_map(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and its map, both differentiable in queries, keys and values.

    Args:
        query: `[B, H, Q, d]`. key, value: `[B, H, K, d]`.
        columns: `[K, S]` or `[B, K, S]`, what of the map is summed; None for all of it.
        scale: of the scores; None for 1/√d.

    Returns:
        the output `[B, H, Q, d]` and the map `[B, Q, S]` (or `[B, Q, K]`), float32 or wider.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    path = path_of("attention_with_map", query, query.shape[-2], query.shape[-1])
    if path == "plain":
        return reference_attention_with_map(query, key, value, columns, scale)
    if path == "triton" and key.shape[-2] <= 128:
        from studio.kernels.triton.attention_with_map import attention_with_map as compiled

        return compiled(query, key, value, columns, scale)
    if query.device.type != "cpu":
        output = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return output, attention_map(query, key, columns, scale=scale)
    result: tuple[Tensor, Tensor] = _Tiled.apply(query, key, value, columns, scale)
    return result


def reference_attention_with_map(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The plain path: all probabilities at once."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    probabilities = torch.softmax((query @ key.transpose(-1, -2)).to(wide) * scale, dim=-1)
    mean = probabilities.mean(dim=1)
    return probabilities.to(value.dtype) @ value, mean if columns is None else mean @ columns.to(wide)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        context.save_for_backward(query, key, value, columns)
        context.scale = scale
        num, heads, length, _ = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        # Laid out as the next layer reads it, [B, Q, H, d].
        output = query.new_empty(num, length, heads, value.shape[-1]).transpose(1, 2)
        maps = query.new_empty(num, length, key.shape[-2], dtype=wide)
        turned = (key * scale).transpose(-1, -2).contiguous()
        values = value.contiguous()
        for start in range(0, length, TILE):
            tile = slice(start, min(start + TILE, length))
            scores = query[:, :, tile] @ turned
            probabilities = torch.softmax(scores, dim=-1, dtype=wide)
            output[:, :, tile] = probabilities.to(value.dtype) @ values
            torch.mean(probabilities, dim=1, out=maps[:, tile])
        return output, maps if columns is None else maps @ columns.to(wide)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, of_output: Tensor, of_map: Tensor) -> Any:
        """See `tiled_backward`."""
        query, key, value, columns = context.saved_tensors
        needs_text = any(context.needs_input_grad[1:3])
        return tiled_backward(query, key, value, columns, context.scale, of_output, of_map, needs_text=needs_text)


def tiled_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor | None,
    scale: float,
    of_output: Tensor,
    of_map: Tensor,
    *,
    needs_text: bool = True,
) -> tuple[Tensor | None, ...]:
    """dP = dO Vᵀ + dM · columnsᵀ / H, dS = P ∘ (dP − rowsum(P ∘ dP)), a tile at a time; None for columns and scale.

    Args:
        needs_text: whether keys and values get gradients; they get none where they were computed once for all steps.
    """
    heads, length = query.shape[1], query.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    upstream = of_map / heads
    if columns is not None:
        upstream = upstream @ columns.to(wide).transpose(-1, -2)
    of_query = torch.empty_like(query)
    of_key, of_value = (torch.zeros(tensor.shape, dtype=wide, device=tensor.device) for tensor in (key, value))
    scaled = key * scale
    for start in range(0, length, TILE):
        tile = slice(start, min(start + TILE, length))
        queries, outputs = query[:, :, tile], of_output[:, :, tile]
        probabilities = torch.softmax(queries @ scaled.transpose(-1, -2), dim=-1, dtype=wide)
        if needs_text:
            of_value += probabilities.to(value.dtype).transpose(-1, -2) @ outputs
        weighted = (outputs @ value.transpose(-1, -2)).to(wide).add_(upstream[:, None, tile]).mul_(probabilities)
        scores = weighted.sub_(probabilities * weighted.sum(dim=-1, keepdim=True)).to(key.dtype)
        of_query[:, :, tile] = scores @ scaled
        if needs_text:
            of_key += (scores.transpose(-1, -2) @ queries).to(wide).mul_(scale)
    if not needs_text:
        return of_query, None, None, None, None
    return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None
