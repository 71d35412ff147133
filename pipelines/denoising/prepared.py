"""What is made of a batch of branches once, and used at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.pipelines.adapters import Route
from studio.pipelines.adapters.patching import ResolvedRoutes
from studio.pipelines.adapters.projections import project
from studio.pipelines.adapters.routing import LeftOut
from studio.pipelines.denoising.acceleration import Recording
from studio.pipelines.denoising.attention.backend import check_attention, has_plain_attention
from studio.pipelines.denoising.attention.control import AttentionControl
from studio.pipelines.denoising.attention.layers import attention_layers
from studio.pipelines.denoising.attention.text_cache import cache_of
from studio.pipelines.denoising.batching import areas_of, on_rows, other_part, text_part
from studio.pipelines.denoising.denoiser import Denoiser
from studio.pipelines.denoising.request import Branch
from studio.pipelines.encoding import TextCondition


class PreparedPass:
    """A batch of branches that agree in their masks, ready to run.

    Attributes:
        condition: text of all rows. block_texts: stack -> text of all rows.
        routes: what acts in the denoiser, bound; None for nothing.
        control: what its attention does. recording: the pass as a CUDA graph, where these are used.
    """

    def __init__(
        self, denoiser: Denoiser, branches: Sequence[Branch], num_pictures: int, size: tuple[int, int], *, keeps_text: bool
    ) -> None:
        self.branches = tuple(branches)  # held, so that nothing else gets the identity of their parts
        self.condition = TextCondition.cat([branch.condition for branch in branches])
        self.block_texts = _block_texts(branches)
        self._areas = [areas_of(branch) for branch in branches]
        self._num_pictures = num_pictures
        everywhere = self._joined([[route for route in branch.routes if route.mask is None] for branch in branches])
        by_area = [self._joined([areas[index].routes for areas in self._areas]) for index in range(len(self._areas[0]))]
        masks = _sharing([area.mask for area in self._areas[0]], len(self.branches[0].regions))
        placed = [
            replace(route, adapter=other_part(route.adapter), mask=mask)
            for mask, routes in zip(masks, by_area, strict=True)
            for route in routes
        ]
        components = denoiser.components()
        self.routes = ResolvedRoutes(components, [*everywhere, *placed]) if everywhere or placed else None
        self.recording = Recording()
        self._with_text = [index for index, area in enumerate(self._areas[0]) if area.has_text]
        network = {denoiser.network_name: denoiser.network}
        self._text_routes = [
            ResolvedRoutes(network, [replace(route, adapter=text_part(route.adapter)) for route in by_area[index]])
            for index in self._with_text
        ]
        self.control = AttentionControl(
            size,
            text={} if keeps_text else None,
            region_masks=tuple(masks[index] for index in self._with_text),
            isolation=branches[0].isolation,
            isolation_masks=tuple(masks),
            cache=cache_of(denoiser.network) if keeps_text else None,
        )

    def report(self) -> tuple[LeftOut, ...]:
        """Patches that do not act, and why."""
        resolved = [*([self.routes] if self.routes is not None else []), *self._text_routes]
        return tuple(dict.fromkeys(line for each in resolved for line in each.router.report()))

    @torch.no_grad()
    def fill_region_text(self, unet: Any) -> None:
        """Compute the regions' keys and values in every layer, with their own adapters, unless they are there.

        Adapters that act everywhere must be open.
        """
        if not self._with_text or (self.control.region_text and self.control.text is not None):
            return
        check_attention(unet, "Words of their own for regions need")
        layers = [layer for layer in attention_layers(unet) if layer.kind == "cross"]
        self.control.region_text = {layer.name: [] for layer in layers}
        for index, routes in zip(self._with_text, self._text_routes, strict=True):
            with routes.open():
                for layer in layers:
                    module: Any = unet.get_submodule(layer.name)
                    text = self._text_of(index, layer.stack).to(module.to_k.weight)
                    key, value = project(module, ("to_k", "to_v"), text)
                    self.control.region_text[layer.name].append((key, value))

    @torch.no_grad()
    def fill_text(self, unet: Any) -> None:
        """Compute keys and values of the pass's text in every layer, unless they are there: compiled blocks shall find them.

        Adapters that act everywhere must be open.
        """
        known = self.control.text
        if known is None or known:
            return
        for layer in attention_layers(unet):
            module: Any = unet.get_submodule(layer.name)
            if layer.kind == "cross" and has_plain_attention(module):
                text = self.block_texts.get(layer.stack, self.condition.prompt_embeds).to(module.to_k.weight)
                known[layer.name] = self.control.kept_text(module, layer.name, text)

    def _text_of(self, area: int, stack: str) -> Tensor:
        """What the places of an area read, all rows: its own words, or the pass's in this stack."""
        found = []
        for branch, areas in zip(self.branches, self._areas, strict=True):
            own = areas[area].condition
            found.append(branch.block_conditions.get(stack, branch.condition) if own is None else own)
        return TextCondition.cat(found).prompt_embeds

    def _joined(self, routes: Sequence[Sequence[Route]]) -> list[Route]:
        """The branches' routes as routes of the whole batch."""
        count = len(routes)
        first = [_key(route) for route in routes[0]]
        if all([_key(route) for route in each] == first for each in routes):
            return [on_rows(route, 0, count, self._num_pictures, for_all=True) for route in routes[0]]
        return [
            on_rows(route, index, count, self._num_pictures, for_all=False) for index, each in enumerate(routes) for route in each
        ]


def _key(route: Route) -> tuple[Any, ...]:
    strength = id(route.strength) if isinstance(route.strength, Tensor) else route.strength
    return (id(route.adapter), strength, id(route.rows))


def _sharing(masks: Sequence[Tensor], num_regions: int) -> list[Tensor]:
    """The masks; those of written regions made to share where they overlap, so that they sum to one at the most."""
    regions = list(masks[:num_regions])
    if len(regions) > 1:
        if len({mask.shape for mask in regions}) > 1:
            raise ValueError(f"Masks of regions have one size; got {[list(mask.shape) for mask in regions]}.")
        total = torch.stack([mask.float() for mask in regions]).sum(dim=0)
        if bool((total > 1.0).any()):
            regions = [mask / total.clamp(min=1.0) for mask in regions]
    return [*regions, *masks[num_regions:]]


def _block_texts(branches: Sequence[Branch]) -> dict[str, Tensor]:
    """Attention stack -> its text for all rows of `branches`; branches that give it none keep their own."""
    stacks = dict.fromkeys(stack for branch in branches for stack in branch.block_conditions)
    return {
        stack: torch.cat([branch.block_conditions.get(stack, branch.condition).prompt_embeds for branch in branches])
        for stack in stacks
    }
