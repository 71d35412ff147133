"""LoRA inside the layer's own product, with gradients: see `joint_lora` for the arithmetic.

One autograd function does what a chain of a dozen operations does elsewhere. Nothing of the output's size is kept for the
backward pass, and full-precision factors cost one cast a step for all layers instead of casts of every input and output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import add_low_rank_


class Part(NamedTuple):
    """One adapter's place in a layer's block.

    Attributes:
        offset, rank: its rows in the block. scale: what its B was multiplied by.
    """

    offset: int
    rank: int
    scale: float


def joint_lora_training(
    x: Tensor,
    rows: Tensor,
    ups: Tensor,
    layout: JointLayout,
    bias: Tensor | None,
    parts: tuple[tuple[Part, ...], ...],
    factors: tuple[Tensor | None, ...],
    keeps_output: bool,
    refresh: Callable[[], None] | None = None,
) -> tuple[Tensor, ...]:
    """`joint_lora_linear` with gradients for x and for the factors' own full-precision values.

    `rows` and `ups` hold the factors in the type that the layer computes in, cast once a step for all layers; gradients
    come back in the factors' type. Kept for the backward pass are x and h, and nothing of the output's size.

    Args:
        parts: for each active layer its adapters, in the order in which they lie in the block.
        factors: A and B of each of these, `[r, K]` and `[N, r]`; None where they do not train.
        keeps_output: whether the outputs are kept by what comes next, so that h may be kept inside of their memory.
        refresh: called before the backward pass reads `rows` and `ups`, if another adapter may have used them.
    """
    return tuple(_JointLoRA.apply(x, rows, ups, layout, bias, parts, keeps_output, refresh, *factors))


class _JointLoRA(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        rows: Tensor,
        ups: Tensor,
        layout: JointLayout,
        bias: Tensor | None,
        parts: tuple[tuple[Part, ...], ...],
        keeps_output: bool,
        refresh: Callable[[], None] | None,
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        context.set_materialize_grads(False)
        tokens = x.reshape(-1, x.shape[-1])
        out = F.linear(tokens, rows, bias)
        add_low_rank_(out, ups, layout)
        trains = any(context.needs_input_grad[8:])
        inner = out[:, layout.num_outputs :] if trains else None
        if inner is not None and not keeps_output:
            inner = inner.contiguous()
        context.save_for_backward(tokens if trains else None, inner)
        context.constants = (rows, ups, layout, parts, refresh, x.shape, [None if f is None else f.dtype for f in factors])
        shape = (*x.shape[:-1], layout.width)
        return tuple(out[:, layout.columns(layer)].view(shape) for layer in range(layout.num_layers))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor | None) -> Any:
        """dh = g B, dx = g W + dh A, dA = dhᵀ x, dB = gᵀ h: the scales are in B, and come to dB last."""
        tokens, inner = context.saved_tensors
        rows, ups, layout, parts, refresh, shape, types = context.constants
        if refresh is not None:
            refresh()
        flat = [None if gradient is None else gradient.reshape(-1, layout.width) for gradient in gradients]
        some = next(gradient for gradient in flat if gradient is not None)
        hidden = _hidden_gradient(flat, some, ups, layout)
        x_gradient = None
        if context.needs_input_grad[0]:
            x_gradient = _input_gradient(flat, hidden, rows, layout).view(shape)
        factor_gradients: list[Tensor | None] = [None] * len(types)
        if tokens is not None:
            factor_gradients = _factor_gradients(flat, hidden, tokens, inner, layout, parts, types)
        return x_gradient, None, None, None, None, None, None, None, *factor_gradients


def _hidden_gradient(gradients: list[Tensor | None], some: Tensor, ups: Tensor, layout: JointLayout) -> Tensor:
    """dh, `[T, A·R]`."""
    hidden = some.new_empty(len(some), layout.block)
    for position, layer in enumerate(layout.active):
        columns = hidden[:, position * layout.rank : (position + 1) * layout.rank]
        gradient = gradients[layer]
        if gradient is None:
            columns.zero_()
        else:
            torch.mm(gradient, ups[position], out=columns)
    return hidden


def _input_gradient(gradients: list[Tensor | None], hidden: Tensor, rows: Tensor, layout: JointLayout) -> Tensor:
    total = hidden @ rows[layout.num_outputs : layout.num_rows]
    for layer, gradient in enumerate(gradients):
        if gradient is not None:
            total.addmm_(gradient, rows[layout.columns(layer)])
    return total


def _factor_gradients(
    gradients: list[Tensor | None],
    hidden: Tensor,
    tokens: Tensor,
    inner: Tensor,
    layout: JointLayout,
    parts: tuple[tuple[Part, ...], ...],
    types: list[torch.dtype | None],
) -> list[Tensor | None]:
    """In the order of the factors; products in the layer's type, one cast for all A and one for all B."""
    wide = next(dtype for dtype in types if dtype is not None)
    downs = (hidden.t() @ tokens).to(wide)
    ups = inner.new_empty(len(layout.active), layout.width, layout.rank)
    for position, layer in enumerate(layout.active):
        gradient = gradients[layer]
        if gradient is None:
            ups[position].zero_()
        else:
            torch.mm(gradient.t(), inner[:, position * layout.rank : (position + 1) * layout.rank], out=ups[position])
    ups = ups.to(wide)
    found: list[Tensor | None] = []
    for position, own in enumerate(parts):
        for part in own:
            start = position * layout.rank + part.offset
            up = ups[position][:, part.offset : part.offset + part.rank]
            pair = (downs[start : start + part.rank], up if part.scale == 1.0 else up * part.scale)
            for value, dtype in zip(pair, types[len(found) : len(found) + 2], strict=True):
                found.append(None if dtype is None else value.to(dtype))
    return found
