"""kohya's dialect, which every other tool reads: `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight`.

The scale is a tensor `.alpha`. A DoRA adds LyCORIS' `.dora_scale`, `[out, 1]` or `[out, 1, 1, 1]`. Text encoders are
`lora_te_` (SD1.x, SD2.x) or `lora_te1_` and `lora_te2_` (SDXL). For SDXL the UNet's names are LDM's, as sd-scripts writes
them; both are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import DoRAPatch, LoRAPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import (
    Dialect,
    FileContent,
    LayerCodec,
    Parts,
    Scale,
    decode_layers,
    encode_layers,
    group_by_layer,
)
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


def detect(keys: Collection[str]) -> bool:
    """Whether every key has one of kohya's prefixes."""
    return len(keys) > 0 and all(_KEY.fullmatch(key) for key in keys)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors; the metadata is not needed."""
    return decode_layers(group_by_layer(tensors, _parse), _CODECS, lambda path: Scale())


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Tensors with the names that files for `family` have."""
    prefixes = {facts.component: facts.kohya_prefix for facts in family.text_encoders}

    def key_of(path: ParameterPath) -> str:
        if path.component == "unet":
            return "lora_unet_" + underscored(ldm_name(path.module, family))
        if path.component not in prefixes:
            raise AdapterFileError(f"The adapter changes the {path.component}, which {family.title} does not have.")
        return f"{prefixes[path.component]}_{underscored(path.module)}"

    return FileContent(encode_layers(adapter, _CODECS, key_of), {})


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    dotted = dotted_unet_name(match[2]) if match[1] == "lora_unet" else dotted_text_encoder_name(match[2])
    return None if dotted is None else (ParameterPath(_COMPONENTS[match[1]], dotted), match[3])


def _decode_lora(parts: Parts, scale: Scale) -> LoRAPatch:
    down, up = parts[_DOWN], parts[_UP]
    if _ALPHA in parts and parts[_ALPHA].numel() != 1:
        raise AdapterFileError(f"an alpha has the shape {list(parts[_ALPHA].shape)} and should be one number.")
    return LoRAPatch(down, up, float(parts[_ALPHA]) if _ALPHA in parts else float(down.shape[0]))


def _encode_lora(patch: LoRAPatch) -> dict[str, Tensor]:
    # Readers compute alpha / rank, so an rsLoRA's alpha is written as alpha · √rank. An alpha always stays exact.
    return {_DOWN: patch.down, _UP: patch.up, _ALPHA: torch.tensor(patch.scale * patch.rank, dtype=torch.float32)}


def _decode_dora(parts: Parts, scale: Scale) -> DoRAPatch:
    magnitude = parts[_DORA_SCALE]
    if magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.numel() > 1:
        raise AdapterFileError("its DoRA scales input channels (LyCORIS' older `wd_on_output=False`), which cannot be read.")
    return DoRAPatch(_decode_lora(parts, scale), magnitude.flatten())


def _encode_dora(patch: DoRAPatch) -> dict[str, Tensor]:
    shape = (-1, *[1] * (patch.lora.down.ndim - 1))
    return {**_encode_lora(patch.lora), _DORA_SCALE: patch.magnitude.reshape(shape)}


_CODECS = (
    LayerCodec(LoRAPatch, frozenset({_DOWN, _UP}), frozenset({_ALPHA}), _decode_lora, _encode_lora),
    LayerCodec(DoRAPatch, frozenset({_DOWN, _UP, _DORA_SCALE}), frozenset({_ALPHA}), _decode_dora, _encode_dora),
)

KOHYA = Dialect("kohya", "kohya / sd-scripts", detect, read, write)
