"""Learning-rate schedules as pure functions of the optimizer step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]

LONGEST_WARMUP_SHARE = 0.5


def effective_warmup(warmup_steps: int, total_steps: int) -> int:
    """The warm-up that is really used: at most half the run.

    A warm-up as long as the run never reaches the learning rate that was asked for (diffusers' default of 500 warm-up
    steps with the README's 500 steps is that trap).
    """
    return max(0, min(warmup_steps, int(total_steps * LONGEST_WARMUP_SHARE)))


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: ScheduleName) -> float:
    """The factor on the learning rate for optimizer step `step` (0-based), in (0, 1] for every step of the run."""
    warmup = effective_warmup(warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
