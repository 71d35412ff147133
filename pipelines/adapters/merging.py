"""Adding ΔW to the weights themselves: for an exported model, or while one strength stays for many passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patching import change_of, module_at
from studio.pipelines.adapters.paths import ParameterPath


def merged_parameters(
    components: Mapping[str, nn.Module], adapter: Adapter, strength: float = 1.0
) -> dict[ParameterPath, Tensor]:
    """parameter + strength · Δ for everything that `adapter` changes, as new tensors; the models stay as they are.

    The sum is made in float32 and rounded once to the parameter's type. Every component that the adapter changes must be
    in `components`; `AdapterMismatchError` if a layer is missing or of another shape.
    """
    return _merged(components, [(adapter, strength)])


@contextmanager
def merge_into(components: Mapping[str, nn.Module], adapter: Adapter, strength: float = 1.0) -> Iterator[None]:
    """Hold the merged weights while the block is open; afterwards, also after an exception, the original ones, bit for bit.

    The parameters stay the same objects; the original values are kept in a copy.
    """
    with merge_all_into(components, [(adapter, strength)]):
        yield


@contextmanager
def merge_all_into(components: Mapping[str, nn.Module], adapters: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """The same with several adapters and their strengths: each one's Δ is taken against the original weights."""
    merged = _merged(components, adapters)
    with ExitStack() as restore:
        for path, values in merged.items():
            parameter = module_at(components[path.component], path, adapters[0][0].info.name).get_parameter(path.parameter)
            restore.callback(_write, parameter, parameter.detach().clone())
            _write(parameter, values)
        yield


def _merged(components: Mapping[str, nn.Module], adapters: Sequence[tuple[Adapter, float]]) -> dict[ParameterPath, Tensor]:
    sums: dict[ParameterPath, Tensor] = {}
    types: dict[ParameterPath, torch.dtype] = {}
    with torch.no_grad():
        for adapter, strength in adapters:
            for path, patch in adapter.patches.items():
                module = module_at(components[path.component], path, adapter.info.name)
                original = module.get_parameter(path.parameter)
                delta = change_of(patch, module, path, adapter.info.name).to(original.device)
                sums[path] = sums.get(path, original) + strength * delta
                types[path] = original.dtype
        return {path: total.to(types[path]) for path, total in sums.items()}


def _write(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
