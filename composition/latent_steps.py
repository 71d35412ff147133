"""Moving latents down the gradient of a loss on attention maps.

The gradient's own size differs between bases by orders of magnitude, with their width, number of heads and words. So a step
here has a size of its own: how far the latents move, in root mean square, where the noise's own is 1. One size then serves
every base, canvas and sampler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from studio.pipelines.denoising import AttentionMaps, Branch, Passes, Step
from studio.pipelines.denoising.batching import group_branches

GradientScale = Literal["normalised", "raw"]
LossOfMaps = Callable[[Sequence[AttentionMaps]], Tensor]

_HALF_PRECISION_SCALE = 4096.0
"""float16 has no room for gradients below 6e-8."""


def maps_gradient(
    passes: Passes, latents: Tensor, step: Step, branches: Sequence[Branch], loss_of: LossOfMaps, *, one_by_one: bool = False
) -> tuple[Tensor, Tensor]:
    """The losses `[B]` of the branches' attention maps, and their gradient with respect to the latents `[B, C, h, w]`.

    Passes end after the last layer that is captured. A picture's gradient does not depend on the others in its batch.

    Args:
        branches: with captures. loss_of: of their maps, in their order, a value for each picture.
        one_by_one: keep the graph of one branch at a time, for one more pass of each: the same gradient in a fraction of
            the memory. It is always so where branches cannot be one batch: a backward pass must find their adapters open.
    """
    if one_by_one or not _is_one_batch(passes, latents, branches):
        return _one_by_one(passes, latents, step, branches, loss_of)
    scale = _scale_of(passes)
    with torch.enable_grad():
        z = latents.detach().requires_grad_()
        with passes.open(z, step, branches, stops_early=True) as outputs:
            losses = loss_of([_maps(output.maps) for output in outputs])
            (gradient,) = torch.autograd.grad(losses.sum() * scale, z)
    return losses.detach(), gradient / scale


def batching(passes: Passes) -> Passes:
    """Passes of the same generation in which branches with different adapters are one batch, if their adapters allow it."""
    return passes.like(replace(passes.request, max_rows=sys.maxsize))


def moved(latents: Tensor, gradient: Tensor, size: float | Tensor, scale: GradientScale, unit: float = 1.0) -> Tensor:
    """z − size · ∇, with ∇ brought to the root mean square `unit` for each picture ("normalised") or as it is ("raw").

    Args:
        size: a number, or one for each picture `[B]`; a picture with a gradient that is zero or not finite stays as it is.
        unit: standard deviation of pure noise in these latents, see `noise_unit`.
    """
    dimensions = tuple(range(1, gradient.ndim))
    finite = torch.isfinite(gradient).all(dim=dimensions, keepdim=True) if dimensions else torch.isfinite(gradient)
    gradient = torch.where(finite, gradient, torch.zeros_like(gradient))
    sizes = size.reshape(-1, *[1] * len(dimensions)) if isinstance(size, Tensor) else size
    if scale == "normalised":
        # In two steps: the square of a small gradient is below the smallest float32.
        largest = gradient.abs().amax(dim=dimensions, keepdim=True)
        gradient = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
        size_now = gradient.square().mean(dim=dimensions, keepdim=True).sqrt()
        gradient = gradient / torch.where(size_now > 0, size_now, torch.ones_like(size_now)) * unit
    return latents - sizes * gradient


def noise_unit(scheduler: Any, timestep: Tensor) -> float:
    """How many times larger the loop's latents are than what the model sees: √(σ² + 1) for Euler, 1 for DDIM and DPM++."""
    scale = getattr(scheduler, "scale_model_input", None)
    return 1.0 if scale is None else 1.0 / float(scale(torch.ones(1, device=timestep.device), timestep))


def _one_by_one(
    passes: Passes, latents: Tensor, step: Step, branches: Sequence[Branch], loss_of: LossOfMaps
) -> tuple[Tensor, Tensor]:
    """∂L/∂z = Σ_branches (∂maps/∂z)ᵀ ∂L/∂maps: first all maps without a graph, then the graph of one branch at a time."""
    found: list[AttentionMaps] = []
    for branch in branches:
        with torch.no_grad(), passes.open(latents, step, [branch], stops_early=True) as outputs:
            found.append(_maps(outputs[0].maps))
    scale = _scale_of(passes)
    with torch.enable_grad():
        leaves = [_as_leaves(maps) for maps in found]
        losses = loss_of(leaves)
        tensors = [_tensors(maps) for maps in leaves]
        flat = torch.autograd.grad(losses.sum(), [one for each in tensors for one in each], allow_unused=True)
    upstream = iter(flat)
    gradient = torch.zeros_like(latents)
    for branch, leaf in zip(branches, tensors, strict=True):
        wanted = [next(upstream) for _ in leaf]
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            with passes.open(z, step, [branch], stops_early=True) as outputs:
                pairs = [
                    (made, given)
                    for made, given in zip(_tensors(_maps(outputs[0].maps)), wanted, strict=True)
                    if given is not None
                ]
                if pairs:
                    made, given = [pair[0] for pair in pairs], [pair[1] * scale for pair in pairs]
                    gradient = gradient + torch.autograd.grad(made, z, given)[0] / scale
    return losses.detach(), gradient


def _is_one_batch(passes: Passes, latents: Tensor, branches: Sequence[Branch]) -> bool:
    components, request = passes.denoiser.components(), passes.request
    is_cached = [False] * len(branches)
    return len(group_branches(branches, is_cached, components, request.max_rows, len(latents), request.most_rows)) == 1


def _scale_of(passes: Passes) -> float:
    return _HALF_PRECISION_SCALE if getattr(passes.denoiser.network, "dtype", None) == torch.float16 else 1.0


def _maps(maps: AttentionMaps | None) -> AttentionMaps:
    assert maps is not None, "a branch whose maps are wanted has a capture"
    return maps


def _tensors(maps: AttentionMaps) -> list[Tensor]:
    return [tensor for mapping in (maps.words, *maps.regions, maps.places) for tensor in mapping.values()]


def _as_leaves(maps: AttentionMaps) -> AttentionMaps:
    def leaves(mapping: Any) -> dict[str, Tensor]:
        return {name: tensor.detach().requires_grad_() for name, tensor in mapping.items()}

    return replace(
        maps, words=leaves(maps.words), regions=tuple(leaves(region) for region in maps.regions), places=leaves(maps.places)
    )
