"""DreamBooth-LoRA: a concept bound to a rare word (Ruiz et al. 2023, arXiv 2208.12242) in a low-rank adapter (LoRA).

The loss is the trainer's: the concept's photos with the rare word, beside the class with its plain noun, so that the class
stays what it was. What this file adds is where the low-rank matrices sit: in the denoiser, at the family's own targets, and
on request in the text encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from studio.pipelines.adapters import new_lora
from studio.pipelines.base_model import BaseModel
from studio.training.adapter_trainable import AdapterTrainable, adapter_targets
from studio.training.config import TrainConfig
from studio.training.method import Trainable


@dataclass(frozen=True, kw_only=True)
class DreamBoothLoRAConfig:
    """Settings of the adapter and its learning rates.

    Attributes:
        rank, alpha: ΔW = (alpha / rank) · up · down. use_rslora: alpha / √rank instead. dora: learn the magnitude apart.
        targets: regular expression on module paths of the denoiser. text_encoder_targets: the same for the text encoders,
            None when they stay frozen.
    """

    rank: int
    alpha: float
    targets: str
    text_encoder_targets: str | None
    dora: bool
    use_rslora: bool
    learning_rate: float
    text_encoder_learning_rate: float


class DreamBoothLoRA:
    """The method; it has no state of its own."""

    name: ClassVar[str] = "dreambooth-lora"
    title: ClassVar[str] = "DreamBooth-LoRA"
    adapter_type: ClassVar[str] = "lora"

    def configure(self, settings: TrainConfig) -> DreamBoothLoRAConfig:
        """Read the `[adapter]` section and the learning rates of a resolved configuration."""
        adapter, optimizer = settings.adapter, settings.optimizer
        assert adapter.rank is not None and adapter.alpha is not None and adapter.targets is not None
        assert optimizer.learning_rate is not None and optimizer.text_encoder_learning_rate is not None
        return DreamBoothLoRAConfig(
            rank=adapter.rank,
            alpha=adapter.alpha,
            targets=adapter.targets,
            text_encoder_targets=adapter.text_encoder_targets if adapter.train_text_encoder else None,
            dora=adapter.dora,
            use_rslora=adapter.rslora,
            learning_rate=optimizer.learning_rate,
            text_encoder_learning_rate=optimizer.text_encoder_learning_rate,
        )

    def attach(self, model: BaseModel, config: DreamBoothLoRAConfig, generator: torch.Generator) -> Trainable:
        """New low-rank matrices whose product is zero: at step 0 the model is the base."""
        components = model.components()
        adapter = new_lora(
            components,
            adapter_targets(model, config.targets, config.text_encoder_targets),
            config.rank,
            config.alpha,
            generator=generator,
            dora=config.dora,
            use_rslora=config.use_rslora,
        )
        return AdapterTrainable(components, adapter, config.learning_rate, config.text_encoder_learning_rate)
