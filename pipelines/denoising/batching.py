"""Which branches of a step run as one batch, and with which routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.adapters.patching import acts_per_position, module_at
from studio.pipelines.denoising.attention.layers import AttentionLayer
from studio.pipelines.denoising.request import Branch
from studio.pipelines.encoding import TextCondition
from studio.pipelines.families import module_axis


@dataclass(frozen=True, eq=False)
class Area:
    """A region of a branch, as written, or as the mask of one of its routes.

    Attributes:
        mask: `[H, W]`. condition: words of its own, or None. routes: without masks.
    """

    mask: Tensor
    condition: TextCondition | None
    routes: tuple[Route, ...]

    @property
    def has_text(self) -> bool:
        """Whether keys and values are its own: by its words, or by an adapter that changes them."""
        return self.condition is not None or any(text_part(route.adapter).patches for route in self.routes)


def areas_of(branch: Branch) -> tuple[Area, ...]:
    """The branch's regions, and one for each mask that a route of its own has; routes with one mask object share it."""
    found = [Area(region.mask, region.condition, tuple(region.routes)) for region in branch.regions]
    masks = {id(route.mask): route.mask for route in branch.routes if route.mask is not None}
    for mask in masks.values():
        found.append(Area(mask, None, tuple(replace(route, mask=None) for route in branch.routes if route.mask is mask)))
    return tuple(found)


def identity(branch: Branch) -> tuple[Any, ...]:
    """What two branches have in common that differ in nothing but what is done with them."""
    return (id(branch.condition), *routes_identity(branch), *((name, id(text)) for name, text in branch.block_conditions.items()))


def routes_identity(branch: Branch) -> tuple[Any, ...]:
    """The same for what acts: adapters, regions, isolation."""
    routes = tuple(id(route) for route in branch.routes)
    regions = tuple((id(region.mask), id(region.condition), *(id(route) for route in region.routes)) for region in branch.regions)
    return (routes, regions, branch.isolation)


def group_branches(
    branches: Sequence[Branch],
    is_cached: Sequence[bool],
    components: Mapping[str, nn.Module],
    max_rows: int,
    num_pictures: int,
    most_rows: int | None = None,
) -> list[list[int]]:
    """Neighbouring branches that run together, by index.

    Those with the same routes do, up to `most_rows` rows in all. Those with different adapters do up to `max_rows`, if every
    patch of theirs can act on single rows.
    """
    groups: list[list[int]] = []
    for index, branch in enumerate(branches):
        if groups:
            first = branches[groups[-1][0]]
            shape = _shape(branch, is_cached[index]) == _shape(first, is_cached[groups[-1][0]])
            same = _acting(branch) == _acting(first)
            rows = (len(groups[-1]) + 1) * num_pictures
            fits = most_rows is None or rows <= most_rows
            mixes = rows <= max_rows
            if shape and fits and (same or (mixes and all(_acts_on_rows(branches[i], components) for i in (*groups[-1], index)))):
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def with_fewer_captured(branch: Branch, share: float) -> Branch:
    """The branch with a share of its captured layers, spread evenly over each kind and level, at least one of each."""
    if branch.capture is None:
        return branch
    kept: list[AttentionLayer] = []
    kinds = dict.fromkeys((layer.kind, layer.level) for layer in branch.capture.layers)
    for kind in kinds:
        layers = [layer for layer in branch.capture.layers if (layer.kind, layer.level) == kind]
        count = max(1, round(share * len(layers)))
        kept += [layers[(2 * index + 1) * len(layers) // (2 * count)] for index in range(count)]
    return replace(branch, capture=replace(branch.capture, layers=tuple(kept)))


def _shape(branch: Branch, is_cached: bool) -> tuple[Any, ...]:
    """What must be equal for one batch: the masks, which of them have text, who sees whom, where a feature enters."""
    masks = tuple((id(area.mask), area.has_text) for area in areas_of(branch))
    depth = None if branch.features is None else branch.features.depth
    return (masks, branch.isolation, depth, is_cached)


def _acting(branch: Branch) -> tuple[Any, ...]:
    return (
        tuple(id(route) for route in branch.routes),
        tuple(tuple(id(route) for route in region.routes) for region in branch.regions),
    )


def _acts_on_rows(branch: Branch, components: Mapping[str, nn.Module]) -> bool:
    routes = [*branch.routes, *(route for region in branch.regions for route in region.routes)]
    return all(
        acts_per_position(patch, module_at(components[path.component], path, route.adapter.info.name), path)
        for route in routes
        for path, patch in route.adapter.patches.items()
        if path.component in components
    )


def on_rows(route: Route, index: int, count: int, num_pictures: int, *, for_all: bool) -> Route:
    """A route of one branch of `count`, each of `num_pictures` rows, as a route of the whole batch.

    Args:
        for_all: all branches have it, so that it acts on all rows that it names in one.
    """
    if for_all:
        rows = None if route.rows is None else route.rows.repeat(count)
        return replace(route, rows=rows, strength=_tiled(route.strength, count))
    rows = torch.zeros(count * num_pictures)
    own = slice(index * num_pictures, (index + 1) * num_pictures)
    rows[own] = 1.0 if route.rows is None else route.rows.to(rows)
    return replace(route, rows=rows, strength=_tiled(route.strength, count))


def _tiled(strength: float | Tensor, count: int) -> float | Tensor:
    return strength.repeat(count) if isinstance(strength, Tensor) and strength.ndim == 1 else strength


def text_part(adapter: Adapter) -> Adapter:
    """What of the adapter changes keys and values of words."""
    return _part(adapter, is_text=True)


def other_part(adapter: Adapter) -> Adapter:
    """The rest of it."""
    return _part(adapter, is_text=False)


def _part(adapter: Adapter, *, is_text: bool) -> Adapter:
    chosen = {
        path: patch
        for path, patch in adapter.patches.items()
        if (path.component == "unet" and path.parameter == "weight" and module_axis(path.module) == "text") is is_text
    }
    return replace(adapter, patches=chosen)
