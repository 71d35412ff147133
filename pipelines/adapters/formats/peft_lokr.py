"""PEFT's LoKr, which diffusers loads into a UNet: `unet.<dotted path>.lokr_w1`, `.lokr_w2`, or their decompositions.

Load it with `pipe.unet.load_lora_adapter(folder, weight_name=…, prefix="unet")`; the pipelines of SD and SDXL refuse LoKr. (A
state dict instead of a folder does too, but for convolutions, whose configuration diffusers 0.42 fails to guess.)

PEFT makes both sides of its first factor with one number, `decompose_factor`, so that factor is square in every layer of a
file, and the same everywhere. Other shapes are refused on writing. PEFT scales by alpha / r also with full factors; both
stand in the header (`lora_adapter_metadata`, a LoKrConfig), and without it the scale is 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import Factor, KroneckerPatch, Patch
from studio.pipelines.adapters.patches.base import at_least_float32
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
from studio.pipelines.adapters.serialization.lokr_parts import LOKR_LAYOUTS, full_factors, lokr_factors, with_kernels
from studio.pipelines.adapters.serialization.peft_config import PeftLoKrScales, lokr_config
from studio.pipelines.errors import AdapterFileError
from studio.pipelines.families import ModelFamily

_KEY = re.compile(r"(unet|text_encoder|text_encoder_2)\.([\w.]+?)\.(lokr_w[12](?:_[ab])?|lokr_t2)")


def detect(keys: Collection[str]) -> bool:
    """Whether every key is one of PEFT's LoKr."""
    return len(keys) > 0 and all(_parse(key) is not None for key in keys)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors and, if there is one, PEFT's configuration in its metadata."""
    scales = PeftLoKrScales(metadata)
    layers = {path: with_kernels(path, parts) for path, parts in group_by_layer(tensors, _parse).items()}
    return decode_layers(layers, _CODECS, lambda path: Scale(alpha=scales(path)))


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Tensors with full factors, and the configuration with which PEFT makes the same ones."""
    factor = _common_factor(adapter)
    tensors = encode_layers(adapter, _CODECS, lambda path: f"{path.component}.{path.module}")
    # A rank of this size makes PEFT take full factors everywhere, and alpha = rank is scale 1.
    rank = max((max(tensor.shape) for tensor in tensors.values()), default=1)
    return FileContent(tensors, lokr_config(adapter, factor, rank))


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    match = _KEY.fullmatch(key)
    return None if match is None else (ParameterPath(match[1], match[2]), match[3])


def _common_factor(adapter: Adapter) -> int:
    """The side of the first factor; `AdapterFileError` with the remedy if PEFT could not make all layers with it."""
    products = {path: patch for path, patch in adapter.patches.items() if isinstance(patch, KroneckerPatch)}
    for path, patch in products.items():
        full_factors(patch)  # raises for shuffled rows
        if path.component != "unet":
            raise AdapterFileError(f"diffusers loads LoKr into the UNet only, and the adapter changes {path}; {_REMEDY}.")
        out, inputs = patch.factors
        if out != inputs:
            raise AdapterFileError(
                f"PEFT and diffusers load LoKr with a square first factor only, and that of {path} is {out}×{inputs}; {_REMEDY}."
            )
    sizes = sorted({patch.factors[0] for patch in products.values()})
    if len(sizes) > 1:
        raise AdapterFileError(
            f"PEFT and diffusers load LoKr with one size of the first factor, and this adapter has several: "
            f"{', '.join(f'{size}×{size}' for size in sizes)}; {_REMEDY}."
        )
    return sizes[0] if sizes else 1


_REMEDY = "export --format lokr for ComfyUI and A1111, or --format lora, which loads everywhere"


def _decode(parts: Parts, scale: Scale) -> KroneckerPatch:
    first, second = lokr_factors(parts)
    factor = 1.0 if scale.alpha is None else scale.alpha
    rank = first.rank if second.rank is None else second.rank
    if rank is not None:
        return KroneckerPatch(first, second, alpha=factor * rank)
    if factor != 1.0:
        assert second.full is not None
        second = Factor(factor * at_least_float32(second.full))
    return KroneckerPatch(first, second)


_CODECS = tuple(LayerCodec(KroneckerPatch, layout, frozenset(), _decode, full_factors) for layout in LOKR_LAYOUTS)

PEFT_LOKR = Dialect("peft-lokr", "PEFT / diffusers LoKr", detect, read, write, kinds=frozenset({"lokr"}), option="peft")
