"""LoRA: a change of low rank (Hu et al. 2021, arXiv 2106.09685), for linear layers and convolutions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import at_least_float32, cast_like, prepared_for
from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class LoRAPatch:
    """ΔW = scale · up · down, of rank r.

    Attributes:
        down: `[r, in]`, or `[r, in, kh, kw]` for a convolution, which runs with the layer's stride and padding.
        up: `[out, r]`, or `[out, r, 1, 1]`.
        alpha: numerator of the scale.
        use_rslora: scale = alpha / √r (Kalajdzievski 2023, arXiv 2312.03732) instead of alpha / r.
    """

    kind: ClassVar[str] = "lora"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    down: Tensor
    up: Tensor
    alpha: float
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim not in (2, 4):
            raise AdapterMismatchError(
                f"LoRA factors are matrices or 4-dimensional; got {list(self.down.shape)} and {list(self.up.shape)}."
            )
        if self.down.shape[0] != self.up.shape[1] or self.down.shape[0] == 0 or self.up[0, 0].numel() != 1:
            raise AdapterMismatchError(
                f"LoRA factors [r, in, …] and [out, r] do not fit together: {list(self.down.shape)} and {list(self.up.shape)}."
            )

    @property
    def rank(self) -> int:
        """r, the common size of both factors."""
        return self.down.shape[0]

    @property
    def in_features(self) -> int:
        """Channels in of the layer it is for."""
        return self.down.shape[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight it is for: `[out, in]` or `[out, in, kh, kw]`."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def scale(self) -> float:
        """What up · down is multiplied by at strength 1."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    def parameters(self) -> dict[str, Tensor]:
        """`down` and `up`."""
        return {"down": self.down, "up": self.up}

    def num_parameters(self) -> int:
        """r · (in + out) for a linear layer."""
        return self.down.numel() + self.up.numel()

    def settings(self) -> dict[str, float | bool | str]:
        """The scale: alpha and the rank's root tell no more."""
        return {"scale": self.scale}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundLoRA:
        """Join with `weight`; factors of a 1×1 convolution fit a linear layer and the other way round."""
        down, up = factors_for(spec, self.down, self.up)
        return BoundLoRA(down, up, self.scale, spec, prepared_for(down, weight), prepared_for(up, weight))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True, eq=False)
class BoundLoRA:
    """A LoRA on one layer; `ready_*` are the factors where and as the layer computes, if they do not train."""

    down: Tensor
    up: Tensor
    scale: float
    spec: LayerSpec
    ready_down: Tensor = field(repr=False)
    ready_up: Tensor = field(repr=False)

    def delta(self) -> Tensor:
        """scale · up · down in the weight's shape."""
        product = at_least_float32(self.up).flatten(1) @ at_least_float32(self.down).flatten(1)
        return (self.scale * product).reshape(self.spec.weight_shape)

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """scale · up(down(x)); `base_out` is not read."""
        return low_rank_forward(x, self.ready_down, self.ready_up, self.scale, self.spec)

    def added_to(self, output: Tensor, x: Tensor, factor: float) -> Tensor:
        """output + factor · scale · up(down(x)) for a linear layer: the sum and both factors are part of the second product."""
        down, up = cast_like(self.ready_down, x), cast_like(self.ready_up, x)
        inner = F.linear(x, down).flatten(0, -2)
        return torch.addmm(output.flatten(0, -2), inner, up.t(), alpha=self.scale * factor).view(output.shape)


def factors_for(spec: LayerSpec, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The factors in the number of dimensions that the layer has; `AdapterMismatchError` if they do not fit it."""
    rank = down.shape[0]
    wanted_down = (rank, *spec.weight_shape[1:])
    wanted_up = (spec.out_features, rank, 1, 1)[: len(wanted_down)]
    if spec.groups != 1:
        raise AdapterMismatchError(f"A LoRA cannot act on a convolution of {spec.groups} groups.")
    same_size = down.numel() == _size(wanted_down) and up.numel() == _size(wanted_up)
    same_kernel = down.shape[2:] in ((), torch.Size(spec.kernel)) and down.shape[1] == spec.in_features
    if not (same_size and same_kernel and up.shape[0] == spec.out_features):
        raise AdapterMismatchError(
            f"LoRA factors {list(down.shape)} and {list(up.shape)} do not fit a weight of shape {list(spec.weight_shape)}."
        )
    return down.reshape(wanted_down), up.reshape(wanted_up)


def low_rank_forward(x: Tensor, down: Tensor, up: Tensor, scale: float, spec: LayerSpec) -> Tensor:
    """scale · up(down(x)) in the type of `x`: two linear layers, or a k×k convolution and a 1×1 one."""
    down, up = cast_like(down, x), cast_like(up, x)
    if spec.kind == "linear":
        return F.linear(scale * F.linear(x, down), up)
    return F.conv2d(scale * F.conv2d(x, down, None, spec.stride, spec.padding, spec.dilation), up)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
