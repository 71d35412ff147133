"""What every kind of patch can do. A patch is a change of one parameter, and never holds a model."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from studio.pipelines.adapters.layers import LayerSpec


class BoundPatch(Protocol):
    """A patch together with the weight it changes. It reads the weight and never writes to it."""

    def delta(self) -> Tensor:
        """The dense change ΔW at strength 1, against the original weight, in its shape; float32 or wider."""
        ...

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """The effect of ΔW on a layer's output, in the output's shape, without making ΔW.

        Args:
            x: the layer's input, `[B, …, in]` or `[B, in, H, W]`.
            base_out: the unpatched layer's output *without bias*, `[B, …, out]` or `[B, out, H', W']`; read only by
                patches with `needs_base_out`, which others may leave unfilled.
        """
        ...


@runtime_checkable
class Adding(Protocol):
    """A bound patch that adds its effect to a linear layer's output more cheaply than by making it first."""

    def added_to(self, output: Tensor, x: Tensor, factor: float) -> Tensor:
        """output + factor · Δ(x), as a new tensor. `output` `[B, …, out]` and `x` `[B, …, in]` have one type."""
        ...


class Patch(Protocol):
    """A change of one parameter: tensors, and the formula that makes ΔW of them.

    Tensors may require gradients: `delta` and `forward_delta` are differentiable, so what generates also trains.

    Attributes:
        kind: its name in tables and files, as "lora".
        routable: whether it has a per-position form, `forward_delta`, on the weights of linear layers and convolutions.
            One without, and every patch of a bias, a norm or an embedding, acts on whole batches only and cannot be
            confined to rows or to a region.
        needs_base_out: whether `forward_delta` reads `base_out`.
    """

    kind: ClassVar[str]
    routable: ClassVar[bool]
    needs_base_out: ClassVar[bool]

    def parameters(self) -> dict[str, Tensor]:
        """The tensors by name, in a fixed order."""
        ...

    def num_parameters(self) -> int:
        """How many numbers the tensors hold."""
        ...

    def settings(self) -> dict[str, float | bool | str]:
        """What else decides ΔW, by name (as alpha); part of the content hash."""
        ...

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundPatch:
        """Join with the weight to change; `AdapterMismatchError` if the shapes do not fit."""
        ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch with its tensors elsewhere or in another type."""
        ...


def cast_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """`tensor` in the type and on the device of `reference`; itself if it is there already."""
    if tensor.dtype == reference.dtype and tensor.device == reference.device:
        return tensor
    return tensor.to(device=reference.device, dtype=reference.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or as it is if wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def prepared_for(tensor: Tensor, weight: Tensor) -> Tensor:
    """A frozen tensor moved once to where its weight is, so that no forward pass has to; a trained one as it is.

    A weight that is quantized, or offloaded (on the meta device until the layer runs), does not say where that will be.
    """
    if tensor.requires_grad or weight.is_meta or not weight.dtype.is_floating_point:
        return tensor
    return cast_like(tensor, weight)
