"""Who acts when, where adapters take turns."""

from __future__ import annotations

from collections.abc import Sequence

from studio.composition.plan import ROLES
from studio.composition.scene import Concept

PAPERS_TURN = 5
"""τ of LoRA Switch: the best of those its authors tried; with 1 pictures are distorted."""


def turn_length(num_steps: int, num_adapters: int) -> int:
    """τ: the paper's 5, or fewer where everyone would not get a turn. (The paper draws in 100 and 200 steps.)"""
    return max(1, min(PAPERS_TURN, num_steps // max(1, num_adapters)))


def in_role_order(concepts: Sequence[Concept]) -> list[Concept]:
    """Subjects first, then clothing, style, background, objects; among equals as in the plan."""
    return sorted(concepts, key=lambda concept: ROLES.index(concept.role))


def shares_of_steps(weights: Sequence[float], num_steps: int) -> list[int]:
    """How many of `num_steps` each gets, in proportion to its weight; the largest remainders are rounded up.

    Everyone gets at least one where there are steps enough.
    """
    if not weights:
        return []
    total = sum(weights)
    wanted = [num_steps * (weight / total if total > 0 else 1 / len(weights)) for weight in weights]
    if num_steps >= len(weights):
        wanted = [max(1.0, share) for share in wanted]
        excess = sum(wanted) - num_steps
        above = sum(share - 1.0 for share in wanted)
        if above > 0:
            wanted = [1.0 + (share - 1.0) * (1 - excess / above) for share in wanted]
    shares = [int(share + 1e-9) for share in wanted]
    remainders = sorted(range(len(weights)), key=lambda n: (shares[n] - wanted[n], n))
    for index in remainders[: num_steps - sum(shares)]:
        shares[index] += 1
    return shares


def spread_turns(shares: Sequence[int], length: int) -> list[int]:
    """An order of sum(shares) steps in which number n has shares[n], in turns of `length`, spread as evenly as can be.

    At each turn the one that is farthest behind its share acts; at the first that is the first one, as in LoRA Switch.
    """
    total, left = sum(shares), list(shares)
    order: list[int] = []

    def behind(index: int) -> tuple[float, int]:
        return (len(order) + length) * shares[index] / total - (shares[index] - left[index]), -index

    while len(order) < total:
        waiting = [index for index, rest in enumerate(left) if rest]
        index = waiting[0] if not order else max(waiting, key=behind)
        turn = min(length, left[index])
        order += [index] * turn
        left[index] -= turn
    return order
