"""Stable Diffusion's UNets at full size on the meta device: no memory, no numbers, every operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

FEED_FORWARD_AND_PROJECTIONS = r".*\.ff\.net\.(0\.proj|2)|.*\.proj_(in|out)"

SD15_UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True, eq=False)
class FullSize:
    """A UNet without numbers, frozen, in bfloat16, with calls of it.

    Attributes:
        side: of the latents.
    """

    unet: UNet2DConditionModel
    side: int

    @classmethod
    def make(cls, config: Mapping[str, Any]) -> FullSize:
        """From one of the configurations above."""
        with torch.device("meta"):
            unet = UNet2DConditionModel(**config)
        unet = nn.Module.to(unet, dtype=torch.bfloat16).requires_grad_(False).eval()
        return cls(unet, int(config["sample_size"]))

    def components(self) -> dict[str, nn.Module]:
        """The UNet by its name in adapter files."""
        return {"unet": self.unet}

    def forward(self, batch: int = 1) -> Tensor:
        """One pass."""
        config: Any = self.unet.config
        added = None
        if config.addition_embed_type == "text_time":
            added = {"text_embeds": _empty(batch, 1280), "time_ids": _empty(batch, 6)}
        result: Tensor = self.unet(
            _empty(batch, 4, self.side, self.side),
            torch.empty(1, device="meta", dtype=torch.long),
            _empty(batch, 77, config.cross_attention_dim),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return result

    def step(self) -> None:
        """Forward and backward."""
        self.forward().float().square().mean().backward()

    def without_gradients(self, batch: int = 1) -> Callable[[], Tensor]:
        """`forward` as it is called when pictures are drawn."""
        return lambda: torch.no_grad()(self.forward)(batch)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)
