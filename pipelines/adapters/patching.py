"""`patched`: the one place that changes a model, and changes it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from studio.pipelines.adapters.entries import Entry
from studio.pipelines.adapters.folding import Merging
from studio.pipelines.adapters.joint_site import JointSite, write
from studio.pipelines.adapters.layers import LayerSpec, layer_spec
from studio.pipelines.adapters.patched_forward import PatchedForward, joint_site
from studio.pipelines.adapters.patches.base import BoundPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath, find_module
from studio.pipelines.adapters.projections import PLAIN_PROCESSOR, GatedForward, PatchedAttention, gated_units, plain_attentions
from studio.pipelines.adapters.routing import Route, Router
from studio.pipelines.adapters.sites import Place, place_of, places
from studio.pipelines.adapters.traced import behind, is_compiled, traced_forward
from studio.pipelines.errors import AdapterMismatchError


@contextmanager
def patched(components: Mapping[str, nn.Module], routes: Sequence[Route], merging: Merging = "auto") -> Iterator[Router]:
    """Let adapters act on models while the block is open: y = W x + b + Σₙ routeₙ ⊙ Δₙ(x) in every layer they name.

    No parameter is changed: the layers compute a sum, so gradients reach the adapters' tensors and every picture of a batch
    can have its own. (A dense or sparse ΔW that acts on the whole batch alike is added to a copy of the layer's weight once,
    so that the layer costs no more than before; see `folding`.) LoRAs of any number are part of the layer's own product; for
    that the weights move once into memory that has room for the factors, and stay there as the same numbers; see
    `joint_weights`. Keep it open around forward *and* backward, because gradient checkpointing runs forwards again. Blocks
    nest: the inner one adds to the outer one. At the end, also after an exception, the models compute exactly as before, and
    their parameters, attributes and hooks are the same.

    Args:
        components: the models by name (`unet`, `text_encoder`, …). Patches of other components do not act, and are in
            the report.
        routes: which adapters act, how strongly and where.
        merging: whether changes of low rank are folded into a copy of the weights as well; see `folding`.

    Yields:
        A `Router`; its `report()` names what was left out.

    Raises:
        AdapterMismatchError: an adapter names a layer that the model does not have, or not in that shape.
    """
    with ResolvedRoutes(components, routes, merging).open() as router:
        yield router


_ABSENT = object()

_Known = tuple[tuple[object, ...], list[PatchedForward], JointSite | None]


class ResolvedRoutes:
    """Routes bound to the layers they name, to be opened again and again: `patched` in two halves.

    Binding takes longer than a step of a small model; a loop that opens the same routes at every step does it once. What
    is made at an opening (a weight with a change folded in, a changed bias) is kept for the next, as long as the layer is
    what it was.

    Args:
        components, routes, merging: as for `patched`, which also names the errors.

    Attributes:
        router: its `report()` names what was left out.
    """

    def __init__(self, components: Mapping[str, nn.Module], routes: Sequence[Route], merging: Merging = "auto") -> None:
        self.router = Router(tuple(routes))
        self.merging: Merging = merging
        self._layers: dict[nn.Module, list[Entry]] = {}
        self._parameters: list[_ChangedParameter] = []
        self._known: dict[Place, _Known] = {}
        self._sites: list[JointSite] = []
        self._shared: dict[tuple[Any, ...], Tensor] = {}
        self._is_compiled = any(is_compiled(component) for component in components.values())
        for route in self.router.routes:
            for path, patch in route.adapter.patches.items():
                self._resolve(components, route, path, patch)
        together = places(components) if self._layers else {}
        self._places = list(dict.fromkeys(place_of(module, together) for module in self._layers))
        self._attentions = [
            each for component in components.values() for each in plain_attentions(component) if self._changes(each)
        ]
        trains = any(entry.trains for entries in self._layers.values() for entry in entries)
        self._gated = [unit for component in components.values() for unit in gated_units(component)] if trains else []

    @contextmanager
    def open(self) -> Iterator[Router]:
        """Let the routes act while the block is open; see `patched`."""
        with ExitStack() as restore:
            if self._is_compiled:
                restore.callback(self._show)
            for changed in self._parameters:
                before = changed.module._parameters[changed.path.parameter]
                restore.callback(changed.module._parameters.__setitem__, changed.path.parameter, before)
                changed.module._parameters[changed.path.parameter] = changed.over(before)
            for place in self._places:
                for module, forward in zip(place.modules, self._forwards(place), strict=True):
                    restore.callback(_restore_forward, module, behind(module.__dict__.get("forward", _ABSENT)))
                    module.__dict__["forward"] = forward
            stale = [site for site in self._sites if not (site.is_current() and site.is_in_place())]
            if stale:
                write(stale)
            if self._is_compiled:
                self._show()
            for attention in self._attentions:
                present = attention.__dict__["processor"]
                if type(present).__name__ == PLAIN_PROCESSOR:
                    restore.callback(attention.__dict__.__setitem__, "processor", present)
                    attention.__dict__["processor"] = PatchedAttention.over(attention)
            for unit in self._gated:
                restore.callback(_restore_forward, unit, unit.__dict__.get("forward", _ABSENT))
                unit.__dict__["forward"] = GatedForward(unit)
            yield self.router

    def _forwards(self, place: Place) -> list[PatchedForward]:
        """The forwards of a place's layers over their present ones; those of the last opening if these are the same."""
        presents = tuple(behind(module.__dict__.get("forward", _ABSENT)) for module in place.modules)
        known = self._known.get(place)
        if known is not None and all(one is other for one, other in zip(known[0], presents, strict=True)):
            return known[1]
        forwards = [
            PatchedForward.extending(module, tuple(self._layers.get(module, ())), self.merging) for module in place.modules
        ]
        site = joint_site(place, forwards, self._shared, is_compiled=self._is_compiled)
        if known is not None and known[2] is not None:
            self._sites.remove(known[2])
        if site is not None:
            self._sites.append(site)
        for forward in forwards:
            forward.site, forward.peers = site, self._sites
        self._known[place] = (presents, forwards, site)
        return forwards

    def _show(self) -> None:
        """Let compiled layers have what is open now; they do not look whether another block has written other factors since."""
        modules = [module for place in self._places for module in place.modules]
        presents = {module: behind(module.__dict__.get("forward")) for module in modules}
        patched = {module: present for module, present in presents.items() if isinstance(present, PatchedForward)}
        sites = dict.fromkeys(present.site for present in patched.values())
        write([site for site in sites if site is not None and not site.is_current()])
        for module in modules:
            traced = traced_forward(module)
            if module not in patched:
                traced.hide()
                continue
            traced.show(patched[module])
            module.__dict__["forward"] = traced

    def _changes(self, attention: Any) -> bool:
        """Whether one of an attention layer's projections is changed."""
        return any(getattr(attention, name) in self._layers for name in ("to_q", "to_k", "to_v"))

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
            trains = any(tensor.requires_grad for tensor in patch.parameters().values())
            self._layers.setdefault(module, []).append(Entry(bound, weight, route, patch.needs_base_out, trains))


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
