"""SELMA's merge (Li et al. 2024, arXiv 2403.06952): skill experts, each with the same share: W + 1/K Σ strengthₖΔWₖ.

K equal experts are the expert. The paper's published script gives each the weight 1 / (number of letters of the model's name)
instead, a sixth to an eighth of what the paper says; this is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from studio.composition.merged import split_route
from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig
from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import encode_negative, encode_text
from studio.pipelines.denoising import Step
from studio.pipelines.errors import UserError


class SelmaConfig(StrategyConfig):
    """`selma` has no settings; for another weighting use `merge` and the strengths."""


class Selma(HasConfig[SelmaConfig]):
    """The mean of the adapters, in one pass."""

    name: ClassVar[str] = "selma"
    title: ClassVar[str] = "the uniform mean of skill experts, in one pass (SELMA)"
    uses_regions: ClassVar[bool] = False
    Config = SelmaConfig

    def build(self, scene: Scene, config: SelmaConfig) -> SelmaStrategy:
        """One pass a step, with every expert at its share."""
        require_entries(scene, self.name)
        for concept in scene.concepts:
            if concept.entry.active_from > 0 or concept.entry.active_to < 1:
                raise UserError(f"{concept.title} acts for a part of the time only; experts merged by selma act always.")
        return SelmaStrategy(scene)


class SelmaStrategy(GuidedStrategy):
    """All experts at strength / K."""

    @torch.no_grad()
    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.request.guidance_scale)
        share = 1.0 / len(scene.concepts)
        routes = [split_route(Route(concept.adapter, concept.strength * share)) for concept in scene.concepts]
        with patched(scene.base.components(), [route for _, in_text in routes for route in in_text]):
            positive = encode_text(scene.base, [scene.plan.prompt])
            negative = encode_negative(scene.base, scene.plan.negative_prompt, 1)
        self._pass = Pass(positive, negative, tuple(route for in_denoiser, _ in routes for route in in_denoiser))

    def passes(self, step: Step) -> Sequence[Pass]:
        """One."""
        return [self._pass]
