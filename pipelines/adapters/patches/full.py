"""A full difference: ΔW itself, for any parameter; what `.diff` and `.diff_b` are in kohya-named files."""

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
class FullPatch:
    """ΔW = `difference`, stored number by number.

    On the weight of a linear layer or a convolution it acts like every other patch. On a bias, or on a norm's or an
    embedding's parameter, it acts on whole batches only, as `patched` says of every patch there.

    Attributes:
        difference: in the parameter's shape; `[out, in, 1, 1]` also fits a linear layer, and `[out, in]` a 1×1 convolution.
    """

    kind: ClassVar[str] = "full"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    difference: Tensor

    @property
    def in_features(self) -> int | None:
        """Channels in of the layer it is for; None for a bias or a norm."""
        return self.difference.shape[1] if self.difference.ndim > 1 else None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the parameter it is for."""
        return tuple(self.difference.shape)

    def parameters(self) -> dict[str, Tensor]:
        """`difference`."""
        return {"difference": self.difference}

    def num_parameters(self) -> int:
        """As many as the parameter it changes has."""
        return self.difference.numel()

    def settings(self) -> dict[str, float | bool | str]:
        """None: the numbers say it all."""
        return {}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundFull:
        """Join with `weight`, which has the same shape but for a 1×1 kernel."""
        if _without_1x1(self.difference.shape) != _without_1x1(weight.shape):
            raise AdapterMismatchError(
                f"A difference of shape {list(self.difference.shape)} does not fit a parameter of shape {list(weight.shape)}."
            )
        difference = self.difference.reshape(weight.shape)
        return BoundFull(difference, spec, prepared_for(difference, weight))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, difference=self.difference.to(device, dtype))


@dataclass(frozen=True, eq=False)
class BoundFull:
    """A difference on one parameter; `ready` is where and as the layer computes, if it does not train."""

    difference: Tensor
    spec: LayerSpec
    ready: Tensor = field(repr=False)

    @property
    def folds_into_weight(self) -> bool:
        """Whether `patched` may add it to the weight once instead of to the output each time: not while it trains."""
        return not self.difference.requires_grad

    def delta(self) -> Tensor:
        """The difference in float32 or wider."""
        return at_least_float32(self.difference)

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The layer's own operation with the difference in the weight's place; `base_out` is not read."""
        return dense_forward(x, self.ready, self.spec)


def dense_forward(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """What a layer like `spec`, without bias, computes with `weight` in its weight's shape; in the type of `x`."""
    weight = cast_like(weight, x)
    if spec.kind == "linear":
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, spec.stride, spec.padding, spec.dilation, spec.groups)


def _without_1x1(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)
