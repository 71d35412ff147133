"""What can be seen of a composition while it is drawn: the picture so far, where each concept is, where its words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from studio.pipelines.denoising import DenoiseRequest, Guessing, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from studio.composition.scene import Scene


@dataclass(frozen=True, eq=False)
class ConceptView:
    """One concept at one step.

    Attributes:
        title: how sentences call it.
        mask: where it acts, `[B, h, w]` in 0..1, on any grid with the canvas's aspect; None for everywhere.
        attention: how much each place reads its words, `[B, h, w]`; None if that was not looked at.
    """

    title: str
    mask: Tensor | None = None
    attention: Tensor | None = None


@runtime_checkable
class ShowsConcepts(Protocol):
    """A strategy that finds masks or looks at attention maps."""

    def views(self) -> Sequence[ConceptView]:
        """As of the last step."""
        ...


@dataclass(frozen=True, eq=False)
class Preview:
    """A batch after a step.

    Attributes:
        done, steps: how far it is. latents: of the finished pictures as this step guesses them, `[B, C, h, w]`; None at a
            step of noise alone that says nothing of them. concepts: a view of each.
    """

    done: int
    steps: int
    latents: Tensor | None
    concepts: tuple[ConceptView, ...]


OnPreview: TypeAlias = Callable[[Preview], None]
"""It may raise `Cancelled` to end the run."""


class Previewed(Guessing):
    """A strategy that is looked at after every step, with its concepts; it draws what it would draw by itself."""

    def __init__(self, strategy: Strategy, scene: Scene, on_preview: OnPreview) -> None:
        super().__init__(strategy, self._show)
        self.scene = scene
        self.on_preview = on_preview

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Take note of how many pictures there are."""
        self._batch = len(latents)
        return super().prepare(request, latents)

    def _show(self, done: int, steps: int, latents: Tensor | None) -> None:
        self.on_preview(Preview(done, steps, latents, tuple(self._views(self._batch))))

    def _views(self, batch: int) -> Sequence[ConceptView]:
        if isinstance(self.strategy, ShowsConcepts):
            return self.strategy.views()
        masks = [concept.mask for concept in self.scene.concepts]
        return [
            ConceptView(concept.title, None if mask is None else mask.expand(batch, *mask.shape))
            for concept, mask in zip(self.scene.concepts, masks, strict=True)
        ]
