"""A patch with a coefficient for each input column of its change, ΔW · diag(m): ZipLoRA's form (Shah et al. 2023, 2311.13600).

Scaling the columns of ΔW is scaling the inputs that it sees, so any patch can be had so without its dense form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor, device, dtype, nn

from studio.pipelines.adapters import FullPatch, LoRAPatch, ParameterPath, Patch, find_module
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import BoundPatch, cast_like


@dataclass(frozen=True, eq=False)
class ColumnScaledPatch:
    """ΔW = Δinner · diag(coefficients).

    Attributes:
        inner: acts per position and does not read the layer's output. coefficients: one per input channel, `[in]`.
    """

    kind: ClassVar[str] = "column-scaled"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = False

    inner: Patch
    coefficients: Tensor

    def parameters(self) -> dict[str, Tensor]:
        """The inner patch's tensors and `coefficients`."""
        return {**self.inner.parameters(), "coefficients": self.coefficients}

    def num_parameters(self) -> int:
        """As many as both."""
        return self.inner.num_parameters() + self.coefficients.numel()

    def settings(self) -> dict[str, float | bool | str]:
        """The inner patch's, and its kind."""
        return {**self.inner.settings(), "inner": self.inner.kind}

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundColumnScaled:
        """Join with `weight`."""
        return BoundColumnScaled(self.inner.bind(weight, spec), self.coefficients, spec)

    def to(self, device: device | str | None = None, dtype: dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, inner=self.inner.to(device, dtype), coefficients=self.coefficients.to(device, dtype))


@dataclass(frozen=True, eq=False)
class BoundColumnScaled:
    """A column-scaled patch on one layer."""

    inner: BoundPatch
    coefficients: Tensor
    spec: LayerSpec

    def delta(self) -> Tensor:
        """Δinner with its columns scaled."""
        delta = self.inner.delta()
        return delta * cast_like(self.coefficients, delta).reshape(1, -1, *[1] * (delta.ndim - 2))

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """Δinner of the scaled input; `base_out` is not read."""
        coefficients = cast_like(self.coefficients, x)
        scaled = x * (coefficients[:, None, None] if self.spec.kind == "conv2d" else coefficients)
        return self.inner.forward_delta(scaled, base_out)


def scalable(patch: Patch, path: ParameterPath, components: Mapping[str, nn.Module], adapter_name: str) -> Patch | None:
    """The patch in a form whose columns can be scaled; None for one that has none, as that of a bias.

    What reads the layer's output (DoRA), or has no form per position, becomes its dense difference.
    """
    module = find_module(components[path.component], path.module) if path.component in components else None
    if path.parameter != "weight" or not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) != 1:
        return None
    if patch.routable and not patch.needs_base_out:
        return patch
    return FullPatch(dense_change(patch, path, components, adapter_name).to(module.weight.device))


def with_columns(patch: Patch, coefficients: Tensor) -> Patch:
    """`patch` with fixed coefficients, as a patch of its own kind where that can hold them, which LoRAs and full changes can."""
    if isinstance(patch, LoRAPatch):
        return replace(patch, down=patch.down * _columns(coefficients, patch.down))
    if isinstance(patch, FullPatch):
        return FullPatch(patch.difference * _columns(coefficients, patch.difference))
    return ColumnScaledPatch(patch, coefficients)


def _columns(coefficients: Tensor, like: Tensor) -> Tensor:
    """`[in]` as `[1, in, 1, …]` in the type and on the device of `like`."""
    return cast_like(coefficients, like).reshape(1, -1, *[1] * (like.ndim - 2))
