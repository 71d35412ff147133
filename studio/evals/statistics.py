"""Intervals for the figures in our tables: Wilson for shares, the bootstrap for means and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval and the number of observations (or of groups) behind it."""

    estimate: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        """`.953 [.923, .972]`, the form used in the tables."""
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(num_right: int, num: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (E. B. Wilson, JASA 22, 1927); honest near 0 and 1, unlike the normal one.

    No observations give an estimate of nan with the interval [0, 1].
    """
    if num == 0:
        return Interval(nan, 0.0, 1.0, 0)
    if not 0 <= num_right <= num:
        raise ValueError(f"{num_right} right of {num} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_right / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), num)


def share_interval(right: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Wilson's interval of the share of `True` in `right`."""
    return wilson_interval(sum(right), len(right), confidence)


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean (Efron and Tibshirani, 1993, ch. 13).

    With `groups` (one label per value) whole groups are resampled: pictures of one individual, or of one prompt, are
    no independent observations. The estimate is the plain mean of all values; `num` counts groups.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return Interval(nan, nan, nan, 0)
    sums, counts = _group_sums(data, groups)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(sums), size=(num_resamples, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(sums))


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean of `ours[i] - theirs[i]`; pairing removes what both share (the prompt, the seed)."""
    if len(ours) != len(theirs):
        raise ValueError(f"pairs need equal lengths, not {len(ours)} and {len(theirs)}")
    differences = (np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).tolist()
    return bootstrap_interval(differences, groups, confidence=confidence, num_resamples=num_resamples, seed=seed)


def _group_sums(data: NDArray[np.float64], groups: Sequence[object] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each group, in order of first appearance."""
    if groups is None:
        return data, np.ones_like(data)
    if len(groups) != data.size:
        raise ValueError(f"{data.size} values but {len(groups)} group labels")
    index_of = {label: index for index, label in enumerate(dict.fromkeys(groups))}
    indices = np.array([index_of[label] for label in groups])
    return np.bincount(indices, weights=data).astype(np.float64), np.bincount(indices).astype(np.float64)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of sum(numerators) / sum(denominators), drawn together; `groups` as in `bootstrap_interval`.

    nan where the denominators sum to nothing; resamples in which they do are passed over.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"a ratio needs equal lengths, not {len(numerators)} and {len(denominators)}")
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if below.size == 0 or below.sum() == 0:
        return Interval(nan, nan, nan, 0)
    (tops, _), (bottoms, _) = _group_sums(above, groups), _group_sums(below, groups)
    picks = np.random.default_rng(seed).integers(0, len(tops), size=(num_resamples, len(tops)))
    top, bottom = tops[picks].sum(axis=1), bottoms[picks].sum(axis=1)
    kept = bottom != 0
    low, high = np.quantile(top[kept] / bottom[kept], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), len(tops))
