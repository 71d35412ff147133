"""Kinds of patches, one file each. Add a new kind's class to `PATCH_TYPES`; the contract tests then run on it."""

from __future__ import annotations

from studio.pipelines.adapters.patches.base import BoundPatch, Patch
from studio.pipelines.adapters.patches.dora import DoRAPatch
from studio.pipelines.adapters.patches.factor import Factor
from studio.pipelines.adapters.patches.full import FullPatch
from studio.pipelines.adapters.patches.kronecker import KroneckerPatch
from studio.pipelines.adapters.patches.loha import LoHaPatch
from studio.pipelines.adapters.patches.lora import LoRAPatch
from studio.pipelines.adapters.patches.sparse import SparsePatch

PATCH_TYPES: tuple[type, ...] = (LoRAPatch, DoRAPatch, FullPatch, KroneckerPatch, LoHaPatch, SparsePatch)

__all__ = [
    "PATCH_TYPES",
    "BoundPatch",
    "DoRAPatch",
    "Factor",
    "FullPatch",
    "KroneckerPatch",
    "LoHaPatch",
    "LoRAPatch",
    "Patch",
    "SparsePatch",
]
