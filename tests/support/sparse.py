"""Sparse adapters with random values, for tests."""

from __future__ import annotations

import torch
from torch import nn

from studio.kernels.sparse_index import indices_below
from studio.pipelines.adapters import Adapter, AdapterInfo, ParameterPath, SparsePatch
from studio.pipelines.adapters.base_samples import BaseSamples
from tests.support.tiny_models import TinyModel

THETA = 0.05


def sparse_of(weight: torch.Tensor, *, scale: float = 0.1, base_name: str | None = "sd15") -> SparsePatch:
    """A random change of the small entries."""
    indices = indices_below(weight, THETA)
    values = scale * torch.randn(len(indices), generator=torch.Generator().manual_seed(len(indices)))
    return SparsePatch(values, tuple(weight.shape), indices, THETA, base=BaseSamples.of(weight, base_name))


def sparse_adapter(model: TinyModel, *, everything: bool = False) -> Adapter:
    """A sparse change of the UNet's attention, or of every parameter that has small entries."""
    patches = {}
    for name, module in model.unet.named_modules():
        for key, parameter in module._parameters.items():
            is_target = everything or (isinstance(module, nn.Linear) and ".attn" in name and key == "weight")
            if parameter is not None and is_target and len(indices_below(parameter, THETA)):
                patches[ParameterPath("unet", name, key)] = sparse_of(parameter)
    return Adapter(AdapterInfo(name="sparse", type="sparse", family=model.family), patches)
