"""The ops as `torch.library` operators, for `torch.compile` and `torch.export`.

In eager mode the plain functions are called: an operator costs some 30 µs a call more with gradients, which hundreds of small
layers notice. A compiler sees each operator as one piece whose shapes and gradients are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.attention_with_map import TILE, reference_attention_with_map
from studio.kernels.gated import reference_gated_gelu
from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import add_low_rank_
from studio.kernels.kronecker import kronecker_backward
from studio.kernels.kronecker import kronecker_linear as fast_kronecker_linear


@torch.library.custom_op("studio::joint_lora", mutates_args=())
def joint_lora(
    x: Tensor, rows: Tensor, ups: Tensor, bias: Tensor | None, width: int, num_layers: int, active: Sequence[int]
) -> Tensor:
    """The joint product as it lies in memory, `[…, num_rows]`: the layers' outputs with their adapters side by side, and h.

    See `joint_lora.joint_lora_linear`. An operator returns no views, so that the caller takes the columns.
    """
    layout = JointLayout(width, num_layers, tuple(active), ups.shape[-1])
    out = add_low_rank_(F.linear(x.reshape(-1, x.shape[-1]), rows, bias), ups, layout)
    return out.view(*x.shape[:-1], layout.num_rows)


@joint_lora.register_fake
def _(x: Tensor, rows: Tensor, ups: Tensor, bias: Tensor | None, width: int, num_layers: int, active: Sequence[int]) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows.shape[0])


def _keep_joint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, ups, bias, width, num_layers, active = inputs
    ctx.save_for_backward(x, rows, ups, bias)
    ctx.sizes = (width, num_layers, tuple(active))


def _joint_backward(ctx: Any, gradient: Tensor) -> Any:
    """Of what needs one: dh = g B + its own, dx = g W + dh A, d[W; A] = [g | dh]ᵀ x, dB = gᵀ h."""
    x, rows, ups, bias = ctx.saved_tensors
    width, num_layers, active = ctx.sizes
    layout = JointLayout(width, num_layers, active, ups.shape[-1])
    num = layout.num_outputs
    tokens, flat = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    by_layer = [flat[:, layout.columns(layer)] for layer in active]
    of_inner = flat[:, num:] + torch.cat([part @ up for part, up in zip(by_layer, ups, strict=True)], dim=1)
    of_x = of_rows = of_ups = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = (flat[:, :num] @ rows[:num] + of_inner @ rows[num:]).reshape(x.shape)
    if ctx.needs_input_grad[1]:
        of_rows = torch.cat([flat[:, :num], of_inner], dim=1).t() @ tokens
    if ctx.needs_input_grad[2]:
        inner = F.linear(tokens, rows[num:], None if bias is None else bias[num:])
        pairs = zip(by_layer, inner.split(layout.rank, dim=1), strict=True)
        of_ups = torch.stack([part.t() @ own for part, own in pairs])
    if bias is not None and ctx.needs_input_grad[3]:
        of_bias = torch.cat([flat[:, :num], of_inner], dim=1).sum(dim=0)
    return of_x, of_rows, of_ups, of_bias, None, None, None


joint_lora.register_autograd(_joint_backward, setup_context=_keep_joint)


@torch.library.custom_op("studio::gated_gelu", mutates_args=())
def gated_gelu(projection: Tensor) -> Tensor:
    """First half · GELU(second half); keeps its input alone for the backward pass."""
    return reference_gated_gelu(projection)


@gated_gelu.register_fake
def _(projection: Tensor) -> Tensor:
    return projection.new_empty(*projection.shape[:-1], projection.shape[-1] // 2)


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _gated_backward(ctx: Any, gradient: Tensor) -> Tensor:
    hidden, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
    of_gate = torch.ops.aten.gelu_backward(gradient * hidden, gate)
    return torch.cat([gradient * F.gelu(gate), of_gate], dim=-1)


gated_gelu.register_autograd(_gated_backward, setup_context=_keep_gated)


@torch.library.custom_op("studio::kronecker_linear", mutates_args=())
def kronecker_linear(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (A ⊗ B)ᵀ, see `kronecker.kronecker_linear`."""
    return fast_kronecker_linear(x, first, second).contiguous()


@kronecker_linear.register_fake
def _(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], first.shape[0] * second.shape[0])


def _keep_kronecker(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _kronecker_backward(ctx: Any, gradient: Tensor) -> Any:
    x, first, second = ctx.saved_tensors
    return kronecker_backward(gradient, x, first, second, ctx.needs_input_grad)


kronecker_linear.register_autograd(_kronecker_backward, setup_context=_keep_kronecker)


@torch.library.custom_op("studio::attention_with_map", mutates_args=())
def attention_with_map(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its map, a tile of queries at a time; see `attention_with_map.attention_with_map`."""
    outputs, maps = [], []
    for tile in query.split(TILE, dim=2):
        output, mean = reference_attention_with_map(tile, key, value, columns, scale)
        outputs.append(output)
        maps.append(mean)
    return torch.cat(outputs, dim=2), torch.cat(maps, dim=1)


@attention_with_map.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    output = query.new_empty(*query.shape[:-1], value.shape[-1])
    return output, query.new_empty(query.shape[0], query.shape[2], columns.shape[-1], dtype=wide)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, columns, scale = inputs
    ctx.save_for_backward(query, key, value, columns)
    ctx.scale = scale


def _attention_backward(ctx: Any, of_output: Tensor, of_map: Tensor) -> Any:
    query, key, value, columns = ctx.saved_tensors
    wide = torch.promote_types(query.dtype, torch.float32)
    upstream = (of_map @ columns.to(wide).transpose(-1, -2)) / query.shape[1]
    probabilities = torch.softmax((query @ key.transpose(-1, -2)).to(wide) * ctx.scale, dim=-1)
    inner = (of_output @ value.transpose(-1, -2)).to(wide) + upstream[:, None]
    weighted = inner * probabilities
    scores = ((weighted - probabilities * weighted.sum(dim=-1, keepdim=True)) * ctx.scale).to(query.dtype)
    of_value = probabilities.to(value.dtype).transpose(-1, -2) @ of_output
    return scores @ key, scores.transpose(-1, -2) @ query, of_value, None, None


attention_with_map.register_autograd(_attention_backward, setup_context=_keep_attention)
