"""Which attention layers a UNet has, in the order in which they run, and on which grid each works."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from studio.pipelines.denoising.block_texts import attention_stacks
from studio.pipelines.denoising.unet_parts import part_names

Kind = Literal["cross", "self"]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    Attributes:
        name: module path, as `up_blocks.1.attentions.0.transformer_blocks.0.attn2`.
        kind: "cross" reads the text, "self" the picture.
        stack: path of the stack of transformer blocks that it is in, a part of `unet_parts.part_names`.
        level: how often the latents were halved before it; 0 is their own size.
    """

    name: str
    kind: Kind
    stack: str
    level: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of its positions for latents of the given size: each halving rounds up."""
        for _ in range(self.level):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


def attention_layers(unet: Any) -> tuple[AttentionLayer, ...]:
    """All of them, from input to output."""
    levels = _levels(unet)
    found = []
    for stack in attention_stacks(unet):
        level = levels[".".join(stack.split(".")[:2]) if not stack.startswith("mid_block") else "mid_block"]
        module: Any = unet.get_submodule(stack)
        for index, block in enumerate(module.transformer_blocks):
            for child, kind in (("attn1", "self"), ("attn2", "cross")):
                if isinstance(getattr(block, child, None), nn.Module):
                    found.append(AttentionLayer(f"{stack}.transformer_blocks.{index}.{child}", _kind(kind), stack, level))
    return tuple(found)


def layers_at(unet: Any, level: int, kind: Kind = "cross") -> tuple[AttentionLayer, ...]:
    """The layers that work at one level.

    With eight pixels per latent, level 2 is a position for 32 × 32 pixels: the 5 layers of SD1.5, or 60 of SDXL, whose maps
    CLoRA and LoRA-Composer read.
    """
    return tuple(layer for layer in attention_layers(unet) if layer.level == level and layer.kind == kind)


def last_part(unet: Any, layers: Collection[AttentionLayer]) -> str:
    """The part after which a run may stop that is made for these layers alone."""
    order = part_names(unet)
    return max((layer.stack for layer in layers), key=order.index)


def layers_named(unet: Any, names: Iterable[str]) -> tuple[AttentionLayer, ...]:
    """The layers with these names, in the order in which they run; `ValueError` for a name that there is not."""
    wanted = set(names)
    found = tuple(layer for layer in attention_layers(unet) if layer.name in wanted)
    missing = wanted - {layer.name for layer in found}
    if missing:
        raise ValueError(f"The UNet has no attention layer {sorted(missing)[0]!r}.")
    return found


def _levels(unet: Any) -> dict[str, int]:
    """Block -> how many halvings lie before its attention."""
    levels: dict[str, int] = {}
    level = 0
    for index, block in enumerate(unet.down_blocks):
        levels[f"down_blocks.{index}"] = level
        level += bool(getattr(block, "downsamplers", None))
    levels["mid_block"] = level
    for index, block in enumerate(unet.up_blocks):
        levels[f"up_blocks.{index}"] = level
        level -= bool(getattr(block, "upsamplers", None))
    return levels


def _kind(kind: str) -> Kind:
    return "cross" if kind == "cross" else "self"
