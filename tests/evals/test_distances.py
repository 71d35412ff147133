"""Distances between feature sets: closed forms, symmetry, and zero for equal distributions."""

import numpy as np
import pytest

from studio.evals.distances import frechet_distance, kernel_distance


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3000, 4)), rng.normal(size=(3000, 4))


def test_frechet_of_gaussians(sets):
    """|m|² + sum (s1 - s2)² for diagonal covariances."""
    first, second = sets
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    shifted = second * np.array([2.0, 1.0, 1.0, 0.5]) + np.array([3.0, 0.0, 0.0, 0.0])
    assert frechet_distance(first, shifted) == pytest.approx(9 + 1 + 0.25, rel=0.05)
    assert frechet_distance(first, shifted) == pytest.approx(frechet_distance(shifted, first))


def test_frechet_does_not_mind_rotations_or_a_single_feature(sets):
    first, second = sets
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(frechet_distance(first, second), abs=1e-9)
    assert frechet_distance(first[:, :1], first[:, :1] + 2) == pytest.approx(4)


def test_frechet_survives_fewer_pictures_than_features():
    rng = np.random.default_rng(2)
    distance = frechet_distance(rng.normal(size=(5, 20)), rng.normal(size=(6, 20)))
    assert np.isfinite(distance)
    assert distance > 0


def test_kernel_distance_is_unbiased(sets):
    first, second = sets
    same = kernel_distance(first, second)
    assert same.low < 0 < same.high
    apart = kernel_distance(first, second + 1)
    assert apart.low > same.high
    # The cubic kernel's expectation for two point masses a and b: k(a,a) + k(b,b) - 2 k(a,b).
    points = kernel_distance(np.zeros((5, 2)), np.ones((5, 2)))
    assert points.estimate == pytest.approx(1 + 2**3 - 2)
    with pytest.raises(ValueError, match="two pictures"):
        kernel_distance(first[:1], second)
