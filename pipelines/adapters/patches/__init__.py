"""Kinds of patches, one file each. Add a new kind's class to `PATCH_TYPES`; the contract tests then run on it."""

from __future__ import annotations

from studio.pipelines.adapters.patches.base import BoundPatch, Patch
from studio.pipelines.adapters.patches.dora import DoRAPatch
from studio.pipelines.adapters.patches.full import FullPatch
from studio.pipelines.adapters.patches.lora import LoRAPatch
from studio.pipelines.adapters.patches.sparse import SparsePatch

PATCH_TYPES: tuple[type, ...] = (LoRAPatch, DoRAPatch, FullPatch, SparsePatch)

__all__ = ["PATCH_TYPES", "BoundPatch", "DoRAPatch", "FullPatch", "LoRAPatch", "Patch", "SparsePatch"]
