"""From attention maps to masks and boxes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.composition.attention_losses import bounding_box
from studio.pipelines.adapters.routing import mask_on_grid

Cleaning = Literal["none", "dilate", "erode", "opening", "closing", "both"]


def threshold_mask(maps: Tensor, threshold: float) -> Tensor:
    """Where any of the maps `[B, S, h, w]` is above `threshold` times its own largest value: `[B, h, w]` of zeros and ones."""
    return (maps > threshold * maps.amax(dim=(-2, -1), keepdim=True)).any(dim=1).to(maps)


def cleaned(masks: Tensor, how: Cleaning) -> Tensor:
    """Masks `[B, h, w]` of zeros and ones after 3×3 morphology: opening takes specks away, closing fills holes."""
    steps: dict[Cleaning, str] = {
        "none": "",
        "dilate": "+",
        "erode": "-",
        "opening": "-+",
        "closing": "+-",
        "both": "-++-",
    }
    if how == "none":
        return masks
    margin = len(steps[how])  # beyond the canvas things go on as at its edge
    masks = F.pad(masks[:, None], (margin,) * 4, mode="replicate")
    for step in steps[how]:
        grown = F.max_pool2d(masks if step == "+" else -masks, 3, stride=1, padding=1)
        masks = grown if step == "+" else -grown
    return masks[:, 0, margin:-margin, margin:-margin]


def with_background(masks: Tensor) -> Tensor:
    """The background's mask, where no other is, before the others: `[N, B, h, w]` in 0..1 to `[1 + N, B, h, w]`."""
    return torch.cat([1.0 - masks.amax(dim=0, keepdim=True), masks])


def region_on_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """A region's mask `[H, W]` as zeros and ones on a coarser grid: the cells that lie in it by half, or else by most."""
    shares = mask_on_grid(mask, height, width)
    return (shares >= min(0.5, float(shares.max()))).to(shares)


def best_window(maps: Tensor, height: int, width: int) -> Tensor:
    """Top and left, int64 `[B, 2]`, of the window of `height`×`width` cells over which maps `[B, h, w]` sum to the most."""
    sums = F.avg_pool2d(maps[:, None].double(), (height, width), stride=1)[:, 0]
    flat = sums.flatten(1).argmax(dim=1)
    return torch.stack([flat // sums.shape[-1], flat % sums.shape[-1]], dim=1)


def largest_patch(mask: Tensor) -> Tensor:
    """The largest connected patch (by edges) of a mask `[h, w]`, bool; nothing if it is empty."""
    left = mask > 0
    best = torch.zeros_like(left)
    while bool(left.any()):
        patch = torch.zeros_like(left)
        patch.view(-1)[int(left.flatten().nonzero()[0])] = True
        while True:
            grown = F.max_pool2d(patch[None, None].float(), (3, 1), stride=1, padding=(1, 0))
            grown = torch.maximum(grown, F.max_pool2d(patch[None, None].float(), (1, 3), stride=1, padding=(0, 1)))
            wider = (grown[0, 0] > 0) & left
            if torch.equal(wider, patch):
                break
            patch = wider
        left &= ~patch
        best = patch if int(patch.sum()) > int(best.sum()) else best
    return best


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the box around a mask `[h, w]`, as fractions of the canvas."""
    top, bottom, left, right = bounding_box(mask)
    height, width = mask.shape
    return left / width, top / height, right / width, bottom / height
