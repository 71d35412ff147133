"""Merge: all adapters at once, in one pass: W' = W + Σ strengthₙΔWₙ, or another rule's ΔW'.

By sum nothing is computed beforehand: the adapters act side by side, each in its region and its part of the time if it has
one, and any mix of types and ranks will do. The other methods make one adapter first, which `studio compose --export` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from studio.composition.left_out import left_out_notes
from studio.composition.merged import MergeConfig, merged_adapter, split_route
from studio.composition.scene import Scene
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, HasConfig, Pass, active_at
from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import encode_negative, encode_text
from studio.pipelines.denoising import Step


class Merge(HasConfig[MergeConfig]):
    """All adapters act at once."""

    name: ClassVar[str] = "merge"
    title: ClassVar[str] = "all adapters at once, in one pass; also by TIES, DARE, magnitude or regression"
    uses_regions: ClassVar[bool] = True
    Config = MergeConfig

    def build(self, scene: Scene, config: MergeConfig) -> MergeStrategy | MergedStrategy:
        """One pass a step."""
        if config.method == "sum" and config.rank is None:
            return MergeStrategy(scene)
        return MergedStrategy(scene, config)


class MergeStrategy(GuidedStrategy):
    """The plain sum. `notes` says which changes cannot act because they have no place in a region."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.request.guidance_scale)
        self.concepts = scene.concepts
        self._routes = ConceptRoutes()
        self._positive = scene.condition(scene.plan.prompt, scene.concepts)
        self._negative = scene.negative(scene.plan.negative_prompt, scene.concepts)
        self._passes: dict[int, Pass] = {}
        self.notes = left_out_notes(scene)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One, with all adapters whose time it is."""
        routes = self._routes.of(active_at(self.concepts, self.progress(step)))
        return [self._passes.setdefault(id(routes), Pass(self._positive, self._negative, routes))]


class MergedStrategy(GuidedStrategy):
    """One adapter, made of all. `merged` is it, with its distance from the plain sum."""

    def __init__(self, scene: Scene, config: MergeConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.merged = merged_adapter(scene, config)
        self.notes = self.merged.notes
        adapter = self.merged.adapter.to(scene.base.device, scene.base.dtype)
        in_denoiser, in_text = split_route(Route(adapter))
        with patched(scene.base.components(), in_text):
            positive = encode_text(scene.base, [scene.plan.prompt])
            negative = encode_negative(scene.base, scene.plan.negative_prompt, 1)
        self._pass = Pass(positive, negative, in_denoiser)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One."""
        return [self._pass]
