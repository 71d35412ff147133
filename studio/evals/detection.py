"""Average precision of detections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from studio.pipelines.scoring.scorer import Box, Detection


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return overlap / (areas - overlap) if overlap > 0 else 0.0


def average_precision(
    truth: Sequence[Sequence[tuple[str, Box]]], found: Sequence[Sequence[Detection]], overlap: float = 0.5
) -> dict[str, float]:
    """Average precision of every class that occurs: area under the precision envelope over all recalls (VOC 2010).

    `truth[i]` are picture i's objects as (class, box), `found[i]` its detections. Each object is found at most once.
    """
    num_true: dict[str, int] = defaultdict(int)
    for things in truth:
        for name, _ in things:
            num_true[name] += 1
    hits: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for things, detections in zip(truth, found, strict=True):
        free = set(range(len(things)))
        for detection in sorted(detections, key=lambda thing: -thing.score):
            same = [index for index in free if things[index][0] == detection.class_name]
            best = max(same, key=lambda index: iou(things[index][1], detection.box), default=None)
            right = best is not None and iou(things[best][1], detection.box) >= overlap
            if right and best is not None:
                free.discard(best)
            hits[detection.class_name].append((detection.score, right))
    return {name: _area(hits[name], num) for name, num in sorted(num_true.items())}


def _area(hits: list[tuple[float, bool]], num_true: int) -> float:
    if not hits:
        return 0.0
    ordered = np.array([right for _, right in sorted(hits, key=lambda hit: -hit[0])], dtype=np.float64)
    num_right = ordered.cumsum()
    precision = num_right / np.arange(1, len(ordered) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * ordered).sum() / num_true)
