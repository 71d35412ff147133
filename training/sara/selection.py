"""Which weights SaRA trains: those so small that they do next to nothing (Hu et al. 2025, arXiv 2409.06633, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from studio.kernels.sparse_index import indices_below, threshold_of_share
from studio.pipelines.adapters import ParameterPath, canonical_name
from studio.pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """M = {|p| < θ}: θ given, or found in each tensor so that a given share of its entries is below. One of the two.

    Attributes:
        threshold: θ, the same for all tensors, as in the paper; it fits models whose weights have SD's scale.
        density: share of each tensor's entries, 0…1; for all other models.
    """

    threshold: float | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.density is None):
            raise ConfigError("SaRA selects either by threshold or by density: give one of the two")
        if self.threshold is not None and self.threshold <= 0:
            raise ConfigError(f"no weight is smaller than the threshold {self.threshold}; use a positive one, such as 2e-3")
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"the density {self.density} is no share of the weights; use one between 0 and 1, such as 0.1")

    def threshold_for(self, weight: Tensor) -> float:
        """θ for this tensor."""
        if self.threshold is not None:
            return self.threshold
        assert self.density is not None
        return threshold_of_share(weight, self.density)


@dataclass(frozen=True, eq=False)
class Selected:
    """The chosen entries of one tensor.

    Attributes:
        path: its name. places: the modules and attribute names it is found at (several when it is tied).
        threshold: θ. indices: `[k]` int32, sorted flat positions with |p| < θ.
    """

    path: ParameterPath
    places: tuple[tuple[nn.Module, str], ...]
    threshold: float
    indices: Tensor

    @property
    def parameter(self) -> nn.Parameter:
        """The tensor itself."""
        module, name = self.places[0]
        parameter = module._parameters[name]
        assert isinstance(parameter, nn.Parameter), self.path
        return parameter


def select(component: str, model: nn.Module, rule: SelectionRule, targets: str | None) -> tuple[Selected, ...]:
    """Apply the rule to a model's tensors, in the model's order; tensors of which nothing is chosen are left out.

    Args:
        component: the model's name in paths, as "unet".
        targets: regular expression on module names: the weights of the linear layers and convolutions that match. None takes
            every parameter of the model, biases, norms and embeddings too, as the paper does.

    Raises:
        ConfigError: no layer matches, or no weight is small enough.
    """
    found: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module, attribute, parameter in _candidates(model, targets):
        found.setdefault(id(parameter), []).append((name, module, attribute))
    if not found:
        raise ConfigError(f"no linear or convolution layer of the {component} has a name that matches {targets!r}")
    chosen = []
    for entries in found.values():
        name, module, attribute = entries[0]
        weight = module._parameters[attribute]
        assert weight is not None
        threshold = rule.threshold_for(weight)
        indices = indices_below(weight, threshold)
        if len(indices):
            places = tuple((each, key) for _, each, key in entries)
            chosen.append(Selected(ParameterPath(component, name, attribute), places, threshold, indices))
    if not chosen:
        raise ConfigError(
            f"no weight of the {component} is below the threshold {rule.threshold}; choose a larger one, or a density"
        )
    return tuple(chosen)


def _candidates(model: nn.Module, targets: str | None) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Name of the module, the module, the parameter's name in it, and the parameter. Floating-point parameters only."""
    regex = None if targets is None else re.compile(targets)
    for actual, module in model.named_modules():
        if isinstance(module, nn.RNNBase):  # it keeps a list of its own of its parameters, past which nothing can be led
            continue
        name = canonical_name(model, actual)
        if regex is not None and not (isinstance(module, nn.Linear | nn.Conv2d) and regex.fullmatch(name)):
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point() or (regex is not None and attribute != "weight"):
                continue
            yield name, module, attribute, parameter
