"""The PEFT dialect, which diffusers reads and writes: `unet.<dotted path>.lora_A.weight`, `.lora_B.weight`.

A DoRA adds `.lora_magnitude_vector`. Scales stand in the header (`lora_adapter_metadata`); without it alpha = rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

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
from studio.pipelines.adapters.serialization.peft_config import PeftScales, peft_config
from studio.pipelines.families import ModelFamily

_A, _B, _MAGNITUDE, _ALPHA = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "alpha"
_KEY = re.compile(
    r"(unet|text_encoder|text_encoder_2)\.([\w.]+?)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector|alpha)(?:(?<=vector)\.weight)?"
)


def detect(keys: Collection[str]) -> bool:
    """Whether every key is a PEFT one."""
    return len(keys) > 0 and all(_parse(key) is not None for key in keys)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors and metadata."""
    return decode_layers(group_by_layer(tensors, _parse), _CODECS, PeftScales(metadata))


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Tensors and the metadata with the scales; the names are the same for every family."""
    tensors = encode_layers(adapter, _CODECS, lambda path: f"{path.component}.{path.module}")
    return FileContent({_as_read(key): tensor for key, tensor in tensors.items()}, peft_config(adapter))


def _as_read(key: str) -> str:
    """transformers, which loads the text encoders, wants `.weight` behind the magnitudes; PEFT writes none for the UNet."""
    return f"{key}.weight" if key.startswith("text_encoder") and key.endswith(_MAGNITUDE) else key


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    match = _KEY.fullmatch(key)
    return None if match is None else (ParameterPath(match[1], match[2]), match[3])


def _decode_lora(parts: Parts, scale: Scale) -> LoRAPatch:
    down, up = parts[_A], parts[_B]
    alpha = float(parts[_ALPHA]) if _ALPHA in parts else scale.alpha
    return LoRAPatch(down, up, float(down.shape[0]) if alpha is None else alpha, scale.use_rslora)


def _encode_lora(patch: LoRAPatch) -> dict[str, Tensor]:
    return {_A: patch.down, _B: patch.up}


def _decode_dora(parts: Parts, scale: Scale) -> DoRAPatch:
    return DoRAPatch(_decode_lora(parts, scale), parts[_MAGNITUDE].flatten())


def _encode_dora(patch: DoRAPatch) -> dict[str, Tensor]:
    # PEFT keeps a convolution's magnitudes as [1, out, 1, 1].
    shape = (1, -1, 1, 1) if patch.lora.down.ndim == 4 else (-1,)
    return {**_encode_lora(patch.lora), _MAGNITUDE: patch.magnitude.reshape(shape)}


_CODECS = (
    LayerCodec(LoRAPatch, frozenset({_A, _B}), frozenset({_ALPHA}), _decode_lora, _encode_lora),
    LayerCodec(DoRAPatch, frozenset({_A, _B, _MAGNITUDE}), frozenset({_ALPHA}), _decode_dora, _encode_dora),
)

PEFT = Dialect("peft", "PEFT / diffusers", detect, read, write)
