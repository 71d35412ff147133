"""Intervals against closed forms and against their own promise: to hold the truth as often as they say."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.evals.statistics import bootstrap_interval, bootstrap_ratio, paired_difference, share_interval, wilson_interval


def test_wilson_known_values():
    interval = wilson_interval(8, 10)  # Newcombe 1998: 0.4902 to 0.9433
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 20).low == pytest.approx(0)
    assert wilson_interval(0, 20).high == pytest.approx(1.959964**2 / (20 + 1.959964**2))
    assert isnan(wilson_interval(0, 0).estimate)
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)


@given(st.integers(1, 400), st.data())
def test_wilson_is_ordered_and_symmetric(num, data):
    right = data.draw(st.integers(0, num))
    interval, mirror = wilson_interval(right, num), wilson_interval(num - right, num)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1 + 1e-12
    assert interval.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_share_interval_counts():
    assert share_interval([True, False, True, True]) == wilson_interval(3, 4)
    assert str(share_interval([True] * 4)).startswith("1.000 [0.510, 1.000]")


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_interval(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.estimate == pytest.approx(half, rel=0.1)
    assert interval == bootstrap_interval(values.tolist())
    assert bootstrap_interval(values.tolist(), seed=1) != interval


def test_groups_widen_what_repeats_itself():
    values = np.random.default_rng(2).normal(size=20).repeat(10).tolist()
    groups = [index // 10 for index in range(200)]
    alone, grouped = bootstrap_interval(values), bootstrap_interval(values, groups)
    assert grouped.num == 20
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)
    assert grouped.high - grouped.low == pytest.approx(
        bootstrap_interval(values[::10]).high - bootstrap_interval(values[::10]).low
    )
    with pytest.raises(ValueError, match="group labels"):
        bootstrap_interval(values, groups[:-1])


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 5, 100)
    ours, theirs = shared + 1 + rng.normal(0, 0.1, 100), shared
    interval = paired_difference(ours.tolist(), theirs.tolist())
    assert interval.low > 0.9
    assert interval.high < 1.1
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0])


def test_no_values_give_no_estimate():
    assert isnan(bootstrap_interval([]).estimate)


def test_a_ratio_has_an_interval_of_its_own():
    same = bootstrap_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (same.estimate, same.low, same.high, same.num) == (0.5, 0.5, 0.5, 3)
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 2, 400)
    above = 0.7 * below + rng.normal(0, 0.1, 400)
    found = bootstrap_ratio(above.tolist(), below.tolist(), list(range(200)) * 2)
    assert found.low < 0.7 < found.high and found.high - found.low < 0.05 and found.num == 200
    assert isnan(bootstrap_ratio([1.0], [0.0]).estimate) and bootstrap_ratio([], []).num == 0
    with pytest.raises(ValueError, match="equal lengths"):
        bootstrap_ratio([1.0], [])
