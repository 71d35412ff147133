"""The tensors of a LoKr layer, as LyCORIS named them and PEFT took over."""

from __future__ import annotations

import re

from torch import Tensor

from studio.pipelines.adapters.patches import Factor, KroneckerPatch
from studio.pipelines.adapters.patches.base import at_least_float32
from studio.pipelines.adapters.patches.factor import widest_type
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import Parts
from studio.pipelines.errors import AdapterFileError

_FLAT_KERNELS = ("lokr_w2_b", "hada_w1_b", "hada_w2_b")
_TUCKER_CORES = ("lokr_t2", "hada_t1", "hada_t2")
_LAYERS_3X3 = re.compile(r"(.*\.)?(conv|conv1|conv2|conv_in|conv_out)")
_FIRSTS = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_SECONDS = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))

LOKR_LAYOUTS: tuple[frozenset[str], ...] = tuple(frozenset(first + second) for first in _FIRSTS for second in _SECONDS)
"""Which parts a LoKr layer has: each factor in full or decomposed; the first of them has both in full."""


def with_kernels(path: ParameterPath, parts: Parts) -> dict[str, Tensor]:
    """The parts of a layer, with the decomposed kernels of a 3×3 convolution as kernels.

    Files have them flat, `[r, in · 9]`. Every convolution of these names is 3×3 in every model the studio runs.
    """
    if not _LAYERS_3X3.fullmatch(path.module) or any(core in parts for core in _TUCKER_CORES):
        return dict(parts)

    def kernel(part: str, tensor: Tensor) -> Tensor:
        is_flat = part in _FLAT_KERNELS and tensor.ndim == 2 and tensor.shape[1] % 9 == 0
        return tensor.reshape(tensor.shape[0], -1, 3, 3) if is_flat else tensor

    return {part: kernel(part, tensor) for part, tensor in parts.items()}


def lokr_factors(parts: Parts) -> tuple[Factor, Factor]:
    """A and B of a layer that has one of `LOKR_LAYOUTS`."""
    first, second = (
        Factor(parts.get(name), parts.get(f"{name}_a"), parts.get(f"{name}_b"), core)
        for name, core in (("lokr_w1", None), ("lokr_w2", parts.get("lokr_t2")))
    )
    return first, second


def full_factors(patch: KroneckerPatch) -> dict[str, Tensor]:
    """Parts with both factors in full and the scale inside the second, as ΔW = w1 ⊗ w2.

    Raises:
        AdapterFileError: its rows lie as DiffuseKronA's published code has them, so it is no Kronecker product.
    """
    if patch.interleaved:
        raise AdapterFileError(
            "The adapter was trained by DiffuseKronA's published code, whose change is a Kronecker product with shuffled rows, "
            "so no LoKr file can hold it. Export --format lora, which is exact without --rank and --energy, or --format diff."
        )
    first, second = _in_full(patch.first), _in_full(patch.second)
    return {"lokr_w1": first, "lokr_w2": second if patch.scale == 1.0 else patch.scale * at_least_float32(second)}


def _in_full(factor: Factor) -> Tensor:
    if factor.full is not None:
        return factor.full
    return factor.to(dtype=widest_type(factor.tensors().values())).value()
