"""Settings of SaRA alone."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from studio.training.config.section import AboveZero, Bool, Count, NotNegative, Positive, Section, Share, setting


class SaraConfig(Section):
    """SaRA only: which weights train, when they are chosen again, and the low-rank regularizer."""

    threshold: AboveZero | None = setting(
        None, "Weights smaller than this train, in whatever tensor; for models whose weights have Stable Diffusion's scale."
    )
    density: Share | None = setting(
        None, "Instead: this share of each tensor's weights trains, the smallest ones. By default as the family says."
    )
    scope: Literal["layers", "all"] = setting(
        "layers",
        "Where: the weights of the layers that adapter.targets names, or every tensor of the denoiser, with convolutions, "
        "biases and norms, as in the paper.",
    )
    progressive: Bool = setting(True, "Choose again on the way: weights that have grown are settled, small ones train on.")
    switch_at: Share = setting(0.5, "When, as a share of the run.")
    nuclear_weight: NotNegative = setting(5e-3, "Weight of the nuclear norm of the trained weights; 0 has none.")
    nuclear_every: Positive = setting(10, "Steps between two computations of it; it counts so many times as much.")
    nuclear_tensors: Literal["one", "all"] = setting("one", "Matrices a time: one at random, or all.")
    nuclear_rank: Count = setting(64, "Singular values a matrix, by a randomised SVD; 0 takes all, exactly.")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.threshold is not None and self.density is not None:
            raise ValueError("threshold and density are two ways to choose; give one of them")
        if self.density == 0.0:
            raise ValueError("density = 0 trains nothing; give a share above 0, such as 0.1")
        return self
