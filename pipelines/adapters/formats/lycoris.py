"""LyCORIS' dialect: kohya's names with other kinds of layers, which ComfyUI and A1111 read.

* LoKr: `.lokr_w1`, or `.lokr_w1_a` and `_b`; `.lokr_w2`, or `.lokr_w2_a` and `_b`, with `.lokr_t2` in Tucker form. Its alpha
  counts for decomposed factors only. Written with full factors and alpha 1: A1111 fails on others, and so every reader agrees.
* LoHa: `.hada_w1_a`, `_b`, `.hada_w2_a`, `_b`, and the Tucker cores `.hada_t1` and `.hada_t2`.
* A full difference is `.diff` for a weight and `.diff_b` for a bias; LyCORIS calls those of a norm `.w_norm` and `.b_norm`.
* LoRA and DoRA layers beside them are as in kohya's dialect.

The decomposed kernel of a convolution is flat in a file, `[r, in · kh · kw]`; the layer's name tells that it is 3×3.

LyCORIS' wrapper and SimpleTuner write `lycoris_<path with underscores>` for a UNet's modules, which is read too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import Factor, FullPatch, KroneckerPatch, LoHaPatch, Patch
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
    alpha_of,
    alpha_tensor,
    kohya_key_of,
    parse_kohya_key,
    part_of,
)
from studio.pipelines.adapters.serialization.kohya_names import dotted_unet_name
from studio.pipelines.adapters.serialization.lokr_parts import LOKR_LAYOUTS, full_factors, lokr_factors, with_kernels
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
    layers = {path: with_kernels(path, parts) for path, parts in group_by_layer(tensors, _parse).items()}
    return decode_layers(layers, _CODECS, lambda path: Scale())


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


def _decode_lokr(parts: Parts, scale: Scale) -> KroneckerPatch:
    return KroneckerPatch(*lokr_factors(parts), alpha=alpha_of(parts))


def _encode_lokr(patch: KroneckerPatch) -> dict[str, Tensor]:
    return {**full_factors(patch), _ALPHA: alpha_tensor(1.0)}


def _decode_loha(parts: Parts, scale: Scale) -> LoHaPatch:
    first, second = (Factor(a=parts[f"hada_w{n}_a"], b=parts[f"hada_w{n}_b"], core=parts.get(f"hada_t{n}")) for n in (1, 2))
    return LoHaPatch(first, second, alpha=alpha_of(parts))


def _encode_loha(patch: LoHaPatch) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for number, factor in ((1, patch.first), (2, patch.second)):
        assert factor.a is not None and factor.b is not None
        parts |= {f"hada_w{number}_a": factor.a, f"hada_w{number}_b": factor.b.flatten(1)}
        if factor.core is not None:
            parts[f"hada_t{number}"] = factor.core
    return {**parts, _ALPHA: alpha_tensor(patch.scale * patch.rank)}


def _lokr_codecs() -> tuple[LayerCodec, ...]:
    return tuple(LayerCodec(KroneckerPatch, layout, frozenset({_ALPHA}), _decode_lokr, _encode_lokr) for layout in LOKR_LAYOUTS)


_LOHA_PARTS = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


def _full_codec(part: str, parameter: str) -> LayerCodec:
    def decode(parts: Parts, scale: Scale) -> FullPatch:
        return FullPatch(parts[part])

    def encode(patch: FullPatch) -> dict[str, Tensor]:
        return {part: patch.difference}

    # An alpha beside a difference means nothing: every reader takes the difference as it is.
    return LayerCodec(FullPatch, frozenset({part}), frozenset({_ALPHA}), decode, encode, parameter)


_CODECS = (
    *LORA_CODECS,
    *_lokr_codecs(),
    LayerCodec(LoHaPatch, _LOHA_PARTS, frozenset({_ALPHA}), _decode_loha, _encode_loha),
    LayerCodec(LoHaPatch, _LOHA_PARTS | {"hada_t1", "hada_t2"}, frozenset({_ALPHA}), _decode_loha, _encode_loha),
    _full_codec(_DIFF, "weight"),
    _full_codec(_DIFF_B, "bias"),
)

KINDS = frozenset({"lora", "dora", "full", "lokr", "loha"})
LYCORIS = Dialect("lycoris", "LyCORIS (kohya's names)", detect, read, write, kinds=KINDS)
