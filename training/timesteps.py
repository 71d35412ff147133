"""Which timesteps a training batch sees, as a pure function of uniform numbers.

The uniforms come from the batch plan, so that the same position in a run always draws the same timestep, on one process
or several.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-7


def uniform_timesteps(uniforms: Tensor, num_train_timesteps: int) -> Tensor:
    """Every timestep alike (DDPM, and Stable Diffusion's own training). `uniforms` [B] in [0, 1) → int64 [B]."""
    return _to_steps(uniforms.double(), num_train_timesteps)


def logit_normal_timesteps(uniforms: Tensor, num_train_timesteps: int, mean: float, uniform_share: float) -> Tensor:
    """Mostly the middle: sigmoid(N(mean, 1)), and a `uniform_share` of timesteps drawn alike.

    The embedded base model was trained so (mean 0.2, share 0.15); a concept that is learned with another distribution than
    the base's spends its steps where the base never looked closely. `uniforms` [B, 2]: column 0 draws the value, column 1
    chooses between the two parts. Returns int64 [B], 0 … num_train_timesteps − 1.
    """
    values = uniforms[:, 0].double()
    bent = torch.sigmoid(mean + torch.special.ndtri(values.clamp(TINY, 1.0 - TINY)))
    return _to_steps(torch.where(uniforms[:, 1].double() < uniform_share, values, bent), num_train_timesteps)


def _to_steps(values: Tensor, num_train_timesteps: int) -> Tensor:
    return (values * num_train_timesteps).long().clamp(0, num_train_timesteps - 1)
