"""Checkpoints of DiffuseKronA's published code (github.com/IBM/DiffuseKronA): read only.

Their keys are those of a LoRA in diffusers up to 0.21, `unet.<…>.attn1.processor.to_q_lora.down.weight`, so nothing but the
shapes tells them apart, and other tools fail on them: `down` is D `[a_in, a_out]`, `up` is B `[b_out, b_in]`.

What that code computes is not the paper's Kronecker product. Its output channel r·a_out + s is the channel s·b_out + r of
Dᵀ ⊗ B: the rows are shuffled (found by running it, and compared number by number in the tests). That is what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from studio.pipelines.adapters.patches import Factor, KroneckerPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import (
    Dialect,
    LayerCodec,
    Parts,
    Scale,
    Shapes,
    decode_layers,
    group_by_layer,
)
from studio.pipelines.adapters.serialization.old_attention_processors import has_kronecker_shapes
from studio.pipelines.errors import AdapterFileError

_KEY = re.compile(
    r"(?:unet\.)?((?:down_blocks|mid_block|up_blocks)\.[\w.]+?\.attn[12])\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight"
)


def detect(shapes: Shapes) -> bool:
    """Whether every key is one of such a checkpoint, and some layer's shapes cannot be those of a LoRA."""
    return all(_KEY.fullmatch(key) for key in shapes) and has_kronecker_shapes(shapes)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors; the code has no scale."""
    return decode_layers(group_by_layer(tensors, _parse), _CODECS, lambda path: Scale())


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    leaf = "to_out.0" if match[2] == "out" else f"to_{match[2]}"
    return ParameterPath("unet", f"{match[1]}.{leaf}"), match[3]


def _decode(parts: Parts, scale: Scale) -> KroneckerPatch:
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2:
        raise AdapterFileError(f"DiffuseKronA's factors are matrices; got {list(down.shape)} and {list(up.shape)}.")
    return KroneckerPatch(Factor(down.T.contiguous()), Factor(up), interleaved=True)


def _never(patch: KroneckerPatch) -> dict[str, Tensor]:
    raise AssertionError("this dialect is only read")


_CODECS = (LayerCodec(KroneckerPatch, frozenset({"down", "up"}), frozenset(), _decode, _never),)

DIFFUSEKRONA = Dialect("diffusekrona", "DiffuseKronA's published code", detect, read, kinds=frozenset({"lokr"}))
