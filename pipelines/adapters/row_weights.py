"""Different adapters on different pictures of one batch, with every adapter folded into weights of its own.

As a sum of outputs, adapters cost a product each in every layer and pass; a small model spends a third of its time there.
Here a layer runs once for each set of pictures that share adapters, with weight + Σ strength · ΔW in the layer's own place:
each picture costs what it costs without adapters. On a CPU all layers, changed or not, may also have their weights laid out once
for the whole generation (`kernels.packed_layers`). The price is memory, a copy of the weights for each set, so this is for small
models and few sets; everything else takes `patched` with rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studio.kernels.packed_layers import Packed, can_pack
from studio.pipelines.adapters.folding import run_with
from studio.pipelines.adapters.patching import acts_per_position, change_of, module_at
from studio.pipelines.adapters.routing import Route

_OWN_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)

MAX_FOLDED_BYTES = 512 * 2**20
"""Copies of weights that may be held at once; SDXL's attention for one adapter would already need more."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of a batch that have the same adapters.

    Attributes:
        rows: their indices, rising, in the batch as the model sees it. routes: whole adapters: no rows, no mask, one strength.
    """

    rows: tuple[int, ...]
    routes: tuple[Route, ...]


def can_fold_rows(component: nn.Module, name: str, sets: Sequence[Sequence[Route]]) -> bool:
    """Whether `patched_rows` can run these sets of routes on the component called `name`: float32 weights of plain layers,
    patches of weights alone, and not too many bytes."""
    num_bytes = 0
    for routes in sets:
        weights: dict[nn.Module, int] = {}
        for route in routes:
            if route.is_partial or isinstance(route.strength, Tensor):
                return False
            for path, patch in route.adapter.patches.items():
                if path.component != name:
                    continue
                module = module_at(component, path, route.adapter.info.name)
                if not acts_per_position(patch, module, path) or not _is_plain(module):
                    return False
                weights[module] = _weight(module).nbytes
        num_bytes += sum(weights.values())
    return num_bytes <= MAX_FOLDED_BYTES


def can_pack_rows(component: nn.Module, num_sets: int) -> bool:
    """Whether all layers of the component may be packed for so many sets: on a CPU, in float32, and not too many bytes."""
    layers = [module for module in component.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers or not all(can_pack(_weight(module)) for module in layers):
        return False
    return num_sets * sum(_weight(module).nbytes for module in layers) <= MAX_FOLDED_BYTES


@contextmanager
def patched_rows(component: nn.Module, name: str, sets: Sequence[RowSet], *, packs: bool = False) -> Iterator[None]:
    """Let each set of rows have its own adapters while the block is open; afterwards the component is as before.

    The sets share out the batch's rows: each row is in exactly one. Check with `can_fold_rows` first, and with `can_pack_rows`
    where `packs`. No gradients reach the adapters.
    """
    changed: dict[nn.Module, list[Tensor | None]] = {}
    for index, one in enumerate(sets):
        for module, weight in _weights(component, name, one.routes).items():
            changed.setdefault(module, [None] * len(sets))[index] = weight
    places = _places([one.rows for one in sets])
    layers = [module for module in component.modules() if _is_plain(module)] if packs else list(changed)
    with ExitStack() as restore:
        for module in layers:
            assert "forward" not in module.__dict__, "patched_rows is open already, or patched is"
            restore.callback(module.__dict__.pop, "forward")
            if module not in changed:
                module.forward = _product(module, _weight(module), packs)
                continue
            products = [_product(module, _weight(module) if own is None else own, packs) for own in changed[module]]
            module.forward = products[0] if len(products) == 1 else _RowForward(products, places)
        yield


class _RowForward:
    """A layer's forward that runs each set of rows with its own weight. `places`: (first row, row after the last, set)."""

    def __init__(self, products: Sequence[Product], places: Sequence[tuple[int, int, int]]) -> None:
        self.products = products
        self.places = places

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) != self.places[-1][1]:
            raise ValueError(f"Adapters were given for {self.places[-1][1]} rows and the model's batch has {len(x)}.")
        return torch.cat([self.products[number](x[first:last]) for first, last, number in self.places])


def _places(rows: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """The batch as stretches of neighbouring rows of one set, in order."""
    owner = {row: number for number, each in enumerate(rows) for row in each}
    assert sorted(owner) == list(range(len(owner))) and len(owner) == sum(map(len, rows)), "each row is in exactly one set"
    found: list[tuple[int, int, int]] = []
    for row in range(len(owner)):
        if found and found[-1][2] == owner[row]:
            found[-1] = (found[-1][0], row + 1, owner[row])
        else:
            found.append((row, row + 1, owner[row]))
    return found


@torch.no_grad()
def _weights(component: nn.Module, name: str, routes: Sequence[Route]) -> dict[nn.Module, Tensor]:
    """weight + Σ strength · ΔW of each layer that the routes change, in their order."""
    found: dict[nn.Module, Tensor] = {}
    for route in routes:
        strength = float(route.strength)
        for path, patch in route.adapter.patches.items():
            if path.component == name and strength != 0.0:
                module = module_at(component, path, route.adapter.info.name)
                weight = found.get(module, _weight(module))
                found[module] = weight + strength * change_of(patch, module, path, route.adapter.info.name).to(weight)
    return found


def _product(module: nn.Module, weight: Tensor, packs: bool) -> Product:
    """What the layer computes with `weight` in its own's place."""
    if not packs:
        return lambda x: run_with(module, weight, x)
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        stride, padding, dilation = (tuple(each) for each in (module.stride, module.padding, module.dilation))
        return Packed(weight, module.bias, stride, padding, dilation, module.groups)  # type: ignore[arg-type]
    assert isinstance(module, nn.Linear)
    return Packed(weight, module.bias)


def _weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def _is_plain(module: nn.Module) -> bool:
    """A layer of torch's own in float32 that nothing else has changed: rounding the sum once more changes no picture."""
    if not isinstance(module, nn.Linear | nn.Conv2d) or "weight" in module.__dict__:
        return False
    if isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
        return False
    weight = module._parameters["weight"]
    is_float32 = isinstance(weight, Tensor) and weight.dtype == torch.float32 and not weight.is_meta
    return is_float32 and getattr(module.forward, "__func__", None) in _OWN_FORWARDS
