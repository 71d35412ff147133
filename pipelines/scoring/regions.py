"""Boxes: overlap, the sampling of a region's features, and peaks of a heat map as detections."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes `[..., 4]` (x0, y0, x1, y1), broadcast over the leading dimensions."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    return overlap / (areas - overlap).clamp(min=1e-9)


def sample_regions(features: Tensor, picture: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Features of boxes on a regular grid, bilinear (RoIAlign of He et al. 2017 with one sample a cell).

    Args:
        features: `[N, C, H, W]`.
        picture: index of each box's picture, `[R]`, sorted or not.
        boxes: `[R, 4]` in fractions of the picture.
        size: cells a side.

    Returns:
        `[R, C, size, size]`; cells outside the picture repeat its border.
    """
    steps = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * steps  # [R, size]
    y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * steps
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1) * 2 - 1
    slot, num_slots = _slots(picture, features.shape[0])
    per_picture = grid.new_zeros(features.shape[0], num_slots, size, size, 2)
    per_picture[picture, slot] = grid
    sampled = F.grid_sample(features, per_picture.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    sampled = sampled.unflatten(2, (num_slots, size))  # [N, C, K, size, size]
    return sampled.transpose(1, 2)[picture, slot]


def _slots(picture: Tensor, num_pictures: int) -> tuple[Tensor, int]:
    """Number the boxes of each picture 0, 1, … in order: slot of each box `[R]` and the most boxes of a picture."""
    if picture.numel() == 0:
        return picture, 1
    same = F.one_hot(picture, num_pictures)
    slot = (same.cumsum(dim=0) - 1).gather(1, picture[:, None])[:, 0]
    return slot, int(slot.max()) + 1


def boxes_from_distances(distances: Tensor) -> Tensor:
    """Boxes in fractions from the distances of every cell's centre to the four sides.

    Args:
        distances: `[N, 4, G, G]`, left, top, right, bottom, in fractions of the picture (FCOS, Tian et al. 2019).

    Returns:
        `[N, G, G, 4]`.
    """
    grid = distances.shape[-1]
    centres = (torch.arange(grid, device=distances.device, dtype=distances.dtype) + 0.5) / grid
    x, y = centres[None, None, :], centres[None, :, None]
    left, top, right, bottom = distances.unbind(dim=1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def heat_peaks(heat: Tensor) -> Tensor:
    """Keep the local maxima of a heat map `[N, K, G, G]` (3x3 neighbourhood, all classes), zero elsewhere."""
    strongest = heat.amax(dim=1, keepdim=True)
    is_peak = F.max_pool2d(strongest, 3, stride=1, padding=1) == strongest
    return heat * is_peak


def suppress(scores: Tensor, boxes: Tensor, overlap: float) -> list[int]:
    """Non-maximum suppression: indices of the kept boxes, best first. `scores` `[R]`, `boxes` `[R, 4]`."""
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(float(box_iou(boxes[index], boxes[other])) < overlap for other in kept):
            kept.append(index)
    return kept
