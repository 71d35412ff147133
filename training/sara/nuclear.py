"""SaRA's low-rank regularizer: λ · ‖P ⊙ M‖_*, the nuclear norm of the weights that train (arXiv 2409.06633, section 3.3).

It is the norm of the masked *weights*, not of their change, and it really acts: its gradient arrives in the packed vector
with the loss's, before clipping. (In the paper's code it ends in tensors that nobody reads.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from studio.training.sara.packed import PackedWeights, Target

OVERSAMPLING = 8
POWER_ITERATIONS = 2


@dataclass(frozen=True, kw_only=True)
class NuclearNorm:
    """When and how the term is computed.

    Attributes:
        weight: λ; 0 for none. every: steps between two computations; the term is multiplied by it, so that λ means as much as
            in the paper, which computes it in each step.
        tensors: "one" random matrix a time, as in the paper, or "all".
        rank: how many singular values, by a randomised SVD (Halko et al. 2011, arXiv 0909.4061); 0 for all of them, exactly.
        smallest_side: only matrices whose smaller side is longer, as in the paper's code.
    """

    weight: float = 5e-3
    every: int = 10
    tensors: Literal["one", "all"] = "one"
    rank: int = 64
    smallest_side: int = 64

    def term(self, groups: Sequence[PackedWeights], step: int, seed: int) -> Tensor | None:
        """The term for step `step` (0-based), a scalar to add to the loss, or None when none is due.

        The same step and seed give the same term: all processes, and all forward passes of an accumulation, agree.
        """
        if self.weight == 0 or step % self.every:
            return None
        matrices = [(packed, target) for packed in groups for target in packed if self._counts(target)]
        if not matrices:
            return None
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        if self.tensors == "one":
            matrices = [matrices[int(torch.randint(len(matrices), (), generator=generator))]]
        total = torch.stack([self._norm(packed, target, generator) for packed, target in matrices]).sum()
        return self.weight * self.every * total

    def _counts(self, target: Target) -> bool:
        shape = target.selected.parameter.shape
        return len(shape) == 2 and min(shape) > self.smallest_side

    def _norm(self, packed: PackedWeights, target: Target, generator: torch.Generator) -> Tensor:
        values = packed.values(target)
        moving = packed.moving(target)
        if moving is not None:
            values = values * moving
        rows, columns = target.selected.parameter.shape
        matrix = values.new_zeros(rows * columns)
        matrix = matrix.index_put((target.selected.indices.to(torch.int64),), values)
        return nuclear_norm(matrix.view(rows, columns), self.rank, generator)


def nuclear_norm(matrix: Tensor, rank: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """‖X‖_* = Σ σᵢ, over the `rank` largest singular values if that is not 0; differentiable.

    Written as ⟨U Vᵀ, X⟩ with constant U, V: the value is Σ σᵢ and the gradient the subgradient U Vᵀ, without a derivative
    of the SVD itself, which does not exist where singular values are equal.
    """
    with torch.no_grad():
        left, right = _singular_vectors(matrix.detach(), rank, generator)
        polar = left @ right
    return (polar * matrix).sum()


def _singular_vectors(matrix: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """U `[m, r]` and Vᵀ `[r, n]` of the largest singular values that are not zero."""
    if rank == 0 or rank + OVERSAMPLING >= min(matrix.shape):
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        sketch = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator).to(matrix)
        basis = torch.linalg.qr(matrix @ sketch).Q
        for _ in range(POWER_ITERATIONS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        inner, sizes, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ inner
    count = min(len(sizes), rank) if rank else len(sizes)
    count = int((sizes[:count] > 1e-6 * sizes[0]).sum()) if float(sizes[0]) > 0 else 0
    return left[:, :count], right[:count]
