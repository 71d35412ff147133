"""GEGLU in one pass forward and one backward, see `studio.kernels.gated`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _forward(projection, output, width, numel, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    row, column = at // width, at % width
    start = row * 2 * width + column
    hidden = tl.load(projection + start, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(projection + start + width, mask=inside, other=0.0).to(tl.float32)
    value = hidden * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(output + at, value.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _backward(projection, gradient, result, width, numel, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    row, column = at // width, at % width
    start = row * 2 * width + column
    hidden = tl.load(projection + start, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(projection + start + width, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    slope = share + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    tl.store(result + start, (upstream * gate * share).to(result.dtype.element_ty), mask=inside)
    tl.store(result + start + width, (upstream * hidden * slope).to(result.dtype.element_ty), mask=inside)


def gated_gelu(projection: Tensor) -> Tensor:
    """first half · GELU(second half) of `[…, 2N]`, as `[…, N]`; keeps the projection for the backward pass."""
    result: Tensor = _GatedGELU.apply(projection)
    return result


class _GatedGELU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, projection: Tensor) -> Tensor:
        context.save_for_backward(projection)
        projection = projection.contiguous()
        width = projection.shape[-1] // 2
        output = projection.new_empty(*projection.shape[:-1], width)
        numel = output.numel()
        _forward[(triton.cdiv(numel, BLOCK),)](projection, output, width, numel, BLOCK=BLOCK)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Both halves in one pass."""
        projection = context.saved_tensors[0].contiguous()
        gradient = gradient.contiguous()
        result = torch.empty_like(projection)
        numel = gradient.numel()
        _backward[(triton.cdiv(numel, BLOCK),)](projection, gradient, result, gradient.shape[-1], numel, BLOCK=BLOCK)
        return result
