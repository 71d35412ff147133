"""What DiffuseKronA (Marjit et al. 2025, arXiv 2402.17412) starts from, on Stable Diffusion."""

from __future__ import annotations

from studio.pipelines.families.family import TrainDefaults
from studio.pipelines.families.targets import ATTENTION

PORTABLE_FACTORS = "16x16"
"""As many parameters as the paper's best, 64x4 (3,874,560 on SDXL), and square, so that PEFT and diffusers load it."""


def diffusekrona_defaults(resolution: int) -> TrainDefaults:
    """The paper's recipe: attention projections, 5e-4, 500 steps for simple subjects to 1000, the plain loss, no prior."""
    return TrainDefaults(
        resolution=resolution,
        learning_rate=5e-4,
        steps_per_image=150,
        min_steps=500,
        max_steps=1000,
        snr_gamma=None,
        prior="none",
        targets=ATTENTION,
        kronecker_factors=PORTABLE_FACTORS,
    )
