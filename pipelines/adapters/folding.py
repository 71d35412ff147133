"""A ΔW that has a value of its own for each weight, added to a copy of the weight for as long as `patched` is open.

As a sum of outputs such a change would cost a second product of the layer's full size in every pass. Where it acts on the
whole batch with one strength, the layer runs with weight + Σ strength · ΔW instead, at its own cost; the parameter itself
stays as it is. Rows, regions, changes that train and layers that are not torch's own keep the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pipelines.adapters.patches.base import BoundPatch
from studio.pipelines.adapters.routing import RouteWeight

_OWN_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)


def can_fold(module: nn.Module, forward: Callable[[Tensor], Tensor], bound: BoundPatch, weight: RouteWeight) -> bool:
    """Whether a bound patch may be added to the weight: it says so, acts on all alike, and nothing watches the layer.

    `forward` is the layer's unpatched one. A weight that is shadowed in the instance has a history of its own.
    """
    if not getattr(bound, "folds_into_weight", False) or not weight.is_one_number or "weight" in module.__dict__:
        return False
    parameter = module._parameters["weight"]
    is_plain = isinstance(parameter, Tensor) and parameter.dtype.is_floating_point and not parameter.is_meta
    return is_plain and getattr(forward, "__func__", None) in _OWN_FORWARDS


@torch.no_grad()
def folded_weight(module: nn.Module, changes: Sequence[tuple[BoundPatch, RouteWeight]]) -> Tensor:
    """weight + Σ strength · ΔW, summed in float32 and rounded once to the weight's type."""
    original = module._parameters["weight"]
    assert original is not None
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for bound, weight in changes:
        total = total + (weight.strength * bound.delta()).to(total.device)
    return total.to(original.dtype)


def run_with(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What a linear layer or convolution computes with `weight` in its own's place."""
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(x, weight, module.bias)
    assert isinstance(module, nn.Linear)
    return F.linear(x, weight, module.bias)
