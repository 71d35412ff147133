"""CMLoRA's timetable: which adapter leads at which step, how much it counts, and who computes its features anew.

Zou et al. 2025, arXiv 2502.04923. One adapter is dominant: it runs the whole denoiser, and the others begin at a feature that
they kept from an earlier step. Adapters of high frequency lead in the early phase, in turns, those of low frequency in the late
one. What the paper means and its published code does not do (for it, the schedule below is "interval 0", which never reuses a
feature; the weights are computed once before the loop; the late phase clears a copy of the list) is done here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

PAPERS_SWITCH = 120 / 220
"""Where the early phase ends, as a share of the noise schedule: step 120 of the paper's 220."""

Refresh = int | Literal["dominant"]
"""For how many steps a kept feature may stand, the one that computes it included; or until its adapter is dominant again."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a step does.

    Attributes:
        dominant: who leads. change: how many times the lead changed before.
        fresh: who runs in full; all others use what they kept.
    """

    dominant: int
    change: int
    fresh: frozenset[int]


def turn_steps(num_steps: int, interval: int | Literal["non-uniform"]) -> frozenset[int]:
    """At which steps the next adapter takes the lead.

    Non-uniform, as the paper found features to change: every 2nd step in the first three eighths, every 3rd up to the seventh
    eighth (counted from its own beginning), every 2nd in the rest.
    """
    if interval != "non-uniform":
        return frozenset(range(0, num_steps, interval))
    first, last = int(0.375 * num_steps), int(0.875 * num_steps)
    return frozenset([*range(0, first, 2), *range(first, last, 3), *range(last, num_steps, 2)])


def lead_order(high: Sequence[int], low: Sequence[int], *, is_early: bool) -> list[int]:
    """Who leads in turns: early those of high frequency; late all of them but the first, and those of low frequency.

    Where there are none of a kind, those of the other kind lead in both phases.
    """
    if not high or not low:
        return [*high, *low]
    return list(high) if is_early else [*high[1:], *low]


def dominant_weights(count: int, dominant: int, change: int, *, decays: bool = True) -> list[float]:
    """A weight for each of `count` adapters, with the sum `count`.

    The dominant one counts c times the others, c = count − ½ − Σ ½ⁿ over the changes of the lead n = 1 … `change`. c does not
    fall below 1, where all are alike: for two adapters the formula would soon let the leader count less than the other.

    Args:
        decays: False leaves c at count − ½ throughout, as the published code in effect does.
    """
    lost = 1.0 - 0.5**change if decays else 0.0
    factor = max(1.0, count - 0.5 - lost)
    other = count / (factor + count - 1)
    return [other * factor if index == dominant else other for index in range(count)]


class Dominance:
    """Walks along the steps of one picture.

    Args:
        high, low: indices of the adapters of either kind, in the order in which they lead.
        refresh: see `Refresh`; 1 lets nobody use a kept feature.
        leads_fresh: whether the dominant one runs in full at each step of its turn (the paper) or at the first (its code).
    """

    def __init__(self, high: Sequence[int], low: Sequence[int], *, refresh: Refresh, leads_fresh: bool = True) -> None:
        self.high = list(high)
        self.low = list(low)
        self.refresh = refresh
        self.leads_fresh = leads_fresh
        self._age: dict[int, int] = {}
        self._change = -1
        self._dominant: int | None = None

    def step(self, active: Collection[int], *, is_turn: bool, is_early: bool) -> Turn:
        """The next step.

        Args:
            active: whose time it is; at least one. is_turn: whether the lead changes. is_early: which phase it is.
        """
        order = [index for index in lead_order(self.high, self.low, is_early=is_early) if index in active]
        order = order if order else [index for index in (*self.high, *self.low) if index in active]
        begins = is_turn or self._dominant not in order
        if begins:
            self._change += 1
            self._dominant = order[self._change % len(order)]
        assert self._dominant is not None
        fresh = {self._dominant} if self.leads_fresh or begins else set()
        fresh |= {index for index in active if self._is_stale(index)}
        for index in active:
            self._age[index] = 1 if index in fresh else self._age[index] + 1
        for index in self._age.keys() - set(active):
            del self._age[index]  # when it comes back, the picture is another one
        return Turn(dominant=self._dominant, change=self._change, fresh=frozenset(fresh))

    def _is_stale(self, index: int) -> bool:
        age = self._age.get(index)
        return age is None or (self.refresh != "dominant" and age >= self.refresh)
