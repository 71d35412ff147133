"""Prompts and seeds in, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import BaseModel, TextCondition, decode_latents, encode_negative, encode_text
from studio.pipelines.denoising import (
    DenoiseRequest,
    Guessing,
    GuidanceStrategy,
    OnGuess,
    Strategy,
    check_stacks,
    denoise,
    make_scheduler,
)
from studio.pipelines.errors import AdapterMismatchError, UserError
from studio.pipelines.families import FAMILIES
from studio.pipelines.steering import Steering

MAX_STEPS = 1000
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to draw. None means the base model's own default.

    Attributes:
        prompts, seeds: one of each per picture. A seed decides a picture's noise whatever the batch it is drawn in.
        negative_prompt: what to keep away from, for all.
        steps: denoising steps. guidance_scale: how closely to follow the prompt; 1 or less is no guidance.
        height, width: in pixels.
        scheduler: one of `studio.pipelines.denoising.SCHEDULER_NAMES`.
        block_prompts: attention stack -> one prompt per picture, which this stack reads in place of `prompts`.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str = ""
    steps: int = 30
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    block_prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request with every default filled in and every value checked."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str
    steps: int
    guidance_scale: float
    height: int
    width: int
    scheduler: str
    block_prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def resolve_request(base: BaseModel, request: GenerationRequest) -> ResolvedRequest:
    """Fill in the defaults of `base`.

    Raises:
        UserError: for values that cannot be drawn, saying which and what would do.
    """
    resolved = ResolvedRequest(
        prompts=request.prompts,
        seeds=request.seeds,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=base.family.default_guidance_scale if request.guidance_scale is None else request.guidance_scale,
        height=base.size if request.height is None else request.height,
        width=base.size if request.width is None else request.width,
        scheduler=base.family.default_scheduler if request.scheduler is None else request.scheduler,
        block_prompts=dict(request.block_prompts),
    )
    if not resolved.prompts:
        raise UserError("There is nothing to draw: give at least one prompt.")
    if len(resolved.prompts) != len(resolved.seeds):
        raise UserError(f"Every picture needs a prompt and a seed; got {len(resolved.prompts)} and {len(resolved.seeds)}.")
    if not 1 <= resolved.steps <= MAX_STEPS:
        raise UserError(f"The number of steps should be 1 to {MAX_STEPS}, not {resolved.steps}.")
    for seed in resolved.seeds:
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"A seed should be 0 to {MAX_SEED}, not {seed}.")
    for name, side in (("width", resolved.width), ("height", resolved.height)):
        _check_side(name, side, base.family.size_multiple)
    make_scheduler(base.scheduler, resolved.scheduler)
    check_stacks(base.unet, list(resolved.block_prompts))
    for stack, prompts in resolved.block_prompts.items():
        if len(prompts) != len(resolved.prompts):
            raise UserError(f"{stack} needs a prompt for every picture: {len(resolved.prompts)}, not {len(prompts)}.")
    return resolved


def check_adapters(base: BaseModel, routes: Sequence[Route]) -> None:
    """`AdapterMismatchError` if an adapter says that it was made for another family than the base model's."""
    titles = {family.name: family.title for family in FAMILIES}
    for route in routes:
        info = route.adapter.info
        if info.family is not None and info.family != base.family.name:
            raise AdapterMismatchError(
                f"The adapter {info.name!r} was made for {titles.get(info.family, info.family)}, and the base model "
                f"{base.source!r} is {base.family.title}. Choose a base of its family with --base."
            )


def generate(
    base: BaseModel,
    request: GenerationRequest,
    routes: Sequence[Route] = (),
    *,
    batch_size: int = 8,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """Draw the pictures of `request`, in its order.

    Args:
        routes: adapters that act in the UNet and the text encoders, on every picture.
        batch_size: pictures drawn at once. It changes a picture by rounding alone (within 1/255).
        on_step: called with the steps done and the steps of all batches together.
        should_stop: asked before every step; True ends it with `Cancelled`.

    Raises:
        UserError: when the request or an adapter does not fit the base model.
    """
    batches = generate_batches(base, request, routes, batch_size=batch_size, on_step=on_step, should_stop=should_stop)
    return [image for batch in batches for image in batch]


def generate_batches(
    base: BaseModel,
    request: GenerationRequest,
    routes: Sequence[Route] = (),
    *,
    batch_size: int = 8,
    steering: Steering | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_guess: OnGuess | None = None,
) -> Iterator[list[Image.Image]]:
    """The same as `generate`, one batch after the other, so that each can be kept before the next is begun.

    Everything is checked before this returns; drawing starts with the first `next`.

    Args:
        steering: a picture to start from, a mask, a picture to follow; for all pictures.
        on_guess: called after every step of a batch with its latents as they promise to become.
    """
    resolved = resolve_request(base, request)
    check_adapters(base, routes)
    if batch_size < 1:
        raise UserError(f"The batch size should be 1 or more, not {batch_size}.")
    draw = partial(draw_latents, base, steering=steering, should_stop=should_stop, on_guess=on_guess)
    return _batches(base, resolved, routes, batch_size, draw, on_step)


def _batches(
    base: BaseModel,
    request: ResolvedRequest,
    routes: Sequence[Route],
    batch_size: int,
    draw: Callable[..., Tensor],
    on_step: Callable[[int, int], None] | None,
) -> Iterator[list[Image.Image]]:
    starts = range(0, len(request.prompts), batch_size)
    for number, start in enumerate(starts):

        def count(done: int, steps: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * steps + done, len(starts) * steps)

        part = slice(start, start + batch_size)
        block_prompts = {stack: prompts[part] for stack, prompts in request.block_prompts.items()}
        batch = replace(request, prompts=request.prompts[part], seeds=request.seeds[part], block_prompts=block_prompts)
        # Not open while the caller has the pictures: it may use the model for something else.
        with torch.no_grad(), patched(base.components(), routes):
            latents = draw(batch, on_step=count)
        yield to_images(decode_latents(base, latents))


def draw_latents(
    base: BaseModel,
    request: ResolvedRequest,
    *,
    steering: Steering | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_guess: OnGuess | None = None,
) -> Tensor:
    """Latents `[B, C, h, w]` of one batch with whatever adapters are open; arguments as for `generate_batches`."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
    unique = list(dict.fromkeys([*request.prompts, *(text for texts in request.block_prompts.values() for text in texts)]))
    encoded = encode_text(base, unique)

    def condition_of(prompts: Sequence[str]) -> TextCondition:
        return encoded.rows([unique.index(prompt) for prompt in prompts])

    negative = encode_negative(base, request.negative_prompt, len(request.prompts))
    asked = DenoiseRequest(
        noise=initial_noise(base, generators, request.height, request.width),
        height=request.height,
        width=request.width,
        scheduler=make_scheduler(base.scheduler, request.scheduler),
        num_steps=request.steps,
        generators=generators,
    )
    strategy: Strategy = GuidanceStrategy(
        condition_of(request.prompts),
        negative,
        request.guidance_scale,
        block_conditions={stack: condition_of(prompts) for stack, prompts in request.block_prompts.items()},
    )
    return denoise(
        base,
        asked if steering is None else steering.applied(base, asked),
        strategy if on_guess is None else Guessing(strategy, on_guess),
        on_step=on_step,
        should_stop=should_stop,
    )


def initial_noise(base: BaseModel, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
    """Standard normal noise `[B, C, h, w]`, float32: each picture's from its own CPU generator, so that neither the
    batch nor the device changes it."""
    shape = (1, base.family.latent_channels, height // base.vae_scale_factor, width // base.vae_scale_factor)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures of `[B, 3, H, W]` in 0..1."""
    array = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def _check_side(name: str, side: int, multiple: int) -> None:
    if side < multiple or side % multiple:
        below = max(multiple, side // multiple * multiple)
        near = f"{below}" if side < multiple else f"{below} or {below + multiple}"
        raise UserError(f"The {name} should be a multiple of {multiple} pixels, not {side}; use {near}.")
