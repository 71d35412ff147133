"""LoRAs of single tokens as two grouped products over the sorted tokens, see `studio.kernels.routed_lora`.

One launch makes h for all (token, adapter) pairs, one adds B h to the outputs. Ranks are padded to the largest. Where several
adapters act on a token their sums meet by atomic addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from studio.kernels.routed_lora import TokenRoutes
from studio.kernels.triton import INTERPRETED

TOKENS, INPUTS, OUTPUTS = 32, 64, 64
"""Sizes of tiles."""

_tiles: WeakKeyDictionary[TokenRoutes, tuple[Tensor, ...]] = WeakKeyDictionary()


@triton.jit
def _shrink(  # type: ignore[no-untyped-def]  # noqa: ANN202
    x, downs, tokens, weights, adapters, starts, ends, inner,  # noqa: ANN001
    width, INPUT: tl.constexpr, RANK: tl.constexpr, TOKENS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """h of one tile of pairs, all of one adapter; `INPUT` is the width rounded up to tiles, a constant."""
    tile = tl.program_id(0)
    adapter, start, end = tl.load(adapters + tile), tl.load(starts + tile), tl.load(ends + tile)
    pair = start + tl.arange(0, TOKENS)
    inside = pair < end
    token = tl.load(tokens + pair, mask=inside, other=0)
    rank = tl.arange(0, RANK)
    total = tl.zeros((TOKENS, RANK), dtype=tl.float32)
    for first in range(0, INPUT, INPUTS):
        column = first + tl.arange(0, INPUTS)
        known = column < width
        rows = tl.load(x + token[:, None] * width + column[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        down = tl.load(downs + (adapter * RANK + rank[None, :]) * width + column[:, None], mask=known[:, None], other=0.0)
        if WIDE:
            rows, down = rows.to(tl.float32), down.to(tl.float32)
        total += tl.dot(rows, down, allow_tf32=False)
    total = total * tl.load(weights + pair, mask=inside, other=0.0)[:, None]
    tl.store(inner + pair[:, None] * RANK + rank[None, :], total.to(inner.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _expand(  # type: ignore[no-untyped-def]  # noqa: ANN202
    inner, ups, tokens, adapters, starts, ends, out,  # noqa: ANN001
    width, RANK: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """out += B h of one tile of pairs and one of outputs."""
    tile = tl.program_id(0)
    adapter, start, end = tl.load(adapters + tile), tl.load(starts + tile), tl.load(ends + tile)
    pair = start + tl.arange(0, TOKENS)
    inside = pair < end
    token = tl.load(tokens + pair, mask=inside, other=0)
    rank = tl.arange(0, RANK)
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = column < width
    hidden = tl.load(inner + pair[:, None] * RANK + rank[None, :], mask=inside[:, None], other=0.0)
    up = tl.load(ups + (adapter * width + column[None, :]) * RANK + rank[:, None], mask=known[None, :], other=0.0)
    if WIDE:
        hidden, up = hidden.to(tl.float32), up.to(tl.float32)
    total = tl.dot(hidden, up, allow_tf32=False)
    where = out + token[:, None] * width + column[None, :]
    tl.atomic_add(where, total.to(out.dtype.element_ty), mask=inside[:, None] & known[None, :])


def routed_lora_(out: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor], routes: TokenRoutes) -> Tensor:
    """out += Σ weight · B A x for each adapter's tokens; changes `out`, and returns it."""
    rank = max(16, triton.next_power_of_2(max(len(down) for down in downs)))
    width_in, width_out = x.shape[-1], out.shape[-1]
    stacked_downs, stacked_ups = x.new_zeros(len(downs), rank, width_in), x.new_zeros(len(ups), width_out, rank)
    for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
        stacked_downs[index, : len(down)] = down
        stacked_ups[index, :, : up.shape[1]] = up
    if routes not in _tiles:  # kept, because a pass that is recorded may copy nothing to the device
        _tiles[routes] = tuple(part.to(x.device) for part in tiles(routes))
    adapters, starts, ends = _tiles[routes]
    if not len(adapters):
        return out
    inner = x.new_empty(len(routes.tokens), rank)
    shared = {"RANK": rank, "TOKENS": TOKENS, "WIDE": INTERPRETED}
    rounded = triton.cdiv(width_in, INPUTS) * INPUTS
    _shrink[(len(adapters),)](
        x.contiguous(), stacked_downs, routes.tokens, routes.weights, adapters, starts, ends, inner, width_in,
        INPUT=rounded, INPUTS=INPUTS, **shared,
    )  # fmt: skip
    _expand[(len(adapters), triton.cdiv(width_out, OUTPUTS))](
        inner, stacked_ups, routes.tokens, adapters, starts, ends, out, width_out, OUTPUTS=OUTPUTS, **shared
    )
    return out


def tiles(routes: TokenRoutes) -> tuple[Tensor, Tensor, Tensor]:
    """For every tile of pairs its adapter, its first pair and where the adapter's end: none holds two adapters' pairs."""
    found = [
        (adapter, start, routes.offsets[adapter + 1])
        for adapter in range(len(routes.offsets) - 1)
        for start in range(routes.offsets[adapter], routes.offsets[adapter + 1], TOKENS)
    ]
    columns = torch.tensor(found, dtype=torch.int64).reshape(-1, 3)
    return columns[:, 0].contiguous(), columns[:, 1].contiguous(), columns[:, 2].contiguous()
