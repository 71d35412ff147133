"""Several adapters as one by least squares: each keeps its effect on what *it* sees.

    ΔW' = argmin_D Σₙ mean‖(sₙΔWₙ − D) xₙ‖² + λ‖D − mean(sₙΔWₙ)‖²,    xₙ: inputs of the layer while adapter n draws its concept

This is RegMean (Jin et al. 2023, arXiv 2212.09849) and the objective of Mix-of-Show's gradient fusion (Gu et al. 2023, arXiv
2305.18292), which takes minutes of LBFGS per layer set, in closed form: D (Σ Gₙ + λI) = Σ sₙΔWₙGₙ + λ mean. The ridge decides
where no input says anything; it draws to the mean, so that one adapter, and N equal ones, come out as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from studio.composition.activations import as_matrix
from studio.composition.merging.concatenation import sum_of
from studio.composition.merging.parts import Merged, Weighted, changes, merged_info
from studio.composition.merging.rules import average
from studio.pipelines.adapters import Adapter, FullPatch, ParameterPath


@torch.no_grad()
def merge_by_regression(
    parts: Sequence[Weighted],
    grams: Sequence[Mapping[ParameterPath, Tensor]],
    *,
    ridge: float = 1e-4,
    components: Mapping[str, nn.Module] | None = None,
) -> Merged:
    """One adapter of full differences.

    Args:
        grams: for each part, its layers' G (see `activations.input_grams`), while it acts. Parameters without one, biases for
            example, get the mean.
        ridge: λ as a share of the mean diagonal of Σ G.
    """
    patches: dict[ParameterPath, FullPatch] = {}
    distance = norm = 0.0
    left_out = 0
    for path, deltas in changes(parts, components):
        present = [delta for delta in deltas if delta is not None]
        whole = [torch.zeros_like(present[0]) if delta is None else delta for delta in deltas]
        found = [gram.get(path) for gram in grams]
        if any(gram is None for gram in found):
            result = average(whole, len(parts))
            left_out += path.parameter == "weight" and present[0].ndim > 1
        else:
            result = fused(whole, [gram for gram in found if gram is not None], ridge)
        plain = sum_of(present)
        distance += float((result - plain).double().square().sum())
        norm += float(plain.double().square().sum())
        patches[path] = FullPatch(result)
    notes = (f"{left_out} layers are too wide for the regression and got the mean.",) if left_out else ()
    return Merged(
        adapter=Adapter(replace(merged_info(parts, "regression"), type="full"), patches),
        relative_error=math.sqrt(distance / norm) if norm > 0 else 0.0,
        notes=notes,
    )


def fused(deltas: Sequence[Tensor], grams: Sequence[Tensor], ridge: float) -> Tensor:
    """The best D for one layer, in the shape of the deltas.

    Args:
        deltas: sₙΔWₙ `[out, in, …]`. grams: Gₙ `[in·…, in·…]`. ridge: λ as a share of the mean diagonal of Σ G.
    """
    mean = average(deltas, len(deltas))
    # Solved for what differs from the mean: where all agree, the difference is zero, exactly.
    total = torch.stack([gram.double() for gram in grams]).sum(dim=0)
    weight = ridge * float(total.diagonal().mean())
    if weight <= 0.0:  # nothing ever came in
        return mean
    right = torch.zeros(as_matrix(mean).shape, dtype=torch.float64)
    for delta, gram in zip(deltas, grams, strict=True):
        right += as_matrix(delta - mean).double() @ gram.double()
    total.diagonal().add_(weight)
    difference = torch.linalg.solve(total, right.T).T
    return mean + difference.reshape(mean.shape).to(mean.dtype)
