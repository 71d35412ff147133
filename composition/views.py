"""What a strategy can show of itself while it draws: where each concept is, and what its words are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ConceptView:
    """One concept at one step.

    Attributes:
        title: how sentences call it.
        mask: where it acts, `[B, h, w]` in 0..1, on any grid with the canvas's aspect; None for everywhere.
        attention: how much each place reads its words, `[B, h, w]`; None if that was not looked at.
    """

    title: str
    mask: Tensor | None = None
    attention: Tensor | None = None


@runtime_checkable
class ShowsConcepts(Protocol):
    """A strategy that finds masks or looks at attention maps."""

    def views(self) -> Sequence[ConceptView]:
        """As of the last step."""
        ...
