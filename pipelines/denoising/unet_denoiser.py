"""The UNets of SD1.5, SD2, SDXL and the embedded base model as denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.pipelines.denoising.denoiser import Denoiser, DenoiserCall, DenoiserOutput
from studio.pipelines.denoising.prediction import PredictionType, prediction_type_of
from studio.pipelines.denoising.unet_parts import run_unet
from studio.pipelines.encoding import add_time_ids

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel


class UNetDenoiser(Denoiser):
    """The UNet of a base model.

    Args:
        device: where it runs; None for where its weights are, which offloading changes.
    """

    network_name = "unet"
    num_guidance_branches = 2
    has_parts = True

    def __init__(self, base: BaseModel, device: torch.device | None = None) -> None:
        self.base = base
        self.network: Any = base.unet
        self._device = device
        self._time_ids: dict[tuple[int, int, int], Tensor] = {}

    @property
    def prediction_type(self) -> PredictionType:
        """As the base model's scheduler says."""
        return prediction_type_of(self.base.scheduler)

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return self.base.device if self._device is None else self._device

    def components(self) -> Mapping[str, nn.Module]:
        """UNet and text encoders."""
        return self.base.components()

    def scheduler_arguments(self, num_steps: int, height: int, width: int) -> dict[str, Any]:
        """None."""
        return {}

    def wake(self) -> None:
        """Let accelerate's offloading bring the weights, as it does when `forward` is called."""
        hook = getattr(self.network, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.network)

    def predict(self, call: DenoiserCall) -> DenoiserOutput:
        """The UNet's forward itself; or part by part, if the pass stops early or has a deep feature."""
        dtype = self.base.dtype
        latents, text = call.latents.to(dtype), call.condition.prompt_embeds.to(dtype)
        added = self.added_conditions(call)
        if call.stop_after is not None or call.depth is not None:
            run = run_unet(
                self.network,
                latents,
                call.timestep,
                text,
                added,
                control=call.control,
                stop_after=call.stop_after,
                depth=call.depth,
                deep_feature=call.deep_feature,
            )
            return DenoiserOutput(run.output, run.deep_feature)
        control = call.control
        output: Tensor = self.network(
            latents,
            call.timestep,
            encoder_hidden_states=text,
            added_cond_kwargs=added,
            down_block_additional_residuals=None if control is None else tuple(control.down),
            mid_block_additional_residual=None if control is None else control.middle,
            return_dict=False,
        )[0]
        return DenoiserOutput(output)

    def added_conditions(self, call: DenoiserCall) -> dict[str, Tensor] | None:
        """SDXL's pooled text and picture size; None for the others."""
        if call.condition.pooled is None:
            return None
        size = (len(call.latents), call.height, call.width)
        if size not in self._time_ids:  # made of numbers of the processor, which a recorded pass may not ask for
            time_ids = add_time_ids(self.base, *size)
            assert time_ids is not None
            self._time_ids[size] = time_ids.to(self.device)
        return {"text_embeds": call.condition.pooled.to(self.base.dtype), "time_ids": self._time_ids[size]}
