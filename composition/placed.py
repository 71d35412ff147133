"""The part that strategies with regions share: one pass, in which each region reads words and has an adapter of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from studio.composition.left_out import left_out_notes
from studio.composition.scene import Concept, Scene
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, Pass, active_at
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import Branch, DenoiseRequest, Isolation, Region, Step


@dataclass(frozen=True, eq=False)
class Placed:
    """A concept with a region, as the passes with and without the prompt see it.

    Attributes:
        prompt: what its places read. positive, negative: the same encoded, a row each, with its own adapter.
    """

    concept: Concept
    prompt: str
    positive: TextCondition
    negative: TextCondition

    @property
    def mask(self) -> Tensor:
        """Where it is, `[H, W]` in 0..1."""
        assert self.concept.mask is not None
        return self.concept.mask


class PlacedStrategy(GuidedStrategy):
    """The plan's words everywhere, and in each region its own. `notes` says what cannot act in a region.

    Args:
        prompt_of: what the places of a concept read.
        reads_own: whether regions read these; if not, all read the plan's prompt, and adapters act everywhere.
    """

    def __init__(
        self, scene: Scene, isolation: Isolation | None, prompt_of: Callable[[Concept], str], *, reads_own: bool = True
    ) -> None:
        super().__init__(scene.request.guidance_scale)
        self.isolation = isolation
        self.reads_own = reads_own
        self.everywhere = [concept for concept in scene.concepts if concept.mask is None or not reads_own]
        self.placed = [
            self._encoded(scene, concept, prompt_of(concept)) for concept in scene.concepts if concept.mask is not None
        ]
        self._positive = scene.condition(scene.plan.prompt, self.everywhere)
        self._negative = scene.negative(scene.plan.negative_prompt, self.everywhere)
        self._routes = ConceptRoutes(masks=False)
        self._made: dict[tuple[int, ...], list[Branch]] = {}
        self.notes = left_out_notes(scene) if reads_own else ()

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Forget the branches of the batch before."""
        self._made.clear()
        return super().prepare(request, latents)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One."""
        return [Pass(self._positive, self._negative, self._routes.of(active_at(self.everywhere, self.progress(step))))]

    def branches(self, step: Step) -> Sequence[Branch]:
        """Without and with the prompt, the same regions in both, and the same objects at every step."""
        (only,) = self.passes(step)
        placed = self.placed_at(step)
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

    def placed_at(self, step: Step) -> list[Placed]:
        """Those whose time it is."""
        active = {id(concept) for concept in active_at([placed.concept for placed in self.placed], self.progress(step))}
        return [each for each in self.placed if id(each.concept) in active]

    def _region(self, placed: Placed, text: TextCondition) -> Region:
        if not self.reads_own:
            return Region(placed.mask)  # only for who sees whom
        return Region(placed.mask, replace(text, pooled=None), self._routes.of([placed.concept]))

    def _encoded(self, scene: Scene, concept: Concept, prompt: str) -> Placed:
        acting = [*(each for each in self.everywhere if each is not concept), concept]
        return Placed(concept, prompt, scene.condition(prompt, acting), scene.negative(scene.own_negative(concept), acting))
