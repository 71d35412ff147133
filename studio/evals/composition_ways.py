"""Which ways of drawing stand in the tables: every registered strategy, with and without boxes where it can, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.composition.strategies import STRATEGIES
from studio.composition.strategy import StrategyKind
from studio.evals.composition_drawing import Way

MERGE, COMPOSITE, CMLORA, LORA_COMPOSER = "merge", "composite", "cmlora", "lora-composer"
ONLY_WITH_BOXES = frozenset({"regional", LORA_COMPOSER})
"""Strategies whose idea is the boxes; without them they would be another one's."""

BASE = Way(name="base, class words", control="no adapters")
TRUTH, ALONE = "rendered truth", "each alone"
BOXES = ", boxes"
SWAPPED = ", adapters swapped"
NO_ADAPTERS = ", no adapters"

EXTRA_WAYS: tuple[Way, ...] = tuple(
    Way(name=f"merge, {method}", settings={"method": method}) for method in ("regression", "ties", "dare", "magnitude")
)
"""Further rules of `merge`, in the table of pairs."""

PARTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("no re-initialisation", {"reinitialise": False}),
    ("no isolation", {"isolation": False}),
    ("no region loss", {"region_weight": 0.0}),
    ("no isolation, no region loss", {"isolation": False, "region_weight": 0.0}),
    ("no fill loss", {"fill_weight": 0.0}),
    ("no enhancement loss", {"enhancement_weight": 0.0}),
    ("no loss at all", {"step_size": 0.0}),
    ("no injection", {"injection": False}),
    ("keys, values, outputs alone", {"adapter": "cross-attention"}),
)
"""LoRA-Composer's parts: what a row is called, and the settings that switch that part off; the last one is the paper's adapters,
where ours act whole."""


def merge_way(strength: float) -> Way:
    """The plain merge at one strength."""
    return Way(name=f"{MERGE} at {strength:g}", strength=strength)


def ways_without_boxes(kinds: Sequence[StrategyKind[Any]] = STRATEGIES) -> list[Way]:
    """Every strategy but the plain merge, whose strength is chosen first, and those that are nothing without boxes."""
    chosen = [kind for kind in kinds if kind.name not in ONLY_WITH_BOXES and kind.name != MERGE]
    return [Way(name=kind.name, strategy=kind.name) for kind in chosen]


def ways_with_boxes(kinds: Sequence[StrategyKind[Any]] = STRATEGIES) -> list[Way]:
    """Every strategy that takes regions."""
    return [Way(name=kind.name + BOXES, strategy=kind.name, boxed=True) for kind in kinds if kind.uses_regions]


def swapped(way: Way) -> Way:
    """The same with other individuals' adapters."""
    return Way(
        name=way.name + SWAPPED,
        strategy=way.strategy,
        settings=way.settings,
        boxed=way.boxed,
        strength=way.strength,
        control="swapped",
    )


def without_adapters(way: Way) -> Way:
    """The same with the classes' words, and adapters that do nothing."""
    return Way(name=way.name + NO_ADAPTERS, strategy=way.strategy, settings=way.settings, boxed=way.boxed, control="no adapters")


def parts_off(kinds: Sequence[StrategyKind[Any]] = STRATEGIES) -> list[Way]:
    """LoRA-Composer with each of its parts switched off, where it is among the strategies."""
    if all(kind.name != LORA_COMPOSER for kind in kinds):
        return []
    name = f"{LORA_COMPOSER}{BOXES}"
    return [Way(name=f"{name}, {part}", strategy=LORA_COMPOSER, settings=settings, boxed=True) for part, settings in PARTS]
