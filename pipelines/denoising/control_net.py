"""ControlNets of diffusers as what steers the passes (Zhang et al. 2023, arXiv 2302.05543)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.pipelines.denoising.denoiser import DenoiserCall
from studio.pipelines.denoising.request import ControlSource
from studio.pipelines.denoising.unet_denoiser import UNetDenoiser
from studio.pipelines.denoising.unet_parts import ControlResiduals


class ControlNetSource(ControlSource):
    """One ControlNet with its picture.

    Args:
        controlnet: a diffusers `ControlNetModel` made for the base model's family.
        denoiser: whose passes it steers. image: `[1 or B, 3, H, W]` in 0..1. scale: how strongly.
    """

    def __init__(self, controlnet: Any, denoiser: UNetDenoiser, image: Tensor, scale: float = 1.0) -> None:
        self.controlnet = controlnet
        self.denoiser = denoiser
        self.image = image
        self.scale = scale

    def residuals(self, call: DenoiserCall) -> ControlResiduals:
        """For all rows of a pass; the pictures repeat with every branch."""
        dtype = self.controlnet.dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and call.latents.requires_grad):
            down, middle = self.controlnet(
                call.latents.to(dtype),
                call.timestep,
                encoder_hidden_states=call.condition.prompt_embeds.to(dtype),
                controlnet_cond=self.image.to(call.latents.device, dtype).repeat(len(call.latents) // len(self.image), 1, 1, 1),
                conditioning_scale=self.scale,
                added_cond_kwargs=self.denoiser.added_conditions(call),
                return_dict=False,
            )
        return ControlResiduals(down, middle)
