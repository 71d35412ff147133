"""A change that is added to a copy of the weight for as long as `patched` is open, so that the layer runs at its own cost.

A ΔW that has a value of its own for each weight would cost a second product of the layer's full size in every pass, as a sum
of outputs. Where it acts on the whole batch with one strength, the layer runs with weight + Σ strength · ΔW instead; the
parameter itself stays as it is. Rows, regions, changes that train and layers that are not torch's own keep the sum.

Changes of low rank fold too where that is cheaper: `merging="auto"` folds them in float32 as soon as their ranks together cost
more than the layer itself, "always" folds whatever can be, and "never" nothing of low rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pipelines.adapters.entries import Entry
from studio.pipelines.adapters.patches.lora import BoundLoRA

Merging = Literal["auto", "always", "never"]

_OWN_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)


def folded_entries(
    module: nn.Module, forward: Callable[[Tensor], Tensor], entries: Sequence[Entry], merging: Merging
) -> list[Entry]:
    """Those of a layer's entries that are added to its weight.

    `forward` is the layer's unpatched one. A weight that is shadowed in the instance has a history of its own.
    """
    parameter = module._parameters["weight"]
    is_plain = isinstance(parameter, Tensor) and parameter.dtype.is_floating_point and not parameter.is_meta
    if not is_plain or "weight" in module.__dict__ or getattr(forward, "__func__", None) not in _OWN_FORWARDS:
        return []
    able = [entry for entry in entries if entry.weight.is_one_number and not entry.trains]
    folded = able if merging == "always" else [entry for entry in able if getattr(entry.bound, "folds_into_weight", False)]
    if merging == "auto" and parameter is not None and parameter.dtype != torch.float16 and parameter.dtype != torch.bfloat16:
        loras = [entry for entry in able if isinstance(entry.bound, BoundLoRA)]
        inputs, outputs = parameter[0].numel(), len(parameter)
        if sum(_rank(entry) for entry in loras) * (inputs + outputs) > inputs * outputs:
            folded = [*folded, *loras]
    rest = [entry for entry in entries if entry not in folded]
    return [] if any(entry.needs_base_out for entry in rest) else folded


@torch.no_grad()
def folded_weight(module: nn.Module, changes: Sequence[Entry]) -> Tensor:
    """weight + Σ strength · ΔW, summed in float32 and rounded once to the weight's type."""
    original = module._parameters["weight"]
    assert original is not None
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    loras = [entry for entry in changes if isinstance(entry.bound, BoundLoRA)]
    if loras:
        total = _with_loras(total, loras)
    for entry in changes:
        if entry not in loras:
            total = total + (entry.weight.strength * entry.bound.delta()).to(total.device)
    return total.to(original.dtype)


def run_with(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What a linear layer or convolution computes with `weight` in its own's place."""
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(x, weight, module.bias)
    assert isinstance(module, nn.Linear)
    return F.linear(x, weight, module.bias)


def _with_loras(total: Tensor, loras: Sequence[Entry]) -> Tensor:
    """Any number of LoRAs in one product of their ranks together."""
    ups, downs = [], []
    for entry in loras:
        bound = entry.bound
        assert isinstance(bound, BoundLoRA)
        ups.append(bound.up.flatten(1).to(total) * (bound.scale * float(entry.weight.strength)))
        downs.append(bound.down.flatten(1).to(total))
    return torch.addmm(total.flatten(1), torch.cat(ups, dim=1), torch.cat(downs)).view(total.shape)


def _rank(entry: Entry) -> int:
    assert isinstance(entry.bound, BoundLoRA)
    return entry.bound.down.shape[0]
