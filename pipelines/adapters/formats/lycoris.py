"""LyCORIS' dialect: kohya's names with other kinds of layers, which ComfyUI and A1111 read.

* A full difference is `.diff` for a weight and `.diff_b` for a bias; LyCORIS calls those of a norm `.w_norm` and `.b_norm`.
* LoRA and DoRA layers beside them are as in kohya's dialect.

LyCORIS' wrapper and SimpleTuner write `lycoris_<path with underscores>` for a UNet's modules, which is read too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import FullPatch, Patch
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
from studio.pipelines.adapters.serialization.kohya_layers import (
    LORA_CODECS,
    LYCORIS_PARTS,
    kohya_key_of,
    parse_kohya_key,
    part_of,
)
from studio.pipelines.adapters.serialization.kohya_names import dotted_unet_name
from studio.pipelines.families import ModelFamily

_DIFF, _DIFF_B, _ALPHA = "diff", "diff_b", "alpha"
_NORM_PARTS = {"w_norm": _DIFF, "b_norm": _DIFF_B}
_WRAPPER_KEY = re.compile(r"lycoris_(\w+)\.([\w.]+)")


def detect(keys: Collection[str]) -> bool:
    """Whether every key has one of kohya's prefixes or LyCORIS' own, and at least one is of a kind that kohya has not."""
    parts = [part_of(key) for key in keys]
    if any(part is None and _parse_wrapper_key(key) is None for key, part in zip(keys, parts, strict=True)):
        return False
    return any(part is None or part.startswith(LYCORIS_PARTS) for part in parts)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors; the metadata is not needed."""
    return decode_layers(group_by_layer(tensors, _parse), _CODECS, lambda path: Scale())


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Tensors with the names that kohya's files for `family` have."""
    return FileContent(encode_layers(adapter, _CODECS, kohya_key_of(family)), {})


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    parsed = parse_kohya_key(key) if part_of(key) is not None else _parse_wrapper_key(key)
    if parsed is None:
        return None
    path, part = parsed[0], _NORM_PARTS.get(parsed[1], parsed[1])
    return (path._replace(parameter="bias"), part) if part == _DIFF_B else (path, part)


def _parse_wrapper_key(key: str) -> tuple[ParameterPath, str] | None:
    match = _WRAPPER_KEY.fullmatch(key)
    dotted = None if match is None else dotted_unet_name(match[1])
    return None if match is None or dotted is None else (ParameterPath("unet", dotted), match[2])


def _full_codec(part: str, parameter: str) -> LayerCodec:
    def decode(parts: Parts, scale: Scale) -> FullPatch:
        return FullPatch(parts[part])

    def encode(patch: FullPatch) -> dict[str, Tensor]:
        return {part: patch.difference}

    # An alpha beside a difference means nothing: every reader takes the difference as it is.
    return LayerCodec(FullPatch, frozenset({part}), frozenset({_ALPHA}), decode, encode, parameter)


_CODECS = (*LORA_CODECS, _full_codec(_DIFF, "weight"), _full_codec(_DIFF_B, "bias"))

LYCORIS = Dialect("lycoris", "LyCORIS (kohya's names)", detect, read, write)
