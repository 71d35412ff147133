"""What can be seen of a composition while it is drawn: the picture so far, where each concept is, where its words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from studio.composition.scene import Scene
from studio.pipelines.denoising import (
    Branch,
    DenoiseRequest,
    Passes,
    PassOutput,
    Step,
    Strategy,
    noise_level,
    split_prediction,
)


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


class Previewed(Strategy):
    """A strategy that is looked at after every step; it draws what it would draw by itself."""

    def __init__(self, strategy: Strategy, scene: Scene, on_preview: OnPreview) -> None:
        self.strategy = strategy
        self.scene = scene
        self.on_preview = on_preview
        self._latents = self._prediction = torch.empty(0)
        self._kind: Any = "epsilon"

    def begin(self, passes: Passes) -> None:
        """Take note of what the denoiser predicts."""
        self._scheduler = passes.request.scheduler
        self._first = passes.request.first_step
        self._kind = passes.denoiser.prediction_type
        self.strategy.begin(passes)

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """As the strategy does."""
        return self.strategy.prepare(request, latents)

    def branches(self, step: Step) -> Sequence[Branch]:
        """As the strategy does."""
        return self.strategy.branches(step)

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Keep what the model sees at this step."""
        self._latents = self.strategy.refine_latents(step, latents)
        return self._latents

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        """As the strategy does."""
        self.strategy.observe(step, outputs)

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """Keep the prediction, before the scheduler moves on."""
        self._prediction = self.strategy.combine(step, predictions)
        scale = getattr(self._scheduler, "scale_model_input", None)
        seen = self._latents if scale is None else scale(self._latents, step.timestep)
        self._guess = _guess(self._prediction, self._kind, seen, *noise_level(self._scheduler, step.timestep))
        return self._prediction

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        """Show it."""
        latents = self.strategy.after_step(step, latents)
        first = self._first
        done, steps = step.index + 1 - first, step.count - first
        self.on_preview(Preview(done, steps, latents if done == steps else self._guess, tuple(self._views(len(latents)))))
        return latents

    def _views(self, batch: int) -> Sequence[ConceptView]:
        if isinstance(self.strategy, ShowsConcepts):
            return self.strategy.views()
        masks = [concept.mask for concept in self.scene.concepts]
        return [
            ConceptView(concept.title, None if mask is None else mask.expand(batch, *mask.shape))
            for concept, mask in zip(self.scene.concepts, masks, strict=True)
        ]


def _guess(prediction: Tensor, kind: Any, latents: Tensor, alpha: float, sigma: float) -> Tensor | None:
    """x₀ as a prediction has it; None where it says nothing of it."""
    try:
        return split_prediction(prediction, kind, latents, alpha, sigma)[0]
    except ValueError:
        return None
