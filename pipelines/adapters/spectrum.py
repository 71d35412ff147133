"""The singular values of a change, and its best low-rank factors, by the cheapest exact way for each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A matrix M `[out, in]` by its singular values.

    Attributes:
        values: the singular values, the largest first, `[k]`, float64.
        factors: r -> (U_r `[out, r]`, V_rᵀ `[r, in]`), orthonormal, so that M ≈ U_r · diag(values[:r]) · V_rᵀ.
    """

    values: Tensor
    factors: Callable[[int], tuple[Tensor, Tensor]]

    @property
    def squared_norm(self) -> float:
        """‖M‖² (Frobenius)."""
        return float(self.values.square().sum())

    def rank(self, single_precision: float = torch.finfo(torch.float32).eps) -> int:
        """How many singular values are more than what rounding to float32 leaves; at least 1."""
        largest = float(self.values[0]) if len(self.values) else 0.0
        return max(1, int((self.values > largest * single_precision).sum()))

    def rank_for_energy(self, energy: float) -> int:
        """The smallest r whose best approximation keeps this share of ‖M‖²."""
        squares = self.values.square()
        total = squares.sum()
        if total == 0:
            return 1
        kept = torch.cumsum(squares, 0) / total
        return min(int((kept < energy - 1e-12).sum()) + 1, self.rank())

    def discarded(self, rank: int) -> float:
        """‖M − M_rank‖² (Eckart–Young)."""
        return float(self.values[rank:].square().sum())


def spectrum_of_matrix(matrix: Tensor) -> Spectrum:
    """Of any matrix, by a full singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Spectrum(values, lambda rank: (left[:, :rank], right[:rank]))


def spectrum_of_product(left: Tensor, right: Tensor) -> Spectrum:
    """Of left `[out, r]` · right `[r, in]`, without making the product: two QR decompositions and an SVD of r×r."""
    left_basis, left_rest = torch.linalg.qr(left.double())
    right_basis, right_rest = torch.linalg.qr(right.double().T)
    inner = spectrum_of_matrix(left_rest @ right_rest.T)

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        inner_left, inner_right = inner.factors(rank)
        return left_basis @ inner_left, inner_right @ right_basis.T

    return Spectrum(inner.values, factors)


def spectrum_of_kronecker(first: Tensor, second: Tensor) -> Spectrum:
    """Of first ⊗ second, without making it: values are all products of the factors' values, vectors their Kronecker products."""
    one, two = spectrum_of_matrix(first), spectrum_of_matrix(second)
    products, order = torch.outer(one.values, two.values).flatten().sort(descending=True, stable=True)

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        # Column n of U is u₁[:, i] ⊗ u₂[:, j] with (i, j) the pair whose product is the n-th largest.
        index_one, index_two = order[:rank] // len(two.values), order[:rank] % len(two.values)
        left_one, right_one = one.factors(len(one.values))
        left_two, right_two = two.factors(len(two.values))
        left = left_one[:, None, index_one] * left_two[None, :, index_two]
        right = right_one[index_one, :, None] * right_two[index_two, None, :]
        return left.flatten(0, 1), right.flatten(1)

    return Spectrum(products, factors)
