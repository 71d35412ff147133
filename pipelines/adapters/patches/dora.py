"""DoRA: a LoRA whose result keeps a length per output channel (Liu et al. 2024, arXiv 2402.09353, eq. 5).

W' = m · (W + s·B·A) / ‖W + s·B·A‖, the norm over everything but the output axis. What acts at strength 1 is
ΔW = W' − W, and strength multiplies this ΔW, as for every other patch. (diffusers and PEFT put their slider inside the
norm instead; at strength 1 all agree.)

The paper trains with the norm treated as a constant (section 4.3), which saves memory at almost no cost in quality, and
so does PEFT; `norm_gradient="exact"` differentiates through it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from studio.kernels.dora import lengths, lengths_with_lora
from studio.kernels.paths import pinned_path
from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches.base import at_least_float32
from studio.pipelines.adapters.patches.lora import BoundLoRA, LoRAPatch
from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class DoRAPatch:
    """A low-rank change of the direction of each output channel's weights, and a learned length.

    Attributes:
        lora: the change s·B·A.
        magnitude: m, `[out]`; ‖W‖ at the start of a training.
        norm_gradient: whether gradients flow through the norm: "detached" as in the paper, or "exact".
    """

    kind: ClassVar[str] = "dora"
    routable: ClassVar[bool] = True
    needs_base_out: ClassVar[bool] = True

    lora: LoRAPatch
    magnitude: Tensor
    norm_gradient: Literal["detached", "exact"] = "detached"

    def __post_init__(self) -> None:
        if self.magnitude.ndim != 1 or len(self.magnitude) != self.lora.up.shape[0]:
            raise AdapterMismatchError(
                f"A DoRA has one magnitude per output channel: {self.lora.up.shape[0]} here, and the tensor's shape is "
                f"{list(self.magnitude.shape)}."
            )

    @property
    def rank(self) -> int:
        """Rank of the LoRA inside."""
        return self.lora.rank

    @property
    def in_features(self) -> int:
        """Channels in of the layer it is for."""
        return self.lora.in_features

    @property
    def alpha(self) -> float:
        """Alpha of the LoRA inside."""
        return self.lora.alpha

    def parameters(self) -> dict[str, Tensor]:
        """`down`, `up` and `magnitude`."""
        return {**self.lora.parameters(), "magnitude": self.magnitude}

    def num_parameters(self) -> int:
        """Those of the LoRA and one per output channel."""
        return self.lora.num_parameters() + self.magnitude.numel()

    def settings(self) -> dict[str, float | bool | str]:
        """The scale of the LoRA."""
        return self.lora.settings()

    def bind(self, weight: Tensor, spec: LayerSpec) -> BoundDoRA:
        """Join with `weight`, of which the norm needs the values."""
        if weight.is_meta or not weight.dtype.is_floating_point:
            where = "offloaded" if weight.is_meta else f"stored as {weight.dtype}"
            raise AdapterMismatchError(f"A DoRA needs the values of the weight it changes; this one is {where}.")
        return BoundDoRA(self, self.lora.bind(weight, spec), weight)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same patch elsewhere or in another type."""
        return replace(self, lora=self.lora.to(device, dtype), magnitude=self.magnitude.to(device, dtype))


class BoundDoRA:
    """A DoRA on one layer. While nothing trains, the norm is computed once."""

    def __init__(self, patch: DoRAPatch, lora: BoundLoRA, weight: Tensor) -> None:
        self.patch = patch
        self.lora = lora
        self.weight = weight
        self._frozen_ratio: Tensor | None = None
        self._lengths: Tensor | None = None

    def delta(self) -> Tensor:
        """(m/n) · (W + s·B·A) − W with n the norm."""
        weight = at_least_float32(self.weight)
        ratio = self._ratio().reshape(-1, *[1] * (weight.ndim - 1))
        return ratio * (weight + self.lora.delta()) - weight

    def forward_delta(self, x: Tensor, base_out: Tensor) -> Tensor:
        """(m/n − 1) · W x + (m/n) · s·B·A x, with W x = `base_out`."""
        ratio = self._ratio()
        if self.lora.spec.kind == "conv2d":
            ratio = ratio[:, None, None]
        low_rank = self.lora.forward_delta(x, base_out)
        return (ratio - 1).to(base_out.dtype) * base_out + ratio.to(base_out.dtype) * low_rank

    def _ratio(self) -> Tensor:
        """m/n, `[out]`, float32 or wider."""
        if self._frozen_ratio is not None:
            return self._frozen_ratio
        patch = self.patch
        if patch.norm_gradient == "exact":
            norm = self._norm()
        else:
            with torch.no_grad():
                norm = self._norm()
        ratio = at_least_float32(patch.magnitude).to(norm.device) / norm
        if not any(tensor.requires_grad for tensor in (*patch.parameters().values(), self.weight)):
            self._frozen_ratio = ratio
        return ratio

    def _norm(self) -> Tensor:
        lora = self.lora
        if pinned_path() == "plain" or self.weight.requires_grad:
            return channel_norm(at_least_float32(self.weight) + lora.delta().to(self.weight.device))
        if self._lengths is None:
            self._lengths = lengths(self.weight)
        down, up = lora.down.to(self.weight.device), lora.up.to(self.weight.device)
        return lengths_with_lora(self.weight, self._lengths, down, up, lora.scale)


def channel_norm(weight: Tensor) -> Tensor:
    """‖w_o‖ for every output channel o of a weight `[out, …]`, as `[out]`; never zero."""
    return weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
