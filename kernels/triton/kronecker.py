"""x (A ⊗ B)ᵀ in one launch, see `studio.kernels.kronecker`: x is read once, and what is between both products stays in registers.

A program takes a few tokens and some columns of B: Z = X Bᵀ for all groups of these tokens is one product, and A mixes the
groups as a second one with A on the diagonal, a block for each token.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from studio.kernels.triton import INTERPRETED

ROWS, COLUMNS, INPUTS = 32, 32, 32
"""Rows of the products at the least, (token, group) pairs; columns of B; size of a step along B's inputs."""

LARGEST_SIDE = 128
"""Of A: its rows times those of a token stay in registers."""


@triton.jit
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202
    x, first, second, out, length, a_in, a_out, b_in, b_out,  # noqa: ANN001
    INPUT: tl.constexpr, TOKENS: tl.constexpr, GROUPS: tl.constexpr, MIXED: tl.constexpr,
    COLUMNS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`GROUPS` and `MIXED` are A's sides rounded up to powers of two, `INPUT` is b_in rounded up to steps."""
    pair, mixed = tl.arange(0, TOKENS * GROUPS), tl.arange(0, TOKENS * MIXED)
    start = tl.program_id(0) * TOKENS
    token, group = start + pair // GROUPS, pair % GROUPS
    is_pair = (token < length) & (group < a_in)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < b_out
    hidden = tl.zeros((TOKENS * GROUPS, COLUMNS), dtype=tl.float32)
    for begin in range(0, INPUT, INPUTS):
        channel = begin + tl.arange(0, INPUTS)
        known = channel < b_in
        places = x + (token[:, None] * a_in + group[:, None]) * b_in + channel[None, :]
        values = tl.load(places, mask=is_pair[:, None] & known[None, :], other=0.0)
        weight = tl.load(second + column[None, :] * b_in + channel[:, None], mask=known[:, None] & is_column[None, :], other=0.0)
        if WIDE:
            values, weight = values.to(tl.float32), weight.to(tl.float32)
        hidden += tl.dot(values, weight, allow_tf32=False)
    target, row = start + mixed // MIXED, mixed % MIXED
    is_target = (target < length) & (row < a_out)
    is_own = (target[:, None] == token[None, :]) & is_target[:, None] & is_pair[None, :]
    mixing = tl.load(first + row[:, None] * a_in + group[None, :], mask=is_own, other=0.0)
    # Z is rounded as the torch path's is, which keeps it in the type of x.
    between = hidden.to(out.dtype.element_ty)
    if WIDE:
        mixing, between = mixing.to(tl.float32), between.to(tl.float32)
    total = tl.dot(mixing, between, allow_tf32=False)
    places = out + (target[:, None] * a_out + row[:, None]) * b_out + column[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_target[:, None] & is_column[None, :])


def can_multiply(first: Tensor) -> bool:
    """Whether this kernel computes with such an A."""
    return max(first.shape) <= LARGEST_SIDE


def kronecker_linear(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (A ⊗ B)ᵀ; the way back is the torch path's."""
    result: Tensor = _KroneckerLinear.apply(x, first, second)
    return result


class _KroneckerLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        context.save_for_backward(x, first, second)
        (a_out, a_in), (b_out, b_in) = first.shape, second.shape
        groups = x.reshape(-1, a_in * b_in).contiguous()
        out = x.new_empty(*x.shape[:-1], a_out * b_out)
        powers = [triton.next_power_of_2(side) for side in (a_in, a_out)]
        tokens = max(1, ROWS // min(powers))
        _forward[(triton.cdiv(len(groups), tokens), triton.cdiv(b_out, COLUMNS))](
            groups, first.contiguous(), second.contiguous(), out, len(groups), a_in, a_out, b_in, b_out,
            INPUT=triton.cdiv(b_in, INPUTS) * INPUTS, TOKENS=tokens, GROUPS=powers[0], MIXED=powers[1],
            COLUMNS=COLUMNS, INPUTS=INPUTS, WIDE=INTERPRETED,
        )  # fmt: skip
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        """See the torch path."""
        from studio.kernels.kronecker import kronecker_backward

        x, first, second = context.saved_tensors
        return kronecker_backward(gradient, x, first, second, context.needs_input_grad)
