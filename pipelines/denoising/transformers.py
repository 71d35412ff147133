"""Diffusion transformers of diffusers, SD3 and FLUX.1, as denoisers.

They predict the flow of a rectified flow, and take merge, switch and composite. Regions, attention maps and cached features
are of the UNet's kind, and asking them of these is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from studio.pipelines.denoising.denoiser import Denoiser, DenoiserCall, DenoiserOutput
from studio.pipelines.denoising.prediction import PredictionType
from studio.pipelines.errors import BaseModelError


class TransformerDenoiser(Denoiser):
    """What both have in common.

    Args:
        transformer: diffusers' model. scheduler: the base's, which says how timesteps move with the picture's size.
        vae_scale_factor: pixels per latent, a side.
    """

    network_name = "transformer"
    has_parts = False
    prediction_type: PredictionType = "flow"
    num_guidance_branches = 2

    def __init__(self, transformer: nn.Module, scheduler: Any, vae_scale_factor: int = 8) -> None:
        self.network: Any = transformer
        self.scheduler = scheduler
        self.vae_scale_factor = vae_scale_factor

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.network.parameters()).dtype

    def components(self) -> Mapping[str, nn.Module]:
        """The transformer; its text encoders are none of the studio's."""
        return {self.network_name: self.network}

    def scheduler_arguments(self, num_steps: int, height: int, width: int) -> dict[str, Any]:
        """μ, by which a larger picture spends more steps in noise, where the scheduler has it (Esser et al. 2024)."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting", False):
            return {}
        cell = self.vae_scale_factor * 2
        num_tokens = (height // cell) * (width // cell)
        small, large = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return {"mu": low + (high - low) * (num_tokens - small) / (large - small)}

    def wake(self) -> None:
        """Nothing: it is called as a whole, and offloading sees that."""


class SD3Denoiser(TransformerDenoiser):
    """Stable Diffusion 3 and 3.5: `SD3Transformer2DModel`, with latents as they are."""

    def predict(self, call: DenoiserCall) -> DenoiserOutput:
        """One call of the transformer."""
        text, pooled = _text(call)
        output: Tensor = self.network(
            hidden_states=call.latents.to(self.dtype),
            timestep=call.timestep.expand(len(call.latents)),
            encoder_hidden_states=text.to(self.dtype),
            pooled_projections=pooled.to(self.dtype),
            return_dict=False,
        )[0]
        return DenoiserOutput(output)


class FluxDenoiser(TransformerDenoiser):
    """FLUX.1: `FluxTransformer2DModel`, with 2 × 2 latents packed into a token.

    Args:
        guidance_scale: what a guidance-distilled model (dev) takes as an input, in place of a pass without the prompt.
    """

    def __init__(self, transformer: nn.Module, scheduler: Any, vae_scale_factor: int = 8, guidance_scale: float = 3.5) -> None:
        super().__init__(transformer, scheduler, vae_scale_factor)
        self.guidance_scale = guidance_scale
        self.num_guidance_branches = 1

    def scheduler_arguments(self, num_steps: int, height: int, width: int) -> dict[str, Any]:
        """μ, and σ in equal steps from 1 to 1 / `num_steps`, with which the model is used."""
        sigmas = [1.0 - index / num_steps for index in range(num_steps)]
        return super().scheduler_arguments(num_steps, height, width) | {"sigmas": sigmas}

    def predict(self, call: DenoiserCall) -> DenoiserOutput:
        """One call of the transformer; the loop's latents are packed for it, and its tokens unpacked."""
        text, pooled = _text(call)
        batch, _, height, width = call.latents.shape
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full((batch,), self.guidance_scale, device=self.device, dtype=torch.float32)
        tokens: Tensor = self.network(
            hidden_states=pack(call.latents.to(self.dtype)),
            timestep=call.timestep.expand(batch).to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled.to(self.dtype),
            encoder_hidden_states=text.to(self.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=_places(height // 2, width // 2).to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return DenoiserOutput(unpack(tokens, height, width))


def pack(latents: Tensor) -> Tensor:
    """`[B, C, h, w]` as tokens `[B, h/2 · w/2, 4C]`."""
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise BaseModelError(f"Latents of {height} × {width} cannot be packed two by two; use a picture size with even ones.")
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens as latents `[B, C, height, width]`."""
    batch, num_tokens, channels = tokens.shape
    assert num_tokens == math.prod((height // 2, width // 2))
    cells = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def _places(height: int, width: int) -> Tensor:
    """`[h · w, 3]`: nothing, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def _text(call: DenoiserCall) -> tuple[Tensor, Tensor]:
    assert call.condition.pooled is not None, "transformers of this kind read a pooled vector"
    return call.condition.prompt_embeds, call.condition.pooled
