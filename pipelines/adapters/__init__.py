"""Adapters: what they change, how strongly and where, and the files they live in."""

from __future__ import annotations

from studio.pipelines.adapters.adapter import Adapter, AdapterInfo
from studio.pipelines.adapters.files import load_adapter, save_adapter
from studio.pipelines.adapters.merging import merge_into, merged_parameters
from studio.pipelines.adapters.new_kronecker import new_kronecker
from studio.pipelines.adapters.new_lora import new_lora
from studio.pipelines.adapters.patches import (
    BoundPatch,
    DoRAPatch,
    Factor,
    FullPatch,
    KroneckerPatch,
    LoHaPatch,
    LoRAPatch,
    Patch,
    SparsePatch,
)
from studio.pipelines.adapters.patching import patched
from studio.pipelines.adapters.paths import ParameterPath, canonical_name, find_module, target_modules
from studio.pipelines.adapters.routing import LeftOut, Route, Router
from studio.pipelines.adapters.serialization.header import Header, read_header
from studio.pipelines.adapters.serialization.metadata import Redaction
from studio.pipelines.adapters.serialization.training_record import TrainingRecord

__all__ = [
    "Adapter",
    "AdapterInfo",
    "BoundPatch",
    "DoRAPatch",
    "Factor",
    "FullPatch",
    "Header",
    "KroneckerPatch",
    "LeftOut",
    "LoHaPatch",
    "LoRAPatch",
    "ParameterPath",
    "Patch",
    "Redaction",
    "Route",
    "Router",
    "SparsePatch",
    "TrainingRecord",
    "canonical_name",
    "find_module",
    "load_adapter",
    "merge_into",
    "merged_parameters",
    "new_kronecker",
    "new_lora",
    "patched",
    "read_header",
    "save_adapter",
    "target_modules",
]
