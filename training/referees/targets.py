"""What a referee should say: a plan's scenes as arrays, and dense targets for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.assets.world import Scene
from studio.pipelines.scoring.network import RefereeConfig

UNKNOWN = -1


@dataclass(frozen=True)
class Targets:
    """The objects of some pictures, picture after picture, and what holds for whole pictures."""

    picture: Tensor  # [R] long, index of the object's picture
    boxes: Tensor  # [R, 4] fractions
    class_name: Tensor  # [R] long
    colour: Tensor  # [R] long, UNKNOWN for looks outside the palette
    pattern: Tensor  # [R] long
    individual: Tensor  # [R] long, UNKNOWN unless the object is one of the plan's individuals
    background: Tensor  # [N] long
    style: Tensor  # [N] long


def make_targets(scenes: Sequence[Scene], individuals: Sequence[int], config: RefereeConfig) -> Targets:
    """Targets of scenes; `individuals` has the number of each scene's first object, or UNKNOWN."""
    rows: list[list[int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for index, (scene, individual) in enumerate(zip(scenes, individuals, strict=True)):
        for place, thing in enumerate(scene.objects):
            colour = UNKNOWN if thing.look is not None or thing.colour is None else config.colours.index(thing.colour)
            number = individual if place == 0 else UNKNOWN
            rows.append([index, config.classes.index(thing.class_name), colour, config.patterns.index(thing.pattern), number])
            boxes.append(thing.box)
    picture, class_name, colours, pattern, individual_of = torch.tensor(rows, dtype=torch.long).unbind(dim=1)
    return Targets(
        picture,
        torch.tensor(boxes, dtype=torch.float32),
        class_name,
        colours,
        pattern,
        individual_of,
        torch.tensor([config.backgrounds.index(scene.background) for scene in scenes]),
        torch.tensor([config.styles.index(scene.style) for scene in scenes]),
    )


def heat_target(targets: Targets, num_pictures: int, num_classes: int, grid: int) -> Tensor:
    """Gaussian bumps at the centres, 1 at the centre's own cell (CenterNet, Zhou et al. 2019, eq. 1), `[N, K, G, G]`."""
    heat = torch.zeros(num_pictures, num_classes, grid, grid)
    cells = torch.arange(grid, dtype=torch.float32)
    centre = ((targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2 * grid).floor().clamp(0, grid - 1)
    sigma = ((targets.boxes[:, 2:] - targets.boxes[:, :2]) * grid * 0.14).clamp(min=0.6)
    x = torch.exp(-((cells - centre[:, :1]) ** 2) / (2 * sigma[:, :1] ** 2))
    y = torch.exp(-((cells - centre[:, 1:]) ** 2) / (2 * sigma[:, 1:] ** 2))
    bumps = y[:, :, None] * x[:, None, :]
    for row, (picture, name) in enumerate(zip(targets.picture.tolist(), targets.class_name.tolist(), strict=True)):
        heat[picture, name] = torch.maximum(heat[picture, name], bumps[row])
    return heat


def box_targets(targets: Targets, num_pictures: int, grid: int, core: float = 0.5) -> tuple[Tensor, Tensor]:
    """Which box each cell answers for: boxes `[N, G, G, 4]` and whether the cell lies in a box's core `[N, G, G]`.

    The core is the middle `core` of the box, and at least the cell that holds its centre; the smaller box wins.
    """
    boxes, inside = torch.zeros(num_pictures, grid, grid, 4), torch.zeros(num_pictures, grid, grid, dtype=torch.bool)
    cells = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
    centre, half = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2, (targets.boxes[:, 2:] - targets.boxes[:, :2]) / 2
    reach = (half * core).clamp(min=0.5 / grid)
    in_x = (cells - centre[:, :1]).abs() <= reach[:, :1]
    in_y = (cells - centre[:, 1:]).abs() <= reach[:, 1:]
    order = half.prod(dim=1).argsort(descending=True)
    for row in order.tolist():
        picture = int(targets.picture[row])
        core_cells = in_y[row][:, None] & in_x[row][None, :]
        boxes[picture][core_cells] = targets.boxes[row]
        inside[picture] |= core_cells
    return boxes, inside


def jitter(boxes: Tensor, rng: np.random.Generator, amount: float = 0.07) -> Tensor:
    """Boxes as a detector would place them: every side moved by a random share of the box's size."""
    size: NDArray[np.float32] = np.tile((boxes[:, 2:] - boxes[:, :2]).numpy(), (1, 2))
    moved = boxes.numpy() + size * np.clip(rng.standard_normal(size.shape), -2, 2) * amount / 2
    return torch.from_numpy(moved.astype(np.float32))
