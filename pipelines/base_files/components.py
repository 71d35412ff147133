"""What every way of loading a base model returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from studio.pipelines.families import ModelFamily


@dataclass(frozen=True, kw_only=True)
class Components:
    """The loaded parts of a base model, and the files they came from.

    Attributes:
        text_encoders, tokenizers: in the family's order.
        zero_empty_negative: whether an empty negative prompt means features of zeros (SDXL's
            `force_zeros_for_empty_prompt`) instead of the encoded empty string.
        root_dir: folder that `weight_files` lie under.
    """

    family: ModelFamily
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    zero_empty_negative: bool
    root_dir: Path
    weight_files: tuple[Path, ...]
