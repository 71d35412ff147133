"""Distances between two sets of pictures, given features of them: Fréchet (FID's) and kernel (KID's)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from studio.evals.statistics import Interval

Features: TypeAlias = NDArray[np.float64]


def frechet_distance(first: Features, second: Features) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets `[N, D]`, `[M, D]`.

    `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)` (Heusel et al. 2017, eq. 6). Biased upwards for small sets, hence always
    shown beside the distance between two sets of renders of the same sizes. The trace of the root is taken from the
    eigenvalues of `C1^½ C2 C1^½`, which is symmetric; no matrix root of an unsymmetric matrix is needed.
    """
    mean_gap = first.mean(axis=0) - second.mean(axis=0)
    cov_first, cov_second = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    cov_first, cov_second = np.atleast_2d(cov_first), np.atleast_2d(cov_second)
    values, vectors = np.linalg.eigh(cov_first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_second @ root)
    trace_root = np.sqrt(np.clip(cross, 0, None)).sum()
    return float(mean_gap @ mean_gap + np.trace(cov_first) + np.trace(cov_second) - 2 * trace_root)


def kernel_distance(
    first: Features, second: Features, *, num_subsets: int = 50, subset_size: int = 200, seed: int = 0
) -> Interval:
    """Kernel distance: unbiased squared MMD with the kernel `(x·y / D + 1)³` (Bińkowski et al. 2018).

    Mean over random subsets, with the 2.5 and 97.5 % quantiles of the subsets' values beside it. May be negative: it
    is unbiased.
    """
    size = min(subset_size, len(first), len(second))
    if size < 2:
        raise ValueError("a kernel distance needs two pictures on each side")
    generator = np.random.default_rng(seed)
    values = [
        _unbiased_mmd(
            first[generator.choice(len(first), size, replace=False)],
            second[generator.choice(len(second), size, replace=False)],
        )
        for _ in range(num_subsets)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), num_subsets)


def _unbiased_mmd(first: Features, second: Features) -> float:
    """Unbiased squared MMD of two sets of equal size `[n, D]` under the cubic kernel."""
    num, dim = first.shape
    within_first = (first @ first.T / dim + 1) ** 3
    within_second = (second @ second.T / dim + 1) ** 3
    across = (first @ second.T / dim + 1) ** 3
    off_diagonal = within_first.sum() - np.trace(within_first) + within_second.sum() - np.trace(within_second)
    return float(off_diagonal / (num * (num - 1)) - 2 * across.mean())
