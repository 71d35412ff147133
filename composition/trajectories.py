"""Latents on the way from noise to a picture, with what was predicted for them: material to measure and to learn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.composition.scene import Scene
from studio.composition.strategy import GuidedStrategy, Pass
from studio.pipelines.denoising import DenoiseRequest, Step, denoise, make_scheduler
from studio.pipelines.generation import initial_noise


@dataclass(frozen=True, eq=False)
class Seen:
    """One step of a drawing.

    Attributes:
        timestep: the scheduler's, `[]`. latents: as the model saw them, `[1, C, h, w]`, float32.
        predictions: of each pass, with the prompt, in the same shape.
    """

    timestep: Tensor
    latents: Tensor
    predictions: tuple[Tensor, ...]


@torch.no_grad()
def drawing_steps(scene: Scene, passes: Sequence[Pass], num_steps: int, seed: int = 0) -> list[Seen]:
    """Draw one picture by the first pass in `num_steps` of DDIM, with the scene's size and guidance, and note every step."""
    base, request = scene.base, scene.request
    generators = [torch.Generator("cpu").manual_seed(seed)]
    recorder = _Recorder(request.guidance_scale, passes)
    asked = DenoiseRequest(
        noise=initial_noise(base, generators, request.height, request.width),
        height=request.height,
        width=request.width,
        scheduler=make_scheduler(base.scheduler, "ddim"),  # hands the model its latents unscaled
        num_steps=num_steps,
        generators=generators,
    )
    denoise(base, asked, recorder)
    return recorder.seen


class _Recorder(GuidedStrategy):
    def __init__(self, guidance_scale: float, passes: Sequence[Pass]) -> None:
        super().__init__(guidance_scale)
        self._all = list(passes)
        self._latents: Tensor | None = None
        self.seen: list[Seen] = []

    def passes(self, step: Step) -> Sequence[Pass]:
        return self._all

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        self._latents = latents
        return latents

    def fold(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        return predictions[0]

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        assert self._latents is not None
        prompted = predictions[1::2] if self.is_guided else predictions
        self.seen.append(Seen(step.timestep, self._latents, tuple(prompted)))
        return super().combine(step, predictions)
