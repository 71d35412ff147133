"""Which layers of a model read the same input, so that they run as one product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Place:
    """One or several layers that are computed together.

    Attributes:
        modules: in the order of their outputs.
        keeps_output: whether what comes next keeps their outputs for the backward pass: attention its queries, keys and
            values, a gated unit its projection.
    """

    modules: tuple[nn.Module, ...]
    keeps_output: bool


def places(components: Mapping[str, nn.Module]) -> dict[nn.Module, Place]:
    """Layer -> the place that it is in, for attention's projections and for gated units; all others stand alone."""
    found: dict[nn.Module, Place] = {}
    for component in components.values():
        for module in component.modules():
            for place in _places_of(module):
                found |= dict.fromkeys(place.modules, place)
    return found


def place_of(module: nn.Module, known: Mapping[nn.Module, Place]) -> Place:
    """The layer's place in `known`, or one of its own."""
    return known[module] if module in known else Place((module,), False)


def _places_of(module: nn.Module) -> list[Place]:
    if is_attention(module):
        query, key, value = (getattr(module, name) for name in ("to_q", "to_k", "to_v"))
        if getattr(module, "is_cross_attention", True):
            return [Place((query,), True), Place((key, value), True)]
        return [Place((query, key, value), True)]
    if all(isinstance(getattr(module, name, None), nn.Linear) for name in ("q_proj", "k_proj", "v_proj")):
        return [Place((getattr(module, name),), True) for name in ("q_proj", "k_proj", "v_proj")]
    if is_gated_unit(module):
        return [Place((module.proj,), True)]  # type: ignore[arg-type]
    return []


def is_attention(module: nn.Module) -> bool:
    """Whether it is diffusers' attention with projections of its own for queries, keys and values."""
    return hasattr(module, "processor") and all(isinstance(getattr(module, n, None), nn.Linear) for n in ("to_q", "to_k", "to_v"))


def is_gated_unit(module: nn.Module) -> bool:
    """Whether it is diffusers' GEGLU."""
    return type(module).__name__ == "GEGLU" and isinstance(getattr(module, "proj", None), nn.Linear)
