"""DiffuseKronA: Kronecker products as adapters (Marjit et al., WACV 2025, arXiv 2402.17412).

ΔW = A ⊗ B in the denoiser's attention projections, A small and B the rest, the text encoders frozen, no alpha. A product of
small factors has a high rank with few numbers: on SDXL two thirds of those of a LoRA of rank 4. Beyond the paper,
`adapter.train_text_encoder` gives the text encoders' layers factors of the same size; off by default on SD and SDXL.

Against the published code: ours is the paper's Kronecker product, where the code shuffles the output rows; a factor that does
not divide a layer is an error with the layer's name; strength is linear; layers keep their attention code, so every kernel and
number format works. Those checkpoints can be read all the same (`studio.pipelines.adapters.formats.diffusekrona`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from studio.pipelines.adapters import new_kronecker
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import ConfigError
from studio.training.adapter_trainable import AdapterTrainable, adapter_targets
from studio.training.config import TrainConfig
from studio.training.config.krona import parse_factors
from studio.training.method import Trainable


@dataclass(frozen=True, kw_only=True)
class DiffuseKronASettings:
    """Settings of the adapter.

    Attributes:
        factors: (a_out, a_in), the size of A. The paper writes (a₁, a₂) = (4, 64) for what is (64, 4) here, input first.
        init: of A; B is zero. targets: regular expression on module paths of the denoiser.
        text_encoder_targets: the same for the text encoders, None when they stay frozen, as in the paper.
    """

    factors: tuple[int, int]
    init: Literal["gaussian", "kaiming"]
    targets: str
    text_encoder_targets: str | None
    learning_rate: float
    text_encoder_learning_rate: float


class DiffuseKronA:
    """The method; it has no state of its own."""

    name: ClassVar[str] = "diffusekrona"
    title: ClassVar[str] = "DiffuseKronA"
    adapter_type: ClassVar[str] = "lokr"

    def configure(self, settings: TrainConfig) -> DiffuseKronASettings:
        """Read `[krona]`, the targets and the learning rate of a resolved configuration.

        Raises:
            ConfigError: a setting of low-rank adapters is given.
        """
        adapter, krona, optimizer = settings.adapter, settings.krona, settings.optimizer
        if adapter.dora or adapter.rslora:
            raise ConfigError("adapter.dora and adapter.rslora belong to low-rank adapters; leave them out with diffusekrona.")
        assert adapter.targets is not None and krona.factors is not None
        assert optimizer.learning_rate is not None and optimizer.text_encoder_learning_rate is not None
        return DiffuseKronASettings(
            factors=parse_factors(krona.factors),
            init=krona.init,
            targets=adapter.targets,
            text_encoder_targets=adapter.text_encoder_targets if adapter.train_text_encoder else None,
            learning_rate=optimizer.learning_rate,
            text_encoder_learning_rate=optimizer.text_encoder_learning_rate,
        )

    def attach(self, model: BaseModel, config: DiffuseKronASettings, generator: torch.Generator) -> Trainable:
        """New factors whose product is zero: at step 0 the model is the base."""
        components = model.components()
        targets = adapter_targets(model, config.targets, config.text_encoder_targets)
        adapter = new_kronecker(components, targets, config.factors, init=config.init, generator=generator)
        return AdapterTrainable(components, adapter, config.learning_rate, config.text_encoder_learning_rate)
