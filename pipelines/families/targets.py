"""Regular expressions for groups of modules, shared by the families. All are meant for `re.fullmatch` on module paths."""

from __future__ import annotations

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
"""Query, key, value and output projections of self- and cross-attention: 128 modules on SD1.5, 560 on SDXL."""

FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
"""Both linear layers of each transformer block's feed-forward."""

PROJECTIONS = r".*\.attentions\.\d+\.proj_(in|out)"
"""Entry to and exit from each stack of transformer blocks (1×1 convolutions on SD1.5, linear on SD2 and SDXL)."""

RESNET_CONVOLUTIONS = r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut)"
"""The convolutions of the residual blocks."""

TEXT_ATTENTION = r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
"""Attention projections of a CLIP text encoder."""

TEXT_FEED_FORWARD = r".*\.mlp\.(fc1|fc2)"
"""Feed-forward layers of a CLIP text encoder."""


def any_of(*patterns: str) -> str:
    """One regular expression that matches whatever one of `patterns` matches."""
    return "|".join(f"(?:{pattern})" for pattern in patterns)
