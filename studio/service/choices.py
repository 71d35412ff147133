"""What a person can choose from, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


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
