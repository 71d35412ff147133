"""The strategies, as an explicit list."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from studio.composition.strategies.b_lora import BLora
from studio.composition.strategies.clora import Clora
from studio.composition.strategies.cmlora import CMLora
from studio.composition.strategies.composite import Composite
from studio.composition.strategies.decor import Decor
from studio.composition.strategies.k_lora import KLora
from studio.composition.strategies.lora_composer import LoraComposer
from studio.composition.strategies.loratorio import Loratorio
from studio.composition.strategies.merge import Merge
from studio.composition.strategies.regional import Regional
from studio.composition.strategies.selma import Selma
from studio.composition.strategies.switch import Switch
from studio.composition.strategies.weighted_switch import WeightedSwitch
from studio.composition.strategies.ziplora import ZipLora
from studio.composition.strategy import StrategyKind
from studio.pipelines.errors import ConfigError

STRATEGIES: tuple[StrategyKind[Any], ...] = (
    Merge(),
    Selma(),
    Switch(),
    WeightedSwitch(),
    Composite(),
    CMLora(),
    Loratorio(),
    KLora(),
    BLora(),
    Decor(),
    ZipLora(),
    Regional(),
    Clora(),
    LoraComposer(),
)
"""Every strategy there is; the contract tests run on each."""


def strategy_named(name: str) -> StrategyKind[Any]:
    """The strategy called `name`; `ConfigError` with the nearest one if there is none."""
    for strategy in STRATEGIES:
        if strategy.name == name:
            return strategy
    names = [strategy.name for strategy in STRATEGIES]
    near = get_close_matches(name.lower().replace("_", "-"), names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"There is no strategy {name!r}.{hint} There is {', '.join(names)}.")
