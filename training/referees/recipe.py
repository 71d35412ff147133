"""What fixes a referee: network, seed, data, schedule. Guide and judge differ in seed, architecture and data."""

from __future__ import annotations

from dataclasses import dataclass

from studio.assets import world
from studio.pipelines.scoring.network import RefereeConfig

INDIVIDUAL_SEEDS_FROM = 1_000_000
"""Individuals with this seed or a higher one belong to referees; concepts and evals take lower ones."""

TRAINING_DATA_SEED = 90_001
"""Scenes are drawn from `default_rng([this, index])`; evals use other first numbers, so nothing is seen twice."""


@dataclass(frozen=True, kw_only=True)
class RenderPlan:
    """Which renders a referee learns from: free scenes, and several views of many individuals."""

    seed: int = TRAINING_DATA_SEED
    num_scenes: int = 12_000
    num_individuals: int = 1_750
    views: int = 4
    size: int = 96

    @property
    def num_pictures(self) -> int:
        """Free scenes first, then the views, individual by individual."""
        return self.num_scenes + self.num_individuals * self.views


@dataclass(frozen=True, kw_only=True)
class RefereeRecipe:
    """Settings of one training run.

    Identity is learned last: while the rate is high the embedding drifts, and what is remembered of an individual's rivals is
    stale. A second cycle at a lower rate, with more weight on it, is for the referee that one cycle leaves short of its bar.
    """

    network: RefereeConfig
    renders: RenderPlan
    seed: int
    steps: int = 1_200
    second_cycle_at: int = 1_200
    scenes_per_batch: int = 32
    individuals_per_batch: int = 16
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.03
    second_cycle_rate: float = 0.35
    warmup_steps: int = 100
    pattern_weight: float = 1.5
    identity_weight: float = 0.6
    second_cycle_identity_weight: float = 1.2
    joint_weight: float = 0.3
    checkpoint_every: int = 100


def _network(backbone: str, widths: tuple[int, int, int], region_width: int) -> RefereeConfig:
    return RefereeConfig(
        backbone=backbone,
        widths=widths,
        region_width=region_width,
        classes=world.CLASSES,
        colours=world.COLOURS,
        patterns=world.PATTERNS,
        backgrounds=world.BACKGROUNDS,
        styles=world.STYLES,
        words=world.words(),
    )


def make_recipe(which: str) -> RefereeRecipe:
    """The recipe of "guide" or "judge"."""
    if which == "guide":
        return RefereeRecipe(network=_network("residual", (36, 64, 96), 40), renders=RenderPlan(), seed=11)
    if which == "judge":
        return RefereeRecipe(network=_network("aggregation", (40, 72, 128), 40), renders=RenderPlan(), seed=2_027, steps=1_600)
    raise ValueError(f"there is a guide and a judge, but no {which!r}")
