"""From kohya's underscored module names back to dotted paths, exactly.

`down_blocks_0_attentions_1_proj_in` could be split in many ways; only the grammar of the models says which underscores
were dots. The grammar covers every UNet2DConditionModel made of residual and cross-attention blocks (the embedded model,
SD1.x, SD2.x, SDXL) at any depth, and CLIP text encoders. The original LDM names are a table for each family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from studio.pipelines.families import SDXL, ModelFamily
from studio.pipelines.families.ldm_names import ldm_block_names

_ATTENTION_LEAVES = (
    "norm",
    "proj_in",
    "proj_out",
    *(f"transformer_blocks.#.norm{n}" for n in (1, 2, 3)),
    *(f"transformer_blocks.#.attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.#.ff.net.0.proj",
    "transformer_blocks.#.ff.net.2",
)
_RESNET_LEAVES = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_BLOCKS = ("down_blocks.#", "mid_block", "up_blocks.#")
_UNET = (
    *("conv_in", "conv_norm_out", "conv_out"),
    *(f"{part}_embedding.linear_{n}" for part in ("time", "add") for n in (1, 2)),
    *(f"{block}.attentions.#.{leaf}" for block in _BLOCKS for leaf in _ATTENTION_LEAVES),
    *(f"{block}.resnets.#.{leaf}" for block in _BLOCKS for leaf in _RESNET_LEAVES),
    "down_blocks.#.downsamplers.#.conv",
    "up_blocks.#.upsamplers.#.conv",
)
_TEXT_ENCODER = (
    *(f"text_model.encoder.layers.#.self_attn.{leaf}_proj" for leaf in ("q", "k", "v", "out")),
    *(f"text_model.encoder.layers.#.mlp.fc{n}" for n in (1, 2)),
    *(f"text_model.encoder.layers.#.layer_norm{n}" for n in (1, 2)),
    *(f"text_model.embeddings.{leaf}_embedding" for leaf in ("token", "position")),
    "text_model.final_layer_norm",
    "text_projection",
)


def underscored(dotted: str) -> str:
    """The name without dots, as kohya writes it."""
    return dotted.replace(".", "_")


def dotted_unet_name(name: str) -> str | None:
    """The UNet module that kohya calls `name`, in diffusers' or in LDM's way; None if no model has it."""
    own = _dotted(name, _UNET)
    return own if own is not None else _from_ldm(name)


def dotted_text_encoder_name(name: str) -> str | None:
    """The canonical text-encoder module that kohya calls `name`; None if no model has it."""
    return _dotted(name, _TEXT_ENCODER)


def ldm_name(dotted: str, family: ModelFamily) -> str:
    """The original LDM path of a UNet module of `family`; the path itself where the family's files use diffusers' names."""
    for ours, theirs in family.kohya_names:
        if dotted == ours or dotted.startswith(f"{ours}."):
            return theirs + dotted[len(ours) :]
    return dotted


def _dotted(name: str, grammar: Sequence[str]) -> str | None:
    for regex, template in _compiled(tuple(grammar)):
        match = regex.fullmatch(name)
        if match is not None:
            return template.replace("#", "{}").format(*match.groups())
    return None


@cache
def _compiled(grammar: tuple[str, ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(underscored(template).replace("#", r"(0|[1-9]\d{0,3})")), template) for template in grammar)


def _from_ldm(name: str) -> str | None:
    for theirs, ours in _ldm_table():
        if name == theirs and ".attentions." not in ours:
            return ours
        if ".attentions." in ours and name.startswith(f"{theirs}_"):
            leaf = _dotted(name[len(theirs) + 1 :], _ATTENTION_LEAVES)
            if leaf is not None:
                return f"{ours}.{leaf}"
    return None


@cache
def _ldm_table() -> tuple[tuple[str, str], ...]:
    """(LDM name with underscores, diffusers path) of SDXL and of SD1/SD2, which agree wherever both have a name."""
    sd1 = ldm_block_names(num_levels=4, layers_per_block=2, attention_levels=(0, 1, 2))
    return tuple(_unique((underscored(theirs), ours) for ours, theirs in (*SDXL.kohya_names, *sd1)))


def _unique(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return dict.fromkeys(pairs)
