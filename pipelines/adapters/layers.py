"""What a patch needs to know of the layer it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from studio.pipelines.errors import AdapterMismatchError

Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerSpec:
    """Shape and hyper-parameters of a Linear or Conv2d layer.

    Attributes:
        kind: which of the two; the rest after `out_features` has a meaning for Conv2d only.
        in_features, out_features: channels in and out.
        kernel, stride, dilation: (height, width). padding: the same, or torch's word ("same", "valid").
    """

    kind: Literal["linear", "conv2d"]
    in_features: int
    out_features: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | str = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`[out, in]` or `[out, in / groups, height, width]`."""
        if self.kind == "linear":
            return (self.out_features, self.in_features)
        return (self.out_features, self.in_features // self.groups, *self.kernel)

    @property
    def channel_axis(self) -> int:
        """Which axis of the layer's output holds the `out_features` channels."""
        return -1 if self.kind == "linear" else 1


def layer_spec(module: nn.Module) -> LayerSpec:
    """Describe a Linear or Conv2d; `AdapterMismatchError` for any other module."""
    if isinstance(module, nn.Linear):
        return LayerSpec("linear", module.in_features, module.out_features)
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise AdapterMismatchError(f"A convolution with {module.padding_mode!r} padding cannot carry an adapter.")
        padding = module.padding if isinstance(module.padding, str) else _pair(module.padding)
        return LayerSpec(
            "conv2d",
            module.in_channels,
            module.out_channels,
            _pair(module.kernel_size),
            _pair(module.stride),
            padding,
            _pair(module.dilation),
            module.groups,
        )
    raise AdapterMismatchError(f"An adapter can change linear and convolution layers; this is a {type(module).__name__}.")


def _pair(values: tuple[int, ...]) -> Pair:
    height, width = values
    return (height, width)
