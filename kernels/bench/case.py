"""What is timed: an op at one size, its arms, and the limits that it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Run = Callable[[], Any]
CONTROL = ("base again", "base")


@dataclass(frozen=True)
class Bar:
    """A ratio that has to be small (or large) enough.

    Attributes:
        arm, reference: whose ratio. most, least: its limits, or None.
    """

    arm: str
    reference: str
    most: float | None = None
    least: float | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one size.

    Attributes:
        op, size: for the table. arms: what takes turns; "base" and "base again" are the same thing, the control.
        bars: what is asked of it. results: what to compare with float64, as (ours, plain, exact) of one call each.
        moved_bytes: what a memory-bound op has to move, for its share of the copy bandwidth.
    """

    op: str
    size: str
    arms: Mapping[str, Run]
    bars: tuple[Bar, ...]
    results: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    moved_bytes: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
