"""The lengths of W + s·B·A, row by row, without making the sum (Liu et al. 2024, arXiv 2402.09353, eq. 5).

‖w + Δ‖² = ‖w‖² + 2 ⟨w, Δ⟩ + ‖Δ‖² with Δ = s·b·A costs two products of rank r: W Aᵀ and A Aᵀ. ‖w‖ is the base's own and is
computed once. Differentiable in A and B, exactly; where B is zero the length is ‖w‖ to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-12
"""Rows shorter than this count as zero."""


def lengths(weight: Tensor) -> Tensor:
    """‖w_o‖ of every row of `weight` `[out, …]` as `[out]`, float32 or wider."""
    return weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32)).norm(dim=1)


def lengths_with_lora(weight: Tensor, own: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """‖w_o + s · b_o A‖ as `[out]`, never zero.

    Args:
        weight: `[out, …]`. own: `lengths(weight)`.
        down: A, `[r, …]`. up: B, `[out, r]` or `[out, r, 1, 1]`.
    """
    wide = own.dtype
    down, up = down.flatten(1).to(wide), up.flatten(1).to(wide)
    crossed = weight.detach().flatten(1).to(wide) @ down.t()
    added = 2.0 * scale * (up * crossed).sum(dim=1) + scale**2 * ((up @ (down @ down.t())) * up).sum(dim=1)
    is_long = own > SHORTEST
    unit = torch.where(is_long, own, torch.ones_like(own))
    relative = is_long.to(wide) + added / unit.square()
    return unit * relative.clamp_min(torch.finfo(wide).tiny).sqrt()


def reference_lengths_with_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The plain path: the sum, and the length of its rows."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    changed = weight.detach().flatten(1).to(wide) + scale * (up.flatten(1).to(wide) @ down.flatten(1).to(wide))
    return changed.norm(dim=1).clamp_min(torch.finfo(wide).tiny)
