"""Telling the family of a base model from its components' configs, and the axis of a module from its path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from studio.pipelines.errors import BaseModelError, UserError
from studio.pipelines.families.embedded import EMBEDDED
from studio.pipelines.families.family import ModelFamily
from studio.pipelines.families.sd2 import SD2
from studio.pipelines.families.sd15 import SD15
from studio.pipelines.families.sdxl import SDXL

FAMILIES: tuple[ModelFamily, ...] = (EMBEDDED, SD15, SD2, SDXL)

ModuleAxis = Literal["spatial", "text", "global"]

_TEXT_MODULE = re.compile(r"(?:.*\.)?attn2\.to_[kv]")
_GLOBAL_MODULE = re.compile(r"(?:.*\.)?time_emb_proj|(?:time_embedding|add_embedding|class_embedding)\..*")


def family_named(name: str) -> ModelFamily:
    """The family called `name`; `UserError` with the nearest name otherwise."""
    for family in FAMILIES:
        if family.name == name:
            return family
    names = [family.name for family in FAMILIES]
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"There is no model family {name!r}{hint} The families are: {', '.join(names)}.")


def detect_family(unet_config: Mapping[str, Any], text_encoder_configs: Sequence[Mapping[str, Any]] = ()) -> ModelFamily:
    """The family that a UNet's config belongs to, by structure and not by size.

    Args:
        unet_config: content of `unet/config.json`.
        text_encoder_configs: contents of the text encoders' `config.json`, in order; empty if not at hand.

    Raises:
        BaseModelError: for inpainting, refiner and other UNets whose inputs the studio does not supply.
    """
    in_channels = unet_config.get("in_channels", 4)
    if unet_config.get("addition_embed_type") == "text_time":
        family = SDXL
    elif in_channels == EMBEDDED.latent_channels:
        family = EMBEDDED
    elif unet_config.get("use_linear_projection"):
        family = SD2
    else:
        family = SD15
    if in_channels != family.latent_channels:
        raise BaseModelError(
            f"The UNet takes {in_channels} input channels and a text-to-image model of {family.title} takes "
            f"{family.latent_channels}: it is an inpainting, editing or depth model. Use the plain text-to-image model."
        )
    if text_encoder_configs and len(text_encoder_configs) != len(family.text_encoders):
        raise BaseModelError(
            f"{family.title} has {len(family.text_encoders)} text encoders and this model has "
            f"{len(text_encoder_configs)}; an SDXL refiner or a model without its text encoders cannot be a base."
        )
    return family


def module_axis(path: str) -> ModuleAxis:
    """What the positions of a UNet module's output stand for.

    "text": one per token (keys and values of cross-attention); "global": none, one vector per picture (time, size and
    pooled-text embeddings); "spatial": one per place in the picture (all the rest).
    """
    if _TEXT_MODULE.fullmatch(path):
        return "text"
    if _GLOBAL_MODULE.fullmatch(path):
        return "global"
    return "spatial"
