"""Random scenes and layouts, and scenes made from words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from studio.assets.world.individuals import random_extras, random_look
from studio.assets.world.scene import Box, Scene, SceneObject
from studio.assets.world.shapes_things import shape
from studio.assets.world.vocabulary import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, RELATIONS, STYLES

COUNT_SHARES: tuple[float, ...] = (0.35, 0.50, 0.10, 0.05)
MIN_WIDTH: dict[int, float] = {1: 30.5 / 96, 2: 28.5 / 96, 3: 24.5 / 96, 4: 24.5 / 96}
PATTERN_SHARES: tuple[float, ...] = (0.40, 0.15, 0.15, 0.15, 0.15)


def pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    """One item at random."""
    return items[int(rng.integers(len(items)))]


def fit(class_name: str, region: Box, low: float, high: float, rng: np.random.Generator) -> Box:
    """A random box for a class inside a region, its width between low and high."""
    rw, rh = region[2] - region[0], region[3] - region[1]
    aspect = shape(class_name).aspect * rng.uniform(0.94, 1.06)
    top = max(min(rw, rh * aspect, high), low)
    width = rng.uniform(min(max(low, 0.0), top), top)
    height = min(width / aspect, rh)
    x = region[0] + rng.uniform(0, max(rw - width, 0))
    y = region[1] + rng.uniform(0, max(rh - height, 0))
    return (round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4))


def layout(names: Sequence[str], rng: np.random.Generator, relation: str | None = None
           ) -> list[Box]:
    """Boxes for objects; for a pair, the first stands in `relation` to the second."""
    n = len(names)
    if n == 1:
        low, high = (0.50, 0.80) if rng.random() < 0.85 else (0.34, 0.50)
        region = (0.03, 0.03, 0.97, 0.97)
        limit = 0.92 * shape(names[0]).aspect
        return [fit(names[0], region, min(low, limit), high, rng)]
    if n == 2:
        relation = relation or pick(rng, ("left of", "right of", "left of", "right of",
                                          "above", "below"))
        cut = rng.uniform(0.46, 0.54)
        if relation in ("left of", "right of"):
            regions: list[Box] = [(0.02, 0.05, cut - 0.005, 0.95), (cut + 0.005, 0.05, 0.98, 0.95)]
            boxes = [fit(name, r, 0.34, 0.48, rng) for name, r in zip(
                names if relation == "left of" else tuple(names)[::-1], regions, strict=True)]
            # keep the heights close, so that the relation is the horizontal one
            mid = (boxes[0][1] + boxes[0][3]) / 2
            half = (boxes[1][3] - boxes[1][1]) / 2
            room = (half + 0.03, 0.97 - half)
            y = float(np.clip(mid + rng.uniform(-0.22, 0.22), *room)) - half
            boxes[1] = (boxes[1][0], round(y, 4), boxes[1][2], round(y + 2 * half, 4))
        else:
            regions = [(0.12, 0.015, 0.88, cut - 0.005), (0.12, cut + 0.005, 0.88, 0.985)]
            boxes = [fit(name, r, 0.34, 0.60, rng) for name, r in zip(
                names if relation == "above" else tuple(names)[::-1], regions, strict=True)]
        if relation in ("right of", "below"):
            boxes.reverse()
        return boxes
    if n not in (3, 4):
        raise ValueError(f"a scene holds one to four objects, not {n}")
    centres = (0.19, 0.5, 0.81) if n == 3 else (0.18, 0.40, 0.60, 0.82)
    widest = 0.34
    start = int(rng.integers(2))
    row = n == 3 and rng.random() < 0.4
    boxes = []
    for i, (name, centre) in enumerate(zip(names, centres, strict=True)):
        half = 0.158 if row else widest / 2
        upper = (i + start) % 2 == 0
        ys = (0.2, 0.8) if row else ((0.015, 0.495) if upper else (0.505, 0.985))
        region = (centre - half, ys[0], centre + half, ys[1])
        boxes.append(fit(name, region, MIN_WIDTH[n] + 0.015, 2 * half, rng))
    return boxes


def random_scene(
    rng: np.random.Generator, *, num_objects: int | None = None, background: str | None = None,
    style: str | None = None, class_names: Sequence[str] | None = None,
    look_share: float = 0.12, extra_share: float = 0.12, same_class_share: float = 0.18,
) -> Scene:
    """A random scene; whatever is given is kept, the rest is drawn."""
    known = tuple(class_names) if class_names else CLASSES
    if num_objects is None:
        num_objects = 1 + int(rng.choice(4, p=COUNT_SHARES))
    names = [pick(rng, known) for _ in range(num_objects)]
    if num_objects == 2 and rng.random() < same_class_share:
        names[1] = names[0]
    boxes = layout(names, rng)
    objects: list[SceneObject] = []
    for name, box in zip(names, boxes, strict=True):
        colour: str | None = pick(rng, COLOURS)
        if objects and rng.random() < 0.75:  # usually different colours: they teach binding
            while any(o.colour == colour for o in objects):
                colour = pick(rng, COLOURS)
        pattern = PATTERNS[int(rng.choice(5, p=PATTERN_SHARES))]
        look = None
        if rng.random() < look_share:
            look = random_look(rng)
            colour, pattern = None, look.pattern
        extras = random_extras(rng, name) if rng.random() < extra_share else ()
        objects.append(SceneObject(name, colour, pattern, box, look, extras,
                                   bool(rng.random() < 0.5)))
    return Scene(background or pick(rng, BACKGROUNDS), style or pick(rng, STYLES),
                 tuple(objects), int(rng.integers(2**31)))


def scene_from_words(
    class_name: str, colour: str = "red", pattern: str = "plain", background: str = "white",
    style: str = "flat", *, other: SceneObject | tuple[str, str] | tuple[str, str, str] | None = None,
    relation: str | None = None, rng: np.random.Generator | None = None,
) -> Scene:
    """The scene a fixed prompt describes, with one object or two.

    `other` is an object, or its (class, colour[, pattern]); the first object
    stands in `relation` to it. Without an rng the layout is always the same.
    """
    rng = rng or np.random.default_rng(0)
    first = SceneObject(class_name, colour, pattern, (0.0, 0.0, 1.0, 1.0))
    if isinstance(other, tuple):
        other = SceneObject(other[0], other[1], other[2] if len(other) > 2 else "plain",
                            first.box)
    return arrange(first, other, relation, background, style, rng)


def arrange(first: SceneObject, other: SceneObject | None, relation: str | None,
            background: str, style: str, rng: np.random.Generator) -> Scene:
    """Give one object or two new boxes in a scene."""
    if relation is not None and relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    objects = [first] if other is None else [first, other]
    boxes = layout([o.class_name for o in objects], rng, relation)
    placed = tuple(replace(o, box=b) for o, b in zip(objects, boxes, strict=True))
    return Scene(background, style, placed, int(rng.integers(2**31)))


