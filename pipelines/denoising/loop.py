"""The denoising loop.

diffusers' own loops run without gradients and let nobody see the noise prediction before it is used; strategies need
both, so this one stands in their place. For the same latents, scheduler and text it draws the same picture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.pipelines.adapters import patched
from studio.pipelines.denoising.block_texts import block_texts
from studio.pipelines.denoising.request import Branch, DenoiseRequest, Step, Strategy
from studio.pipelines.encoding import TextCondition, add_time_ids
from studio.pipelines.errors import Cancelled

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel


@torch.no_grad()
def denoise(
    base: BaseModel,
    request: DenoiseRequest,
    strategy: Strategy,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Draw latents `[B, C, h, w]`, float32, scaled as the autoencoder's decoder expects them.

    The latents and the scheduler's arithmetic stay in float32, whatever the type of the weights: a sampler that starts
    at σ = 4096 has no digits left in bfloat16.

    Args:
        on_step: called after every step with the number done and the number of all. It may raise to end the loop.
        should_stop: asked before every step; True ends the loop with `Cancelled`.
    """
    scheduler = request.scheduler
    scheduler.set_timesteps(request.num_steps, device=base.device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    step_arguments = _step_arguments(request)
    latents = request.noise.to(base.device, torch.float32) * scheduler.init_noise_sigma
    latents = strategy.prepare(request, latents)
    timesteps = scheduler.timesteps
    for index, timestep in enumerate(timesteps):
        if should_stop is not None and should_stop():
            raise Cancelled(f"Stopped after {index} of {len(timesteps)} steps.")
        step = Step(index, len(timesteps), timestep)
        latents = strategy.refine_latents(step, latents)
        model_input = scheduler.scale_model_input(latents, timestep)
        predictions = predict(base, model_input, step, strategy.branches(step), request)
        noise_pred = strategy.combine(step, predictions)
        latents = scheduler.step(noise_pred, timestep, latents, **step_arguments, return_dict=False)[0]
        latents = strategy.after_step(step, latents)
        if on_step is not None:
            on_step(index + 1, len(timesteps))
    return latents


def predict(
    base: BaseModel, model_input: Tensor, step: Step, branches: Sequence[Branch], request: DenoiseRequest
) -> list[Tensor]:
    """The denoiser's predictions, float32 `[B, C, h, w]`, one per branch in their order.

    Neighbouring branches with the same routes run as one batch.

    Args:
        model_input: latents as the scheduler scales them for the model, `[B, C, h, w]`.
    """
    predictions: list[Tensor] = []
    for _, group in groupby(branches, key=lambda branch: id(branch.routes) if branch.routes else None):
        together = list(group)
        routes = together[0].routes
        with patched(base.components(), routes) if routes else nullcontext(), block_texts(base.unet, _block_texts(together)):
            output = unet_forward(
                base,
                torch.cat([model_input] * len(together)),
                step.timestep,
                TextCondition.cat([branch.condition for branch in together]),
                height=request.height,
                width=request.width,
            )
        predictions.extend(output.float().chunk(len(together)))
    return predictions


def _block_texts(branches: Sequence[Branch]) -> dict[str, Tensor]:
    """Attention stack -> its text for all rows of `branches`; branches that give it none keep their own."""
    stacks = dict.fromkeys(stack for branch in branches for stack in branch.block_conditions)
    return {
        stack: torch.cat([branch.block_conditions.get(stack, branch.condition).prompt_embeds for branch in branches])
        for stack in stacks
    }


def unet_forward(
    base: BaseModel, model_input: Tensor, timestep: Tensor, condition: TextCondition, *, height: int, width: int
) -> Tensor:
    """The UNet's raw output `[B, C, h, w]` in its own type, for as many rows of text as of latents."""
    conditions: dict[str, Tensor] | None = None
    if condition.pooled is not None:
        time_ids = add_time_ids(base, len(model_input), height, width)
        assert time_ids is not None
        conditions = {"text_embeds": condition.pooled.to(base.dtype), "time_ids": time_ids}
    output: Tensor = base.unet(
        model_input.to(base.dtype),
        timestep,
        encoder_hidden_states=condition.prompt_embeds.to(base.dtype),
        added_cond_kwargs=conditions,
        return_dict=False,
    )[0]
    return output


def _step_arguments(request: DenoiseRequest) -> dict[str, Any]:
    """What this scheduler's `step` takes of the noise settings; not all take all of them."""
    accepted = inspect.signature(request.scheduler.step).parameters
    arguments: dict[str, Any] = {"eta": request.eta, "generator": list(request.generators)}
    return {name: value for name, value in arguments.items() if name in accepted}
