"""Σ strengthₙΔWₙ as one adapter, exactly.

LoRAs are stacked: B = [s₁B₁ s₂B₂ …], A = [A₁; A₂; …], so that BA = Σ sₙBₙAₙ with the rank Σ rₙ. (Adding the factors instead, as
some tools do, gives cross terms BₙAₘ.) Where that would be larger than ΔW itself, and for changes that are no LoRAs, the
difference is stored number by number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from studio.composition.merging.parts import Merged, Weighted, all_paths, changes, merged_info
from studio.pipelines.adapters import Adapter, FullPatch, LoRAPatch, ParameterPath, Patch


@torch.no_grad()
def merge_exactly(parts: Sequence[Weighted], components: Mapping[str, nn.Module] | None = None) -> Merged:
    """One adapter whose ΔW is Σ strengthₙΔWₙ, up to the rounding of float32; arguments and errors as in `parts.changes`."""
    patches: dict[ParameterPath, Patch] = {}
    stacked, dense = _split(parts)
    for path in stacked:
        loras = [(part.adapter.patches[path], part.strength) for part in parts if path in part.adapter.patches]
        patches[path] = _stack([(patch, strength) for patch, strength in loras if isinstance(patch, LoRAPatch)])
    rest = [Weighted(_only(part.adapter, dense), part.strength) for part in parts]
    for path, deltas in changes(rest, components):
        patches[path] = FullPatch(sum_of(deltas))
    ordered = {path: patches[path] for path in all_paths(parts)}
    adapter = Adapter(merged_info(parts, "sum"), ordered)
    return Merged(adapter=replace(adapter, info=replace(adapter.info, type=adapter.type)))


def sum_of(deltas: Sequence[Tensor | None]) -> Tensor:
    """Their sum; None counts as zero."""
    present = [delta for delta in deltas if delta is not None]
    total = present[0]
    for delta in present[1:]:
        total = total + delta
    return total


def _split(parts: Sequence[Weighted]) -> tuple[list[ParameterPath], set[ParameterPath]]:
    """Parameters whose changes are all LoRAs small enough to stack, and the others."""
    stacked, dense = [], set()
    for path in all_paths(parts):
        patches = [part.adapter.patches[path] for part in parts if path in part.adapter.patches]
        loras = [patch for patch in patches if isinstance(patch, LoRAPatch)]
        if len(loras) == len(patches) and _stack_is_smaller(loras):
            stacked.append(path)
        else:
            dense.add(path)
    return stacked, dense


def _stack_is_smaller(loras: Sequence[LoRAPatch]) -> bool:
    size = loras[0].up.shape[0] * loras[0].down[0].numel()
    same = all(patch.up.shape[0] == loras[0].up.shape[0] and patch.down[0].numel() == loras[0].down[0].numel() for patch in loras)
    return same and sum(patch.num_parameters() for patch in loras) <= size


def _stack(loras: Sequence[tuple[LoRAPatch, float]]) -> LoRAPatch:
    """One LoRA of scale 1 and the sum of the ranks."""
    first = loras[0][0]
    down = torch.cat([patch.down.detach().float().reshape(patch.rank, *first.down.shape[1:]) for patch, _ in loras])
    ups = [strength * patch.scale * patch.up.detach().float().flatten(1) for patch, strength in loras]
    up = torch.cat(ups, dim=1)
    return LoRAPatch(down, up.reshape(*up.shape, *first.up.shape[2:]), float(len(down)))


def _only(adapter: Adapter, paths: set[ParameterPath]) -> Adapter:
    return Adapter(adapter.info, {path: patch for path, patch in adapter.patches.items() if path in paths})
