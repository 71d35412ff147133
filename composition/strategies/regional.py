"""Regional: every adapter in its own region with its own words, all in one pass.

Layers with places act by the region's mask, and the region's places read the region's text, whose keys and values its own
adapter makes: the whole adapter acts where it belongs, whatever its type. (LoRA-Composer, arXiv 2403.11627, and Mix-of-Show route
the text's keys, values and the output projection only.) Entries without a region act everywhere. What has no place, such as time
embeddings, biases and norms, is left out of regions and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from studio.composition.left_out import left_out_notes
from studio.composition.scene import Concept, Scene
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import STRICT, Branch, DenoiseRequest, Isolation, Region, Step
from studio.pipelines.errors import UserError

_ISOLATIONS = {"none": None, "attention": Isolation(), "strict": STRICT}


class RegionalConfig(StrategyConfig):
    """Settings of `regional`."""

    isolation: Literal["none", "attention", "strict"] = Field(
        default="attention",
        description="Which places see which. none: all. attention: regions do not see each other in self-attention, as in "
        "LoRA-Composer. strict: nothing of one region reaches another, nor the rest of the canvas.",
    )


class Regional(HasConfig[RegionalConfig]):
    """One pass, a region for each."""

    name: ClassVar[str] = "regional"
    title: ClassVar[str] = "each adapter in its region with words of its own, in one pass"
    uses_regions: ClassVar[bool] = True
    Config = RegionalConfig

    def build(self, scene: Scene, config: RegionalConfig) -> RegionalStrategy:
        """One pass a step."""
        for concept in scene.concepts:
            if concept.mask is None and (concept.entry.prompt is not None or concept.entry.negative_prompt is not None):
                raise UserError(f"{concept.title} has a prompt of its own and no region to read it; give it a box or a mask.")
        return RegionalStrategy(scene, config)


@dataclass(frozen=True, eq=False)
class _Placed:
    """A concept with its region, as the passes with and without the prompt see it."""

    concept: Concept
    positive: TextCondition
    negative: TextCondition


class RegionalStrategy(GuidedStrategy):
    """The plan's words everywhere, and in each region its own. `notes` says what cannot act in a region."""

    def __init__(self, scene: Scene, config: RegionalConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.isolation = _ISOLATIONS[config.isolation]
        self.everywhere = [concept for concept in scene.concepts if concept.mask is None]
        self._placed = [
            _Placed(
                concept,
                scene.condition(scene.own_prompt(concept), [*self.everywhere, concept]),
                scene.negative(scene.own_negative(concept), [*self.everywhere, concept]),
            )
            for concept in scene.concepts
            if concept.mask is not None
        ]
        self._positive = scene.condition(scene.plan.prompt, self.everywhere)
        self._negative = scene.negative(scene.plan.negative_prompt, self.everywhere)
        self._routes = ConceptRoutes(masks=False)
        self._made: dict[tuple[int, ...], list[Branch]] = {}
        self.notes = left_out_notes(scene)

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Forget the branches of the batch before."""
        self._made.clear()
        return super().prepare(request, latents)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One."""
        return [Pass(self._positive, self._negative, self._routes.of(active_at(self.everywhere, self.progress(step))))]

    def branches(self, step: Step) -> Sequence[Branch]:
        """Without and with the prompt, the same regions in both, and the same objects at every step."""
        progress = self.progress(step)
        (only,) = self.passes(step)
        active = {id(concept) for concept in active_at([placed.concept for placed in self._placed], progress)}
        placed = [each for each in self._placed if id(each.concept) in active]
        key = (id(only.routes), *(id(each) for each in placed))
        if key not in self._made:
            rows = [0] * self._batch
            halves = [("positive", self._positive)]
            halves = [("negative", self._negative), *halves] if self.is_guided else halves
            self._made[key] = [
                Branch(
                    text.rows(rows),
                    only.routes,
                    regions=[self._region(each, getattr(each, half).rows(rows)) for each in placed],
                    isolation=self.isolation if placed else None,
                )
                for half, text in halves
            ]
        return self._made[key]

    def _region(self, placed: _Placed, text: TextCondition) -> Region:
        assert placed.concept.mask is not None
        return Region(placed.concept.mask, replace(text, pooled=None), self._routes.of([placed.concept]))
