"""LoHa: an element-wise product of two matrices of low rank (Hyeon-Woo et al. 2021, arXiv 2108.06098; LyCORIS).

ΔW = scale · (A₁B₁) ⊙ (A₂B₂), whose rank is up to r². The factors may also be in Tucker form (the paper's Proposition 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import prepared_for
from studio.pipelines.adapters.patches.factor import Factor, widest_type
from studio.pipelines.adapters.patches.full import dense_forward
from studio.pipelines.adapters.patches.lora import low_rank_forward
from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class LoHaPatch:
    """ΔW = scale · first ⊙ second, both decomposed.

    Attributes:
        first, second: both of the weight's shape, `[out, in]` or `[out, in, kh, kw]`.
        alpha: the scale is alpha / rank; None for 1.
    """

    kind: ClassVar[str] = "loha"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    first: Factor
    second: Factor
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.first.rank is None or self.second.rank is None:
            raise AdapterMismatchError("The two matrices of a LoHa are decomposed ones.")
        if self.first.shape != self.second.shape:
            raise AdapterMismatchError(
                f"The two matrices of a LoHa have one shape; got {list(self.first.shape)} and {list(self.second.shape)}."
            )

    @property
    def rank(self) -> int:
        """r of the first matrix, by which loaders scale."""
        assert self.first.rank is not None
        return self.first.rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def in_features(self) -> int:
        """Channels in of the layer it is for."""
        return self.weight_shape[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight it is for."""
        return self.first.shape

    def parameters(self) -> dict[str, Tensor]:
        """`first_a`, `first_b`, `second_a`, `second_b`, and the Tucker cores."""
        named = (("first", self.first), ("second", self.second))
        return {name + suffix: tensor for name, factor in named for suffix, tensor in factor.tensors().items()}

    def num_parameters(self) -> int:
        """2 · r · (in + out) for a linear layer."""
        return sum(tensor.numel() for tensor in self.parameters().values())

    def settings(self) -> dict[str, float | bool | str]:
        """The scale."""
        return {"scale": self.scale}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundLoHa:
        """Join with `weight`; factors of a 1×1 convolution fit a linear layer and the other way round."""
        out, inputs, *kernel = self.weight_shape
        same_kernel = tuple(kernel) == spec.weight_shape[2:] or {tuple(kernel), spec.weight_shape[2:]} == {(), (1, 1)}
        if spec.groups != 1 or (out, inputs) != (spec.out_features, spec.in_features) or not same_kernel:
            raise AdapterMismatchError(
                f"LoHa factors for a weight of shape {list(self.weight_shape)} do not fit one of shape {list(spec.weight_shape)}."
            )
        trains = any(tensor.requires_grad for tensor in self.parameters().values())
        bound = BoundLoHa(self, spec, None)
        return bound if trains else replace(bound, ready=tuple(prepared_for(each, weight) for each in bound.running_form()))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, first=self.first.to(device, dtype), second=self.second.to(device, dtype))


@dataclass(frozen=True, eq=False)
class BoundLoHa:
    """A LoHa on one layer; `ready` is its running form where and as the layer computes, if it does not train."""

    patch: LoHaPatch
    spec: LayerSpec
    ready: tuple[Tensor, ...] | None = field(repr=False)

    def delta(self) -> Tensor:
        """scale · first ⊙ second in the weight's shape."""
        wide = self.patch.to(dtype=widest_type(self.patch.parameters().values()))
        return (wide.scale * wide.first.value() * wide.second.value()).reshape(self.spec.weight_shape)

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """As a LoRA of rank r² while that is less work than the dense product; `base_out` is not read."""
        form = self.running_form() if self.ready is None else self.ready
        if len(form) == 1:
            return dense_forward(x, form[0], self.spec)
        down, up = form
        return low_rank_forward(x, down, up, self.patch.scale, self.spec)

    def running_form(self) -> tuple[Tensor, ...]:
        """(down, up) of the equal LoRA of rank r², or (ΔW,) where that has more numbers than ΔW, or for Tucker factors.

        Row (i, j) of down is B₁[i] ⊙ B₂[j], and column (i, j) of up A₁[:, i] ⊙ A₂[:, j].
        """
        first, second = self.patch.first, self.patch.second
        if first.core is not None or second.core is not None:
            return (self.delta(),)
        assert first.a is not None and first.b is not None and second.a is not None and second.b is not None
        shape = self.spec.weight_shape
        out, inputs = shape[0], torch.Size(shape[1:]).numel()
        rank = first.a.shape[1] * second.a.shape[1]
        if rank * (out + inputs) >= out * inputs:
            return (self.delta(),)
        down = (first.b.flatten(1)[:, None] * second.b.flatten(1)[None]).reshape(rank, *shape[1:])
        up = (first.a[:, :, None] * second.a[:, None, :]).reshape(out, rank, *[1] * (len(shape) - 2))
        return down, up
