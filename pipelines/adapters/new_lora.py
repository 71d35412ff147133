"""A fresh LoRA or DoRA on chosen layers, ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.adapter import Adapter, AdapterInfo
from studio.pipelines.adapters.layers import LayerSpec, layer_spec
from studio.pipelines.adapters.patches.base import Patch, at_least_float32
from studio.pipelines.adapters.patches.dora import DoRAPatch, channel_norm
from studio.pipelines.adapters.patches.lora import LoRAPatch
from studio.pipelines.adapters.paths import ParameterPath, target_modules
from studio.pipelines.errors import ConfigError

Initialization = Literal["gaussian", "kaiming"]


def new_lora(
    components: Mapping[str, nn.Module],
    targets: Mapping[str, str],
    rank: int,
    alpha: float,
    *,
    init: Initialization = "gaussian",
    generator: torch.Generator | None = None,
    dora: bool = False,
    use_rslora: bool = False,
    info: AdapterInfo | None = None,
) -> Adapter:
    """A LoRA that changes nothing yet: `up` is zero, `down` random; all tensors are float32 `nn.Parameter`s.

    Args:
        components: models by name.
        targets: component name -> regular expression; layers whose canonical name is a full match get a patch.
        rank: r of every patch; smaller on no layer, even where the layer is.
        alpha: scale = alpha / rank.
        init: of `down`: "gaussian", N(0, 1/r²), as in PEFT's option of that name and in diffusers' training scripts, or
            "kaiming", uniform in ±1/√fan_in, as in the LoRA paper's code, PEFT's default and kohya.
        generator: of the CPU; the values do not depend on where the models are.
        dora: also learn a magnitude per output channel, at first ‖W‖.
        use_rslora: scale = alpha / √rank.
        info: what is known already.

    Raises:
        ConfigError: no layer matches, or the rank is below one.
    """
    if rank < 1:
        raise ConfigError(f"A LoRA's rank is at least 1; got {rank}.")
    patches: dict[ParameterPath, Patch] = {}
    for component, pattern in targets.items():
        modules = target_modules(components[component], pattern)
        if not modules:
            raise ConfigError(f"No linear or convolution layer of the {component} has a name that matches {pattern!r}.")
        for name, module in modules.items():
            lora = _fresh(module, rank, alpha, init, generator, use_rslora)
            path = ParameterPath(component, name)
            patches[path] = DoRAPatch(lora, _parameter(channel_norm(at_least_float32(_weight(module))))) if dora else lora
    known = info if info is not None else AdapterInfo(name="untitled")
    return Adapter(replace(known, type="dora" if dora else "lora"), patches)


def _fresh(
    module: nn.Module, rank: int, alpha: float, init: Initialization, generator: torch.Generator | None, use_rslora: bool
) -> LoRAPatch:
    spec = layer_spec(module)
    device = _weight(module).device
    down = _initial_down(spec, rank, init, generator, device)
    up = torch.zeros((spec.out_features, rank, 1, 1)[: down.ndim], device=device)
    return LoRAPatch(_parameter(down), _parameter(up), alpha, use_rslora)


def _initial_down(
    spec: LayerSpec, rank: int, init: Initialization, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    shape = (rank, *spec.weight_shape[1:])
    if device.type == "meta":
        return torch.empty(shape, device=device)
    if init == "gaussian":
        return torch.empty(shape).normal_(0.0, 1.0 / rank, generator=generator).to(device)
    bound = torch.Size(shape[1:]).numel() ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(device)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
