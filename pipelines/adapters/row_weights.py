"""Different adapters on different pictures of one batch, with every adapter folded into weights of its own.

As a sum of outputs, adapters cost a product each in every layer and pass; a small model spends a third of its time there.
Here a layer runs once for each set of pictures that share adapters, with weight + Σ strength · ΔW in the layer's own place:
each picture costs what it costs without adapters. The price is memory, a copy of the changed weights for each set, so this
is for small models and few sets; everything else takes `patched` with rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studio.pipelines.adapters.folding import run_with
from studio.pipelines.adapters.patching import acts_per_position, change_of, module_at
from studio.pipelines.adapters.routing import Route

_OWN_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)

MAX_FOLDED_BYTES = 512 * 2**20
"""Copies of weights that may be held at once; SDXL's attention for one adapter would already need more."""


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of a batch that have the same adapters.

    Attributes:
        rows: their indices `[n]`, in the batch as the model sees it. routes: whole adapters: no rows, no mask, one strength.
    """

    rows: Tensor
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
                weights[module] = module._parameters["weight"].nbytes  # type: ignore[union-attr]
        num_bytes += sum(weights.values())
    return num_bytes <= MAX_FOLDED_BYTES


@contextmanager
def patched_rows(component: nn.Module, name: str, sets: Sequence[RowSet]) -> Iterator[None]:
    """Let each set of rows have its own adapters while the block is open; afterwards the component is as before.

    The sets share out the batch's rows: each row is in exactly one. Check with `can_fold_rows` first. No gradients reach the
    adapters.
    """
    weights: dict[nn.Module, list[Tensor | None]] = {}
    for index, one in enumerate(sets):
        for module, weight in _weights(component, name, one.routes).items():
            weights.setdefault(module, [None] * len(sets))[index] = weight
    rows = [one.rows for one in sets]
    with ExitStack() as restore:
        for module, own in weights.items():
            assert "forward" not in module.__dict__, "patched_rows is open already, or patched is"
            restore.callback(module.__dict__.pop, "forward")
            module.forward = _RowForward(module, rows, own)
        yield


class _RowForward:
    """A layer's forward that runs each set of rows with its own weight."""

    def __init__(self, module: nn.Module, rows: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
        original = module._parameters["weight"]
        assert original is not None
        self.module = module
        self.rows = [each.to(original.device) for each in rows]
        self.weights = [original if weight is None else weight for weight in weights]
        self.num_rows = sum(len(each) for each in rows)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) != self.num_rows:
            raise ValueError(f"Adapters were given for {self.num_rows} rows and the model's batch has {len(x)}.")
        if len(self.weights) == 1:
            return run_with(self.module, self.weights[0], x)
        output: Tensor | None = None
        for rows, weight in zip(self.rows, self.weights, strict=True):
            part = run_with(self.module, weight, x.index_select(0, rows))
            if output is None:
                output = part.new_empty((len(x), *part.shape[1:]))
            output.index_copy_(0, rows, part)
        assert output is not None
        return output


@torch.no_grad()
def _weights(component: nn.Module, name: str, routes: Sequence[Route]) -> dict[nn.Module, Tensor]:
    """weight + Σ strength · ΔW of each layer that the routes change, in their order."""
    found: dict[nn.Module, Tensor] = {}
    for route in routes:
        strength = float(route.strength)
        for path, patch in route.adapter.patches.items():
            if path.component == name and strength != 0.0:
                module = module_at(component, path, route.adapter.info.name)
                weight = found.get(module, module._parameters["weight"])
                assert weight is not None
                found[module] = weight + strength * change_of(patch, module, path, route.adapter.info.name).to(weight)
    return found


def _is_plain(module: nn.Module) -> bool:
    """A layer of torch's own in float32 that nothing else has changed: rounding the sum once more changes no picture."""
    weight = module._parameters["weight"]
    is_float32 = isinstance(weight, Tensor) and weight.dtype == torch.float32 and not weight.is_meta
    return is_float32 and "weight" not in module.__dict__ and getattr(module.forward, "__func__", None) in _OWN_FORWARDS
