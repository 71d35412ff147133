"""Any adapter as a LoRA, exactly or truncated, and as full differences.

A LoRA loads in every tool, so this is how an adapter of another type travels. How much of it survives is measured: the
relative error ‖ΔW − ΔW'‖ / ‖ΔW‖ (Frobenius), and the energy 1 − error², of each layer and of all together. The best
approximation of each rank comes from the singular value decomposition; a Kronecker product's is made of its factors',
and a LoRA's of its own, without the dense matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.layers import LayerSpec
from studio.pipelines.adapters.patches import FullPatch, KroneckerPatch, LoRAPatch, Patch
from studio.pipelines.adapters.patches.base import at_least_float32
from studio.pipelines.adapters.patching import change_of, module_at
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.spectrum import Spectrum, spectrum_of_kronecker, spectrum_of_matrix, spectrum_of_product
from studio.pipelines.errors import AdapterMismatchError, UserError


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """How well one layer's change was kept.

    Attributes:
        rank: of the LoRA. relative_error: ‖ΔW − ΔW'‖ / ‖ΔW‖, 0 for a layer that changes nothing.
        squared_norm: ‖ΔW‖².
    """

    rank: int
    relative_error: float
    squared_norm: float

    @property
    def energy(self) -> float:
        """Share of ‖ΔW‖² that was kept."""
        return 1.0 - self.relative_error**2


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted adapter and what it cost.

    Attributes:
        adapter: the result. layers: the fit of each layer.
    """

    adapter: Adapter
    layers: Mapping[ParameterPath, LayerFit]

    @property
    def relative_error(self) -> float:
        """‖ΔW − ΔW'‖ / ‖ΔW‖ over all layers together."""
        total = math.fsum(fit.squared_norm for fit in self.layers.values())
        lost = math.fsum(fit.relative_error**2 * fit.squared_norm for fit in self.layers.values())
        return math.sqrt(lost / total) if total > 0 else 0.0

    @property
    def energy(self) -> float:
        """Share of ‖ΔW‖² that was kept, over all layers together."""
        return 1.0 - self.relative_error**2


def to_lora(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    components: Mapping[str, nn.Module] | None = None,
) -> Conversion:
    """`adapter` as a LoRA; by default exactly, with each layer's own rank.

    Args:
        rank: at most this rank in every layer.
        energy: in each layer the smallest rank that keeps this share of ‖ΔW‖², in (0, 1]. With `rank`, both hold.
        components: the base model's modules by name. Needed for a DoRA, whose ΔW depends on the weights, and for layers
            whose file does not tell their kernel.

    Raises:
        UserError: `rank` or `energy` makes no sense, or the adapter changes biases or norms, which a LoRA cannot.
        AdapterMismatchError: the base model is needed and not given, or does not fit.
    """
    if rank is not None and rank < 1:
        raise UserError(f"A LoRA's rank is at least 1; got {rank}.")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"The energy to keep is a share between 0 and 1, such as 0.9; got {energy:g}.")
    patches: dict[ParameterPath, Patch] = {}
    fits: dict[ParameterPath, LayerFit] = {}
    for path, patch in adapter.patches.items():
        patches[path], fits[path] = _layer_to_lora(patch, path, rank, energy, components, adapter.info.name)
    return Conversion(adapter=Adapter(replace(adapter.info, type="lora"), patches), layers=fits)


def to_full(adapter: Adapter, *, components: Mapping[str, nn.Module] | None = None) -> Adapter:
    """`adapter` as full differences, exactly (in float32); arguments and errors as in `to_lora`."""
    with torch.no_grad():
        patches: dict[ParameterPath, Patch] = {
            path: FullPatch(dense_change(patch, path, components, adapter.info.name)) for path, patch in adapter.patches.items()
        }
    return Adapter(replace(adapter.info, type="full"), patches)


@torch.no_grad()
def dense_change(patch: Patch, path: ParameterPath, components: Mapping[str, nn.Module] | None, adapter_name: str) -> Tensor:
    """The dense Δ of one parameter, in its shape, float32 or wider.

    Without `components` it is computed from the patch alone, if that tells the parameter's shape (`weight_shape`).
    """
    if components is not None:
        if path.component not in components:
            raise AdapterMismatchError(f"The adapter {adapter_name!r} changes {path}, and this model has no {path.component}.")
        return change_of(patch, module_at(components[path.component], path, adapter_name), path, adapter_name).cpu()
    shape: tuple[int, ...] | None = getattr(patch, "weight_shape", None)
    if shape is None:
        raise AdapterMismatchError(
            f"What the {patch.kind} patch of {path} changes cannot be computed without the base model; name it with --base."
        )
    return patch.bind(torch.empty(shape, device="meta"), _spec_of(shape)).delta().cpu()


def _layer_to_lora(
    patch: Patch,
    path: ParameterPath,
    rank: int | None,
    energy: float | None,
    components: Mapping[str, nn.Module] | None,
    adapter_name: str,
) -> tuple[LoRAPatch, LayerFit]:
    if path.parameter != "weight":
        raise UserError(
            f"The adapter {adapter_name!r} changes {path}, and a LoRA can only change the weights of layers; "
            f"export --format diff, or merged."
        )
    spectrum, shape = _spectrum(patch, path, components, adapter_name)
    kept = spectrum.rank() if energy is None else spectrum.rank_for_energy(energy)
    kept = kept if rank is None else min(rank, kept)
    norm = spectrum.squared_norm
    fit = LayerFit(rank=kept, relative_error=math.sqrt(spectrum.discarded(kept) / norm) if norm > 0 else 0.0, squared_norm=norm)
    if isinstance(patch, LoRAPatch) and kept == patch.rank:
        return patch, fit
    left, right = spectrum.factors(kept)
    roots = spectrum.values[:kept].sqrt()  # shared by both factors, so that neither leaves float16's range
    up, down = (left * roots).float(), (roots[:, None] * right).float()
    if len(shape) == 4:
        up, down = up[..., None, None], down.reshape(kept, *shape[1:])
    return LoRAPatch(down.contiguous(), up.contiguous(), float(kept)), fit


@torch.no_grad()
def _spectrum(
    patch: Patch, path: ParameterPath, components: Mapping[str, nn.Module] | None, adapter_name: str
) -> tuple[Spectrum, tuple[int, ...]]:
    """The spectrum of ΔW as a matrix `[out, in · height · width]`, and the weight's shape."""
    if isinstance(patch, LoRAPatch):
        product = spectrum_of_product(patch.scale * at_least_float32(patch.up).flatten(1).cpu(), patch.down.flatten(1).cpu())
        return product, patch.weight_shape
    if isinstance(patch, KroneckerPatch):
        return _kronecker_spectrum(patch), patch.weight_shape
    delta = dense_change(patch, path, components, adapter_name)
    if delta.ndim not in (2, 4):
        raise UserError(
            f"The adapter {adapter_name!r} changes {path}, a parameter of shape {list(delta.shape)}, and a LoRA can only "
            f"change matrices and convolutions; export --format diff, or merged."
        )
    return spectrum_of_matrix(delta.flatten(1)), tuple(delta.shape)


def _kronecker_spectrum(patch: KroneckerPatch) -> Spectrum:
    first, second = (factor.to(device="cpu", dtype=torch.float64).value() for factor in (patch.first, patch.second))
    spectrum = spectrum_of_kronecker(patch.scale * first, second.flatten(1))
    if not patch.interleaved:
        return spectrum

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        left, right = spectrum.factors(rank)
        return left.unflatten(0, (first.shape[0], second.shape[0])).transpose(0, 1).flatten(0, 1), right

    return Spectrum(spectrum.values, factors)


def _spec_of(shape: tuple[int, ...]) -> LayerSpec:
    if len(shape) == 4:
        return LayerSpec("conv2d", shape[1], shape[0], (shape[2], shape[3]))
    return LayerSpec("linear", shape[1] if len(shape) > 1 else 1, shape[0])
