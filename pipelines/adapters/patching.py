"""`patched`: the one place that changes a model, and changes it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.folding import can_fold, folded_weight, run_with
from studio.pipelines.adapters.layers import LayerSpec, layer_spec
from studio.pipelines.adapters.patches.base import Adding, BoundPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath, find_module
from studio.pipelines.adapters.routing import Route, Router, RouteWeight
from studio.pipelines.errors import AdapterMismatchError


@contextmanager
def patched(components: Mapping[str, nn.Module], routes: Sequence[Route]) -> Iterator[Router]:
    """Let adapters act on models while the block is open: y = W x + b + Σₙ routeₙ ⊙ Δₙ(x) in every layer they name.

    Nothing is merged and no parameter is written to: the layers compute a sum, so gradients reach the adapters' tensors
    and every picture of a batch can have its own. (A dense or sparse ΔW that acts on the whole batch alike is added to a
    copy of the layer's weight once, so that the layer costs no more than before; see `folding`.) Keep it open around
    forward *and* backward, because gradient checkpointing runs forwards again. Blocks nest: the inner one adds to the outer
    one. At the end, also after an exception, the models are exactly as before, and so are their attributes and hooks.

    Args:
        components: the models by name (`unet`, `text_encoder`, …). Patches of other components do not act, and are in
            the report.
        routes: which adapters act, how strongly and where.

    Yields:
        A `Router`; its `report()` names what was left out.

    Raises:
        AdapterMismatchError: an adapter names a layer that the model does not have, or not in that shape.
    """
    with ResolvedRoutes(components, routes).open() as router:
        yield router


_Entry = tuple[BoundPatch, RouteWeight, bool]
_ABSENT = object()


class ResolvedRoutes:
    """Routes bound to the layers they name, to be opened again and again: `patched` in two halves.

    Binding takes longer than a step of a small model; a loop that opens the same routes at every step does it once. What
    is made at an opening (a weight with a change folded in, a changed bias) is kept for the next, as long as the layer is
    what it was.

    Args:
        components, routes: as for `patched`, which also names the errors.

    Attributes:
        router: its `report()` names what was left out.
    """

    def __init__(self, components: Mapping[str, nn.Module], routes: Sequence[Route]) -> None:
        self.router = Router(tuple(routes))
        self._layers: dict[nn.Module, list[_Entry]] = {}
        self._parameters: list[_ChangedParameter] = []
        self._forwards: dict[nn.Module, tuple[object, _PatchedForward]] = {}
        for route in self.router.routes:
            for path, patch in route.adapter.patches.items():
                self._resolve(components, route, path, patch)

    @contextmanager
    def open(self) -> Iterator[Router]:
        """Let the routes act while the block is open; see `patched`."""
        with ExitStack() as restore:
            for changed in self._parameters:
                before = changed.module._parameters[changed.path.parameter]
                restore.callback(changed.module._parameters.__setitem__, changed.path.parameter, before)
                changed.module._parameters[changed.path.parameter] = changed.over(before)
            for module, entries in self._layers.items():
                present = module.__dict__.get("forward", _ABSENT)
                known, forward = self._forwards.get(module, (None, None))
                if forward is None or known is not present:
                    forward = _PatchedForward.extending(module, tuple(entries))
                    self._forwards[module] = (present, forward)
                restore.callback(_restore_forward, module, present)
                module.forward = forward
            yield self.router

    def _resolve(self, components: Mapping[str, nn.Module], route: Route, path: ParameterPath, patch: Patch) -> None:
        """Bind one patch of one route: to its layer's forward, or, where there is no per-position form, to the parameter."""
        component = components.get(path.component)
        if component is None:
            self.router.leave_out(route, path, f"there is no {path.component} here")
            return
        module = module_at(component, path, route.adapter.info.name)
        if not acts_per_position(patch, module, path):
            if route.is_partial:
                what = f"a {type(module).__name__}'s {path.parameter}"
                self.router.leave_out(route, path, f"a change of {what} acts on whole batches only")
                return
            self._parameters.append(_ChangedParameter(module, path, patch, route))
            return
        bound = bind(patch, module, path, route.adapter.info.name)
        weight = self.router.resolve(route, path, _parameter(module, path).device)
        if weight is not None and not weight.is_zero:
            self._layers.setdefault(module, []).append((bound, weight, patch.needs_base_out))


def module_at(component: nn.Module, path: ParameterPath, adapter_name: str) -> nn.Module:
    """The module that `path` names in `component`; `AdapterMismatchError` if there is none."""
    module = find_module(component, path.module)
    if module is None or module._parameters.get(path.parameter) is None:
        raise AdapterMismatchError(
            f"The adapter {adapter_name!r} changes {path}, which this model does not have: it was made for another base "
            f"model. `studio inspect` shows which."
        )
    return module


def bind(patch: Patch, module: nn.Module, path: ParameterPath, adapter_name: str) -> BoundPatch:
    """Bind a patch to the parameter it changes, with an error that says which adapter and layer do not fit."""
    parameter = _parameter(module, path)
    try:
        return patch.bind(parameter, layer_spec(module) if _is_layers_weight(module, path) else _plain_spec(parameter))
    except AdapterMismatchError as error:
        raise AdapterMismatchError(f"The adapter {adapter_name!r} does not fit {path}. {error}") from error


def change_of(patch: Patch, module: nn.Module, path: ParameterPath, adapter_name: str) -> Tensor:
    """The dense Δ of the parameter that `path` names, in its shape; errors as in `bind`."""
    delta = bind(patch, module, path, adapter_name).delta()
    shape = _parameter(module, path).shape
    if delta.shape != shape:
        raise AdapterMismatchError(
            f"The adapter {adapter_name!r} does not fit {path}. A {patch.kind} patch that changes a tensor of shape "
            f"{list(delta.shape)} cannot change a {type(module).__name__}'s {path.parameter} of shape {list(shape)}."
        )
    return delta


def acts_per_position(patch: Patch, module: nn.Module, path: ParameterPath) -> bool:
    """Whether a patch of this parameter can be confined to rows of a batch and to places: not on a bias, norm or embedding."""
    return patch.routable and _is_layers_weight(module, path)


def _is_layers_weight(module: nn.Module, path: ParameterPath) -> bool:
    """Whether what changes is the weight of a layer that computes every position alike."""
    return path.parameter == "weight" and isinstance(module, nn.Linear | nn.Conv2d)


def _parameter(module: nn.Module, path: ParameterPath) -> Tensor:
    parameter = module._parameters[path.parameter]
    assert parameter is not None, path
    return parameter


class _ChangedParameter:
    """A parameter with strength · Δ added, which is computed once for each original."""

    def __init__(self, module: nn.Module, path: ParameterPath, patch: Patch, route: Route) -> None:
        self.module = module
        self.path = path
        self.patch = patch
        self.route = route
        self._known: tuple[object, Any] = (None, None)

    def over(self, before: Any) -> Any:
        """`before` + strength · Δ, in the type of `before`, which is what the module has now."""
        known, changed = self._known
        if known is not before:
            delta = change_of(self.patch, self.module, self.path, self.route.adapter.info.name)
            changed = (before + (self.route.strength * delta).to(before.device)).to(before.dtype)
            self._known = (before, changed)
        return changed


def _plain_spec(parameter: Tensor) -> LayerSpec:
    size = parameter.shape
    return LayerSpec("linear", size[1] if len(size) > 1 else 1, size[0])


def _restore_forward(module: nn.Module, before: object) -> None:
    if before is _ABSENT:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = before


class _PatchedForward:
    """A layer's forward that adds what patches add. It replaces `forward` on the instance, so hooks still run."""

    def __init__(self, module: nn.Module, original: Callable[[Tensor], Tensor], entries: tuple[_Entry, ...]) -> None:
        self.module = module
        self.original = original
        self.entries = entries
        self.is_convolution = isinstance(module, nn.Conv2d)
        self.needs_base_out = any(needs for _, _, needs in entries)
        folded = [] if self.needs_base_out else [entry for entry in entries if can_fold(module, original, *entry[:2])]
        self.added = [
            (bound, bound if isinstance(bound, Adding) and not self.is_convolution else None, weight)
            for bound, weight, needs in entries
            if (bound, weight, needs) not in folded
        ]
        self.weight = folded_weight(module, [entry[:2] for entry in folded]) if folded else None

    @classmethod
    def extending(cls, module: nn.Module, entries: tuple[_Entry, ...]) -> _PatchedForward:
        """Over the module's present forward; a patched one is extended, so that all see the same unpatched output."""
        present = module.forward
        if isinstance(present, cls):
            return cls(module, present.original, (*present.entries, *entries))
        return cls(module, present, entries)

    def __call__(self, x: Tensor) -> Tensor:
        output = self.original(x) if self.weight is None else run_with(self.module, self.weight, x)
        base_out = self._without_bias(output) if self.needs_base_out else output
        for bound, adding, weight in self.added:
            if adding is not None and weight.chosen is None and x.dtype == output.dtype:
                factor = weight.factor(output, self.is_convolution)
                if not isinstance(factor, Tensor):
                    output = adding.added_to(output, x, factor)
                    continue
            output = _plus(output, x, base_out, bound, weight, self.is_convolution)
        return output

    def _without_bias(self, output: Tensor) -> Tensor:
        bias = self.module.bias
        if not isinstance(bias, Tensor):
            return output
        bias = bias.to(output.dtype)
        return output - (bias[:, None, None] if self.is_convolution else bias)


def _plus(output: Tensor, x: Tensor, base_out: Tensor, bound: BoundPatch, weight: RouteWeight, is_convolution: bool) -> Tensor:
    """output + route ⊙ Δ(x); rows that the route does not name are not computed and stay as they are, bit for bit."""
    factor = weight.factor(output, is_convolution)
    if weight.chosen is None:
        delta = bound.forward_delta(x, base_out).to(output.dtype)
        return output + factor * delta if isinstance(factor, Tensor) else torch.add(output, delta, alpha=factor)
    chosen = weight.chosen.to(output.device)
    delta = bound.forward_delta(x[chosen], base_out[chosen]).to(output.dtype)
    rows_factor = factor[chosen] if isinstance(factor, Tensor) and factor.shape[0] == output.shape[0] else factor
    return output.index_add(0, chosen, rows_factor * delta)
