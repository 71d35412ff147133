"""LoRAtorio (Foteinopoulou et al. 2025, arXiv 2508.11624): in each patch of the picture, the adapter that has something to say.

At every step the base model predicts too. Each adapter's prediction with the prompt is compared with the base's, patch by patch;
SoftMin of the cosines is the weight with which it counts there, with and without the prompt. As adapters drift without a prompt,
the unconditional prediction is centred anew: λ times the base's own and 1 − λ times the adapters' (λ = ½). One adapter alone is
that adapter: there is nothing to weigh, and centring is for several. No code is published, and the summaries give neither the
size of patches nor SoftMin's temperature: both are settings here, and their defaults are first guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.composition.patchwise import (
    farthest,
    over_cells,
    patch_distances,
    placewise_mean,
    proportional_weights,
    softmin_weights,
)
from studio.composition.plan import Float, Int, Share
from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at, bare_pass, own_pass
from studio.pipelines.denoising import Step

PATCHES_PER_SIDE = 8
"""How many patches the shorter side of the latents has by default, roughly."""


class LoratorioConfig(StrategyConfig):
    """Settings of `loratorio`."""

    weighting: Literal["softmin", "proportional"] = Field(
        default="softmin",
        description="softmin: the paper's. proportional: by the distance itself, so that an adapter that does not differ from "
        "the base in a patch counts nothing there.",
    )
    temperature: Annotated[Float, Field(gt=0.0)] = Field(
        default=0.02, description="With softmin: the smaller, the more one adapter alone decides a patch; 1 is nearly composite."
    )
    patch_size: Annotated[Int, Field(ge=1)] | None = Field(
        default=None, description="In cells of the latents (8 pixels); by default an eighth of the shorter side."
    )
    recenter: Share = Field(
        default=0.5,
        description="λ: how much of the prediction without the prompt is the base's own; 0 leaves it to the adapters.",
    )
    top_k: Annotated[Int, Field(ge=1)] | None = Field(
        default=None, description="Only so many adapters count at a step: those that differ most from the base. By default all."
    )


class Loratorio(HasConfig[LoratorioConfig]):
    """The adapters' mean with weights for each patch."""

    name: ClassVar[str] = "loratorio"
    title: ClassVar[str] = "a pass per adapter and one of the base, weighed patch by patch (LoRAtorio)"
    uses_regions: ClassVar[bool] = False
    Config = LoratorioConfig

    def build(self, scene: Scene, config: LoratorioConfig) -> LoratorioStrategy:
        """A pass per adapter and the base's, all made at each step."""
        require_entries(scene, self.name)
        return LoratorioStrategy(scene, config)


class LoratorioStrategy(GuidedStrategy):
    """The base's pass and one per active adapter; where one or none is active, that one's or the base's alone."""

    def __init__(self, scene: Scene, config: LoratorioConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.config = config
        self.concepts = scene.concepts
        self._own = {id(concept): own_pass(scene, concept) for concept in self.concepts}
        self._bare = bare_pass(scene)

    def passes(self, step: Step) -> Sequence[Pass]:
        """The base's first, then those of the active adapters."""
        active = active_at(self.concepts, self.progress(step))
        own = [self._own[id(concept)] for concept in active]
        return own if len(own) == 1 else [self._bare, *own]

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """Weigh by the predictions with the prompt, then guide."""
        prompted = predictions[1::2] if self.is_guided else predictions
        if len(prompted) == 1:
            return super().combine(step, predictions)
        plain, *own = prompted
        weights = self.weights(plain, own)
        conditional = placewise_mean(own, weights)
        if not self.is_guided:
            return conditional
        plain_without, *own_without = predictions[0::2]
        unconditional = placewise_mean(own_without, weights)
        unconditional = unconditional + self.config.recenter * (plain_without - unconditional)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def weights(self, plain: Tensor, own: Sequence[Tensor]) -> Tensor:
        """Ω, `[N, B, 1, h, w]`, of the base's prediction and those of N adapters, `[B, C, h, w]` each."""
        height, width = plain.shape[-2:]
        size = self.config.patch_size or max(1, round(min(height, width) / PATCHES_PER_SIDE))
        distances = torch.stack([patch_distances(prediction, plain, size) for prediction in own])
        if self.config.weighting == "softmin":
            weights = softmin_weights(distances, self.config.temperature)
        else:
            weights = proportional_weights(distances)
        if self.config.top_k is not None:
            weights = weights * farthest(distances, self.config.top_k)
            weights = weights / weights.sum(dim=0, keepdim=True).clamp(min=1e-30)
        return over_cells(weights, size, height, width).to(plain.dtype)
