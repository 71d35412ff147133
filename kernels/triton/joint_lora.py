"""Layers and the LoRAs on them in one launch, see `studio.kernels.joint_lora`.

A program makes one tile of outputs of one layer: x W and x A are added up in the same loop over x, so that x is read once, and
h B is added before anything is written. h is made anew for every tile of outputs, which is cheap for the small ranks that this
is for; larger ones take the two products of the torch path.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from studio.kernels.joint_layout import JointLayout
from studio.kernels.triton import INTERPRETED

TOKENS, OUTPUTS, INPUTS = 64, 64, 32
"""Sizes of tiles."""

LARGEST_RANK = 64


@triton.jit
def _layers(  # type: ignore[no-untyped-def]  # noqa: ANN202
    x, rows, ups, bias, positions, out, length, width_in, width, first_inner, num_outputs,  # noqa: ANN001
    INPUT: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`INPUT` is the width of x rounded up to tiles, `PADDED` the rank to what a product takes, both constants."""
    layer = tl.program_id(2)
    position = tl.load(positions + layer)
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    rank = tl.arange(0, PADDED)
    is_row, is_column, is_rank = row < length, column < width, rank < tl.where(position >= 0, RANK, 0)
    down_row = first_inner + position * RANK + rank
    total = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    inner = tl.zeros((TOKENS, PADDED), dtype=tl.float32)
    for first in range(0, INPUT, INPUTS):
        channel = first + tl.arange(0, INPUTS)
        known = channel < width_in
        values = tl.load(x + row[:, None] * width_in + channel[None, :], mask=is_row[:, None] & known[None, :], other=0.0)
        weight = tl.load(
            rows + (layer * width + column[None, :]) * width_in + channel[:, None],
            mask=known[:, None] & is_column[None, :],
            other=0.0,
        )
        down = tl.load(rows + down_row[None, :] * width_in + channel[:, None], mask=known[:, None] & is_rank[None, :], other=0.0)
        if WIDE:
            values, weight, down = values.to(tl.float32), weight.to(tl.float32), down.to(tl.float32)
        total += tl.dot(values, weight, allow_tf32=False)
        inner += tl.dot(values, down, allow_tf32=False)
    up = tl.load(
        ups + (position * width + column[None, :]) * RANK + rank[:, None], mask=is_rank[:, None] & is_column[None, :], other=0.0
    )
    if HAS_BIAS:
        inner += tl.load(bias + down_row, mask=is_rank, other=0.0).to(tl.float32)[None, :]
    # h is rounded as the torch path's is, which keeps it in the type of x.
    hidden = inner.to(out.dtype.element_ty)
    if WIDE:
        hidden, up = hidden.to(tl.float32), up.to(tl.float32)
    total += tl.dot(hidden, up, allow_tf32=False)
    if HAS_BIAS:
        total += tl.load(bias + layer * width + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    targets = out + row[:, None] * num_outputs + layer * width + column[None, :]
    tl.store(targets, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def can_join(layout: JointLayout) -> bool:
    """Whether this kernel computes such a layout: blocks that all rows share, of a small rank."""
    return layout.copies == 1 and layout.rank <= LARGEST_RANK


def joint_lora_linear(
    x: Tensor, rows: Tensor, ups: Tensor, layout: JointLayout, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The layers' outputs with their adapters; see the function of this name in `studio.kernels.joint_lora`."""
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(*x.shape[:-1], layout.num_outputs)
    grid = (triton.cdiv(len(tokens), TOKENS), triton.cdiv(layout.width, OUTPUTS), layout.num_layers)
    _layers[grid](
        tokens, rows, ups, rows if bias is None else bias, _positions(layout, x.device), out,
        len(tokens), tokens.shape[1], layout.width, layout.num_outputs, layout.num_outputs,
        INPUT=triton.cdiv(tokens.shape[1], INPUTS) * INPUTS, RANK=layout.rank,
        PADDED=max(16, triton.next_power_of_2(layout.rank)), HAS_BIAS=bias is not None,
        TOKENS=TOKENS, OUTPUTS=OUTPUTS, INPUTS=INPUTS, WIDE=INTERPRETED,
    )  # fmt: skip
    return tuple(out[..., layout.columns(layer)] for layer in range(layout.num_layers))


@cache
def _positions(layout: JointLayout, device: torch.device) -> Tensor:
    """For each layer which block is its own, -1 for none; kept, because a recorded pass may copy nothing to the device."""
    order = [layout.active.index(layer) if layer in layout.active else -1 for layer in range(layout.num_layers)]
    return torch.tensor(order, dtype=torch.int64, device=device)
