"""Packed weights as patches."""

from __future__ import annotations

from studio.pipelines.adapters import ParameterPath, Patch, SparsePatch
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.training.sara.packed import PackedWeights, Target


def sparse_patches(packed: PackedWeights, base_name: str | None = None) -> dict[ParameterPath, Patch]:
    """Detached copies on the CPU, with the rule they were selected by and samples of the base."""
    return {target.selected.path: _patch(packed, target, base_name) for target in packed}


def _patch(packed: PackedWeights, target: Target, base_name: str | None) -> SparsePatch:
    selected = target.selected
    return SparsePatch(
        values=packed.delta.detach()[target.part].to("cpu", copy=True),
        shape=tuple(selected.parameter.shape),
        indices=selected.indices.cpu(),
        threshold=selected.threshold,
        digest=target.digest,
        base=BaseSamples(target.samples.values, base_name),
    )
