"""Rules that settle, number by number, what becomes of several changes of one parameter. Pure functions.

A change that leaves the parameter alone is not among `deltas`; `count` says how many adapters there are in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def magnitude(deltas: Sequence[Tensor], density: float) -> Tensor:
    """Σ of the changes, each with only its largest numbers left: a share `density` of them, rounded up."""
    return torch.stack([trimmed(delta, density) for delta in deltas]).sum(dim=0)


def dare(deltas: Sequence[Tensor], density: float, generator: torch.Generator) -> Tensor:
    """Σ of the changes, each with numbers dropped by chance and the rest scaled up (DARE, Yu et al. 2023, arXiv 2311.03099).

    Each number stays with the probability `density` and is divided by it, so that the expected sum is the plain one.

    Args:
        generator: of the CPU; it decides what is dropped.
    """
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        kept = torch.rand(delta.shape, generator=generator) < density
        total += torch.where(kept, delta / density, 0.0)
    return total


def ties(deltas: Sequence[Tensor], density: float) -> Tensor:
    """Trim, elect signs, and average what agrees (TIES, Yadav et al. 2023, arXiv 2306.01708).

    Of each change the share `density` of largest numbers stays; the sign of each place is that of their sum; the result is the
    mean of those numbers that have it. The mean is of the numbers that are left and agree, not of all adapters, so that what one
    adapter alone says stays as strong as it was.

    Trimming is per parameter, as in PEFT; the paper trims each adapter as one long vector.
    """
    kept = torch.stack([trimmed(delta, density) for delta in deltas])
    elected = torch.sign(kept.sum(dim=0))
    agreeing = (torch.sign(kept) == elected) & (kept != 0)
    return torch.where(agreeing, kept, 0.0).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def average(deltas: Sequence[Tensor], count: int) -> Tensor:
    """1/count · Σ: the uniform merge of SELMA (Li et al. 2024, arXiv 2403.06952), built up one by one.

    K equal experts are the expert, to the last bit. (The published script divides by the length of the model's *name*, and so
    uses about a sixth of the experts.)
    """
    mean = deltas[0]
    for number, delta in enumerate(deltas[1:], start=2):
        mean = mean + (delta - mean) / number
    return mean if len(deltas) == count else mean * (len(deltas) / count)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """`delta` with only its largest numbers left, a share `density` of them, rounded up; ties keep the earlier number."""
    keep = max(1, min(delta.numel(), -int(-density * delta.numel() // 1)))
    if keep == delta.numel():
        return delta
    largest = delta.flatten().abs().topk(keep, sorted=False).indices
    result = torch.zeros_like(delta).flatten()
    result[largest] = delta.flatten()[largest]
    return result.reshape(delta.shape)
