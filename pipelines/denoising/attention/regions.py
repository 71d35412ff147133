"""Regions of the canvas: words and adapters of their own, and who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from studio.pipelines.adapters import Route
from studio.pipelines.adapters.routing import mask_on_grid
from studio.pipelines.encoding import TextCondition


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the canvas in one pass.

    Attributes:
        mask: `[H, W]` in 0..1, at any resolution with the canvas's aspect. Where masks overlap they share in proportion, and
            where they sum to less than one the pass's own text has the rest.
        condition: the text that its places read, one row per picture; None for the pass's own.
        routes: adapters that act in it, with the whole of what they change: layers with places act by the mask, keys and
            values of words act on this region's text, and what has neither is left out and reported. Their own `mask` is
            None; `rows` and strengths per row are per picture of the pass.
    """

    mask: Tensor
    condition: TextCondition | None = None
    routes: Sequence[Route] = ()

    def __post_init__(self) -> None:
        if self.mask.ndim != 2:
            raise ValueError(f"mask is [H, W]; got the shape {list(self.mask.shape)}.")
        if any(route.mask is not None for route in self.routes):
            raise ValueError("An adapter of a region acts by the region's mask; its route has none of its own.")


@dataclass(frozen=True)
class Isolation:
    """Which places may see which. A region always sees itself, and never another one.

    Attributes:
        regions_see_background: whether regions see the rest of the canvas.
        background_sees_regions: and the rest them. Both are true in LoRA-Composer (Yang et al. 2024, arXiv 2403.11627), where
            what one region holds reaches another by way of the background, a layer later.
        reach: "attention" isolates self-attention only, as that paper does. The denoiser's convolutions and group norms
            still mix neighbours and statistics; with "everything" they too compute from visible places alone, once for each
            region. Then no number of one region depends on another's adapter, if the regions' edges lie on the coarsest
            grid of the denoiser and the background does not see them.
    """

    regions_see_background: bool = True
    background_sees_regions: bool = True
    reach: Literal["attention", "everything"] = "attention"

    def sees(self, num_regions: int) -> Tensor:
        """Who sees whom, bool `[1 + R, 1 + R]`: row sees column; 0 is the background, then the regions in order."""
        sees = torch.eye(1 + num_regions, dtype=torch.bool)
        sees[1:, 0] = self.regions_see_background
        sees[0, 1:] = self.background_sees_regions
        return sees


STRICT = Isolation(background_sees_regions=False, reach="everything")
"""Nothing of one region reaches another."""


def shares(masks: Sequence[Tensor], height: int, width: int) -> Tensor:
    """How much of each cell is whose, `[1 + R, height, width]`, summing to one: the background first, then the regions."""
    parts = torch.stack([mask_on_grid(mask, height, width) for mask in masks])
    total = parts.sum(dim=0)
    parts = parts / total.clamp(min=1.0)
    return torch.cat([(1.0 - total).clamp(min=0.0)[None], parts])


def owners(masks: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Whose each cell is, int64 `[height, width]`: 0 for the background, or 1 + the region with the largest share."""
    return shares(masks, height, width).argmax(dim=0)
