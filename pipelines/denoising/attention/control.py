"""What the attention layers of one pass shall do, and the block in which they do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from studio.kernels.region_attention import RegionPlan
from studio.pipelines.adapters.projections import project
from studio.pipelines.adapters.traced import is_compiled
from studio.pipelines.denoising.attention.backend import check_attention, has_plain_attention
from studio.pipelines.denoising.attention.capture import AttentionMaps, Capture
from studio.pipelines.denoising.attention.choice import attend_of
from studio.pipelines.denoising.attention.layers import AttentionLayer, attention_layers
from studio.pipelines.denoising.attention.regions import Isolation, owners, shares
from studio.pipelines.denoising.attention.text_cache import TextCache, hash_of, text_key

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of a text in one layer, `[B, T, C]` each."""


@dataclass(eq=False)
class AttentionControl:
    """State of one kind of pass, kept for a whole generation.

    Attributes:
        size: of the latents, (height, width).
        text: layer -> keys and values of the pass's text, filled at the first pass and read at all later ones; None to
            compute them every time.
        region_masks: of the regions that have words (or keys and values) of their own; region_text: these, by layer.
        isolation: who sees whom, and isolation_masks: the regions that it is about.
        cache: keys and values of earlier generations.
    """

    size: tuple[int, int]
    text: dict[str, KeyValue] | None = None
    region_masks: tuple[Tensor, ...] = ()
    region_text: dict[str, list[KeyValue]] = field(default_factory=dict)
    isolation: Isolation | None = None
    isolation_masks: tuple[Tensor, ...] = ()
    cache: TextCache | None = None

    def __post_init__(self) -> None:
        self._shares: dict[tuple[int, int], list[tuple[Tensor, Tensor] | None]] = {}
        self._views: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._cells: dict[tuple[int, int], list[tuple[Tensor, Tensor] | None]] = {}
        self._hashed: tuple[Tensor, str] | None = None
        self._plans: dict[tuple[int, int], RegionPlan] = {}

    def kept_text(self, attention: Any, layer: str, text: Tensor) -> KeyValue:
        """Keys and values of one layer, from an earlier generation where they are the same."""
        if self._hashed is None or self._hashed[0] is not text:
            self._hashed = (text, "" if self.cache is None or text.is_meta else hash_of(text))
        key = text_key(attention, layer, self._hashed[1]) if self.cache is not None and self._hashed[1] else None
        found = None if self.cache is None or key is None else self.cache.get(key)
        if found is None:
            keys, values = project(attention, ("to_k", "to_v"), text)
            found = (keys.detach(), values.detach())
            if self.cache is not None and key is not None:
                self.cache.put(key, found)
        return found

    def places(self, grid: tuple[int, int], device: torch.device) -> list[tuple[Tensor, Tensor] | None]:
        """For the pass's text and then each region: the positions that read it, `[n]`, and how much of it, `[n, 1]`."""
        if grid not in self._shares:
            parts = shares(self.region_masks, *grid).flatten(1)
            found = [part.nonzero().flatten() for part in parts]
            self._shares[grid] = [
                (at.to(device), part[at][:, None].to(device)) if len(at) else None for at, part in zip(found, parts, strict=True)
            ]
        return self._shares[grid]

    def cells(self, grid: tuple[int, int], device: torch.device) -> list[tuple[Tensor, Tensor] | None]:
        """For the background and each region: which cells are its own, and which it sees, bool `[h, w]`; None if it has none."""
        if grid not in self._cells:
            self._cells[grid] = [
                (own.to(device), seen.to(device)) if own.any() else None for own, seen in self._found_cells(grid)
            ]
        return self._cells[grid]

    def views(self, grid: tuple[int, int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """The same for those that have cells, as positions: its own `[n]`, and those that it sees `[m]`."""
        if grid not in self._views:
            self._views[grid] = [
                (own.flatten().nonzero().flatten().to(device), seen.flatten().nonzero().flatten().to(device))
                for own, seen in self._found_cells(grid)
                if own.any()
            ]
        return self._views[grid]

    def plan(self, grid: tuple[int, int], device: torch.device) -> RegionPlan:
        """The same as an order of the positions in which what is seen stands together."""
        if grid not in self._plans:
            assert self.isolation is not None
            # Where the masks are: the denoiser's device may be one without numbers.
            owner = owners(self.isolation_masks, *grid).flatten().cpu()
            plan = RegionPlan.make(owner, self.isolation.sees(len(self.isolation_masks)))
            moved = {name: getattr(plan, name).to(device) for name in ("order", "inverse", "owner")}
            self._plans[grid] = replace(plan, **moved)
        return self._plans[grid]

    def _found_cells(self, grid: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Where the masks are, which may be another device than the denoiser's."""
        assert self.isolation is not None
        owner = owners(self.isolation_masks, *grid)
        sees = self.isolation.sees(len(self.isolation_masks)).to(owner.device)
        return [(owner == index, sees[index][owner]) for index in range(len(sees))]

    def allowed(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Which position sees which, bool `[Q, Q]`; None if each sees all."""
        if self.isolation is None:
            return None
        allowed = torch.zeros(grid[0] * grid[1], grid[0] * grid[1], dtype=torch.bool, device=device)
        for places, seen in self.views(grid, device):
            allowed[places[:, None], seen[None, :]] = True
        return allowed


@dataclass(eq=False)
class Captured:
    """What the layers of a running pass write down for one capture."""

    capture: Capture
    rows: slice
    words: dict[str, Tensor] = field(default_factory=dict)
    regions: list[dict[str, Tensor]] = field(default_factory=list)
    places: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.regions = [{} for _ in self.capture.region_columns]
        self.names = {layer.name for layer in self.capture.layers}

    def maps(self) -> AttentionMaps:
        """The maps of these rows."""
        return AttentionMaps(self.words, tuple(self.regions), self.places)


@contextmanager
def attention_control(unet: Any, control: AttentionControl, captures: Sequence[Captured] = ()) -> Iterator[None]:
    """Inside the block the UNet's attention does what `control` says, and writes down what `captures` ask for.

    Only layers that have something to do are changed. Afterwards, also after an exception, each computes as before.

    Raises:
        BaseModelError: the attention's backend can do neither maps nor regions.
    """
    from studio.pipelines.denoising.attention.processors import CrossAttention, KnownText, SelfAttention

    if control.region_masks:
        check_attention(unet, "Words of their own for regions need")
    if control.isolation is not None:
        check_attention(unet, "Regions that do not see each other need")
    if captures:
        check_attention(unet, "Attention maps need")
    compiled = is_compiled(unet)
    with ExitStack() as restore:
        for layer in attention_layers(unet):
            wanted = [captured for captured in captures if layer.name in captured.names]
            is_changed = _is_changed(layer, control) or bool(wanted)
            module: Any = unet.get_submodule(layer.name)
            if not is_changed or not has_plain_attention(module):
                continue
            restore.callback(setattr, module, "processor", module.processor)
            known = None if control.text is None or control.region_masks or wanted else control.text.get(layer.name)
            if layer.kind == "cross" and known is not None and compiled:
                module.processor = KnownText.of(module, known, attend_of(module))
                restore.callback(module.processor.forget)
                continue
            make = CrossAttention if layer.kind == "cross" else SelfAttention
            module.processor = make(layer, control, wanted, attend_of(module))
        yield


def _is_changed(layer: AttentionLayer, control: AttentionControl) -> bool:
    if layer.kind == "self":
        return control.isolation is not None
    return control.text is not None or bool(control.region_masks)
