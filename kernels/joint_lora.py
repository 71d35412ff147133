"""LoRA inside the layer's own product: [W; A] x at once, then + B h in place.

A low-rank branch is cheap in arithmetic and dear in launches and memory traffic: as written in every library it reads x again,
and reads and writes the output three times, for each adapter. Here any number of adapters on a layer is one of rank Σr, layers
that read the same x (queries, keys and values) are one product, and what remains is that and one more:

    [y | h] = x [W; A]ᵀ        y += h Bᵀ      (batched over the layers)

Strengths and scales are part of B. Adapters that act on single rows of a batch have blocks of A and B of their own for each
row; those that act in places multiply h by a map. See `joint_layout` for how it lies in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.joint_layout import JointLayout
from studio.kernels.paths import path_of

Pair = tuple[int, int]


def joint_lora_linear(
    x: Tensor, rows: Tensor, ups: Tensor, layout: JointLayout, bias: Tensor | None = None, inner_factor: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The layers' outputs with their adapters, `[…, N]` each. No gradients: see `joint_training`.

    Args:
        x: `[…, K]`, or `[B, …, K]` with B = `layout.copies` if that is not 1.
        rows: the joint weight, `[layout.num_rows, K]`.
        ups: the second factors with scales and strengths, `[A, N, R]` for A active layers; with copies `[B, A·N, A·R]`,
            block-diagonal. bias: `[num_rows]`, zeros beyond the layers' own.
        inner_factor: what h is multiplied by, `[B or 1, …, R]`: an adapter's weight for each row and place.
    """
    if x.is_cuda and inner_factor is None and path_of("joint_lora", x, x.numel() // x.shape[-1], x.shape[-1]) == "triton":
        from studio.kernels.triton.joint_lora import can_join
        from studio.kernels.triton.joint_lora import joint_lora_linear as compiled

        if can_join(layout):
            return compiled(x, rows, ups, layout, bias)
    out = F.linear(x, rows, bias)
    if layout.copies > 1:
        _add_by_row_(out, ups, layout)
    else:
        add_low_rank_(out.view(-1, layout.num_rows), ups, layout, _spread(inner_factor, x, layout))
    return tuple(out[..., layout.columns(layer)] for layer in range(layout.num_layers))


def row_lora_linear(
    x: Tensor, weight: Tensor, downs: Tensor, ups: Tensor, layout: JointLayout, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The same for adapters of single rows with their first factors apart, which is cheaper where these are many.

    Args:
        x: `[B, …, K]`. weight: `[num_outputs, K]`. bias: `[num_outputs]`.
        downs: `[B, A·R, K]`. ups: `[B, A·N, A·R]`.
    """
    out = F.linear(x, weight, bias)
    inner = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), downs.transpose(1, 2))
    first = layout.active[0] * layout.width
    span = out.view(len(x), -1, out.shape[-1])[:, :, first : first + layout.width * len(layout.active)]
    span.baddbmm_(inner, ups.transpose(1, 2))
    return tuple(out[..., layout.columns(layer)] for layer in range(layout.num_layers))


def add_low_rank_(out: Tensor, ups: Tensor, layout: JointLayout, inner_factor: Tensor | None = None) -> Tensor:
    """+ B h into the layers' columns of `out` `[T, num_rows]`, whose last columns are h; changes `out`, and returns it.

    Args:
        ups: `[A, N, R]`. inner_factor: `[T, R]` or `[T, A·R]`, multiplied into h first.
    """
    num, rank, width = len(layout.active), layout.rank, layout.width
    inner = out[:, layout.num_outputs : layout.num_rows]
    if inner_factor is not None:
        by_layer = inner.unflatten(1, (num, rank))
        by_layer.mul_(inner_factor[:, None, :])
    if num == 1:
        out[:, layout.columns(layout.active[0])].addmm_(inner, ups[0].t())
    elif layout.is_run:
        first = layout.active[0] * width
        span = out[:, first : first + num * width].unflatten(1, (num, width)).transpose(0, 1)
        span.baddbmm_(inner.unflatten(1, (num, rank)).transpose(0, 1), ups.transpose(1, 2))
    else:
        for position, layer in enumerate(layout.active):
            out[:, layout.columns(layer)].addmm_(out[:, layout.inner(position)], ups[position].t())
    return out


def joint_lora_conv2d(
    x: Tensor,
    rows: Tensor,
    ups: Tensor,
    layout: JointLayout,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
    inner_factor: Tensor | None = None,
) -> Tensor:
    """A convolution with its adapters: one convolution for W and all A, then a 1×1 product in place. No gradients.

    Args:
        x: `[B, K, H, W]`. rows: `[num_rows, K, kh, kw]`. ups: `[1, N, R]`, or with copies `[B, N, R]`.
        inner_factor: `[B or 1, R, H', W']`.

    Returns:
        `[B, N, H', W']`.
    """
    out = F.conv2d(x, rows, bias, stride, padding, dilation)
    num_outputs, rank = layout.num_outputs, layout.rank
    inner = out[:, num_outputs:]
    if inner_factor is not None:
        inner.mul_(inner_factor)
    if layout.copies == 1 and not out.is_contiguous() and out.is_contiguous(memory_format=torch.channels_last):
        flat = out.permute(0, 2, 3, 1).flatten(0, 2)
        flat[:, :num_outputs].addmm_(flat[:, num_outputs:], ups[0].t())
        return out[:, :num_outputs]
    out = out.contiguous()
    flat = out.flatten(2)
    if layout.copies > 1:
        size = flat.shape[2]
        strides = (flat.stride(0) + rank * size, size, 1)
        hidden = flat.as_strided((len(flat), rank, size), strides, flat.storage_offset() + num_outputs * size)
        flat[:, :num_outputs].baddbmm_(ups, hidden)
    else:
        flat[:, :num_outputs].baddbmm_(ups.expand(len(flat), -1, -1), flat[:, num_outputs:])
    return out[:, :num_outputs]


def row_lora_conv2d(
    x: Tensor,
    weight: Tensor,
    downs: Tensor,
    ups: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """A convolution with adapters of single rows: their first factors as one grouped convolution, a row a group.

    Args:
        x: `[B, K, H, W]`. weight: `[N, K, kh, kw]`. downs: `[B, R, K, kh, kw]`. ups: `[B, N, R]`.
    """
    num, rank = downs.shape[:2]
    out = F.conv2d(x, weight, bias, stride, padding, dilation).contiguous()
    stacked = x.reshape(1, num * x.shape[1], *x.shape[2:])
    inner = F.conv2d(stacked, downs.flatten(0, 1), None, stride, padding, dilation, groups=num)
    out.flatten(2).baddbmm_(ups, inner.view(num, rank, -1))
    return out


def reference_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapters: list[tuple[Tensor, Tensor, float | Tensor]]
) -> Tensor:
    """The plain path for one layer: W x + b + Σ sᵢ Bᵢ Aᵢ x.

    Args:
        adapters: (A `[r, K]`, B `[N, r]`, s a number or what broadcasts to the output).
    """
    out = F.linear(x, weight, bias)
    for down, up, factor in adapters:
        out = out + factor * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
    return out


def _add_by_row_(out: Tensor, ups: Tensor, layout: JointLayout) -> None:
    """Every row of the batch reads its own block of h: a view with a stride of one row and one block."""
    flat = out.view(layout.copies, -1, layout.num_rows)
    block, start = layout.block, flat.storage_offset() + layout.num_outputs
    inner = flat.as_strided((len(flat), flat.shape[1], block), (flat.stride(0) + block, flat.stride(1), 1), start)
    first = layout.active[0] * layout.width
    flat[:, :, first : first + layout.width * len(layout.active)].baddbmm_(inner, ups.transpose(1, 2))


def _spread(inner_factor: Tensor | None, x: Tensor, layout: JointLayout) -> Tensor | None:
    """`[B or 1, …, R]` as `[T, R]`."""
    if inner_factor is None:
        return None
    return inner_factor.expand(*x.shape[:-1], layout.rank).reshape(-1, layout.rank)
