"""A Kronecker product as the change: ΔW = scale · (A ⊗ B), with A and B full or themselves decomposed (LoKr).

DiffuseKronA (Marjit et al. 2025, arXiv 2402.17412) with full factors of any shape; LoKr (Yeh et al. 2024, arXiv 2309.14859)
with full ones, or with factors of low rank or in Tucker form. This is the true Kronecker product, element
[i·b_out + r, j·b_in + q] = A[i, j] · B[r, q]; DiffuseKronA's published code shuffles the rows (see the reader of its files).

The dense ΔW is never made to run a layer: see `studio.kernels.kronecker`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from studio.kernels.kronecker import kronecker_conv2d, kronecker_linear, kronecker_linear_added
from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import cast_like, prepared_for
from studio.pipelines.adapters.patches.factor import Factor, widest_type
from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class KroneckerPatch:
    """ΔW = scale · (A ⊗ B).

    Attributes:
        first: A, `[a_out, a_in]`. second: B, `[b_out, b_in]`, or `[b_out, b_in, kh, kw]` for a convolution.
        alpha: numerator of the scale, which counts for decomposed factors only; None for scale 1.
        interleaved: the rows lie as DiffuseKronA's published code computes them: output channel s·b_out + r of A ⊗ B is
            channel r·a_out + s. That is no Kronecker product of two factors any more, so such a patch is no LoKr.
    """

    kind: ClassVar[str] = "lokr"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    first: Factor
    second: Factor
    alpha: float | None = None
    interleaved: bool = False

    def __post_init__(self) -> None:
        if len(self.first.shape) != 2:
            raise AdapterMismatchError(f"The first Kronecker factor is a matrix; got {list(self.first.shape)}.")

    @property
    def rank(self) -> int | None:
        """Rank of the decomposed factor, the second one's if both are; None with full factors."""
        return self.first.rank if self.second.rank is None else self.second.rank

    @property
    def scale(self) -> float:
        """What A ⊗ B is multiplied by at strength 1: alpha / rank, and 1 with full factors, as every loader has it."""
        return 1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank

    @property
    def factors(self) -> tuple[int, int]:
        """(a_out, a_in)."""
        a_out, a_in = self.first.shape
        return a_out, a_in

    @property
    def in_features(self) -> int:
        """Channels in of the layer it is for."""
        return self.weight_shape[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight it is for."""
        (a_out, a_in), (b_out, b_in, *kernel) = self.first.shape, self.second.shape
        return (a_out * b_out, a_in * b_in, *kernel)

    def parameters(self) -> dict[str, Tensor]:
        """`first` and `second`, or with `_a`, `_b` and `_core` behind them."""
        named = (("first", self.first), ("second", self.second))
        return {name + suffix: tensor for name, factor in named for suffix, tensor in factor.tensors().items()}

    def num_parameters(self) -> int:
        """a_out · a_in + b_out · b_in for a linear layer and full factors."""
        return sum(tensor.numel() for tensor in self.parameters().values())

    def settings(self) -> dict[str, float | bool | str]:
        """The scale, and how the rows lie."""
        return {"scale": self.scale, **({"interleaved": True} if self.interleaved else {})}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundKronecker:
        """Join with `weight`; factors of a 1×1 convolution fit a linear layer and the other way round."""
        if spec.groups != 1:
            raise AdapterMismatchError(f"A Kronecker product cannot act on a convolution of {spec.groups} groups.")
        out, inputs, *kernel = self.weight_shape
        same_kernel = tuple(kernel) == spec.weight_shape[2:] or {tuple(kernel), spec.weight_shape[2:]} == {(), (1, 1)}
        if (out, inputs) != (spec.out_features, spec.in_features) or not same_kernel:
            raise AdapterMismatchError(
                f"Kronecker factors {list(self.first.shape)} and {list(self.second.shape)}, which make a weight of shape "
                f"{list(self.weight_shape)}, do not fit one of shape {list(spec.weight_shape)}."
            )
        trains = any(tensor.requires_grad for tensor in self.parameters().values())
        ready = None if trains else tuple(prepared_for(value, weight) for value in _values(self))
        return BoundKronecker(self, spec, ready)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, first=self.first.to(device, dtype), second=self.second.to(device, dtype))


@dataclass(frozen=True, eq=False)
class BoundKronecker:
    """A Kronecker product on one layer; `ready` are scale · A and B where and as the layer computes, if they do not train."""

    patch: KroneckerPatch
    spec: LayerSpec
    ready: tuple[Tensor, ...] | None = field(repr=False)

    def delta(self) -> Tensor:
        """scale · (A ⊗ B) in the weight's shape."""
        wide = self.patch.to(dtype=widest_type(self.patch.parameters().values()))
        first, second = _values(wide)
        product = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)
        return self._in_order(product, 0).reshape(self.spec.weight_shape)

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The layer's operation with scale · (A ⊗ B) in the weight's place, without making it; `base_out` is not read."""
        first, second = (cast_like(value, x) for value in (_values(self.patch) if self.ready is None else self.ready))
        spec = self.spec
        if spec.kind == "linear":
            return self._in_order(kronecker_linear(x, first, second.flatten(1)), spec.channel_axis)
        kernel = second if second.ndim == 4 else second[:, :, None, None]
        result = kronecker_conv2d(x, first, kernel, spec.stride, spec.padding, spec.dilation)
        return self._in_order(result, spec.channel_axis)

    def added_to(self, output: Tensor, x: Tensor, factor: float) -> Tensor:
        """output + factor · scale · (A ⊗ B) x for a linear layer, without a pass of its own for the sum."""
        if self.patch.interleaved:
            return torch.add(output, self.forward_delta(x, output), alpha=factor)
        first, second = (cast_like(value, x) for value in (_values(self.patch) if self.ready is None else self.ready))
        return kronecker_linear_added(output, x, first, second.flatten(1), factor)

    def _in_order(self, product: Tensor, axis: int) -> Tensor:
        """`product`, whose `axis` has the output channels in A ⊗ B's order, with them in the patch's."""
        if not self.patch.interleaved:
            return product
        groups = product.unflatten(axis, (self.patch.first.shape[0], self.patch.second.shape[0]))
        axis = axis % product.ndim
        return groups.transpose(axis, axis + 1).flatten(axis, axis + 1)


def _values(patch: KroneckerPatch) -> tuple[Tensor, Tensor]:
    """scale · A and B: the scale goes to the small one."""
    first = patch.first.value()
    return (first if patch.scale == 1.0 else patch.scale * first), patch.second.value()
