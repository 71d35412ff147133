"""ZipLoRA (Shah et al. 2023, arXiv 2311.13600): all adapters at once, each with a learned coefficient for every input column.

W' = W + Σ strengthₙ ΔWₙ diag(mₙ). The coefficients are learned before the first picture (see `column_learning`, also for where
this differs from the paper), which takes as long as some 25 pictures of the embedded base with two adapters; a picture then costs
what it costs with merge. All coefficients 1 is merge. Adapters of any type take part: a DoRA as its dense difference, all
others as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, HasConfig, Pass, active_at
from studio.composition.zipped import ZipLoraConfig, zipped
from studio.pipelines.denoising import Step


class ZipLora(HasConfig[ZipLoraConfig]):
    """Merge with learned columns."""

    name: ClassVar[str] = "ziplora"
    title: ClassVar[str] = "all adapters at once, with coefficients learned for every column (ZipLoRA)"
    uses_regions: ClassVar[bool] = False
    Config = ZipLoraConfig

    def build(self, scene: Scene, config: ZipLoraConfig) -> ZipLoraStrategy:
        """One pass a step, after the learning."""
        require_entries(scene, self.name)
        return ZipLoraStrategy(scene, config)


class ZipLoraStrategy(GuidedStrategy):
    """One pass. `losses`: of the learning. `notes`: where it began and ended."""

    def __init__(self, scene: Scene, config: ZipLoraConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        adapters, self.losses = zipped(scene, config)
        self.concepts = [replace(concept, adapter=own) for concept, own in zip(scene.concepts, adapters, strict=True)]
        self._routes = ConceptRoutes(masks=False)
        self._positive = scene.condition(scene.plan.prompt, scene.concepts)
        self._negative = scene.negative(scene.plan.negative_prompt, scene.concepts)
        self._passes: dict[int, Pass] = {}
        self.notes = _notes(self.losses, config.sample_steps)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One, with all adapters whose time it is."""
        routes = self._routes.of(active_at(self.concepts, self.progress(step)))
        return [self._passes.setdefault(id(routes), Pass(self._positive, self._negative, routes))]


def _notes(losses: Sequence[float], sample_steps: int) -> tuple[str, ...]:
    """What the learning did to the loss, over as many steps as see each example once."""
    if len(losses) < 2 * sample_steps:
        return ()
    first, last = (sum(part) / sample_steps for part in (losses[:sample_steps], losses[-sample_steps:]))
    return (f"ziplora: the loss went from {first:.4g} to {last:.4g} in {len(losses)} steps of learning.",)
