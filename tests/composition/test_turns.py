"""Who acts when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.composition.turns import shares_of_steps, spread_turns, turn_length


def test_turns_are_the_papers_unless_there_are_too_few_steps():
    assert [turn_length(steps, 4) for steps in (100, 20, 8, 3)] == [5, 5, 2, 1]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.integers(1, 60))
def test_shares_are_all_of_the_steps(weights: list[float], steps: int):
    shares = shares_of_steps(weights, steps)
    assert sum(shares) == steps and min(shares) >= 0
    if steps >= len(weights):
        assert min(shares) >= 1
    order = spread_turns(shares, 5)
    assert [order.count(index) for index in range(len(weights))] == shares


def test_shares_follow_the_weights():
    assert shares_of_steps([0.2, 0.3, 0.5], 30) == [6, 9, 15]
    assert shares_of_steps([0.0, 1.0], 10) == [1, 9]
    assert shares_of_steps([0.0, 0.0], 4) == [2, 2]


@pytest.mark.parametrize("length", [1, 5])
def test_turns_are_spread(length: int):
    order = spread_turns([20, 20], length)
    assert order == ([0] * length + [1] * length) * (20 // length)
