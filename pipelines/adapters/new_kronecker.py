"""A fresh Kronecker adapter on chosen layers, ready to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from studio.pipelines.adapters.adapter import Adapter, AdapterInfo
from studio.pipelines.adapters.layers import LayerSpec, layer_spec
from studio.pipelines.adapters.patches.base import Patch
from studio.pipelines.adapters.patches.factor import Factor
from studio.pipelines.adapters.patches.kronecker import KroneckerPatch
from studio.pipelines.adapters.paths import ParameterPath, target_modules
from studio.pipelines.errors import ConfigError

KroneckerInitialization = Literal["gaussian", "kaiming"]


def new_kronecker(
    components: Mapping[str, nn.Module],
    targets: Mapping[str, str],
    factors: tuple[int, int],
    *,
    init: KroneckerInitialization = "gaussian",
    generator: torch.Generator | None = None,
    info: AdapterInfo | None = None,
) -> Adapter:
    """A Kronecker adapter that changes nothing yet: B is zero, A random; all tensors are float32 `nn.Parameter`s.

    Args:
        components: models by name.
        targets: component name -> regular expression; layers whose canonical name is a full match get a patch.
        factors: (a_out, a_in), the size of A in every layer; B has what is left, and a convolution's kernel.
        init: of A: "gaussian", N(0, 1/a_out), the paper's (its a₂ is the side of A towards the output; its code has the
            standard deviation 1/a_out instead), or "kaiming", uniform in ±1/√a_in, the paper's other choice.
        generator: of the CPU; the values do not depend on where the models are.
        info: what is known already.

    Raises:
        ConfigError: no layer matches, or the factors do not divide a layer's channels.
    """
    patches: dict[ParameterPath, Patch] = {}
    for component, pattern in targets.items():
        modules = target_modules(components[component], pattern)
        if not modules:
            raise ConfigError(f"No linear or convolution layer of the {component} has a name that matches {pattern!r}.")
        specs = {ParameterPath(component, name): layer_spec(module) for name, module in modules.items()}
        _require_divisible(specs, factors)
        for (path, spec), module in zip(specs.items(), modules.values(), strict=True):
            patches[path] = _fresh(spec, factors, init, generator, next(module.parameters()).device)
    known = info if info is not None else AdapterInfo(name="untitled")
    return Adapter(replace(known, type="lokr"), patches)


def _require_divisible(specs: Mapping[ParameterPath, LayerSpec], factors: tuple[int, int]) -> None:
    a_out, a_in = factors
    if a_out < 1 or a_in < 1:
        raise ConfigError(f"The sides of a Kronecker factor are at least 1; got {a_out}x{a_in}.")
    fits = [math.gcd(*sizes) for sizes in zip(*((spec.out_features, spec.in_features) for spec in specs.values()), strict=True)]
    for path, spec in specs.items():
        for side, factor, size in (("out", a_out, spec.out_features), ("in", a_in, spec.in_features)):
            if size % factor != 0:
                other = f"{_largest_divisor(fits[0], a_out)}x{_largest_divisor(fits[1], a_in)}"
                raise ConfigError(
                    f"The Kronecker factor {a_out}x{a_in} (out x in) does not fit {path.component}.{path.module}: {factor} does "
                    f"not divide its {size} channels {side}. {other} fits all chosen layers; set krona.factors (--factors)."
                )


def _largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def _fresh(
    spec: LayerSpec,
    factors: tuple[int, int],
    init: KroneckerInitialization,
    generator: torch.Generator | None,
    device: torch.device,
) -> KroneckerPatch:
    if spec.groups != 1:
        raise ConfigError(f"A Kronecker product cannot act on a convolution of {spec.groups} groups.")
    a_out, a_in = factors
    first = torch.empty(factors, device="meta" if device.type == "meta" else "cpu")
    if device.type != "meta" and init == "gaussian":
        first.normal_(0.0, a_out**-0.5, generator=generator)
    elif device.type != "meta":
        first.uniform_(-(a_in**-0.5), a_in**-0.5, generator=generator)
    second = torch.zeros(spec.out_features // a_out, spec.in_features // a_in, *spec.weight_shape[2:], device=device)
    return KroneckerPatch(Factor(nn.Parameter(first.to(device))), Factor(nn.Parameter(second)))
