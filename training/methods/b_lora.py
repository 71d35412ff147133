"""B-LoRA: content and style of one picture in two blocks (Frenkel et al., ECCV 2024, arXiv 2403.14572).

A LoRA on two stacks of transformer blocks only, trained jointly on one picture with a neutral prompt ("A [v]"), without class
noun, prior or text encoder. Which stack learns what is decided by where it sits: afterwards the one holds what the picture
shows, the other how it is drawn. One run saves one adapter with both halves as roles.

Against the published code: strengths are linear there as in the paper (see `studio.pipelines.adapters.roles`), layers are
chosen by the path of their block and not by a substring, and the file says where its halves sit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from studio.pipelines.adapters import Adapter, AdapterInfo, new_lora, target_modules
from studio.pipelines.adapters.roles import RoleBlocks
from studio.pipelines.base_model import BaseModel
from studio.pipelines.block_roles import choose_blocks
from studio.pipelines.denoising import attention_stacks
from studio.pipelines.errors import ConfigError
from studio.training.adapter_trainable import AdapterTrainable
from studio.training.config import TrainConfig
from studio.training.method import Trainable


@dataclass(frozen=True, kw_only=True)
class BLoRASettings:
    """Settings of the adapter.

    Attributes:
        rank, alpha: ΔW = (alpha / rank) · up · down; the paper's scale is 1. use_rslora, dora: as in any LoRA.
        targets: regular expression on module paths of the denoiser: which layers of the two blocks train.
        content_block, style_block: path prefixes; None for what the base model's probe or family says.
    """

    rank: int
    alpha: float
    targets: str
    dora: bool
    use_rslora: bool
    content_block: str | None
    style_block: str | None
    learning_rate: float


class BLoRATrainable(AdapterTrainable):
    """An adapter whose halves have roles."""

    def __init__(self, model: BaseModel, adapter: Adapter, blocks: RoleBlocks, learning_rate: float) -> None:
        super().__init__(model.components(), adapter, learning_rate, learning_rate)
        self._blocks = blocks

    def extract(self, info: AdapterInfo) -> Adapter:
        """Detached copies of both halves, with where they sit on them."""
        return super().extract(replace(info, roles=tuple(self._blocks), role_blocks=dict(self._blocks)))


class BLoRA:
    """The method; it has no state of its own."""

    name: ClassVar[str] = "b-lora"
    title: ClassVar[str] = "B-LoRA"
    adapter_type: ClassVar[str] = "lora"

    def configure(self, settings: TrainConfig) -> BLoRASettings:
        """Read the `[adapter]` and `[b_lora]` sections of a resolved configuration.

        Raises:
            ConfigError: a text encoder shall train; content and style could not be told apart in it.
        """
        adapter = settings.adapter
        if adapter.train_text_encoder:
            raise ConfigError(
                "adapter.train_text_encoder = true does not go with b-lora: what the text encoders learn belongs to neither "
                "half. Leave it out."
            )
        assert adapter.rank is not None and adapter.alpha is not None and adapter.targets is not None
        assert settings.optimizer.learning_rate is not None
        return BLoRASettings(
            rank=adapter.rank,
            alpha=adapter.alpha,
            targets=adapter.targets,
            dora=adapter.dora,
            use_rslora=adapter.rslora,
            content_block=settings.b_lora.content_block,
            style_block=settings.b_lora.style_block,
            learning_rate=settings.optimizer.learning_rate,
        )

    def attach(self, model: BaseModel, config: BLoRASettings, generator: torch.Generator) -> Trainable:
        """New low-rank matrices in the two blocks, whose product is zero.

        Raises:
            UserError: it is not known which blocks they are.
            ConfigError: a block has no layer that could train.
        """
        blocks = choose_blocks(model, config.content_block, config.style_block).blocks
        for role, prefixes in blocks.items():
            if not target_modules(model.unet, inside(prefixes, config.targets)):
                raise ConfigError(
                    f"No layer of the {role} block {', '.join(prefixes)} matches adapter.targets = {config.targets!r}. "
                    f"The base model's attention stacks are: {', '.join(attention_stacks(model.unet))}."
                )
        adapter = new_lora(
            model.components(),
            {"unet": inside([prefix for prefixes in blocks.values() for prefix in prefixes], config.targets)},
            config.rank,
            config.alpha,
            generator=generator,
            dora=config.dora,
            use_rslora=config.use_rslora,
        )
        return BLoRATrainable(model, adapter, blocks, config.learning_rate)


def inside(prefixes: tuple[str, ...] | list[str], targets: str) -> str:
    """`targets`, a regular expression on module paths, confined to modules under one of `prefixes`."""
    return rf"(?=(?:{'|'.join(map(re.escape, prefixes))})\.)(?:{targets})"
