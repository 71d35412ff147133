"""Which attention layers' maps are read."""

from __future__ import annotations

from typing import Any

from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import AttentionLayer, attention_layers, layers_at

PIXELS_PER_CELL = 32
"""The side of a map's cell in CLoRA and LoRA-Composer: 16×16 at 512×512."""

LEAST_CELLS = 8
"""Fewer cells than this along the canvas's shorter side show no places."""

MOST_LAYERS = 12
"""SDXL has sixty layers at this size, of which a few, spread evenly, say the same."""


def map_layers(base: BaseModel, height: int, width: int, *, most: int = MOST_LAYERS) -> tuple[AttentionLayer, ...]:
    """The cross-attention layers with a place for 32×32 pixels; finer ones where the canvas is so small that this says little.

    Args:
        height, width: of the canvas, in pixels. most: layers at the most, spread evenly from input to output.
    """
    return _spread(layers_at(base.unet, map_level(base, height, width)), most)


def place_layers(base: BaseModel, height: int, width: int, *, most: int = MOST_LAYERS) -> tuple[AttentionLayer, ...]:
    """The self-attention layers on the same grid."""
    return _spread(layers_at(base.unet, map_level(base, height, width), "self"), most)


def map_level(base: BaseModel, height: int, width: int) -> int:
    """How often the latents are halved before these layers."""
    unet: Any = base.unet
    levels = sorted({layer.level for layer in attention_layers(unet) if layer.kind == "cross"}, reverse=True)
    factor = base.vae_scale_factor
    for level in levels:
        short = min(height, width) // factor // 2**level
        if factor * 2**level <= PIXELS_PER_CELL and short >= LEAST_CELLS:
            return level
    return levels[-1]


def map_grid(base: BaseModel, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the maps."""
    (first, *_) = layers_at(base.unet, map_level(base, height, width))
    return first.grid(height // base.vae_scale_factor, width // base.vae_scale_factor)


def _spread(layers: tuple[AttentionLayer, ...], most: int) -> tuple[AttentionLayer, ...]:
    if len(layers) <= most:
        return layers
    return tuple(layers[round(index * (len(layers) - 1) / max(1, most - 1))] for index in range(most))
