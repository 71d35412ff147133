"""SaRA: train the weights that do nothing (Hu et al. 2025, arXiv 2409.06633).

Between a tenth and a fifth of a trained diffusion model's weights are so small that the model draws the same without them.
They are what trains here: the denoiser keeps all it knows and gains what they can hold. As in the paper: selection by
magnitude, selection again half-way (what has grown is settled, what is still idle trains on), and a nuclear norm that keeps
the trained weights of low rank. Unlike the paper by default: only the layers a few photos need (attention and
feed-forwards), not every tensor; `sara.scope = "all"` takes them all.

AdamW's weight decay pulls the change to zero, hence a weight to the base's; the paper's pulls the weight itself. On weights
below 2e-3 the difference over a whole run is below 5e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import ConfigError
from studio.training.adapter_trainable import adapter_targets
from studio.training.config import TrainConfig
from studio.training.method import Trainable
from studio.training.sara.nuclear import NuclearNorm
from studio.training.sara.packed import PackedWeights
from studio.training.sara.selection import SelectionRule, select
from studio.training.sara.trainable import Progress, SaraTrainable


@dataclass(frozen=True, kw_only=True)
class SaraMethodConfig:
    """What trains, and how.

    Attributes:
        rule: which entries. targets: regular expression on the denoiser's module names, None for every tensor of it.
        text_encoder_targets: the same for the text encoders, None when they stay frozen.
        nuclear: the regularizer. progress: when the selection is made again.
    """

    rule: SelectionRule
    targets: str | None
    text_encoder_targets: str | None
    nuclear: NuclearNorm
    progress: Progress
    learning_rate: float
    text_encoder_learning_rate: float


class Sara:
    """The method; it has no state of its own."""

    name: ClassVar[str] = "sara"
    title: ClassVar[str] = "SaRA"
    adapter_type: ClassVar[str] = "sparse"

    def configure(self, settings: TrainConfig) -> SaraMethodConfig:
        """Read `[sara]`, the targets and the learning rates of a resolved configuration."""
        adapter, optimizer, sara, steps = settings.adapter, settings.optimizer, settings.sara, settings.schedule.steps
        assert adapter.targets is not None and steps is not None
        assert optimizer.learning_rate is not None and optimizer.text_encoder_learning_rate is not None
        if adapter.dora or adapter.rslora:
            raise ConfigError("adapter.dora and adapter.rslora belong to low-rank adapters; leave them out with sara")
        if sara.progressive and optimizer.name == "schedule-free":
            raise ConfigError(
                "schedule-free keeps two sets of weights, and SaRA's second selection would need one; use another "
                "optimizer.name, or sara.progressive = false"
            )
        return SaraMethodConfig(
            rule=SelectionRule(threshold=sara.threshold, density=sara.density),
            targets=None if sara.scope == "all" else adapter.targets,
            text_encoder_targets=adapter.text_encoder_targets if adapter.train_text_encoder else None,
            nuclear=NuclearNorm(
                weight=sara.nuclear_weight, every=sara.nuclear_every, tensors=sara.nuclear_tensors, rank=sara.nuclear_rank
            ),
            progress=Progress(switch_step=max(1, round(sara.switch_at * steps)) if sara.progressive else None),
            learning_rate=optimizer.learning_rate,
            text_encoder_learning_rate=optimizer.text_encoder_learning_rate,
        )

    def attach(self, model: BaseModel, config: SaraMethodConfig, generator: torch.Generator) -> Trainable:
        """Select the small weights; their change is zero, so at step 0 the model is the base."""
        components = model.components()
        targets = adapter_targets(model, config.targets or "", config.text_encoder_targets)
        groups = {
            "denoiser": PackedWeights(select("unet", components["unet"], config.rule, config.targets), [components["unet"]])
        }
        encoders = {name: pattern for name, pattern in targets.items() if name != "unet"}
        if encoders:
            chosen = [each for name, pattern in encoders.items() for each in select(name, components[name], config.rule, pattern)]
            groups["text_encoder"] = PackedWeights(chosen, [components[name] for name in encoders])
        rates = {"denoiser": config.learning_rate, "text_encoder": config.text_encoder_learning_rate}
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        return SaraTrainable(groups, rates, config.nuclear, config.progress, seed)
