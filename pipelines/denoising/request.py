"""What the loop is asked to do, and the interface of those who tell it how."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from studio.pipelines.denoising.attention.capture import AttentionMaps, Capture
from studio.pipelines.denoising.attention.regions import Isolation, Region
from studio.pipelines.denoising.unet_parts import ControlResiduals
from studio.pipelines.encoding import TextCondition

if TYPE_CHECKING:
    from studio.pipelines.adapters import Route
    from studio.pipelines.denoising.denoiser import DenoiserCall
    from studio.pipelines.denoising.passes import Passes


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiseRequest:
    """One batch of pictures to draw.

    Attributes:
        noise: standard normal numbers to start from, `[B, C, h, w]`, float32.
        height, width: of the pictures, in pixels.
        scheduler: a diffusers scheduler, used by this request alone: it keeps state.
        num_steps: denoising steps.
        generators: one per picture, for samplers that add noise on the way; they decide it whatever the batch.
        eta: DDIM's share of added noise, 0 (none) to 1.
        picture: scaled latents `[B, C, h, w]` of pictures to start from; None to start from noise alone.
        first_step: the step to begin with, where `picture` is noisy enough already.
        redraw: `[B, 1, h, w]` or `[1, 1, h, w]` in 0..1, where `picture` is to be drawn anew; the rest is kept.
        control: what adds to the skip connections, as a ControlNet does.
        max_rows: rows up to which branches with different adapters run as one batch; 0 lets only those with the same
            adapters, which changes no picture and takes less memory.
        keeps_text: whether keys and values of words are computed once for all steps, or anew at each.
        most_rows: rows of any batch, also of branches with the same adapters; None for no limit. Fewer take less memory.
        captured_share: share of the attention layers that are captured, of those asked for; of each kind at least one.
    """

    noise: Tensor
    height: int
    width: int
    scheduler: Any
    num_steps: int
    generators: Sequence[torch.Generator]
    eta: float = 0.0
    picture: Tensor | None = None
    first_step: int = 0
    redraw: Tensor | None = None
    control: ControlSource | None = None
    max_rows: int = 0
    keeps_text: bool = True
    most_rows: int | None = None
    captured_share: float = 1.0


class ControlSource(Protocol):
    """What steers the denoiser from outside, at every pass."""

    def residuals(self, call: DenoiserCall) -> ControlResiduals:
        """For the rows of a pass."""
        ...


@dataclass(frozen=True)
class Step:
    """Where the loop is: `index` of `count`, at the scheduler's `timestep` (a tensor of no dimensions)."""

    index: int
    count: int
    timestep: Tensor


@dataclass(frozen=True)
class FeatureUse:
    """Whether a branch computes its deep feature or takes that of an earlier step (Ma et al. 2024, DeepCache).

    Attributes:
        key: whose feature it is, as (adapter, half of the guidance).
        depth: how many layers from the output still run with a kept feature; see `unet_parts.run_unet`.
        refreshes: whether it is computed anew at this step. It is also where there is none yet.
    """

    key: Hashable
    depth: int = 2
    refreshes: bool = False


@dataclass(frozen=True, eq=False)
class Branch:
    """One pass of the denoiser over the whole batch.

    Give the same objects (condition, routes, regions, masks) at every step: what is made of them is kept by identity.

    Attributes:
        condition: text features, one row per picture.
        routes: adapters that act in this pass alone, on top of what is open around the loop; branches that share them run as
            one batch. One with a mask acts on keys and values of words as well: its places read its own. `rows` and
            strengths per row are per picture.
        block_conditions: attention stack -> what it reads instead of `condition`, one row per picture. Only features per
            token are taken from it: a pooled vector (SDXL) belongs to the whole model.
        regions: parts of the canvas with words and adapters of their own.
        isolation: which places see which; None for all. It is about the regions, and about masks of routes.
        capture: attention maps to keep.
        features: use of a feature cache; None to run in full.
    """

    condition: TextCondition
    routes: Sequence[Route] = ()
    block_conditions: Mapping[str, TextCondition] = field(default_factory=dict)
    regions: Sequence[Region] = ()
    isolation: Isolation | None = None
    capture: Capture | None = None
    features: FeatureUse | None = None


@dataclass(frozen=True, eq=False)
class PassOutput:
    """What came of a branch.

    Attributes:
        prediction: of the denoiser, float32 `[B, C, h, w]`; None of a pass that stopped after the last attention map.
        maps: what was captured; None if nothing was asked for.
    """

    prediction: Tensor | None
    maps: AttentionMaps | None = None


class Strategy(Protocol):
    """Says how many passes a step takes, and how to fold their predictions; the loop makes the calls.

    The loop runs without gradients; a strategy that needs them opens `torch.enable_grad()` itself. Hooks with a body
    here are optional.
    """

    def begin(self, passes: Passes) -> None:
        """Called first, with what makes passes: for a strategy that needs some of its own, keep it for this generation."""
        return

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Called once, with the latents that the loop starts from `[B, C, h, w]`; returns those it shall start from."""
        return latents

    def branches(self, step: Step) -> Sequence[Branch]:
        """The passes of this step."""
        ...

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Called before the passes; may move the latents, by a gradient for example."""
        return latents

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        """Called before `combine` with all that came of the branches, in their order: predictions and attention maps."""
        return

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """One prediction `[B, C, h, w]` from those of the branches, in their order."""
        ...

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        """Called after the scheduler's step, with the new latents."""
        return latents
