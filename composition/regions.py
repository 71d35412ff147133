"""Where on the canvas each adapter acts: boxes and masks, soft edges, and who is in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.composition.plan import CompositionPlan, Region
from studio.composition.plan_checks import in_order, overlap_sentence
from studio.pipelines.errors import ImageError, MissingFileError, UserError

MAX_ASPECT_ERROR = 0.03


def region_masks(plan: CompositionPlan, height: int, width: int, find_mask: Callable[[str], Path] = Path) -> list[Tensor | None]:
    """A mask `[height, width]` in 0..1 per entry of the plan, None for those that act everywhere.

    Regions behind others are cut out where these are: m_n ← m_n · Π (1 − m_front).

    Args:
        height, width: of the canvas, in pixels.
        find_mask: turns the name of a mask's file, as the plan has it, into a path.

    Raises:
        UserError: a mask is empty or of another aspect than the canvas, or regions overlap without an order or hide each other.
    """
    regions = [entry.region for entry in plan.entries]
    masks = [
        None if region is None else _mask(region, height, width, find_mask, plan.title_of(index))
        for index, region in enumerate(regions)
    ]
    _check_overlaps(plan, masks)
    cut = list(masks)
    for index, (region, mask) in enumerate(zip(regions, masks, strict=True)):
        for number, (other, front) in enumerate(zip(regions, masks, strict=True)):
            if region is None or mask is None or other is None or front is None or other is region:
                continue
            if in_order(region, other) and (other.z or 0) > (region.z or 0):
                present = cut[index]
                assert present is not None
                seen = present * (1 - front)
                if not bool((seen > 0).any()):
                    raise UserError(
                        f"{plan.title_of(index)}: its region lies wholly behind that of {plan.title_of(number)}, so nothing of "
                        "it would be seen; move it, or give it the higher z."
                    )
                cut[index] = seen
    return cut


def box_mask(box: tuple[float, float, float, float], height: int, width: int, soft_edge: float = 0.0) -> Tensor:
    """The share of each pixel that lies in the box, `[height, width]`; exactly 0 outside and 1 well inside.

    Args:
        box: left, top, right, bottom as fractions of the canvas.
        soft_edge: over this fraction of the canvas's shorter side it rises from 0 at the edge to 1 inside; edges on the
            canvas's own border stay hard.
    """
    left, top, right, bottom = box
    edge = soft_edge * min(height, width)
    return torch.outer(_profile(top * height, bottom * height, height, edge), _profile(left * width, right * width, width, edge))


def _profile(first: float, last: float, length: int, edge: float) -> Tensor:
    """Along one axis: the share of each pixel between `first` and `last`, times the ramps."""
    starts = torch.arange(length, dtype=torch.float64)
    covered = (torch.clamp(starts + 1, max=last) - torch.clamp(starts, min=first)).clamp(0, 1)
    if edge > 0:
        centres = starts + 0.5
        if first > 0:
            covered = covered * ((centres - first) / edge).clamp(0, 1)
        if last < length:
            covered = covered * ((last - centres) / edge).clamp(0, 1)
    return covered.float()


def _mask(region: Region, height: int, width: int, find_mask: Callable[[str], Path], title: str) -> Tensor:
    if region.box is not None:
        mask = box_mask(region.box, height, width, region.soft_edge)
    else:
        assert region.mask is not None
        mask = _picture_mask(find_mask(region.mask), height, width, title)
        if region.soft_edge > 0:
            mask = _softened(mask, region.soft_edge * min(height, width))
    if not bool((mask > 0).any()):
        raise UserError(f"{title}: its region has no pixel on a canvas of {width}×{height}; make it larger.")
    return mask


def _picture_mask(path: Path, height: int, width: int, title: str) -> Tensor:
    if not path.is_file():
        raise MissingFileError(f"{title}: there is no mask {path}.")
    try:
        with Image.open(path) as image:
            if abs(image.width / image.height / (width / height) - 1) > MAX_ASPECT_ERROR:
                raise UserError(
                    f"{title}: its mask {path.name} is {image.width}×{image.height}, and the canvas {width}×{height}; a mask "
                    "has the canvas's aspect."
                )
            grey = image.convert("L").resize((width, height), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{title}: its mask {path} is not a readable picture.") from error
    return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)


def _softened(mask: Tensor, edge: float) -> Tensor:
    """A mask that fades towards its inner edge and is nowhere more than it was."""
    reach = max(1, round(edge))
    kernel = 2 * reach + 1
    padded = F.pad(mask[None, None], (reach,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, kernel, stride=1)[0, 0]
    return torch.minimum(mask, (2 * mean - 1).clamp(0, 1))  # at a straight edge the mean is one half


def _check_overlaps(plan: CompositionPlan, masks: Sequence[Tensor | None]) -> None:
    """Boxes were checked with the plan; what masks cover is only known here."""
    for later, second in enumerate(masks):
        for earlier, first in enumerate(masks[:later]):
            regions = plan.entries[earlier].region, plan.entries[later].region
            if first is None or second is None or regions[0] is None or regions[1] is None or in_order(regions[0], regions[1]):
                continue
            if any(region.mask is not None for region in regions if region is not None) and bool((first * second > 0.5).any()):
                text = overlap_sentence(plan.title_of(earlier), plan.title_of(later))
                raise UserError(text[0].upper() + text[1:])
