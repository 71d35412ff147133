"""Ways out of the studio for sparse changes, beside the merged model and full differences, which are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.conversion import Conversion
from studio.pipelines.adapters.patches import Patch, SparsePatch
from studio.pipelines.adapters.patching import module_at
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.errors import AdapterMismatchError, UserError

LEAST_ENERGY = 0.9
"""Share of ‖ΔW‖² below which a LoRA is another adapter rather than the same one."""


def require_faithful(conversion: Conversion, adapter: Adapter) -> None:
    """Raise UserError, with what to do instead, if `conversion` of a sparse `adapter` lost more than a tenth of it.

    Sparse changes on random places are of full rank: of one that changes 5 % of a 640×640 weight, rank 64 keeps a third.
    """
    if "sparse" in adapter.kinds() and conversion.energy < LEAST_ENERGY:
        raise UserError(
            f"A LoRA of this size keeps {conversion.energy:.0%} of what {adapter.info.name!r} learned, and less than "
            f"{LEAST_ENERGY:.0%} draws other pictures. Give a larger --rank, or export --format diff or merged, which keep all "
            f"of it; --force writes it all the same."
        )


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
