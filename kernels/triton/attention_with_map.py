"""Cross-attention with its map in one launch, for up to 128 words, see `studio.kernels.attention_with_map`.

A program takes some queries of a picture and goes through the heads: all words fit one tile, so the softmax is exact in one
pass, and the map's sum over heads stays in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from studio.kernels.triton import INTERPRETED

QUERIES = 32


@triton.jit
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    query, key, value, output, maps, length, words, depth, scale,  # noqa: ANN001
    HEADS: tl.constexpr, WORDS: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    picture = tl.program_id(1)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    word, channel = tl.arange(0, WORDS), tl.arange(0, DEPTH)
    is_row, is_word, is_channel = row < length, word < words, channel < depth
    mean = tl.zeros((QUERIES, WORDS), dtype=tl.float32)
    for head in range(HEADS):
        at = picture * HEADS + head
        rows = query + (at * length + row[:, None]) * depth + channel[None, :]
        q = tl.load(rows, mask=is_row[:, None] & is_channel[None, :], other=0.0)
        k = tl.load(
            key + (at * words + word[None, :]) * depth + channel[:, None], mask=is_word[None, :] & is_channel[:, None], other=0.0
        )
        v = tl.load(
            value + (at * words + word[:, None]) * depth + channel[None, :],
            mask=is_word[:, None] & is_channel[None, :],
            other=0.0,
        )
        if WIDE:
            q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, k, allow_tf32=False) * scale
        scores = tl.where(is_word[None, :], scores, -1e30)
        shifted = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        probabilities = shifted / tl.sum(shifted, axis=1)[:, None]
        mean += probabilities
        found = tl.dot(probabilities.to(v.dtype), v, allow_tf32=False)
        targets = output + (at * length + row[:, None]) * depth + channel[None, :]
        tl.store(targets, found.to(output.dtype.element_ty), mask=is_row[:, None] & is_channel[None, :])
    places = maps + (picture * length + row[:, None]) * words + word[None, :]
    tl.store(places, mean / HEADS, mask=is_row[:, None] & is_word[None, :])


def attention_with_map(query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output `[B, H, Q, d]` and map; the way back is the torch path's, a tile at a time."""
    result: tuple[Tensor, Tensor] = _AttentionWithMap.apply(query, key, value, columns, scale)
    return result


class _AttentionWithMap(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        context.save_for_backward(query, key, value, columns)
        context.scale = scale
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        num, heads, length, depth = query.shape
        words = key.shape[2]
        output = torch.empty_like(query)
        maps = query.new_empty(num, length, words, dtype=torch.float32)
        _forward[(triton.cdiv(length, QUERIES), num)](
            query, key, value, output, maps, length, words, depth, scale,
            HEADS=heads, WORDS=max(16, triton.next_power_of_2(words)), DEPTH=max(16, triton.next_power_of_2(depth)),
            QUERIES=QUERIES, WIDE=INTERPRETED,
        )  # fmt: skip
        return output, maps if columns is None else maps @ columns.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, of_output: Tensor, of_map: Tensor) -> Any:
        """See the torch path."""
        from studio.kernels.attention_with_map import tiled_backward

        query, key, value, columns = context.saved_tensors
        needs_text = any(context.needs_input_grad[1:3])
        return tiled_backward(query, key, value, columns, context.scale, of_output, of_map, needs_text=needs_text)
