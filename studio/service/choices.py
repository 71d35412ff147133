"""What a person can choose from, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.training.data.images import ImageLimits, open_image


@dataclass(frozen=True)
class StrategyFacts:
    """A composition strategy: its name in plans, one line about it, and whether adapters may have regions."""

    name: str
    title: str
    uses_regions: bool


def strategy_facts() -> list[StrategyFacts]:
    """Every strategy there is. Imports torch on its first call."""
    from studio.composition.strategies import STRATEGIES

    return [StrategyFacts(each.name, each.title, each.uses_regions) for each in STRATEGIES]


def recipe_in(path: Path) -> dict[str, Any] | None:
    """What a picture says about how it was made; None if it says nothing of this studio's. Imports torch on its first call.

    Raises:
        ImageError: it is no picture that can be read, or too large a one.
    """
    from studio.pipelines.pictures import read_png

    open_image(path, ImageLimits(min_side=1, max_aspect=100.0))
    record, _ = read_png(path)
    return None if record is None else record.to_json()
