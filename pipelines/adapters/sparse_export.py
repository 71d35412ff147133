"""Ways out of the studio for sparse changes, beside the merged model and full differences, which are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.conversion import Conversion, to_lora
from studio.pipelines.adapters.patches import Patch, SparsePatch
from studio.pipelines.adapters.patching import module_at
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.errors import AdapterMismatchError, UserError

LEAST_ENERGY = 0.9
"""Share of ‖ΔW‖² below which a LoRA is another adapter rather than the same one."""


def faithful_lora(
    adapter: Adapter, rank: int, *, components: Mapping[str, nn.Module] | None = None, insist: bool = False
) -> Conversion:
    """`adapter` as a LoRA of at most this rank, if that keeps nine tenths of it, or if `insist`.

    Sparse changes on random places are of full rank: of one that changes 5 % of a 640×640 weight, rank 64 keeps a third.

    Raises:
        UserError: too little is left, and what to do instead; or the adapter changes biases or norms, which a LoRA cannot.
    """
    if any(isinstance(patch, SparsePatch) and patch.indices is None for patch in adapter.patches.values()):
        if components is None:
            raise UserError(f"The positions in {adapter.info.name!r} are found in the base model's weights; give the base model.")
        adapter = with_positions(adapter, components)
    conversion = to_lora(adapter, rank=rank, components=components)
    if conversion.energy < LEAST_ENERGY and not insist:
        raise UserError(
            f"A LoRA of rank {rank} keeps {conversion.energy:.0%} of {adapter.info.name!r} (relative error "
            f"{conversion.relative_error:.0%}), and less than {LEAST_ENERGY:.0%} draws other pictures. Take a higher --rank, or "
            f"full differences or a merged model, which keep all of it; --insist writes the LoRA all the same."
        )
    return conversion


def with_positions(adapter: Adapter, components: Mapping[str, nn.Module]) -> Adapter:
    """`adapter` with every sparse change's positions at hand, found in the base model's weights where they were not.

    Raises:
        AdapterMismatchError: it is not the base model it was trained on, or in another precision.
    """
    patches = {path: _with_positions(path, patch, components, adapter.info.name) for path, patch in adapter.patches.items()}
    return replace(adapter, patches=patches)


def _with_positions(path: ParameterPath, patch: Patch, components: Mapping[str, nn.Module], adapter_name: str) -> Patch:
    if not isinstance(patch, SparsePatch) or patch.indices is not None:
        return patch
    if path.component not in components:
        raise AdapterMismatchError(f"The adapter {adapter_name!r} changes {path}, and this model has no {path.component}.")
    module = module_at(components[path.component], path, adapter_name)
    try:
        return patch.with_indices(module.get_parameter(path.parameter))
    except AdapterMismatchError as error:
        raise AdapterMismatchError(f"The adapter {adapter_name!r} does not fit {path}. {error}") from error
