"""What the loop is asked to do, and the interface of those who tell it how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from studio.pipelines.encoding import TextCondition

if TYPE_CHECKING:
    from studio.pipelines.adapters import Route


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
    """

    noise: Tensor
    height: int
    width: int
    scheduler: Any
    num_steps: int
    generators: Sequence[torch.Generator]
    eta: float = 0.0


@dataclass(frozen=True)
class Step:
    """Where the loop is: `index` of `count`, at the scheduler's `timestep` (a tensor of no dimensions)."""

    index: int
    count: int
    timestep: Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """One pass of the denoiser over the whole batch.

    Attributes:
        condition: text features, one row per picture.
        routes: adapters that act in this pass alone, on top of what is open around the loop; branches that share one
            `routes` object run as one batch.
        block_conditions: attention stack -> what it reads instead of `condition`, one row per picture. Only features per
            token are taken from it: a pooled vector (SDXL) belongs to the whole model.
    """

    condition: TextCondition
    routes: Sequence[Route] = ()
    block_conditions: Mapping[str, TextCondition] = field(default_factory=dict)


class Strategy(Protocol):
    """Says how many passes a step takes, and how to fold their predictions; the loop makes the calls.

    The loop runs without gradients; a strategy that needs them opens `torch.enable_grad()` itself. Hooks with a body
    here are optional.
    """

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Called once, with the latents that the loop starts from `[B, C, h, w]`; returns those it shall start from."""
        return latents

    def branches(self, step: Step) -> Sequence[Branch]:
        """The passes of this step."""
        ...

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Called before the passes; may move the latents, by a gradient for example."""
        return latents

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """One prediction `[B, C, h, w]` from those of the branches, in their order."""
        ...

    def after_step(self, step: Step, latents: Tensor) -> Tensor:
        """Called after the scheduler's step, with the new latents."""
        return latents
