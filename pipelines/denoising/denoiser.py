"""What the loop needs of a model that denoises, whatever it is inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from studio.pipelines.denoising.prediction import PredictionType
from studio.pipelines.denoising.unet_parts import ControlResiduals
from studio.pipelines.encoding import TextCondition


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiserCall:
    """One pass.

    Attributes:
        latents: as the scheduler scales them for the model, `[B, C, h, w]`. timestep: the scheduler's, `[]`.
        condition: text, a row for each of latents. height, width: of the picture, in pixels.
        control: what a ControlNet adds.
        stop_after, depth, deep_feature: see `unet_parts.run_unet`; for denoisers with parts.
    """

    latents: Tensor
    timestep: Tensor
    condition: TextCondition
    height: int
    width: int
    control: ControlResiduals | None = None
    stop_after: str | None = None
    depth: int | None = None
    deep_feature: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DenoiserOutput:
    """What came of it.

    Attributes:
        prediction: `[B, C, h, w]` in the model's own type and meaning; None if the pass stopped before.
        deep_feature: if it was asked for.
    """

    prediction: Tensor | None
    deep_feature: Tensor | None = None


@runtime_checkable
class Denoiser(Protocol):
    """A model that predicts noise, or what can be converted to it, from noisy latents `[B, C, h, w]`.

    Attributes:
        network: the module that runs; adapters name it `network_name`.
        prediction_type: what it predicts.
        num_guidance_branches: 2 for a model that is guided by a pass without the prompt, 1 for one that takes the guidance
            scale as an input (FLUX.1 dev).
        has_parts: whether it is a UNet, whose attention can be read and changed and whose passes can stop early.
    """

    network: Any
    network_name: str
    num_guidance_branches: int
    has_parts: bool

    @property
    def prediction_type(self) -> PredictionType:
        """What it predicts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where latents go."""
        ...

    def components(self) -> Mapping[str, nn.Module]:
        """The modules that adapters can change, by the name files give them."""
        ...

    def scheduler_arguments(self, num_steps: int, height: int, width: int) -> dict[str, Any]:
        """What the scheduler's `set_timesteps` takes besides the number of steps, for a picture of this size in pixels."""
        ...

    def wake(self) -> None:
        """Bring the weights to the device, where offloading has put them elsewhere."""
        ...

    def predict(self, call: DenoiserCall) -> DenoiserOutput:
        """Make one pass."""
        ...
