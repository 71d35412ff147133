"""What the kohya-named dialects share: keys `lora_unet_<path with underscores>.<part>`, and LoRA and DoRA layers."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from studio.pipelines.adapters.patches import DoRAPatch, LoRAPatch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import LayerCodec, Parts, Scale
from studio.pipelines.adapters.serialization.kohya_names import (
    dotted_text_encoder_name,
    dotted_unet_name,
    ldm_name,
    underscored,
)
from studio.pipelines.errors import AdapterFileError
from studio.pipelines.families import ModelFamily

_DOWN, _UP, _ALPHA, _DORA_SCALE = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"
_KEY = re.compile(r"(lora_unet|lora_te|lora_te1|lora_te2)_(\w+)\.([\w.]+)")
_COMPONENTS = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}


def part_of(key: str) -> str | None:
    """What follows the layer's name in a kohya key (`lora_down.weight`); None if it is no such key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[3]


def parse_kohya_key(key: str) -> tuple[ParameterPath, str] | None:
    """The layer that a key belongs to, as the path of its weight, and the part; None if no model has such a layer."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    dotted = dotted_unet_name(match[2]) if match[1] == "lora_unet" else dotted_text_encoder_name(match[2])
    return None if dotted is None else (ParameterPath(_COMPONENTS[match[1]], dotted), match[3])


def kohya_key_of(family: ModelFamily) -> Callable[[ParameterPath], str]:
    """A function from paths to layer names as files for `family` have them."""
    prefixes = {facts.component: facts.kohya_prefix for facts in family.text_encoders}

    def key_of(path: ParameterPath) -> str:
        if path.component == "unet":
            return "lora_unet_" + underscored(ldm_name(path.module, family))
        if path.component not in prefixes:
            raise AdapterFileError(f"The adapter changes the {path.component}, which {family.title} does not have.")
        return f"{prefixes[path.component]}_{underscored(path.module)}"

    return key_of


def alpha_of(parts: Parts) -> float | None:
    """The layer's alpha, if it has one; `AdapterFileError` if it is no single number."""
    if _ALPHA not in parts:
        return None
    if parts[_ALPHA].numel() != 1:
        raise AdapterFileError(f"an alpha has the shape {list(parts[_ALPHA].shape)} and should be one number.")
    return float(parts[_ALPHA])


def alpha_tensor(alpha: float) -> Tensor:
    """An alpha as files have it: float32, whatever type the other tensors are stored in, so that scales stay exact."""
    return torch.tensor(alpha, dtype=torch.float32)


def _decode_lora(parts: Parts, scale: Scale) -> LoRAPatch:
    down, up, alpha = parts[_DOWN], parts[_UP], alpha_of(parts)
    return LoRAPatch(down, up, float(down.shape[0]) if alpha is None else alpha)


def _encode_lora(patch: LoRAPatch) -> dict[str, Tensor]:
    # Readers compute alpha / rank, so an rsLoRA's alpha is written as alpha · √rank.
    return {_DOWN: patch.down, _UP: patch.up, _ALPHA: alpha_tensor(patch.scale * patch.rank)}


def _decode_dora(parts: Parts, scale: Scale) -> DoRAPatch:
    magnitude = parts[_DORA_SCALE]
    if magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.numel() > 1:
        raise AdapterFileError("its DoRA scales input channels (LyCORIS' older `wd_on_output=False`), which cannot be read.")
    return DoRAPatch(_decode_lora(parts, scale), magnitude.flatten())


def _encode_dora(patch: DoRAPatch) -> dict[str, Tensor]:
    shape = (-1, *[1] * (patch.lora.down.ndim - 1))
    return {**_encode_lora(patch.lora), _DORA_SCALE: patch.magnitude.reshape(shape)}


LORA_CODECS = (
    LayerCodec(LoRAPatch, frozenset({_DOWN, _UP}), frozenset({_ALPHA}), _decode_lora, _encode_lora),
    LayerCodec(DoRAPatch, frozenset({_DOWN, _UP, _DORA_SCALE}), frozenset({_ALPHA}), _decode_dora, _encode_dora),
)
"""LoRA and DoRA layers."""

LYCORIS_PARTS = ("lokr_", "hada_", "diff", "w_norm", "b_norm")
"""How the parts begin that kohya's own networks do not have and LyCORIS' have."""
