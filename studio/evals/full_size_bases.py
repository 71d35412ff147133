"""Base models at full size that take no memory: to count what a composition costs on SD1.5 and SDXL without their weights.

Two go together. The *narrow* one has every block, layer and name of the family, real text encoders of full width and two
layers, random weights, and few channels: plans are compiled on it. The *full* one has its UNet on the meta device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from studio.pipelines.adapters import Adapter, AdapterInfo, new_lora
from studio.pipelines.base_files.clip_vocabulary import clip_tokenizer
from studio.pipelines.base_files.single_file import configs_dir
from studio.pipelines.base_model import BaseModel
from studio.pipelines.families import ModelFamily

NARROW = 32
"""Channels of the first block of a narrow UNet: one for each group of its norms."""


@dataclass(frozen=True, eq=False)
class FullSize:
    """A family's structure.

    Attributes:
        narrow: to compile plans on. full: the same with the UNet of full size, on the meta device.
    """

    narrow: BaseModel
    full: BaseModel

    def adapters(self, count: int, rank: int) -> tuple[list[Adapter], dict[str, Adapter]]:
        """`count` LoRAs on the narrow UNet, and by name those of full size that they stand for."""
        small, large = [], {}
        for number in range(1, count + 1):
            info = AdapterInfo(name=f"adapter {number}", family=self.narrow.family.name)
            small.append(_lora(self.narrow, 1, info))
            large[info.name] = _lora(self.full, rank, info)
        return small, large


def full_size(family: ModelFamily, dtype: torch.dtype = torch.bfloat16) -> FullSize:
    """The structure of SD1.5 or SDXL from the configs that come with the studio."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    configs = configs_dir(family)
    unet_config = _config(configs / "unet" / "config.json")
    widths = unet_config["block_out_channels"]
    heads = unet_config["attention_head_dim"]
    narrow_config = unet_config | {
        "block_out_channels": [NARROW * width // widths[0] for width in widths],
        "attention_head_dim": heads if isinstance(heads, int) else [1 for _ in heads],
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**_config(configs / "vae" / "config.json"))
        unet = UNet2DConditionModel(**unet_config).to(dtype)
    tokenizers = tuple(clip_tokenizer(pad_token="!" if facts.projection else "<|endoftext|>") for facts in family.text_encoders)
    narrow = BaseModel(
        family,
        _frozen(UNet2DConditionModel(**narrow_config)),
        _frozen(vae),
        tuple(_text_encoder(family, index, configs / facts.component) for index, facts in enumerate(family.text_encoders)),
        tokenizers,
        DDIMScheduler.from_config(_config(configs / "scheduler" / "scheduler_config.json")),
        source=f"{family.title}'s structure",
        size=family.default_size,
    )
    return FullSize(narrow, replace(narrow, unet=_frozen(unet)))


def _lora(base: BaseModel, rank: int, info: AdapterInfo) -> Adapter:
    """On what a LoRA trains by default; of the unet alone."""
    targets = {"unet": base.family.adapter_targets}
    made = new_lora({"unet": base.unet}, targets, rank, float(rank), generator=torch.Generator().manual_seed(0), info=info)
    for tensor in made.named_tensors().values():
        tensor.requires_grad_(False)
    return made.to(dtype=base.dtype)


def _text_encoder(family: ModelFamily, index: int, folder: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(**{**_config(folder / "config.json"), "num_hidden_layers": 2})
    kind = CLIPTextModelWithProjection if family.text_encoders[index].projection else CLIPTextModel
    return _frozen(kind(config))


def _config(path: Any) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()
