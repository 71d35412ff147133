"""The denoising loop.

diffusers' own loops run without gradients and let nobody see the noise prediction before it is used; strategies need
both, so this one stands in their place. For the same latents, scheduler and text it draws the same picture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.pipelines.denoising.denoiser import Denoiser
from studio.pipelines.denoising.passes import Passes
from studio.pipelines.denoising.request import DenoiseRequest, Strategy
from studio.pipelines.denoising.unet_denoiser import UNetDenoiser
from studio.pipelines.errors import Cancelled

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel


@torch.no_grad()
def denoise(
    model: BaseModel | Denoiser,
    request: DenoiseRequest,
    strategy: Strategy,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    make_passes: Callable[[Denoiser, DenoiseRequest], Passes] = Passes,
) -> Tensor:
    """Draw latents `[B, C, h, w]`, float32, scaled as the autoencoder's decoder expects them.

    The latents and the scheduler's arithmetic stay in float32, whatever the type of the weights: a sampler that starts
    at σ = 4096 has no digits left in bfloat16.

    Args:
        model: a base model, or a denoiser of another kind.
        on_step: called after every step with the number done and the number of all. It may raise to end the loop.
        should_stop: asked before every step; True ends the loop with `Cancelled`.
        make_passes: what makes the passes; see `dry_run` for another one.
    """
    denoiser = as_denoiser(model)
    scheduler, first = request.scheduler, request.first_step
    scheduler.set_timesteps(
        request.num_steps,
        device=denoiser.device,
        **denoiser.scheduler_arguments(request.num_steps, request.height, request.width),
    )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    step_arguments = _step_arguments(request)
    passes = make_passes(denoiser, request)
    num_steps = len(passes.timesteps)
    noise = request.noise.to(denoiser.device, torch.float32)
    strategy.begin(passes)
    latents = strategy.prepare(request, _start(request, noise, passes.timesteps[first]))
    for index in range(first, num_steps):
        if should_stop is not None and should_stop():
            raise Cancelled(f"Stopped after {index - first} of {num_steps - first} steps.")
        step = passes.step(index)
        latents = strategy.refine_latents(step, latents)
        outputs = passes.run(latents, step, strategy.branches(step))
        strategy.observe(step, outputs)
        predictions = [output.prediction for output in outputs if output.prediction is not None]
        noise_pred = strategy.combine(step, predictions)
        latents = scheduler.step(noise_pred, step.timestep, latents, **step_arguments, return_dict=False)[0]
        if request.redraw is not None:
            latents = _keeping(request, latents, noise, passes.timesteps[index + 1 : index + 2])
        latents = strategy.after_step(step, latents)
        if on_step is not None:
            on_step(index + 1 - first, num_steps - first)
    return latents


def as_denoiser(model: BaseModel | Denoiser) -> Denoiser:
    """A base model's UNet as a denoiser; a denoiser as it is."""
    return model if isinstance(model, Denoiser) else UNetDenoiser(model)


def _start(request: DenoiseRequest, noise: Tensor, timestep: Tensor) -> Tensor:
    """The latents of the first step: noise, or the picture with the step's noise on it."""
    if request.picture is None:
        return noise * getattr(request.scheduler, "init_noise_sigma", 1.0)
    return _with_noise(request, noise, timestep)


def _with_noise(request: DenoiseRequest, noise: Tensor, timestep: Tensor) -> Tensor:
    assert request.picture is not None
    picture = request.picture.to(noise)
    add = getattr(request.scheduler, "add_noise", None) or request.scheduler.scale_noise
    noisy: Tensor = (
        add(picture, noise, timestep.reshape(1)) if add.__name__ == "add_noise" else add(picture, timestep.reshape(1), noise)
    )
    return noisy


def _keeping(request: DenoiseRequest, latents: Tensor, noise: Tensor, next_timestep: Tensor) -> Tensor:
    """The latents where the picture is redrawn, and the picture with the next step's noise where it is kept."""
    assert request.redraw is not None and request.picture is not None, "what is kept is part of a picture"
    kept = request.picture.to(latents) if len(next_timestep) == 0 else _with_noise(request, noise, next_timestep[0])
    redraw = request.redraw.to(latents)
    return redraw * latents + (1.0 - redraw) * kept


def _step_arguments(request: DenoiseRequest) -> dict[str, Any]:
    """What this scheduler's `step` takes of the noise settings; not all take all of them."""
    accepted = inspect.signature(request.scheduler.step).parameters
    arguments: dict[str, Any] = {"eta": request.eta, "generator": list(request.generators)}
    return {name: value for name, value in arguments.items() if name in accepted}
