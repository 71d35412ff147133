"""A merge as a LoRA of small rank, by the best approximation there is (Eckart and Young), with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from studio.composition.merging.parts import Merged
from studio.pipelines.adapters import Adapter, FullPatch, ParameterPath
from studio.pipelines.adapters.conversion import to_lora


def compress(merged: Merged, rank: int, components: Mapping[str, nn.Module] | None = None) -> Merged:
    """`merged` with at most `rank` in every layer; biases and norms stay as they are.

    The error of the result is what was lost against `merged`, joined with what `merged` already differed.

    Raises:
        UserError: `rank` is less than 1.
    """
    matrices = {path: patch for path, patch in merged.adapter.patches.items() if _is_matrix(path, patch)}
    conversion = to_lora(Adapter(merged.adapter.info, matrices), rank=rank, components=components)
    patches = {path: conversion.adapter.patches.get(path, patch) for path, patch in merged.adapter.patches.items()}
    adapter = Adapter(merged.adapter.info, patches)
    lost = conversion.relative_error
    note = f"Compressed to rank {rank}: {1 - lost**2:.1%} of the change is kept (relative error {lost:.3g})."
    return Merged(
        adapter=Adapter(replace(adapter.info, type=adapter.type), patches),
        relative_error=math.hypot(lost, merged.relative_error),
        notes=(*merged.notes, note),
    )


def _is_matrix(path: ParameterPath, patch: object) -> bool:
    return path.parameter == "weight" and not (isinstance(patch, FullPatch) and patch.difference.ndim < 2)
