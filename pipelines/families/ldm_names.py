"""Where the original LDM code keeps the modules that diffusers calls `down_blocks`, `mid_block` and `up_blocks`.

LDM numbers every layer of the way down (`input_blocks.0` is `conv_in`) and up in one row; inside a layer, `.0` is the
residual block, `.1` the attention, and the sampler comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_RESNET_PARTS = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)

_OUTER_PARTS = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)


def ldm_block_names(*, num_levels: int, layers_per_block: int, attention_levels: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Pairs (diffusers path prefix, LDM path prefix) for a UNet of the given structure.

    Args:
        num_levels: resolutions of the UNet (3 for SDXL, 4 for SD1.5).
        layers_per_block: residual blocks per level on the way down; one more on the way up.
        attention_levels: levels, 0 the finest, that have attention.
    """
    return tuple(_names(num_levels, layers_per_block, frozenset(attention_levels)))


def _names(num_levels: int, layers_per_block: int, attention_levels: frozenset[int]) -> Iterator[tuple[str, str]]:
    yield from _OUTER_PARTS
    row = 1
    for level in range(num_levels):
        for layer in range(layers_per_block):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{row}.0")
            if level in attention_levels:
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{row}.1"
            row += 1
        if level < num_levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{row}.0.op"
            row += 1

    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2")

    row = 0
    for block in range(num_levels):
        level = num_levels - 1 - block
        has_attention = level in attention_levels
        for layer in range(layers_per_block + 1):
            yield from _resnet(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{row}.0")
            if has_attention:
                yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{row}.1"
            if layer == layers_per_block and level > 0:
                sampler = 2 if has_attention else 1
                yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{row}.{sampler}.conv"
            row += 1


def _resnet(diffusers_path: str, ldm_path: str) -> Iterator[tuple[str, str]]:
    for diffusers_part, ldm_part in _RESNET_PARTS:
        yield f"{diffusers_path}.{diffusers_part}", f"{ldm_path}.{ldm_part}"
