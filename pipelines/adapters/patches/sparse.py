"""A sparse change: some of a parameter's entries, and by how much (SaRA, Hu et al. 2025, arXiv 2409.06633)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from studio.kernels.sparse_index import indices_below
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import cast_like, prepared_for
from studio.pipelines.adapters.patches.full import dense_forward
from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class SparsePatch:
    """ΔW is `values` at `indices` and zero elsewhere.

    On the weight of a linear layer or a convolution it acts like every other patch. On a bias, or on a norm's or an
    embedding's parameter, it acts on whole batches only, as `patched` says of every patch there.

    Without `indices` it holds the rule instead, from which `bind` finds them in the base's own weight: those entries with
    |w| < threshold. `digest` then says whether they are the right ones.

    Attributes:
        values: `[k]`, the changes.
        shape: of the parameter.
        indices: `[k]` int32, sorted, flat positions in it; None to find them by the rule.
        threshold: θ of the rule, if the entries were chosen by one.
        digest: of the indices (`digest_of`).
        base: samples of the base's own values; `bind` refuses another base by them. None checks nothing.
    """

    kind: ClassVar[str] = "sparse"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    values: Tensor
    shape: tuple[int, ...]
    indices: Tensor | None
    threshold: float | None = None
    digest: str = ""
    base: BaseSamples | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise AdapterMismatchError(f"The values of a sparse change stand in a row; got the shape {list(self.values.shape)}.")
        if self.indices is None:
            if self.threshold is None or not self.digest:
                raise AdapterMismatchError("A sparse change without positions needs the rule to find them by, and their digest.")
            return
        if self.indices.shape != self.values.shape:
            raise AdapterMismatchError(f"A sparse change has {len(self.values)} values for {len(self.indices)} positions.")
        if self.indices.dtype is not torch.int32:
            raise AdapterMismatchError(f"The positions of a sparse change are int32 numbers; got {self.indices.dtype}.")
        if len(self.indices) and not (int(self.indices[0]) >= 0 and int(self.indices[-1]) < math.prod(self.shape)):
            raise AdapterMismatchError(f"A sparse change has positions outside of a parameter of shape {list(self.shape)}.")
        if bool((self.indices[1:] <= self.indices[:-1]).any()):
            raise AdapterMismatchError("The positions of a sparse change are not sorted, or one is there twice.")
        if not self.digest:
            object.__setattr__(self, "digest", digest_of(self.indices))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the parameter it is for."""
        return self.shape

    @property
    def in_features(self) -> int | None:
        """Channels in of the layer it is for; None for a bias or a norm."""
        return self.shape[1] if len(self.shape) > 1 else None

    def parameters(self) -> dict[str, Tensor]:
        """`values`."""
        return {"values": self.values}

    def num_parameters(self) -> int:
        """k."""
        return self.values.numel()

    def settings(self) -> dict[str, float | bool | str]:
        """Where the values belong; the same whether the positions are at hand or to be found by the rule."""
        return {"positions": self.digest, "size": str(math.prod(self.shape))}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundSparse:
        """Join with `weight`, which must be the base's own; also a copy of it in half precision."""
        if _without_1x1(self.shape) != _without_1x1(tuple(weight.shape)):
            raise AdapterMismatchError(
                f"A sparse change of a parameter of shape {list(self.shape)} does not fit one of shape {list(weight.shape)}."
            )
        if self.base is not None:
            self.base.require(weight)
        indices = self.indices if self.indices is not None else self._found_in(weight)
        return BoundSparse(self.values, indices.to(self.values.device), tuple(weight.shape), spec, weight)

    def with_indices(self, weight: Tensor) -> Self:
        """The same patch with its positions at hand, found in the base's `weight` if they were not; errors as in `bind`."""
        return self if self.indices is not None else replace(self, indices=self._found_in(weight).to(self.values.device))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere, or with its values in another type."""
        indices = None if self.indices is None else self.indices.to(device)
        return replace(self, values=self.values.to(device, dtype), indices=indices)

    def _found_in(self, weight: Tensor) -> Tensor:
        assert self.threshold is not None
        if weight.is_meta:
            raise AdapterMismatchError(
                "Its file has no positions; they are found in the base model's weights. Name the base model with --base."
            )
        if not weight.dtype.is_floating_point:
            raise AdapterMismatchError(
                "Its file has no positions, and they cannot be found in weights that are quantized. Export it with "
                "--format sparse and --base, which writes them."
            )
        indices = indices_below(weight, self.threshold)
        if len(indices) != len(self.values) or digest_of(indices) != self.digest:
            raise AdapterMismatchError(
                f"Its file has no positions, and the rule |w| < {self.threshold:g} finds others in this model than those "
                f"trained. Load the base model in the precision it was trained in (float32 on a CPU), or export the adapter "
                f"with --format sparse and --base, which writes the positions."
            )
        return indices


@dataclass(frozen=True, eq=False)
class BoundSparse:
    """A sparse change of one parameter."""

    values: Tensor
    indices: Tensor
    shape: tuple[int, ...]
    spec: LayerSpec
    weight: Tensor

    @property
    def folds_into_weight(self) -> bool:
        """Whether `patched` may add it to the weight once instead of to the output each time: not while it trains."""
        return not self.values.requires_grad

    def delta(self) -> Tensor:
        """The values in a tensor of zeros, float32 or wider."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        dense = values.new_zeros(math.prod(self.shape))
        return dense.index_put((self.indices.to(torch.int64),), values).view(self.shape)

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The layer's own operation with ΔW in the weight's place; `base_out` is not read.

        Unstructured sparsity of a few per cent gains nothing over a dense product; what does is to fold ΔW into the weight,
        and `patched` does so wherever the whole batch has the same strength.
        """
        delta = self._ready if not self.values.requires_grad else self.delta()
        return dense_forward(x, cast_like(delta, x), self.spec)

    @cached_property
    def _ready(self) -> Tensor:
        return prepared_for(self.delta(), self.weight)


def digest_of(indices: Tensor) -> str:
    """16 hex digits of the SHA-256 of the positions as little-endian int32."""
    content = indices.detach().to(device="cpu", dtype=torch.int32).contiguous().numpy().astype("<i4").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _without_1x1(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
