"""GEGLU: half of a projection times the GELU of the other half (Shazeer 2020, arXiv 2002.05202).

As two operations, autograd keeps the projection, and the gate's activation beside it: half as much again. The function here
keeps the projection alone and computes the activation anew on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.paths import path_of


def gated_gelu(projection: Tensor) -> Tensor:
    """first half · GELU(second half) of `[…, 2N]`, as `[…, N]`."""
    path = path_of("gated_gelu", projection, projection.numel() // projection.shape[-1], projection.shape[-1])
    if path == "plain":
        return reference_gated_gelu(projection)
    if path == "triton":
        from studio.kernels.triton.gated import gated_gelu as compiled

        return compiled(projection)
    if torch.is_grad_enabled() and projection.requires_grad:
        result: Tensor = _GatedGELU.apply(projection)
        return result
    return reference_gated_gelu(projection)


def reference_gated_gelu(projection: Tensor) -> Tensor:
    """The plain path, as diffusers has it."""
    hidden, gate = projection.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


class _GatedGELU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, projection: Tensor) -> Tensor:
        context.save_for_backward(projection)
        return reference_gated_gelu(projection)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Both halves' gradients, written next to each other into one tensor."""
        (projection,) = context.saved_tensors
        hidden, gate = projection.chunk(2, dim=-1)
        result = torch.empty(projection.shape, dtype=projection.dtype, device=projection.device)
        of_hidden, of_gate = result.chunk(2, dim=-1)
        torch.mul(gradient, F.gelu(gate), out=of_hidden)
        torch.ops.aten.gelu_backward.grad_input(gradient * hidden, gate, grad_input=of_gate)
        return result
