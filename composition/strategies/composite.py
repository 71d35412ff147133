"""LoRA Composite (Zhong et al. 2024, arXiv 2402.16843): every adapter sees the picture alone, and the mean decides.

At each step there is a pass per adapter, with and without the prompt; ε_u and ε_c are the means over the adapters, and
guidance comes after. It costs as many times a picture as there are adapters. With `weights: prompt` the mean is weighted by how
much of the prompt's meaning each adapter's words carry (W-Composite, arXiv 2606.03792).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from studio.composition.prompt_weights import Weighting, concept_weights
from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import (
    GuidedStrategy,
    HasConfig,
    Pass,
    StrategyConfig,
    active_at,
    bare_pass,
    mean_of,
    own_pass,
    weighted_mean_of,
)
from studio.pipelines.denoising import Step


class CompositeConfig(StrategyConfig):
    """Settings of `composite`."""

    weights: Weighting = Field(
        default="equal",
        description="equal: the plain mean. prompt: by how much the prompt changes without the adapter's words. trigger: by how "
        "near its words are to the prompt.",
    )


class Composite(HasConfig[CompositeConfig]):
    """The mean of what each adapter alone would do."""

    name: ClassVar[str] = "composite"
    title: ClassVar[str] = "a pass per adapter at every step, and their mean (LoRA Composite)"
    uses_regions: ClassVar[bool] = False
    Config = CompositeConfig

    def build(self, scene: Scene, config: CompositeConfig) -> CompositeStrategy:
        """A pass per adapter, all made at each step."""
        require_entries(scene, self.name)
        return CompositeStrategy(scene, config)


class CompositeStrategy(GuidedStrategy):
    """As many passes as there are active adapters; the base's own where none is."""

    def __init__(self, scene: Scene, config: CompositeConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.concepts = scene.concepts
        self._passes = [own_pass(scene, concept) for concept in self.concepts]
        self._weights = None if config.weights == "equal" else concept_weights(scene, config.weights)
        self._bare = bare_pass(scene)

    def passes(self, step: Step) -> Sequence[Pass]:
        """Those of the active adapters."""
        return [self._passes[index] for index in self._active(step)] or [self._bare]

    def fold(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """Their mean; that of N copies of one adapter is the adapter's own prediction."""
        active = self._active(step)
        if self._weights is None or not active:
            return mean_of(predictions)
        return weighted_mean_of(predictions, [self._weights[index] for index in active])

    def _active(self, step: Step) -> list[int]:
        active = {id(concept) for concept in active_at(self.concepts, self.progress(step))}
        return [index for index, concept in enumerate(self.concepts) if id(concept) in active]
