"""Layers whose weight is a Kronecker product A ⊗ B, without making that product.

For W = A ⊗ B with A `[a_out, a_in]` and B `[b_out, b_in]`, W x is A X Bᵀ where X is x as a matrix `[a_in, b_in]`
(Van Loan 2000, "The ubiquitous Kronecker product"): two small products instead of one large one, forward and backward.
Which of the two comes first changes the cost, for (64, 4) on 1280 by a factor of 15; the cheaper order is taken.

A convolution's B also has the kernel, `[b_out, b_in, kh, kw]`: A mixes groups of channels and B convolves each group, the
groups as further pictures of the batch.

`reference_*` are the plain paths, which do make the product. `STUDIO_PLAIN_KERNELS=1` in the environment takes them
everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.paths import path_of

Order = Literal["second-first", "first-first"]
Pair = tuple[int, int]

PLAIN = os.environ.get("STUDIO_PLAIN_KERNELS", "") == "1"
"""Whether the plain paths run instead."""

MOST_GRADIENT_NUMBERS = 32
"""Above a_out · a_in of this many times the width, mixing groups by one large product is cheaper than by one per position.

Measured on a CPU, forward and backward, float32 and bfloat16: 64 ⊗ 5 is 2.6 and 6 times faster so, 16 ⊗ 20 1.2 times slower.
"""


def kronecker_linear(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (A ⊗ B)ᵀ, as `F.linear(x, torch.kron(first, second))` computes it.

    Args:
        x: `[…, a_in · b_in]`. first: A, `[a_out, a_in]`. second: B, `[b_out, b_in]`.

    Returns:
        `[…, a_out · b_out]`.
    """
    if PLAIN:
        return reference_kronecker_linear(x, first, second)
    (a_out, a_in), (b_out, b_in) = first.shape, second.shape
    if x.is_cuda and path_of("kronecker_linear", x, x.numel() // x.shape[-1], x.shape[-1], a_out) == "triton":
        from studio.kernels.triton.kronecker import can_multiply
        from studio.kernels.triton.kronecker import kronecker_linear as compiled

        if can_multiply(first):
            return compiled(x, first, second)
    groups = x.reshape(-1, a_in, b_in)
    if cheaper_order((a_out, a_in), (b_out, b_in)) == "second-first":
        result = _mix_groups(first, F.linear(groups, second))
    else:
        result = F.linear(_mix_groups(first, groups), second)
    return result.reshape(*x.shape[:-1], a_out * b_out)


def kronecker_backward(
    gradient: Tensor, x: Tensor, first: Tensor, second: Tensor, needs: Sequence[bool] = (True, True, True)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dX = Aᵀ G B, dA = Σ G (X Bᵀ)ᵀ, dB = Σ (Aᵀ G)ᵀ X, position by position; no product of both factors is made.

    Args:
        gradient: `[…, a_out · b_out]`. x, first, second: as for `kronecker_linear`. needs: which of the three.
    """
    (a_out, a_in), (b_out, b_in) = first.shape, second.shape
    groups, outputs = x.reshape(-1, a_in, b_in), gradient.reshape(-1, a_out, b_out)
    of_x = of_first = of_second = None
    if needs[0] or needs[2]:
        mixed = _mix_groups(first.t(), outputs)
        if needs[0]:
            of_x = (mixed @ second).reshape(x.shape)
        if needs[2]:
            of_second = mixed.reshape(-1, b_out).t() @ groups.reshape(-1, b_in)
    if needs[1]:
        inner = F.linear(groups, second)
        of_first = outputs.transpose(0, 1).reshape(a_out, -1) @ inner.transpose(0, 1).reshape(a_in, -1).t()
    return of_x, of_first, of_second


def kronecker_linear_added(output: Tensor, x: Tensor, first: Tensor, second: Tensor, factor: float = 1.0) -> Tensor:
    """output + factor · x (A ⊗ B)ᵀ, as a new tensor: the sum is part of the last product, or of the copy that it needs.

    Args:
        output: `[…, a_out · b_out]`. x, first, second: as for `kronecker_linear`; all of one type.
    """
    if PLAIN:
        return output + factor * reference_kronecker_linear(x, first, second)
    (a_out, a_in), (b_out, b_in) = first.shape, second.shape
    first = first if factor == 1.0 else factor * first
    groups, sums = x.reshape(-1, a_in, b_in), output.reshape(-1, a_out, b_out)
    if cheaper_order((a_out, a_in), (b_out, b_in)) == "second-first":
        result = _add_mixed_groups(sums, first, F.linear(groups, second))
    else:
        mixed = _mix_groups(first, groups).reshape(-1, b_in)
        result = torch.addmm(sums.reshape(-1, b_out), mixed, second.t())
    return result.reshape(output.shape)


def kronecker_conv2d(
    x: Tensor, first: Tensor, second: Tensor, stride: Pair = (1, 1), padding: Pair | str = (0, 0), dilation: Pair = (1, 1)
) -> Tensor:
    """The convolution with the weight A ⊗ B, whose element [i·b_out + r, j·b_in + q] is A[i, j] · B[r, q] with its kernel.

    Args:
        x: `[N, a_in · b_in, H, W]`. first: A, `[a_out, a_in]`. second: B, `[b_out, b_in, kh, kw]`.

    Returns:
        `[N, a_out · b_out, H', W']`.
    """
    if PLAIN:
        return reference_kronecker_conv2d(x, first, second, stride, padding, dilation)
    (a_out, a_in), (b_out, b_in) = first.shape, (second.shape[0], second.shape[1])
    num, _, height, width = x.shape
    kernel_size, stride_area = second[0, 0].numel(), stride[0] * stride[1]
    if cheaper_order((a_out, a_in), (b_out, b_in), kernel_size, stride_area) == "second-first":
        convolved = F.conv2d(x.reshape(num * a_in, b_in, height, width), second, None, stride, padding, dilation)
        size = convolved.shape[2:]
        result = first.expand(num, a_out, a_in) @ convolved.reshape(num, a_in, -1)
    else:
        mixed = first.expand(num, a_out, a_in) @ x.reshape(num, a_in, -1)
        result = F.conv2d(mixed.reshape(num * a_out, b_in, height, width), second, None, stride, padding, dilation)
        size = result.shape[2:]
    return result.reshape(num, a_out * b_out, *size)


def cheaper_order(first: Pair, second: Pair, kernel_size: int = 1, stride_area: int = 1) -> Order:
    """Which factor to apply first, by the number of multiplications per position of the output.

    Args:
        first: (a_out, a_in). second: (b_out, b_in).
        kernel_size: elements of B's kernel. stride_area: positions of the input for one of the output.
    """
    (a_out, a_in), (b_out, b_in) = first, second
    second_first = a_in * b_in * b_out * kernel_size + a_out * a_in * b_out
    first_first = a_out * a_in * b_in * stride_area + a_out * b_in * b_out * kernel_size
    return "second-first" if second_first <= first_first else "first-first"


def reference_kronecker_linear(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The plain path of `kronecker_linear`."""
    return F.linear(x, torch.kron(first, second))


def reference_kronecker_conv2d(
    x: Tensor, first: Tensor, second: Tensor, stride: Pair = (1, 1), padding: Pair | str = (0, 0), dilation: Pair = (1, 1)
) -> Tensor:
    """The plain path of `kronecker_conv2d`."""
    weight = torch.kron(first[:, :, None, None], second)
    return F.conv2d(x, weight, None, stride, padding, dilation)


def _mix_groups(first: Tensor, groups: Tensor) -> Tensor:
    """A Z for every Z of `groups` `[N, a_in, b]`, as `[N, a_out, b]`.

    One product per position is the fastest way unless its gradient, a_out · a_in numbers per position before they are
    summed, is much larger than what it works on; then all positions go into one product, for two copies.
    """
    if _one_by_one(first, groups):
        # Expanded, because matmul of a matrix and a batch would copy the batch's transpose instead.
        return torch.bmm(first.expand(len(groups), *first.shape), groups)
    return _mix_at_once(first, groups)


def _add_mixed_groups(sums: Tensor, first: Tensor, groups: Tensor) -> Tensor:
    """`sums` `[N, a_out, b]` + `_mix_groups(first, groups)`."""
    if _one_by_one(first, groups):
        return torch.baddbmm(sums, first.expand(len(groups), *first.shape), groups)
    return sums + _mix_at_once(first, groups)


def _one_by_one(first: Tensor, groups: Tensor) -> bool:
    return first.numel() <= MOST_GRADIENT_NUMBERS * groups.shape[2]


def _mix_at_once(first: Tensor, groups: Tensor) -> Tensor:
    (a_out, a_in), (num, _, width) = first.shape, groups.shape
    columns = groups.transpose(0, 1).reshape(a_in, num * width)
    return (first @ columns).reshape(a_out, num, width).transpose(0, 1)
