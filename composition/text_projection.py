"""Text features with chosen directions taken out of them (DECOR, Jang et al. 2024, arXiv 2412.09169). Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_RANK = 1e-6
"""Singular values below this share of the largest are none."""


def directions_of(undesired: Tensor) -> Tensor:
    """Ṽ `[D, r]`, float64: an orthonormal basis of what the rows of X̃ `[k, D]` span, by the singular value decomposition."""
    _, values, right = torch.linalg.svd(undesired.double(), full_matrices=False)
    kept = values > RELATIVE_RANK * values.max().clamp(min=1e-300)
    return right[kept].T


def projected(features: Tensor, directions: Tensor, alpha: float) -> Tensor:
    """X' = X − αXP with P = ṼṼᵀ, for features X `[…, D]`, in their type; with α = 1 nothing of these directions is left."""
    wide = features.double()
    return (wide - alpha * (wide @ directions) @ directions.T).to(features.dtype)
