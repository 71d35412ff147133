"""What B-LoRA (Frenkel et al. 2024) starts from, on Stable Diffusion."""

from __future__ import annotations

from studio.pipelines.families.family import TrainDefaults
from studio.pipelines.families.targets import ATTENTION


def b_lora_defaults(resolution: int) -> TrainDefaults:
    """As its authors train it on SDXL: attention projections of two blocks at rank 64, 1000 steps, the plain loss, no prior."""
    return TrainDefaults(
        resolution=resolution,
        rank=64,
        alpha=64.0,
        learning_rate=5e-5,
        min_steps=1000,
        max_steps=1000,
        snr_gamma=None,
        prior="none",
        caption_dropout=0.0,
        targets=ATTENTION,
    )
