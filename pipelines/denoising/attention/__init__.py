"""What happens in a UNet's attention: maps that are read, regions with words of their own, places that do not see each other."""

from __future__ import annotations

from studio.pipelines.denoising.attention.backend import check_attention
from studio.pipelines.denoising.attention.capture import AttentionMaps, Capture, token_columns
from studio.pipelines.denoising.attention.control import AttentionControl, attention_control
from studio.pipelines.denoising.attention.layers import AttentionLayer, attention_layers, last_part, layers_at
from studio.pipelines.denoising.attention.regions import Isolation, Region

__all__ = [
    "AttentionControl",
    "AttentionLayer",
    "AttentionMaps",
    "Capture",
    "Isolation",
    "Region",
    "attention_control",
    "attention_layers",
    "check_attention",
    "last_part",
    "layers_at",
    "token_columns",
]
