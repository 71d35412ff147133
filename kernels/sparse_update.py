"""One optimizer step on a sparse set of weights: gather their gradients, AdamW, scatter them back.

Only what is at the k chosen positions has a master copy, two moments and an int32 position: 16 bytes a position, of which
12 are what AdamW adds (dense AdamW: 8 bytes for every weight, chosen or not).

The plain functions are the reference. `STUDIO_PLAIN_KERNELS=1` in the environment chooses them everywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.kernels.paths import path_of


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Hyper-parameters of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), in torch's names."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


def gather(dense: Tensor, indices: Tensor) -> Tensor:
    """The entries of `dense` (any shape and layout) at flat positions `indices` `[k]` int32, as float32 `[k]`."""
    if dense.is_contiguous():
        return dense.view(-1).index_select(0, indices).to(torch.float32)
    return dense.take(indices.to(torch.int64)).to(torch.float32)


@torch.no_grad()
def scatter_(dense: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """Write `values` `[k]` to flat positions `indices` of `dense` in place, rounded once to its type; returns `dense`."""
    positions = indices.to(torch.int64)
    if dense.is_contiguous():
        dense.view(-1).index_copy_(0, positions, values.to(dense.dtype))  # four times as fast as put_ where few are chosen
        return dense
    return dense.put_(positions, values.to(dense.dtype))


def adamw_reference_(values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, options: AdamW) -> None:
    """AdamW on flat float32 tensors in place, as the paper writes it; `step` counts from 1."""
    beta1, beta2 = options.betas
    mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    unbiased_mean = mean / (1 - beta1**step)
    unbiased_square = square / (1 - beta2**step)
    values.mul_(1 - options.lr * options.weight_decay)
    values.sub_(options.lr * unbiased_mean / (unbiased_square.sqrt() + options.eps))


def adamw_(values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, options: AdamW) -> None:
    """The same with torch's fused kernel: one pass over the four tensors."""
    if _plain():
        adamw_reference_(values, gradient, mean, square, step, options)
        return
    beta1, beta2 = options.betas
    torch._fused_adamw_(
        [values],
        [gradient],
        [mean],
        [square],
        [],
        [torch.tensor(float(step), device=values.device)],
        lr=options.lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=options.weight_decay,
        eps=options.eps,
        amsgrad=False,
        maximize=False,
    )


@torch.no_grad()
def sparse_adamw_(
    weight: Tensor,
    gradient: Tensor,
    indices: Tensor,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    options: AdamW,
) -> None:
    """Gather, AdamW and scatter for one weight; all tensors but `gradient` and `indices` are changed in place.

    Args:
        weight, gradient: dense, of one shape, any floating type.
        indices: `[k]` int32, sorted. master, mean, square: `[k]` float32; `master` holds the weights at full precision.
        step: counts from 1.
    """
    if path_of("sparse_adamw", weight, len(indices)) == "triton" and weight.is_contiguous() and gradient.is_contiguous():
        from studio.kernels.triton.sparse_update import sparse_adamw_ as compiled

        compiled(weight, gradient, indices, master, mean, square, step, options)
        return
    adamw_(master, gather(gradient, indices), mean, square, step, options)
    scatter_(weight, indices, master)


def state_bytes(*tensors: Tensor) -> int:
    """Bytes that the tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _plain() -> bool:
    return os.environ.get("STUDIO_PLAIN_KERNELS", "") not in ("", "0")
