"""What the finished pictures promise to be, after every step of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from studio.pipelines.denoising.passes import Passes
from studio.pipelines.denoising.prediction import noise_level, split_prediction
from studio.pipelines.denoising.request import Branch, DenoiseRequest, PassOutput, Step, Strategy

OnGuess: TypeAlias = Callable[[int, int, Tensor | None], None]
"""Gets the steps done, the steps of all, and latents `[B, C, h, w]` of the pictures as this step guesses them; None at a step
of noise alone that says nothing of them. It may raise `Cancelled` to end the run."""


class Guessing(Strategy):
    """A strategy that is looked at after every step; it draws what it would draw by itself."""

    def __init__(self, strategy: Strategy, on_guess: OnGuess) -> None:
        self.strategy = strategy
        self.on_guess = on_guess
        self._latents = torch.empty(0)
        self._guess: Tensor | None = None
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
        """Keep the guess, before the scheduler moves on."""
        prediction = self.strategy.combine(step, predictions)
        scale = getattr(self._scheduler, "scale_model_input", None)
        seen = self._latents if scale is None else scale(self._latents, step.timestep)
        try:
            self._guess = split_prediction(prediction, self._kind, seen, *noise_level(self._scheduler, step.timestep))[0]
        except ValueError:  # a prediction that says nothing of the picture
            self._guess = None
        return prediction

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        """Show it."""
        latents = self.strategy.after_step(step, latents)
        done, steps = step.index + 1 - self._first, step.count - self._first
        self.on_guess(done, steps, latents if done == steps else self._guess)
        return latents
