"""What SaRA (Hu et al. 2025, arXiv 2409.06633) starts from, on Stable Diffusion."""

from __future__ import annotations

import math

from studio.pipelines.families.family import TrainDefaults
from studio.pipelines.families.targets import ATTENTION, FEED_FORWARD, any_of

SARA_THRESHOLD = 2e-3
"""The paper's largest preset on SD1.5, where it selects 50 million of all 860 million weights; here of fewer layers."""

LARGEST_RULED_THRESHOLD = 5e-3


def sara_learning_rate(threshold: float) -> float | None:
    """The paper's rule 1e-3 · exp(−350 θ) for absolute θ, in the range it was found in (up to 5e-3); None beyond it."""
    return 1e-3 * math.exp(-350.0 * threshold) if threshold <= LARGEST_RULED_THRESHOLD else None


def sara_defaults(resolution: int) -> TrainDefaults:
    """The paper's recipe for a few photos: attention and feed-forwards, batches of 4, the plain loss, no prior."""
    learning_rate = sara_learning_rate(SARA_THRESHOLD)
    assert learning_rate is not None
    return TrainDefaults(
        resolution=resolution,
        learning_rate=learning_rate,
        batch_size=4,
        min_steps=800,
        max_steps=1500,
        snr_gamma=None,
        prior="none",
        targets=any_of(ATTENTION, FEED_FORWARD),
        sparse_threshold=SARA_THRESHOLD,
    )
