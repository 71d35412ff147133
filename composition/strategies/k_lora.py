"""K-LoRA (Ouyang et al. 2025, arXiv 2502.18461): each layer, at each step, has the content's or the style's adapter, never both.

The content wins early and the style late, layer by layer (see `layer_choice`, also for what the published code does otherwise).
Sums of the largest numbers are made once, so that a step costs what a step with one adapter costs. A layer that one adapter alone
changes is always that adapter's, and one adapter is that adapter; adapters may be of any type. Beyond the paper there may be
several contents and styles: the best of all has the layer. Text encoders are read with all adapters, as in merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from studio.composition.content_style import content_and_style
from studio.composition.layer_choice import ALPHA, BETA, LayerSize, choose, layer_size, level, style_scale, top_count
from studio.composition.plan import Float, Int
from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at
from studio.pipelines.adapters import ParameterPath, Patch, Route
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.denoising import Step


class KLoraConfig(StrategyConfig):
    """Settings of `k-lora`."""

    top_k: Annotated[Int, Field(ge=1)] | None = Field(
        default=None,
        description="How many numbers of a layer's change count; by default the product of both ranks, as in the paper (its code "
        "takes 64).",
    )
    alpha: Annotated[Float, Field(ge=0.0)] = Field(
        default=ALPHA, description="How much the style gains from the first step to the last."
    )
    beta: Annotated[Float, Field(ge=0.0)] = Field(default=BETA, description="How much the style counts at the first step.")
    scale: Literal["s", "s*"] = Field(
        default="s", description="s: the style gains all the time. s*: the paper's variant, modulo alpha."
    )


class KLora(HasConfig[KLoraConfig]):
    """One adapter for each layer and step."""

    name: ClassVar[str] = "k-lora"
    title: ClassVar[str] = "each layer has the content's or the style's adapter, early the one and late the other (K-LoRA)"
    uses_regions: ClassVar[bool] = False
    Config = KLoraConfig

    def build(self, scene: Scene, config: KLoraConfig) -> KLoraStrategy:
        """One pass a step."""
        require_entries(scene, self.name)
        return KLoraStrategy(scene, config)


class KLoraStrategy(GuidedStrategy):
    """One pass, whose routes change where a layer's choice changes. `notes`: which entry was taken for the style."""

    @torch.no_grad()
    def __init__(self, scene: Scene, config: KLoraConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.config = config
        self.concepts = scene.concepts
        sides = content_and_style(scene.concepts, KLora.name)
        self.notes = sides.notes
        self.style = frozenset(index for index, concept in enumerate(self.concepts) if sides.is_style(concept))
        self.sizes = _sizes(scene, self.style, config.top_k)
        self.levels = _levels(self.sizes, self.style, len(self.concepts))
        self._positive = scene.condition(scene.plan.prompt, scene.concepts)
        self._negative = scene.negative(scene.plan.negative_prompt, scene.concepts)
        self._last: tuple[tuple[tuple[ParameterPath, int], ...], Pass] | None = None

    def passes(self, step: Step) -> Sequence[Pass]:
        """One, with each adapter in the layers that it has won."""
        chosen = self.chosen(step)
        if self._last is None or self._last[0] != chosen:
            self._last = (chosen, Pass(self._positive, self._negative, self._routes(chosen)))
        return [self._last[1]]

    def chosen(self, step: Step) -> tuple[tuple[ParameterPath, int], ...]:
        """(layer, number of its adapter) at a step."""
        progress = self.progress(step)
        ids = {id(concept) for concept in active_at(self.concepts, progress)}
        active = frozenset(index for index, concept in enumerate(self.concepts) if id(concept) in ids)
        scale = style_scale(progress, self.config.scale, self.config.alpha, self.config.beta)
        return choose(self.sizes, self.levels, self.style, active, scale)

    def _routes(self, chosen: Sequence[tuple[ParameterPath, int]]) -> tuple[Route, ...]:
        routes = []
        for index, concept in enumerate(self.concepts):
            patches = {path: concept.adapter.patches[path] for path, owner in chosen if owner == index}
            if patches:
                routes.append(Route(replace(concept.adapter, patches=patches), concept.strength))
        return tuple(routes)


def _sizes(scene: Scene, style: frozenset[int], top_k: int | None) -> dict[ParameterPath, dict[int, LayerSize]]:
    """Sizes of every adapter's change of each parameter of the denoiser, at its strength."""
    components = scene.base.components()
    paths = dict.fromkeys(path for concept in scene.concepts for path in concept.adapter.patches if path.component == "unet")
    sizes: dict[ParameterPath, dict[int, LayerSize]] = {}
    for path in paths:
        changing = [index for index, concept in enumerate(scene.concepts) if path in concept.adapter.patches]
        if len(changing) == 1:
            sizes[path] = {changing[0]: LayerSize(top=0.0, all=0.0)}  # nobody disputes it
            continue
        ranks = {index: _rank(scene.concepts[index].adapter.patches[path]) for index in changing}
        count = top_count([ranks[n] for n in changing if n not in style], [ranks[n] for n in changing if n in style])
        sizes[path] = {}
        for index in changing:
            concept = scene.concepts[index]
            delta = concept.strength * dense_change(concept.adapter.patches[path], path, components, concept.title)
            sizes[path][index] = layer_size(delta, count if top_k is None else top_k)
    return sizes


def _rank(patch: Patch) -> int:
    rank: int | None = getattr(patch, "rank", None)
    return 0 if rank is None else rank


def _levels(sizes: dict[ParameterPath, dict[int, LayerSize]], style: frozenset[int], count: int) -> dict[int, float]:
    """γ of each adapter against the first style, or against the first adapter if there is none."""
    reference = min(style, default=0)
    levels = {reference: 1.0}
    for index in range(count):
        if index != reference:
            shared = [changes for changes in sizes.values() if index in changes and reference in changes]
            levels[index] = level([(changes[index].all, changes[reference].all) for changes in shared])
    return levels
