"""Passes of tiny models, for tests of what happens inside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.pipelines.base_model import BaseModel, encode_text
from studio.pipelines.denoising import DenoiseRequest, Passes, make_scheduler
from studio.pipelines.denoising.loop import as_denoiser
from studio.pipelines.encoding import TextCondition
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import TinyModel


def base_of(name: str, folder: Path) -> tuple[BaseModel, TinyModel]:
    """A tiny base model, and the same modules as the tests of adapters have them."""
    base = tiny_base(name, folder)
    return base, TinyModel(name, base.unet, base.vae, base.text_encoders, base.tokenizers, base.scheduler)  # type: ignore[arg-type]


def passes_of(base: BaseModel, height: int = 64, width: int = 128, *, pictures: int = 1, **settings: Any) -> Passes:
    """Passes for pictures of that size, at the beginning of ten steps."""
    request = DenoiseRequest(
        noise=latents_of(base, height, width, pictures=pictures),
        height=height,
        width=width,
        scheduler=make_scheduler(base.scheduler, "ddim"),
        num_steps=10,
        generators=[torch.Generator().manual_seed(seed) for seed in range(pictures)],
        **settings,
    )
    request.scheduler.set_timesteps(10)
    return Passes(as_denoiser(base), request)


def latents_of(base: BaseModel, height: int = 64, width: int = 128, *, pictures: int = 1, seed: int = 0) -> Tensor:
    """Noise for pictures of that size."""
    shape = (pictures, base.family.latent_channels, height // base.vae_scale_factor, width // base.vae_scale_factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def text_of(base: BaseModel, *prompts: str) -> TextCondition:
    """Encoded prompts, a row each."""
    return encode_text(base, list(prompts))
