"""What goes into the layers of a model while it draws: G = Σ x xᵀ over all inputs x of a layer.

For a change D of the layer's weight, tr(D G Dᵀ) = Σ ‖D x‖²: how much it does to what the layer really sees. Regression merging
and the report on conflicts both live on this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pipelines.adapters import ParameterPath, Route, find_module, patched
from studio.pipelines.base_model import BaseModel
from studio.pipelines.generation import ResolvedRequest, draw_latents

MAX_INPUTS = 6144
"""Layers with more inputs (in · kernel height · kernel width) than this are passed over: G would be too large."""


@torch.no_grad()
def input_grams(
    base: BaseModel,
    layers: Collection[ParameterPath],
    prompts: Sequence[str],
    request: ResolvedRequest,
    routes: Sequence[Route] = (),
) -> dict[ParameterPath, Tensor]:
    """G `[in·kh·kw, in·kh·kw]`, float32 on the CPU, of each layer while `prompts` are drawn, over the number of inputs.

    Args:
        layers: weights of linear layers and convolutions; others, and those above `MAX_INPUTS`, are left out of the result.
        request: size, sampler and number of steps; its prompts and seeds are not used.
        routes: adapters that act meanwhile.
    """
    components = base.components()
    modules = {path: _measurable(components, path) for path in layers}
    wanted = {path: module for path, module in modules.items() if module is not None}
    batch = replace(
        request,
        prompts=tuple(prompts),
        seeds=tuple(range(len(prompts))),
        negative_prompt="",
        guidance_scale=1.0,
        block_prompts={},
    )
    with _watching(wanted) as sums, patched(components, routes):
        draw_latents(base, batch)
    return {path: (total / count).cpu() for path, (total, count) in sums.items() if count}


def as_matrix(delta: Tensor) -> Tensor:
    """A weight's change `[out, in, …]` as the matrix `[out, in·kh·kw]` that acts on a layer's inputs."""
    return delta.flatten(1).float()


def effect(delta: Tensor, gram: Tensor) -> float:
    """√ of the mean ‖Δ x‖² over the inputs x that `gram` is of."""
    matrix = as_matrix(delta)
    return float(((matrix @ gram) * matrix).sum().clamp(min=0).sqrt())


def _measurable(components: Mapping[str, nn.Module], path: ParameterPath) -> nn.Module | None:
    component = components.get(path.component)
    module = None if component is None else find_module(component, path.module)
    if path.parameter != "weight" or not isinstance(module, nn.Linear | nn.Conv2d):
        return None
    return module if module.weight[0].numel() <= MAX_INPUTS and getattr(module, "groups", 1) == 1 else None


@contextmanager
def _watching(modules: Mapping[ParameterPath, nn.Module]) -> Iterator[dict[ParameterPath, tuple[Tensor, int]]]:
    sums: dict[ParameterPath, tuple[Tensor, int]] = {}
    with ExitStack() as hooks:
        for path, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(_adder(sums, path, module)).remove)
        yield sums


def _adder(sums: dict[ParameterPath, tuple[Tensor, int]], path: ParameterPath, module: nn.Module) -> Any:
    def add(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs = _inputs(module, arguments[0].detach().float())
        gram = inputs.T @ inputs
        before = sums.get(path)
        sums[path] = (gram, len(inputs)) if before is None else (before[0] + gram, before[1] + len(inputs))

    return add


def _inputs(module: nn.Module, x: Tensor) -> Tensor:
    """Every input of the layer as a row `[N, in·kh·kw]`."""
    if not isinstance(module, nn.Conv2d):
        return x.flatten(0, -2)
    assert not isinstance(module.padding, str), "diffusers pads by numbers"
    columns = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    return columns.transpose(1, 2).flatten(0, 1)
